//! Accepts connections and sees them through to their end, or to the end of a drain.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::join_all;
use protoplex_runtime::drain::Drain;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::access_log::AccessLog;
use crate::deadline;
use crate::exchange::{Client, Ledger, Scheme, Service};
use crate::fronts::{Announces, Fronts};
use crate::http1::{self, Wire};
use crate::http2;
use crate::limits::Limits;
use crate::meter::{Meter, Open};
use crate::pressure::{Pressure, Turn};
use crate::proxy_header::{self, Refusal, Verdict};
use crate::socket::{Socket, Stream};
use crate::surroundings::Surroundings;
use crate::tcp::Tcp;
use crate::tls::{self, TlsConfig};
use crate::tls_stream::TlsStream;

/// A listening socket and how it is spoken to.
#[derive(Debug)]
pub struct Listener {
    /// Bound and listening.
    pub socket: std::net::TcpListener,
    /// With it the port speaks TLS only (HTTP/2 and HTTP/1.1 by ALPN), without it HTTP/1.1 and HTTP/2 by
    /// prior knowledge.
    pub tls: Option<TlsConfig>,
    /// The balancers and proxies in front of it.
    pub fronts: Fronts,
}

/// What the connections of a listener share.
struct Port {
    tls: Option<TlsConfig>,
    fronts: Fronts,
}

/// What all connections of a call of [`serve`] share.
pub(crate) struct Server<S> {
    pub(crate) handler: Rc<S>,
    pub(crate) limits: Limits,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) drain: Drain,
    pressure: Pressure,
    /// Notified whenever memory was judged.
    judged: Notify,
}

/// After an error of `accept`, which as a rule says that there are no file descriptors left: until some are.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often memory is judged. At a gigabit a second it is less by 32 MB then.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// How often the status page learns how many connections there are.
const SHOW_INTERVAL: Duration = Duration::from_secs(3);
/// How much is looked at to find a PROXY header: nearly all are shorter.
const PEEK_BYTES: usize = 256;
/// How HTTP/2 by prior knowledge begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves the listeners until the drain has started and every request in flight has ended. Must be called within a
/// `LocalSet`. The caller limits the time that a drain may take, by dropping the future: that cuts what is left.
///
/// # Errors
/// A listening socket can't be used at all. What goes wrong with single connections is counted, not returned.
pub async fn serve<S: Service + 'static>(
    listeners: Vec<Listener>,
    limits: Limits,
    log: AccessLog,
    surroundings: impl Into<Surroundings>,
    handler: Rc<S>,
) -> io::Result<()> {
    let surroundings = surroundings.into();
    let permits = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let server = Rc::new(Server::new(handler, limits, log.clone(), surroundings.drain.clone()));
    let connections = RefCell::new(JoinSet::new());
    let mut ports = Vec::new();
    for listener in listeners {
        listener.socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(listener.socket)?;
        let port = Rc::new(Port { tls: listener.tls, fronts: listener.fronts });
        ports.push(accept(socket, port, &server, &permits, &connections));
    }
    let over = Notify::new();
    let serving = async {
        join_all(ports).await;
        // Those that are idle go now.
        deadline::wake_all();
        let mut connections = connections.take();
        while connections.join_next().await.is_some() {}
        over.notify_one();
    };
    let watching = async { tokio::join!(watch_memory(&surroundings, &server), show(&surroundings, &server)) };
    // The first ends, the second never does and holds nothing.
    tokio::select! {
        _ = async { tokio::join!(serving, log.keep_writing(&over)) } => {}
        _ = watching => {}
    }
    Ok(())
}

