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
use crate::sockets::{Handed, Socket};

/// Fits into a new socket's buffer, so that it can be written before the child runs.
const HELLO_BYTES: usize = 96 << 10;
/// The kernel takes no more with one message.
const DESCRIPTORS: usize = 253;

/// What a child is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) kind: String,
    pub(crate) index: u32,
    /// See [`crate::running`].
    pub(crate) instance: String,
    pub(crate) configuration: Configuration,
    /// The sockets that come along, in their order: first the child's own.
    pub(crate) sockets: Vec<Handed>,
    /// So many are its own.
    pub(crate) own: usize,
}

/// What a child goes by, and may be told anew while it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) common: Common,
    /// Of its kind.
    pub(crate) config: serde_json::Value,
}

/// What is sent to each of a child's incarnations: a [`Hello`], and the child's own sockets. Those that it shares with its
/// siblings come and go.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) hello: Hello,
    own: Vec<Arc<Socket>>,
    /// Of the instance: as long as the child has it, nobody else takes itself for the same one.
    hold: Arc<File>,
}

/// The most sockets that a child is born with; it may be given more later.
const SOCKETS: usize = DESCRIPTORS - 1;

impl Parcel {
    pub(crate) fn new(hello: Hello, own: Vec<Arc<Socket>>, hold: Arc<File>) -> Self {
        Self { hello, own, hold }
    }

    /// Sends everything on a new socket, without waiting. Of the sockets that are shared it takes as many as there is room
    /// for; says how many.
    pub(crate) fn send(&self, socket: &UnixStream, shared: &[Arc<Socket>]) -> io::Result<usize> {
        let shared = &shared[..shared.len().min(SOCKETS.saturating_sub(self.own.len()))];
        let sockets = || self.own.iter().chain(shared);
        let hello = Hello {
            sockets: sockets().map(|socket| socket.handed.clone()).collect(),
            own: self.own.len(),
            ..self.hello.clone()
        };
        let line = super::line(&hello).map_err(io::Error::other)?;
        if line.len() > HELLO_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the configuration of a child is over 64 KiB",
            ));
        }
        let descriptors: Vec<_> =
            sockets().map(|socket| socket.listener.as_fd()).chain([self.hold.as_fd()]).collect();
        let message = SendAncillaryMessage::ScmRights(&descriptors);
        let mut space = vec![MaybeUninit::uninit(); message.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(message);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let length = (line.len() as u32).to_be_bytes();
        let parts = [IoSlice::new(&length), IoSlice::new(&line)];
        let sent = sendmsg(socket, &parts, &mut ancillary, flags)?;
        if sent < length.len() + line.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the control socket holds too little"));
        }
        Ok(shared.len())
    }
}

/// Receives what [`Parcel::send`] sent, and not a byte of the orders behind it; waits for it. The last descriptor is to be
/// kept open until the process ends.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<(Hello, Vec<TcpListener>, OwnedFd)> {
    let mut descriptors = Vec::new();
    let mut length = [0; size_of::<u32>()];
    receive_exactly(socket, &mut length, &mut descriptors)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > HELLO_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the parent has said too much"));
    }
    let mut line = vec![0; length];
    receive_exactly(socket, &mut line, &mut descriptors)?;
    let hello: Hello = serde_json::from_slice(&line)?;
    match descriptors.pop() {
        Some(hold) if descriptors.len() == hello.sockets.len() => {
            Ok((hello, descriptors.into_iter().map(TcpListener::from).collect(), hold))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not as many sockets as names")),
    }
}

fn receive_exactly(
    socket: &UnixStream,
    mut bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(bytes)];
        let received = recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if received == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the parent has said too little"));
        }
        bytes = &mut bytes[received..];
    }
    Ok(())
}
