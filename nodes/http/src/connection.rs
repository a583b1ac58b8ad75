//! One connection: who the client is, what is spoken, and then one request after the other, to its end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use protoplex_runtime::drain::Drain;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::exchange::{Client, Scheme, Service};
use crate::fronts::Announces;
use crate::http1::{self, LAST_WORD, Wire};
use crate::http2;
use crate::limits::Limits;
use crate::meter::Open;
use crate::ports::Port;
use crate::proxy_header::{self, Refusal, Verdict};
use crate::serve::Server;
use crate::socket::{Socket, Stream};
use crate::tcp::Tcp;
use crate::tls;
use crate::tls_stream::TlsStream;

/// How much is looked at to find a PROXY header: nearly all are shorter.
const PEEK_BYTES: usize = 256;
/// How HTTP/2 by prior knowledge begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sees one connection through from its first byte to its last.
///
/// Its future is as large as what a connection needs while it is idle. So what is needed for a time is boxed; and it is
/// no `async fn`, in which each argument would have its room twice.
pub(crate) fn connection<S: Service + 'static>(
    stream: TcpStream,
    peer: SocketAddr,
    port: Rc<Port>,
    server: Rc<Server<S>>,
    permit: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    let kept = (permit, Open::new(&server.ledger));
    let opening = Box::pin(open(stream, peer, port, Rc::clone(&server)));
    async move {
        let Some((client, opened)) = opening.await else { return server.idle_ends() };
        match opened {
            Opened::Http1(wire) => http1::run(&wire, &server, &client).await,
            Opened::Http2(socket) => Box::pin(http2::run(*socket, &server, client)).await,
        }
        drop(kept);
    }
}

/// A connection of which it is known what is spoken.
enum Opened {
    Http1(Rc<RefCell<Wire>>),
    Http2(Box<Socket>),
}

/// Finds out who the client is, does the handshake, and finds out what is spoken. `None` if nothing comes of it.
///
/// Its future is held for as long as the client says nothing: it is small as the one of [`connection`] is.
fn open<S>(
    stream: TcpStream,
    mut peer: SocketAddr,
    port: Rc<Port>,
    server: Rc<Server<S>>,
) -> impl Future<Output = Option<(Client, Opened)>> {
    let mut tcp = Tcp::new(stream);
    async move {
        let limits = &server.limits;
        let mut leading = BytesMut::new();
        let announces = port.fronts.announces(peer.ip());
        if announces != Announces::Never {
            let announced = Box::pin(read_announcement(&tcp, peer, announces, &port, &server)).await?;
            (peer, leading) = (announced.client.unwrap_or(peer), announced.leading);
        }
        let (stream, is_http2) = match &port.tls {
            None => {
                let is_http2 = read_preface(&mut tcp, &mut leading, limits, &server.drain).await?;
                (Stream::Plain(tcp), is_http2)
            }
            // What might have become a PROXY header is no beginning of TLS.
            Some(_) if !leading.is_empty() => {
                server.ledger.meter.handshake_failed();
                return None;
            }
            Some(tls) => {
                let handshake = TlsStream::accept(tcp, tls.0.clone());
                let Ok(Ok(stream)) = timeout(limits.tls_handshake_timeout, handshake).await else {
                    server.ledger.meter.handshake_failed();
                    return None;
                };
                let is_http2 = stream.alpn_protocol() == Some(tls::HTTP2);
                (Stream::Tls(stream), is_http2)
            }
        };
        let scheme = if port.tls.is_some() { Scheme::Https } else { Scheme::Http };
        let client = Client::behind(&port.fronts, peer, scheme);
        if !is_http2 {
            return Some((client, Opened::Http1(Wire::shared(stream, &leading, limits))));
        }
        let mut socket = Socket::new(stream, limits.write_timeout);
        socket.unread(leading.freeze());
        Some((client, Opened::Http2(Box::new(socket))))
    }
}

/// What stands at the beginning of a balancer's connection.
struct Announced {
    /// Whom it passes on.
    client: Option<SocketAddr>,
    /// What was read and is no PROXY header.
    leading: BytesMut,
}

/// Reads the PROXY header of a connection. `None` if nothing comes of it, or it must not go on.
async fn read_announcement<S>(
    tcp: &Tcp,
    peer: SocketAddr,
    announces: Announces,
    port: &Port,
    server: &Server<S>,
) -> Option<Announced> {
    let limits = &server.limits;
    let silence = match announces {
        Announces::Always => limits.head_timeout,
        _ if port.tls.is_some() => limits.tls_handshake_timeout,
        _ => limits.idle_timeout,
    };
    let read = read_proxy_header(tcp, announces, silence, limits.head_timeout, &server.drain).await;
    if let Err(Some(refusal)) = read {
        server.ledger.meter.proxy_header_refused(refusal);
        debug!(%peer, reason = %refusal, "a connection is closed");
    }
    read.ok()
}

