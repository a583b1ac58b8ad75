//! The first line on a child's control socket: what the child is, with its listening sockets and its node's instance.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::config::Common;

/// Fits into a new socket's buffer, so that it can be written before the child runs.
const HELLO_BYTES: usize = 96 << 10;
/// The kernel takes no more with one message.
const DESCRIPTORS: usize = 253;

/// What a child is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    pub(crate) kind: String,
    pub(crate) index: u32,
    pub(crate) children: u32,
    pub(crate) common: Common,
    /// See [`crate::running`].
    pub(crate) instance: String,
    pub(crate) config: serde_json::Value,
    /// The names of the sockets that come along, in their order.
    pub(crate) sockets: Vec<String>,
}

/// A [`Hello`] with its sockets, to be sent to each of a child's incarnations.
#[derive(Debug)]
pub(crate) struct Parcel {
    line: Vec<u8>,
    sockets: Vec<TcpListener>,
    /// Of the instance: as long as the child has it, nobody else takes itself for the same one.
    hold: Arc<File>,
}

impl Parcel {
    pub(crate) fn new(hello: &Hello, sockets: Vec<TcpListener>, hold: Arc<File>) -> Self {
        let line = super::line(hello).unwrap_or_default();
        assert!(!line.is_empty() && line.len() <= HELLO_BYTES, "the configuration of a child is over 64 KiB");
        assert!(
            hello.sockets.len() == sockets.len() && sockets.len() < DESCRIPTORS,
            "as many names as sockets"
        );
        Self { line, sockets, hold }
    }

    /// Sends everything on a new socket, without waiting.
    pub(crate) fn send(&self, socket: &UnixStream) -> io::Result<()> {
        let descriptors: Vec<_> = self.sockets.iter().map(AsFd::as_fd).chain([self.hold.as_fd()]).collect();
        let message = SendAncillaryMessage::ScmRights(&descriptors);
        let mut space = vec![MaybeUninit::uninit(); message.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(message);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = sendmsg(socket, &[IoSlice::new(&self.line)], &mut ancillary, flags)?;
        if sent < self.line.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the control socket holds too little"));
        }
        Ok(())
    }

    /// Lets go of the sockets: nobody will need them after the present incarnation.
    pub(crate) fn close(&mut self) {
        self.sockets.clear();
    }
}

/// Receives what [`Parcel::send`] sent; waits for it. The last descriptor is to be kept open until the process ends.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<(Hello, Vec<TcpListener>, OwnedFd)> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    let mut part = vec![0; HELLO_BYTES];
    while line.last() != Some(&b'\n') {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let room = HELLO_BYTES - line.len();
        let parts = &mut [IoSliceMut::new(&mut part[..room])];
        let received = recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if received == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the parent has said too little"));
        }
        line.extend_from_slice(&part[..received]);
    }
    let hello: Hello = serde_json::from_slice(&line)?;
    match descriptors.pop() {
        Some(hold) if descriptors.len() == hello.sockets.len() => {
            Ok((hello, descriptors.into_iter().map(TcpListener::from).collect(), hold))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not as many sockets as names")),
    }
}
