//! Accepts connections and sees them through to their end, or to the end of a drain.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protoplex_runtime::context::PortChange;
use protoplex_runtime::drain::Drain;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::access_log::AccessLog;
use crate::deadline;
use crate::exchange::{Client, Ledger, Scheme, Service};
use crate::http1::{self, LAST_WORD, Wire};
use crate::http2;
use crate::limits::Limits;
use crate::meter::Meter;
use crate::ports::{Listener, Ports, Tuning};
use crate::socket::{Socket, Stream};
use crate::tcp::Tcp;
use crate::tls::{self, TlsConfig};
use crate::tls_stream::TlsStream;

/// What all connections of a call of [`serve`] share.
pub(crate) struct Server<S> {
    pub(crate) handler: Rc<S>,
    pub(crate) limits: Limits,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) drain: Drain,
}

/// After an error of `accept`, which as a rule says that there are no file descriptors left: until some are.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// So many are accepted on a port at most after the drain has started. Others may be accepting on it, too.
const LAST_CONNECTIONS: usize = 4096;
/// How HTTP/2 by prior knowledge begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves the ports until the drain has started and every request in flight has ended. Must be called within a
/// `LocalSet`. The caller limits the time that a drain may take, by dropping the future: that cuts what is left.
///
/// # Errors
/// A listening socket can't be used at all. What goes wrong with single connections is counted, not returned.
pub async fn serve<S: Service + 'static>(
    ports: impl Into<Ports>,
    tuning: impl Into<Tuning>,
    log: AccessLog,
    drain: Drain,
    handler: Rc<S>,
) -> io::Result<()> {
    let (ports, tuning) = (ports.into(), tuning.into());
    let ledger = Rc::new(Ledger { log: log.clone(), meter: Meter::new() });
    let door = Rc::new(Door::new(tuning, Server { handler, limits: Limits::default(), ledger, drain }));
    let over = Notify::new();
    let serving = async {
        let served = accept_all(ports, &door).await;
        // Those that are idle go soon.
        deadline::wake_all();
        let mut connections = door.connections.take();
        while connections.join_next().await.is_some() {}
        over.notify_one();
        served
    };
    let (served, ()) = tokio::join!(serving, log.keep_writing(&over));
    served
}

/// Where connections come in.
struct Door<S> {
    tuning: Tuning,
    /// What new connections get, and the version of the tuning that it is made of.
    server: RefCell<(u64, Rc<Server<S>>)>,
    permits: Arc<Semaphore>,
    /// So many were given out.
    most: Cell<usize>,
    connections: RefCell<JoinSet<()>>,
}

impl<S: Service + 'static> Door<S> {
    fn new(tuning: Tuning, server: Server<S>) -> Self {
        let limits = tuning.limits();
        let most = limits.max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            server: RefCell::new((tuning.version(), Rc::new(Server { limits, ..server }))),
            tuning,
            permits: Arc::new(Semaphore::new(most)),
            most: Cell::new(most),
            connections: RefCell::default(),
        }
    }

    /// What a new connection goes by.
    fn server(&self) -> Rc<Server<S>> {
        let mut current = self.server.borrow_mut();
        if current.0 != self.tuning.version() {
            let server = &current.1;
            let limits = self.tuning.limits();
            self.permit(limits.max_connections.min(Semaphore::MAX_PERMITS));
            *current = (
                self.tuning.version(),
                Rc::new(Server {
                    handler: Rc::clone(&server.handler),
                    limits,
                    ledger: Rc::clone(&server.ledger),
                    drain: server.drain.clone(),
                }),
            );
        }
        Rc::clone(&current.1)
    }

    /// Another number of connections. Where it is lower than what there are, it comes true as those end.
    fn permit(&self, most: usize) {
        let before = self.most.replace(most);
        match most.checked_sub(before) {
            Some(more) => self.permits.add_permits(more),
            None => {
                let fewer = before - most;
                let missing = fewer - self.permits.forget_permits(fewer);
                let permits = Arc::clone(&self.permits);
                tokio::task::spawn_local(async move {
                    if let Ok(gone) = permits.acquire_many_owned(missing as u32).await {
                        gone.forget();
                    }
                });
            }
        }
    }

    fn admit(
        self: &Rc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsConfig>,
        permit: OwnedSemaphorePermit,
    ) {
        let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
        let task = connection(stream, tls, self.server(), Client::new(peer, scheme), permit);
        let mut connections = self.connections.borrow_mut();
        while connections.try_join_next().is_some() {}
        connections.spawn_local(task);
    }
}

/// Accepts on all ports, as they come and go, until the drain starts.
async fn accept_all<S: Service + 'static>(ports: Ports, door: &Rc<Door<S>>) -> io::Result<()> {
    let drain = door.server().drain.clone();
    let (mut accepting, mut given) = (JoinSet::new(), BTreeMap::new());
    let mut ports = ports;
    for Listener { socket, tls } in std::mem::take(&mut ports.fixed) {
        accepting.spawn_local(accept(listen(socket)?, Speaks::Fixed(tls), Rc::clone(door)));
    }
    loop {
        // Every arm is cancel-safe.
        let changes = tokio::select! {
            biased;
            () = drain.started() => break,
            changes = ports.changes() => changes,
        };
        for change in changes {
            match change {
                PortChange::Open { id, name, socket } => {
                    let speaks = if ports.is_encrypted(&name) { Speaks::Tls } else { Speaks::Fixed(None) };
                    let task = accepting.spawn_local(accept(listen(socket)?, speaks, Rc::clone(door)));
                    given.insert(id, task);
                }
                // Dropping an accept loses no connection: it stays in the queue, and somebody else accepts it.
                PortChange::Close { id } => given.remove(&id).into_iter().for_each(|task| task.abort()),
            }
        }
    }
    while accepting.join_next().await.is_some() {}
    Ok(())
}

fn listen(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// How a port is spoken to.
enum Speaks {
    Fixed(Option<TlsConfig>),
    /// By the certificate of the moment.
    Tls,
}

impl Speaks {
    fn now(&self, tuning: &Tuning) -> Option<TlsConfig> {
        match self {
            Self::Fixed(tls) => tls.clone(),
            Self::Tls => tuning.tls(),
        }
    }
}

/// Accepts on one port until the drain starts, and while there are permits. Then what waits is taken in, too: nobody else
/// might.
async fn accept<S: Service + 'static>(listener: TcpListener, speaks: Speaks, door: Rc<Door<S>>) {
    let drain = door.server().drain.clone();
    let mut last = LAST_CONNECTIONS;
    while last > 0 {
        last -= usize::from(drain.is_draining());
        let next = async {
            // The semaphore is never closed, so there is always a permit in the end.
            let permit = Arc::clone(&door.permits).acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        // Dropping an accept loses no connection: it stays in the queue.
        let (permit, accepted) = tokio::select! {
            biased;
            Some(next) = next => next,
            () = drain.started() => return,
        };
        match accepted {
            Ok((stream, peer)) => door.admit(stream, peer, speaks.now(&door.tuning), permit),
            Err(_) if drain.is_draining() => return,
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
            biased;
            read = timeout_at(deadline, missing.read_buf(&mut leading)) => read,
            // A client that has said nothing for so long has nothing in flight.
            () = drain.started_for(LAST_WORD), if leading.is_empty() => return None,
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
