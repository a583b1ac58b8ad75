//! What waits to be sent: up to three pieces that go into the socket as one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::buffer::Buffer;

/// A head or a chunk's line, data, and what stands behind them; before them perhaps whole messages. An empty one holds no
/// memory.
#[derive(Default)]
pub(crate) struct Outbox {
    head: Buffer,
    data: Data,
    tail: &'static [u8],
    /// There is data behind the head, in one piece with it.
    joined: bool,
}

/// Bytes, wherever they come from.
#[derive(Default)]
pub(crate) enum Data {
    #[default]
    Nothing,
    Shared(Bytes),
    Held(Buffer),
}

/// Data up to this size is copied behind the head: cheaper than to have the system gather two pieces.
const JOIN_BYTES: usize = 2 * 1024;
/// Behind more than this nothing is put: it goes first.
const SEALED_BYTES: usize = 8 * 1024;

impl Data {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::Shared(bytes) => bytes,
            Self::Held(buffer) => buffer.filled(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn consume(&mut self, length: usize) {
        match self {
            Self::Nothing => {}
            Self::Shared(bytes) => bytes.advance(length),
            Self::Held(buffer) => buffer.consume(length),
        }
        if self.as_slice().is_empty() {
            *self = Self::Nothing;
        }
    }
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.data.as_slice().is_empty() && self.tail.is_empty()
    }

    /// Whether data can be put in: nothing but heads are there.
    pub(crate) fn takes_data(&self) -> bool {
        self.data.as_slice().is_empty() && self.tail.is_empty() && !self.joined
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.data.len() + self.tail.len()
    }

    /// Where heads are written, behind what is there. Only while there is no data yet.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.takes_data(), "data comes behind heads");
        self.head.memory()
    }

    /// Puts data behind the head. Only once.
    pub(crate) fn data(&mut self, data: Data) {
        let slice = data.as_slice();
        if slice.len() <= JOIN_BYTES {
            self.joined |= !slice.is_empty();
            self.head.extend(slice);
        } else {
            self.data = data;
        }
    }

    /// Puts the last piece behind the data.
    pub(crate) fn tail(&mut self, tail: &'static [u8]) {
        if self.data.as_slice().is_empty() {
            self.head.extend(tail);
        } else {
            self.tail = tail;
        }
    }

    /// A message is whole. Says whether another one may be put behind it: there is no piece but the first, and room.
    pub(crate) fn seal(&mut self) -> bool {
        self.joined = false;
        self.takes_data() && self.head.len() <= SEALED_BYTES
    }

    /// Drops all of it.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Sends until nothing is left.
    pub(crate) fn poll_send<S>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while !self.is_empty() {
            let sent = ready!(self.poll_write(cx, stream))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(sent);
        }
        // What was sealed may still wait.
        Pin::new(stream).poll_flush(cx)
    }

    /// Sends once; says how much.
    pub(crate) fn poll_write<S>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<usize>>
    where
        S: AsyncWrite + Unpin,
    {
        let (head, data, tail) = (self.head.filled(), self.data.as_slice(), self.tail);
        if data.is_empty() && tail.is_empty() {
            return Pin::new(stream).poll_write(cx, head);
        }
        let slices = [head, data, tail].map(IoSlice::new);
        Pin::new(stream).poll_write_vectored(cx, &slices[usize::from(head.is_empty())..])
    }

    pub(crate) fn consume(&mut self, sent: usize) {
        let head = sent.min(self.head.len());
        if head > 0 {
            self.head.consume(head);
            self.joined &= !self.head.is_empty();
        }
        let data = (sent - head).min(self.data.as_slice().len());
        if data > 0 {
            self.data.consume(data);
        }
        self.tail = &self.tail[sent - head - data..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes at a time.
    struct Narrow(usize, Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let length = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..length]);
            Poll::Ready(Ok(length))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn pieces_of_every_size_go_out_in_order_however_little_is_taken() {
        for length in [0, 1, JOIN_BYTES, JOIN_BYTES + 1, 3 * JOIN_BYTES] {
            for held in [false, true] {
                for taken in [1, 7, 100_000] {
                    let body = vec![b'x'; length];
                    let mut out = Outbox::default();
                    out.head().extend_from_slice(b"head");
                    let mut buffer = Buffer::new();
                    buffer.extend(&body);
                    out.data(if held { Data::Held(buffer) } else { Data::Shared(body.clone().into()) });
                    out.tail(b"tail");
                    let mut stream = Narrow(taken, Vec::new());
                    let mut cx = Context::from_waker(std::task::Waker::noop());
                    assert!(matches!(out.poll_send(&mut cx, &mut stream), Poll::Ready(Ok(()))));
                    assert!(out.is_empty());
                    assert_eq!(stream.1, [b"head", &body[..], b"tail"].concat());
                }
            }
        }
    }
}
