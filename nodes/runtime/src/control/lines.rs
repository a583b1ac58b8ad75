//! Messages as lines of bounded length, with descriptors along.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::descriptors::with_reserve;

/// The longest message: the metrics of a process.
const LINE_BYTES: usize = 4 << 20;
const READ_BYTES: usize = 8 << 10;
/// What may come with one reading.
const DESCRIPTORS: usize = 8;

/// Why what the other end sends is not believed.
#[derive(Debug, Error)]
pub(crate) enum LineError {
    #[error("a line is longer than {LINE_BYTES} bytes")]
    TooLong,
    #[error("a line is no message: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("a message came without its socket")]
    NoSocket,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// So many bytes of the buffer hold no end of line.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self::resumed(reader, Vec::new())
    }

    /// Goes on behind what was already read.
    pub(crate) fn resumed(reader: R, unread: Vec<u8>) -> Self {
        Self { reader, buffer: unread, searched: 0 }
    }

    /// What was read, but made no message yet.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.buffer
    }

    /// The next message, or nothing at the end. Cancel-safe: what was read stays in the buffer.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, LineError> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let message = serde_json::from_slice(&self.buffer[..end])?;
                self.buffer.drain(..=end);
                self.searched = 0;
                return Ok(Some(message));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_BYTES {
                return Err(LineError::TooLong);
            }
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl Lines<Receiver> {
    /// The descriptor that came with the message that was read last.
    pub(crate) fn descriptor(&mut self) -> Result<OwnedFd, LineError> {
        self.reader.descriptors.pop_front().ok_or(LineError::NoSocket)
    }
}

/// Reads a control socket with the descriptors that come along; they come no later than their message.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: OwnedReadHalf,
    descriptors: VecDeque<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, descriptors: VecDeque::new() }
    }
}

impl AsyncRead for Receiver {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, descriptors } = self.get_mut();
        let socket: &UnixStream = socket.as_ref();
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            match socket.try_io(Interest::READABLE, || with_reserve(|| receive(socket, room, descriptors))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => {
                    buffer.advance(received?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

fn receive(socket: &UnixStream, room: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(room)], &mut ancillary, flags)?.bytes;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    Ok(received)
}

/// A message as a line.
///
/// # Errors
/// It would be too long to be believed.
pub(crate) fn line(message: &impl Serialize) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message)?;
    if line.len() > LINE_BYTES {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// Writes a message, with a descriptor where one belongs to it.
pub(crate) async fn send(
    writer: &OwnedWriteHalf,
    message: &impl Serialize,
    mut along: Option<BorrowedFd<'_>>,
) -> Result<(), LineError> {
    let line = line(message)?;
    let socket: &UnixStream = writer.as_ref();
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        writer.writable().await?;
        match socket.try_io(Interest::WRITABLE, || send_some(socket, rest, along)) {
            Ok(written) => {
                along = None;
                rest = &rest[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn send_some(socket: &UnixStream, bytes: &[u8], along: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let descriptors = along.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}
