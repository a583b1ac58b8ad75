//! Accepts connections and sees them through to their end, or to the end of a drain.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use protoplex_runtime::drain::Drain;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::access_log::AccessLog;
use crate::deadline;
use crate::exchange::{Client, Ledger, Scheme, Service};
use crate::http1::{self, Wire};
use crate::http2;
use crate::limits::Limits;
use crate::meter::Meter;
use crate::socket::{Socket, Stream};
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
}

/// What all connections of a call of [`serve`] share.
pub(crate) struct Server<S> {
    pub(crate) handler: Rc<S>,
    pub(crate) limits: Limits,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) drain: Drain,
}

/// After an error of `accept`, which as a rule says that there are no file descriptors left: until some are.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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
    drain: Drain,
    handler: Rc<S>,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let ledger = Rc::new(Ledger { log: log.clone(), meter: Meter::new() });
    let server = Rc::new(Server { handler, limits, ledger, drain });
    let connections = RefCell::new(JoinSet::new());
    let mut ports = Vec::new();
    for listener in listeners {
        listener.socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(listener.socket)?;
        ports.push(accept(socket, listener.tls, &server, &permits, &connections));
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
    tokio::join!(serving, log.keep_writing(&over));
    Ok(())
}

/// Accepts on one port until the drain starts, and while there are permits.
async fn accept<S: Service + 'static>(
    listener: TcpListener,
    tls: Option<TlsConfig>,
    server: &Rc<Server<S>>,
    permits: &Arc<Semaphore>,
    connections: &RefCell<JoinSet<()>>,
) {
    loop {
        let next = async {
            // The semaphore is never closed, so there is always a permit in the end.
            let permit = Arc::clone(permits).acquire_owned().await.ok()?;
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
                let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
                let client = Client::new(peer, scheme);
                let task = connection(stream, tls.clone(), Rc::clone(server), client, permit);
                let mut connections = connections.borrow_mut();
                while connections.try_join_next().is_some() {}
                connections.spawn_local(task);
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept connections, trying again");
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
    tls: Option<TlsConfig>,
    server: Rc<Server<S>>,
    client: Client,
    permit: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    let opening = Box::pin(open(stream, tls, Rc::clone(&server)));
    let kept = (permit, server.ledger.meter.connection());
    async move {
        match opening.await {
            None => {}
            Some(Opened::Http1(wire)) => http1::run(&wire, &server, &client).await,
            Some(Opened::Http2(socket)) => Box::pin(http2::run(*socket, &server, client)).await,
        }
        drop(kept);
    }
}

/// A connection of which it is known what is spoken.
enum Opened {
    Http1(Rc<RefCell<Wire>>),
    Http2(Box<Socket>),
}

/// Does the handshake, and finds out what is spoken. `None` if nothing comes of it.
async fn open<S>(stream: TcpStream, tls: Option<TlsConfig>, server: Rc<Server<S>>) -> Option<Opened> {
    let limits = &server.limits;
    let mut tcp = Tcp::new(stream);
    let (stream, leading, is_http2) = match tls {
        None => {
            let (leading, is_http2) = read_preface(&mut tcp, limits, &server.drain).await?;
            (Stream::Plain(tcp), leading.freeze(), is_http2)
        }
        Some(tls) => {
            let handshake = TlsStream::accept(tcp, tls.0);
            let Ok(Ok(stream)) = timeout(limits.tls_handshake_timeout, handshake).await else {
                server.ledger.meter.handshake_failed();
                return None;
            };
            let is_http2 = stream.alpn_protocol() == Some(tls::HTTP2);
            (Stream::Tls(stream), Bytes::new(), is_http2)
        }
    };
    if !is_http2 {
        return Some(Opened::Http1(Wire::shared(stream, &leading, limits)));
    }
    let mut socket = Socket::new(stream, limits.write_timeout);
    socket.unread(leading);
    Some(Opened::Http2(Box::new(socket)))
}

/// Reads until it is clear whether the client speaks HTTP/2 by prior knowledge. `None` if it says nothing.
async fn read_preface(tcp: &mut Tcp, limits: &Limits, drain: &Drain) -> Option<(BytesMut, bool)> {
    let mut leading = BytesMut::with_capacity(PREFACE.len());
    let mut deadline = Instant::now() + limits.idle_timeout;
    loop {
        let mut missing = (&mut *tcp).take((PREFACE.len() - leading.len()) as u64);
        let read = tokio::select! {
            read = timeout_at(deadline, missing.read_buf(&mut leading)) => read,
            // A client that has said nothing yet is not in flight.
            () = drain.started(), if leading.is_empty() => return None,
        };
        match read {
            Ok(Ok(0) | Err(_)) => return None,
            // Part of a preface, too late: the head that it might be as well is judged elsewhere, and given
            // more time.
            Err(_) if leading.is_empty() => return None,
            Err(_) => return Some((leading, false)),
            Ok(Ok(_)) if !PREFACE.starts_with(&leading) => return Some((leading, false)),
            Ok(Ok(_)) if leading.len() == PREFACE.len() => return Some((leading, true)),
            Ok(Ok(length)) if length == leading.len() => deadline = Instant::now() + limits.head_timeout,
            Ok(Ok(_)) => {}
        }
    }
}
