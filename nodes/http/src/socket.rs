//! The byte stream of one connection: TCP or TLS, bytes that were read ahead, a deadline on writes that don't
//! move.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use crate::buffer::Buffer;
use crate::deadline::Patience;
use crate::tcp::Tcp;
use crate::tls_stream::TlsStream;

/// A connected stream, whoever opened it.
pub(crate) struct Socket {
    stream: Stream,
    /// Read before, and to be read again first.
    leading: Bytes,
    /// With a peer that takes nothing of what there is to send.
    patience: Patience,
    /// What was sealed and not sent when a write was tried last.
    sealed_bytes: usize,
}

pub(crate) enum Stream {
    Plain(Tcp),
    Tls(Box<TlsStream>),
    /// What a test says.
    #[cfg(test)]
    Script(Box<crate::script::Script>),
    /// Gone elsewhere.
    Closed,
}

/// How much is read at a time of what is only thrown away.
const DISCARD_BYTES: usize = 16 * 1024;

impl Socket {
    pub(crate) fn new(stream: Stream, write_timeout: Duration) -> Self {
        Self { stream, leading: Bytes::new(), patience: Patience::new(write_timeout), sealed_bytes: 0 }
    }

    /// Puts bytes back that were read from the stream.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.leading.is_empty(), "only one reader can put bytes back");
        self.leading = bytes;
    }

    /// Reads once, behind what is in `buffer`, which is given memory only where there is something; says how much. 0 is the
    /// end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        if self.leading.is_empty() {
            return buffer.poll_fill(cx, &mut self.stream);
        }
        let leading = std::mem::take(&mut self.leading);
        buffer.extend(&leading);
        Poll::Ready(Ok(leading.len()))
    }

    /// Ends our side, then reads and throws away what the peer still sends, up to a time and a number of
    /// bytes. Without this the kernel would answer bytes that nobody has read with a reset, which can
    /// overtake our answer.
    pub(crate) async fn linger(mut self, limit: Duration, limit_bytes: u64) {
        let discard = async {
            poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx)).await?;
            let mut buffer = vec![0; DISCARD_BYTES];
            let mut left = limit_bytes;
            while left > 0 {
                let mut space = ReadBuf::new(&mut buffer);
                poll_fn(|cx| Pin::new(&mut self).poll_read(cx, &mut space)).await?;
                match space.filled().len() {
                    0 => break,
                    length => left = left.saturating_sub(length as u64),
                }
            }
            io::Result::Ok(())
        };
        // The peer has got its answer or can't be helped: however this ends, the connection is closed now.
        let _ = timeout(limit, discard).await;
    }

    /// Ends our side in good order, and drops the connection.
    pub(crate) async fn close(mut self, limit: Duration) {
        let _ = timeout(limit, poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx))).await;
    }

    /// Drops the connection such that the peer sees an error rather than an end.
    pub(crate) fn reset(self) {
        match &self.stream {
            Stream::Plain(tcp) => tcp.reset_at_end(),
            Stream::Tls(stream) => stream.tcp().reset_at_end(),
            #[cfg(test)]
            Stream::Script(_) => {}
            Stream::Closed => {}
        }
    }

    /// Ends a wait for the peer to take bytes that has lasted too long.
    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let sealed_bytes = self.stream.sealed_bytes();
        let moves = sealed_bytes != std::mem::replace(&mut self.sealed_bytes, sealed_bytes);
        if moves || result.is_ready() {
            self.patience.renew();
        }
        if result.is_ready() {
            return result;
        }
        ready!(self.patience.poll_lost(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes nothing of what there is to send",
        )))
    }
}

impl Stream {
    /// Whether bytes can go in and out of it by pipes, without a copy.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// How much of what was written has not been sent: it is ours to send. When this changes, the peer takes something.
    pub(crate) fn sealed_bytes(&self) -> usize {
        match self {
            Self::Tls(stream) => stream.waiting_bytes(),
            _ => 0,
        }
    }

    /// Reads once, behind what is in `memory`, which must have room; says how much. 0 is the end of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => tcp.poll_fill(cx, memory),
            stream => poll_read_buf(Pin::new(stream), cx, memory),
        }
    }

    /// Ready when there may be something to read.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_readable(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ready when something is likely to be taken.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_room(cx),
            stream => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Moves bytes from a plain stream into an empty pipe; says how many. 0 is the end of the stream.
    pub(crate) fn poll_into_pipe(
        &self,
        cx: &mut Context<'_>,
        pipe: &OwnedFd,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => tcp.poll_into_pipe(cx, pipe, length),
            _ => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Sends what is in a pipe, on a plain stream.
    pub(crate) fn poll_drain(
        &self,
        cx: &mut Context<'_>,
        pipe: &OwnedFd,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => tcp.poll_drain(cx, pipe, length),
            _ => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Whether nothing has come, neither bytes nor the end, as far as the event loop knows.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self, Self::Plain(tcp) if tcp.is_quiet())
    }
}

macro_rules! on_stream {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
            #[cfg(test)]
            Stream::Script(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
            Stream::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_read(cx, space))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_shutdown(cx))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.leading.is_empty() {
            let length = self.leading.len().min(space.remaining());
            space.put_slice(&self.leading[..length]);
            self.leading.advance(length);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, space)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_stalled(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_stalled(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.unless_stalled(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.unless_stalled(cx, result)
    }
}