/// Reads a PROXY header and nothing behind it. `Err(None)` if nothing has come.
async fn read_proxy_header(
    tcp: &Tcp,
    announces: Announces,
    silence: Duration,
    limit: Duration,
    drain: &Drain,
) -> Result<Announced, Option<Refusal>> {
    let none = |read: &[u8]| Announced { client: None, leading: read.into() };
    let mut read = Vec::new();
    let mut deadline = Instant::now() + silence;
    let mut closing = false;
    let fault = loop {
        let known = read.len();
        read.reserve(PEEK_BYTES);
        // Looking takes nothing, so it can be given up.
        let looked = tokio::select! {
            biased;
            looked = timeout_at(deadline, poll_fn(|cx| tcp.poll_peek(cx, &mut read))) => looked,
            () = drain.started(), if known == 0 && !closing => {
                (closing, deadline) = (true, deadline.min(last_word(drain)));
                continue;
            }
        };
        match looked {
            Ok(Ok(0) | Err(_)) if known == 0 => return Err(None),
            Err(_) if known == 0 && closing => return Err(None),
            Err(_) if known == 0 && announces == Announces::Perhaps => return Err(None),
            Ok(Ok(0) | Err(_)) => break Refusal::Truncated,
            Err(_) => break Refusal::TooSlow,
            Ok(Ok(_)) if known == 0 => deadline = Instant::now() + limit,
            Ok(Ok(_)) => {}
        }
        match proxy_header::judge(&read) {
            Verdict::Whole { length, client } => {
                take(tcp, &mut read[known..length]).await?;
                return Ok(Announced { client, leading: BytesMut::new() });
            }
            Verdict::Undecided | Verdict::Partial => take(tcp, &mut read[known..]).await?,
            Verdict::Absent if announces == Announces::Perhaps => return Ok(none(&read[..known])),
            Verdict::Absent => return Err(Some(Refusal::Missing)),
            Verdict::Refused(refusal) => return Err(Some(refusal)),
        }
    };
    match proxy_header::judge(&read) {
        // It might be a request as well, which is judged elsewhere, and given more time.
        Verdict::Undecided if announces == Announces::Perhaps => Ok(none(&read)),
        _ => Err(Some(fault)),
    }
}

/// Reads again what was looked at.
async fn take(tcp: &Tcp, seen: &mut [u8]) -> Result<(), Refusal> {
    let mut taken = 0;
    while taken < seen.len() {
        match poll_fn(|cx| tcp.poll_recv(cx, &mut seen[taken..])).await {
            Ok(length @ 1..) => taken += length,
            Ok(0) | Err(_) => return Err(Refusal::Truncated),
        }
    }
    Ok(())
}

/// Until when a client that has said nothing may begin, once a drain has started: what it is about to say may be on its
/// way.
fn last_word(drain: &Drain) -> Instant {
    drain.since().unwrap_or_else(Instant::now) + LAST_WORD
}

/// Reads on until it is clear whether the client speaks HTTP/2 by prior knowledge. `None` if it says nothing.
async fn read_preface(tcp: &mut Tcp, leading: &mut BytesMut, limits: &Limits, drain: &Drain) -> Option<bool> {
    leading.reserve(PREFACE.len());
    let mut deadline =
        Instant::now() + if leading.is_empty() { limits.idle_timeout } else { limits.head_timeout };
    let mut closing = false;
    while PREFACE.starts_with(leading) && leading.len() < PREFACE.len() {
        let mut missing = (&mut *tcp).take((PREFACE.len() - leading.len()) as u64);
        let read = tokio::select! {
            biased;
            read = timeout_at(deadline, missing.read_buf(leading)) => read,
            () = drain.started(), if leading.is_empty() && !closing => {
                (closing, deadline) = (true, deadline.min(last_word(drain)));
                continue;
            }
        };
        match read {
            Ok(Ok(0) | Err(_)) => return None,
            // Part of a preface, too late: the head that it might be as well is judged elsewhere, and given
            // more time.
            Err(_) if leading.is_empty() => return None,
            Err(_) => return Some(false),
            Ok(Ok(length)) if length == leading.len() => deadline = Instant::now() + limits.head_timeout,
            Ok(Ok(_)) => {}
        }
    }
    Some(*leading == PREFACE)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod checks;
#[cfg(test)]
mod tests;