/// Judges the memory that there is again and again. Never ends.
async fn watch_memory<S>(surroundings: &Surroundings, server: &Server<S>) {
    if !server.pressure.is_limited() {
        return std::future::pending().await;
    }
    loop {
        let sample = surroundings.memory();
        let turn = server.pressure.weigh(sample);
        if let Some(turn) = turn {
            let (available_bytes, resident_bytes) = (sample.available_bytes, sample.resident_bytes);
            match turn {
                Turn::Begins => {
                    warn!(available_bytes, resident_bytes, "memory runs out, requests are answered with 503");
                }
                Turn::Ends => info!(available_bytes, resident_bytes, "there is memory again"),
            }
            server.ledger.meter.shedding(turn == Turn::Begins);
            surroundings.show_shedding(turn == Turn::Begins);
        }
        server.judged.notify_waiters();
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// Shows how many connections there are. Never ends.
async fn show<S>(surroundings: &Surroundings, server: &Server<S>) {
    let meter = &server.ledger.meter;
    loop {
        surroundings.show_connections(meter.open_count(), meter.accepted_count());
        sleep(SHOW_INTERVAL).await;
    }
}

impl<S> Server<S> {
    pub(crate) fn new(handler: Rc<S>, limits: Limits, log: AccessLog, drain: Drain) -> Self {
        let ledger = Rc::new(Ledger { log, meter: Meter::new() });
        let pressure = Pressure::new(&limits);
        Self { handler, limits, ledger, drain, pressure, judged: Notify::new() }
    }

    /// Whether a request is to be refused for want of memory, which is counted.
    pub(crate) fn sheds(&self) -> bool {
        let sheds = self.pressure.sheds();
        if sheds {
            self.ledger.meter.request_shed();
        }
        sheds
    }

    /// Returns once one more connection may be accepted.
    async fn room(&self) {
        while !self.pressure.has_room(self.ledger.meter.open_count()) {
            self.judged.notified().await;
        }
    }
}

/// Accepts on one port until the drain starts, and while there are permits.
async fn accept<S: Service + 'static>(
    listener: TcpListener,
    port: Rc<Port>,
    server: &Rc<Server<S>>,
    permits: &Arc<Semaphore>,
    connections: &RefCell<JoinSet<()>>,
) {
    loop {
        let next = async {
            // The semaphore is never closed, so there is always a permit in the end.
            let permit = Arc::clone(permits).acquire_owned().await.ok()?;
            server.room().await;
            Some((permit, listener.accept().await))
        };
        // Dropping an accept loses no connection: it stays in the queue.
        let (permit, accepted) = tokio::select! {
            biased;
            () = server.drain.started() => return,
            Some(next) = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let task = connection(stream, peer, Rc::clone(&port), Rc::clone(server), permit);
                let mut connections = connections.borrow_mut();
                while connections.try_join_next().is_some() {}
                connections.spawn_local(task);
            }
            Err(error) => {
                warn!(%error, "can't accept connections, trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Sees one connection through from its first byte to its last.
///
/// Its future is as large as what a connection needs while it is idle. So what is needed for a time is boxed; and it is
/// no `async fn`, in which each argument would have its room twice.
fn connection<S: Service + 'static>(
    stream: TcpStream,
    peer: SocketAddr,
    port: Rc<Port>,
    server: Rc<Server<S>>,
    permit: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    let kept = (permit, Open::new(&server.ledger));
    let opening = Box::pin(open(stream, peer, port, Rc::clone(&server)));
    async move {
        let Some((client, opened)) = opening.await else { return };
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
    let fault = loop {
        let known = read.len();
        read.reserve(PEEK_BYTES);
        // Looking takes nothing, so it can be given up.
        let looked = tokio::select! {
            looked = timeout_at(deadline, poll_fn(|cx| tcp.poll_peek(cx, &mut read))) => looked,
            // A balancer that has said nothing yet is not in flight.
            () = drain.started(), if known == 0 => return Err(None),
        };
        match looked {
            Ok(Ok(0) | Err(_)) if known == 0 => return Err(None),
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

/// Reads on until it is clear whether the client speaks HTTP/2 by prior knowledge. `None` if it says nothing.
async fn read_preface(tcp: &mut Tcp, leading: &mut BytesMut, limits: &Limits, drain: &Drain) -> Option<bool> {
    leading.reserve(PREFACE.len());
    let mut deadline =
        Instant::now() + if leading.is_empty() { limits.idle_timeout } else { limits.head_timeout };
    while PREFACE.starts_with(leading) && leading.len() < PREFACE.len() {
        let mut missing = (&mut *tcp).take((PREFACE.len() - leading.len()) as u64);
        let read = tokio::select! {
            read = timeout_at(deadline, missing.read_buf(leading)) => read,
            // A client that has said nothing yet is not in flight.
            () = drain.started(), if leading.is_empty() => return None,
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

#[cfg(test)]
mod tests;
