//! The server's side of a TLS connection over TCP: holds memory for bytes only while there are any.
//!
//! | state of the connection | what it holds beside rustls' own state and keys |
//! | --- | --- |
//! | idle | nothing |
//! | a record has come in part, and no more | those bytes |
//! | the reader is slow | one buffer of received records, the rest of one opened record |
//! | the peer is slow | one buffer of sealed records; nothing more is sealed before it is sent |
//!
//! rustls does the cryptography and the handshake ([`session`]); this file moves bytes between it and the
//! socket. Reading and writing don't wait for each other.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tcp::Tcp;
use session::Session;

mod buffer;
mod session;

/// A TLS connection whose handshake is done.
///
/// Reading returns no bytes once the peer has sent its close_notify, and [`io::ErrorKind::UnexpectedEof`] if it
/// has ended the TCP connection without. What was written is sealed, and sent as far as the socket takes it:
/// flush to be sure. What rustls sends of its own accord (session tickets, key updates, alerts) goes with the
/// next that is written, or when there is nothing to read.
pub(crate) struct TlsStream {
    tcp: Tcp,
    session: Session,
    /// The peer has ended the TCP connection.
    is_at_end: bool,
    /// A writer waits for the socket, and will see to what is to be sent.
    is_writer_waiting: bool,
}

impl TlsStream {
    /// Does the handshake. Dropping the future gives it up. In a box from the start, so that the future is
    /// small: the task that awaits it is as large as the largest future it has ever awaited.
    ///
    /// # Errors
    /// The peer has ended the connection, or does not speak TLS such that rustls agrees, which an alert has
    /// told it if the socket has taken that at once.
    pub(crate) async fn accept(tcp: Tcp, config: Arc<ServerConfig>) -> io::Result<Box<Self>> {
        let session = Session::new(config).map_err(io::Error::other)?;
        let mut stream = Box::new(Self { tcp, session, is_at_end: false, is_writer_waiting: false });
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// What the client and we have agreed on (RFC 7301).
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    /// The connection beneath. Reading or writing there breaks this one.
    pub(crate) fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    /// How much is sealed and has not been sent.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.session.waiting().len()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.session.shake_hands();
            if let Some(failure) = self.session.failure() {
                self.send_last(cx);
                return Poll::Ready(Err(failure));
            }
            let is_done = !self.session.is_handshaking();
            if !is_done || self.session.is_awaited() {
                ready!(self.poll_send(cx))?;
            }
            if is_done {
                return Poll::Ready(Ok(()));
            }
            if self.is_at_end {
                let what = "the peer has ended the connection during the TLS handshake";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
            ready!(self.poll_receive(cx))?;
        }
    }

    /// Receives something, or finds the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let received = self.poll_fill(cx);
        if !matches!(received, Poll::Ready(Ok(1..))) {
            self.session.rest();
        }
        self.is_at_end |= matches!(received, Poll::Ready(Ok(0)));
        received.map_ok(|_| ())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Asked first, so that a wait takes no buffer.
        ready!(self.tcp.poll_readable(cx))?;
        let space = self.session.space();
        if space.is_empty() {
            let what = "the peer sends a TLS message that is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let length = ready!(self.tcp.poll_recv(cx, space))?;
        self.session.received(length);
        Poll::Ready(Ok(length))
    }

    /// Sends all that waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.session.waiting().is_empty() {
            let sent = ready!(self.tcp.poll_send(cx, self.session.waiting()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.session.sent(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// The same for somebody who calls again when the socket takes more.
    fn poll_send_for_writer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send(cx);
        self.is_writer_waiting = sent.is_pending();
        sent
    }

    /// Sends what rustls has queued of its own accord, while a reader waits. A writer that waits does so
    /// itself; to wait here as well would take its place in the queue for the socket.
    fn send_own(&mut self, cx: &mut Context<'_>) {
        if !self.is_writer_waiting && matches!(self.poll_send(cx), Poll::Ready(Err(_))) {
            // There may be something to read all the same. A writer will meet the error.
            self.session.drop_waiting();
        }
    }

    /// Sends an alert, if the socket takes it at once. The connection is over either way.
    fn send_last(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_send(cx);
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = space.remaining();
        loop {
            this.session.read(space);
            if before == 0 || space.remaining() < before {
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = this.session.failure() {
                this.send_last(cx);
                return Poll::Ready(Err(failure));
            }
            if this.session.is_peer_closed() {
                return Poll::Ready(Ok(()));
            }
            if this.is_at_end {
                let what = "the peer has ended the connection without a TLS close_notify";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
            if this.poll_receive(cx)?.is_pending() {
                this.send_own(cx);
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.session.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.is_writer_waiting {
            ready!(this.poll_send_for_writer(cx))?;
        }
        let sealed = this.session.write(slices);
        match this.poll_send_for_writer(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What the socket has not taken is ours to send.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(sealed),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send_for_writer(cx)
    }

    /// Sends a close_notify, and ends our side of the TCP connection.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.session.is_closed() {
            this.session.close();
        }
        ready!(this.poll_send_for_writer(cx))?;
        match ready!(Pin::new(&mut this.tcp).poll_shutdown(cx)) {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

#[cfg(test)]
mod tests;
