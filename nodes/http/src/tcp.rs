//! Reads from and writes to TCP sockets by their system calls: without the C library's points of cancellation, into memory
//! that nobody has cleared, and past our memory.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The socket of a peer that has gone away must not raise a signal.
const SEND: SendFlags = SendFlags::NOSIGNAL;
const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Reads once, behind what is in `memory`, which must have room; says how much. 0 is the end of the stream.
pub(crate) fn poll_fill(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    memory: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    let room = memory.capacity() - memory.len();
    let mut receive = || Ok(recv(tcp, spare_capacity(memory), RecvFlags::empty())?.1);
    poll_in(tcp, cx, || once(tcp, Interest::READABLE, room, &mut receive))
}

/// Reads once; says how much. 0 is the end of the stream.
pub(crate) fn poll_recv(tcp: &TcpStream, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
    let room = space.len();
    let mut receive = || Ok(recv(tcp, &mut *space, RecvFlags::empty())?.1);
    poll_in(tcp, cx, || once(tcp, Interest::READABLE, room, &mut receive))
}

/// Sends once; says how much.
pub(crate) fn poll_send(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let mut send = || Ok(send(tcp, bytes, SEND)?);
    poll_out(tcp, cx, || once(tcp, Interest::WRITABLE, bytes.len(), &mut send))
}

/// The same of several pieces.
pub(crate) fn poll_send_pieces(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let length = pieces.iter().map(|piece| piece.len()).sum();
    let mut send = || Ok(sendmsg(tcp, pieces, &mut SendAncillaryBuffer::default(), SEND)?);
    poll_out(tcp, cx, || once(tcp, Interest::WRITABLE, length, &mut send))
}

/// Reads into an empty pipe; says how much. 0 is the end of the stream.
pub(crate) fn poll_into_pipe(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    pipe: &OwnedFd,
    length: usize,
) -> Poll<io::Result<usize>> {
    let mut receive = || Ok(splice(tcp, None, pipe, None, length, SPLICE)?);
    poll_in(tcp, cx, || once(tcp, Interest::READABLE, 0, &mut receive))
}

/// Sends what is in a pipe.
pub(crate) fn poll_drain(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    pipe: &OwnedFd,
    length: usize,
) -> Poll<io::Result<usize>> {
    let mut send = || Ok(splice(pipe, None, tcp, None, length, SPLICE)?);
    poll_out(tcp, cx, || once(tcp, Interest::WRITABLE, 0, &mut send))
}

fn poll_in(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    mut receive: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        if let Some(received) = unless_to_be_asked_again(receive()) {
            return Poll::Ready(received);
        }
    }
}

fn poll_out(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    mut send: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        if let Some(sent) = unless_to_be_asked_again(send()) {
            return Poll::Ready(sent);
        }
    }
}

fn unless_to_be_asked_again(result: io::Result<usize>) -> Option<io::Result<usize>> {
    let again =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
    if result.as_ref().is_err_and(again) { None } else { Some(result) }
}

/// One system call. One that moves less than there was `room` for has come to where the next would have to wait: the event
/// loop is told so at once, which spares that call. With a `room` of 0 nothing is concluded.
fn once(
    tcp: &TcpStream,
    interest: Interest,
    room: usize,
    call: &mut impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut part = None;
    let moved = tcp.try_io(interest, || match call()? {
        length if 0 < length && length < room => {
            part = Some(length);
            Err(io::ErrorKind::WouldBlock.into())
        }
        length => Ok(length),
    });
    part.map_or(moved, Ok)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};

    use tokio::net::TcpListener;

    use super::*;

    /// Our end, and a blocking one of the peer's.
    async fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().await.unwrap().0, peer)
    }

    #[tokio::test]
    async fn what_comes_after_a_short_read_is_seen_and_so_is_the_end() {
        let (tcp, mut peer) = pair().await;
        let mut memory = Vec::with_capacity(64);
        for length in [3, 60] {
            peer.write_all(&vec![b'x'; length]).unwrap();
            let mut read = 0;
            while read < length {
                read += poll_fn(|cx| poll_fill(&tcp, cx, &mut memory)).await.unwrap();
            }
            assert_eq!(memory.len(), length);
            memory.clear();
        }
        // Both at once: the end must not be forgotten behind the short read.
        peer.write_all(b"last").unwrap();
        drop(peer);
        assert_eq!(poll_fn(|cx| poll_fill(&tcp, cx, &mut memory)).await.unwrap(), 4);
        assert_eq!(poll_fn(|cx| poll_fill(&tcp, cx, &mut memory)).await.unwrap(), 0);
        assert_eq!(poll_fn(|cx| poll_recv(&tcp, cx, &mut [0; 8])).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_a_socket_takes_goes_out_in_the_end_in_order() {
        let (tcp, mut peer) = pair().await;
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
            let length = poll_fn(|cx| poll_send_pieces(&tcp, cx, &pieces)).await.unwrap();
            rest = &rest[length..];
            let length = poll_fn(|cx| poll_send(&tcp, cx, &rest[..rest.len().min(7)])).await.unwrap();
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
            if let Err(error) = poll_fn(|cx| poll_send(&tcp, cx, b"x")).await {
                break error;
            }
        };
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
    }
}
