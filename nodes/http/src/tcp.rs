//! A TCP connection, read and written by its system calls: without the C library's points of cancellation, into memory that
//! nobody has cleared, and past our memory.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connected socket.
pub(crate) struct Tcp(TcpStream);

/// The socket of a peer that has gone away must not raise a signal.
const SEND: SendFlags = SendFlags::NOSIGNAL;
const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

impl Tcp {
    /// Sends at once what is written. Without it small messages wait for the peer's acknowledgements.
    pub(crate) fn new(tcp: TcpStream) -> Self {
        // If it can't be set they do.
        let _ = tcp.set_nodelay(true);
        Self(tcp)
    }

    /// Reads once, behind what is in `memory`, which must have room; says how much. 0 is the end of the stream.
    pub(crate) fn poll_fill(&self, cx: &mut Context<'_>, memory: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        let room = memory.capacity() - memory.len();
        self.poll_in(cx, room, || Ok(recv(&self.0, spare_capacity(memory), RecvFlags::empty())?.1))
    }

    /// Reads once; says how much. 0 is the end of the stream.
    pub(crate) fn poll_recv(&self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_in(cx, space.len(), || Ok(recv(&self.0, &mut *space, RecvFlags::empty())?.1))
    }

    /// Looks at what has come and leaves it there: puts it behind what is in `memory`, which must have room; says how
    /// much. 0 is the end of the stream.
    pub(crate) fn poll_peek(&self, cx: &mut Context<'_>, memory: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        self.poll_in(cx, 0, || Ok(recv(&self.0, spare_capacity(memory), RecvFlags::PEEK)?.1))
    }

    /// Ready when there is likely to be something to read, or the end.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx)
    }

    /// Ready when something is likely to be taken.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx)
    }

    /// Sends once; says how much.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_out(cx, bytes.len(), || Ok(send(&self.0, bytes, SEND)?))
    }

    /// Reads into an empty pipe; says how much. 0 is the end of the stream.
    pub(crate) fn poll_into_pipe(
        &self,
        cx: &mut Context<'_>,
        pipe: &OwnedFd,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll_in(cx, 0, || Ok(splice(&self.0, None, pipe, None, length, SPLICE)?))
    }

    /// Sends what is in a pipe.
    pub(crate) fn poll_drain(
        &self,
        cx: &mut Context<'_>,
        pipe: &OwnedFd,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll_out(cx, 0, || Ok(splice(pipe, None, &self.0, None, length, SPLICE)?))
    }

    /// Whether nothing has come, neither bytes nor the end, as far as the event loop knows: as a rule this needs no system
    /// call.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.0.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The peer is to see an error rather than an end when the socket is dropped. If that can't be had the connection is gone
    /// already.
    pub(crate) fn reset_at_end(&self) {
        let _ = self.0.set_zero_linger();
    }

    fn poll_in(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut receive: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            if let Some(received) = self.once(Interest::READABLE, room, &mut receive) {
                return Poll::Ready(received);
            }
        }
    }

    fn poll_out(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        mut send: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            if let Some(sent) = self.once(Interest::WRITABLE, room, &mut send) {
                return Poll::Ready(sent);
            }
        }
    }

    /// One system call; `None` where it has to be made again. One that moves less than there was `room` for has come to where
    /// the next would have to wait: the event loop is told so at once, which spares that call. With a `room` of 0 nothing is
    /// concluded.
    fn once(
        &self,
        interest: Interest,
        room: usize,
        call: &mut impl FnMut() -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut part = None;
        let moved = self.0.try_io(interest, || match call()? {
            length if 0 < length && length < room => {
                part = Some(length);
                Err(io::ErrorKind::WouldBlock.into())
            }
            length => Ok(length),
        });
        match (part, moved) {
            (Some(length), _) => Some(Ok(length)),
            (None, Err(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                None
            }
            (None, moved) => Some(moved),
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, space)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.poll_out(cx, length, || Ok(sendmsg(&self.0, pieces, &mut SendAncillaryBuffer::default(), SEND)?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};

    use tokio::net::TcpListener;

    use super::*;

    /// Our end, and a blocking one of the peer's.
    async fn pair() -> (Tcp, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Tcp::new(listener.accept().await.unwrap().0), peer)
    }

    #[tokio::test]
    async fn what_comes_after_a_short_read_is_seen_and_so_is_the_end() {
        let (tcp, mut peer) = pair().await;
        let mut memory = Vec::with_capacity(64);
        for length in [3, 60] {
            peer.write_all(&vec![b'x'; length]).unwrap();
            let mut read = 0;
            while read < length {
                read += poll_fn(|cx| tcp.poll_fill(cx, &mut memory)).await.unwrap();
            }
            assert_eq!(memory.len(), length);
            memory.clear();
        }
        // Both at once: the end must not be forgotten behind the short read.
        peer.write_all(b"last").unwrap();
        drop(peer);
        assert_eq!(poll_fn(|cx| tcp.poll_fill(cx, &mut memory)).await.unwrap(), 4);
        assert_eq!(poll_fn(|cx| tcp.poll_fill(cx, &mut memory)).await.unwrap(), 0);
        assert_eq!(poll_fn(|cx| tcp.poll_recv(cx, &mut [0; 8])).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_a_socket_takes_goes_out_in_the_end_in_order() {
        let (mut tcp, mut peer) = pair().await;
        let sent: Vec<u8> = (0..8 << 20).map(|at: u32| (at % 251) as u8).collect();
        let expected = sent.clone();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            got == expected
        });
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (first, second) = rest.split_at(rest.len().min(100));
            let pieces = [first, second].map(IoSlice::new);
            let length = poll_fn(|cx| Pin::new(&mut tcp).poll_write_vectored(cx, &pieces)).await.unwrap();
            rest = &rest[length..];
            let length = poll_fn(|cx| tcp.poll_send(cx, &rest[..rest.len().min(7)])).await.unwrap();
            rest = &rest[length..];
        }
        drop(tcp);
        assert!(reader.join().unwrap());
    }

    #[tokio::test]
    async fn a_peer_that_has_gone_is_an_error_and_no_signal() {
        let (tcp, peer) = pair().await;
        drop(peer);
        let error = loop {
            if let Err(error) = poll_fn(|cx| tcp.poll_send(cx, b"x")).await {
                break error;
            }
        };
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
    }
}
