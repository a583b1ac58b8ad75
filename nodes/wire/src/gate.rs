//! The gate of a gRPC port: mutual TLS, then who may call what.
//!
//! Whoever comes is let in with a certificate of the cluster or with none, and each call is looked at by itself: by the
//! kind that the certificate names ([`crate::permissions`]), and by the names that are revoked, whose connections are cut.
//! A certificate's end is looked at in the handshake: a connection that stands goes on.

mod guard;
mod handshakes;
mod room;
#[cfg(test)]
mod tests;
mod timely;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Status};
use tower_layer::{Identity as Unlayered, Stack};
use tracing::{debug, warn};

pub use self::guard::{GuardLayer, Guarded, pass_over};
use self::handshakes::{Handshakes, Progress};
use self::room::{Connections, Room};
pub use crate::identity::Peer;
use crate::identity::{Certificate, Identity, IdentityError};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may wait for the server.
const MAX_WAITING: usize = 64;
/// After the system had no connection to give for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Calls that one connection may have under way; more wait. A gateway in somebody's own language may have all its members on
/// one.
const MAX_CALLS: u32 = 256;
/// The same of one that has shown no certificate, which has one question to ask; more are refused.
const MAX_STRANGERS_CALLS: usize = 2;

/// See the module. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    tls: TlsAcceptor,
    cluster: String,
    room: Room,
    state: Mutex<State>,
    next: AtomicU64,
}

#[derive(Default)]
struct State {
    revoked: Arc<BTreeSet<String>>,
    connections: Connections,
    /// Those of nobody, in the order in which they came.
    strangers: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Gate {
    /// Of a seed or a datastore.
    ///
    /// # Errors
    /// Its identity is of no use for TLS.
    pub fn new(identity: &Identity) -> Result<Self, IdentityError> {
        Self::with(identity, Room::of_this_process())
    }

    fn with(identity: &Identity, room: Room) -> Result<Self, IdentityError> {
        let shared = Shared {
            tls: TlsAcceptor::from(identity.server_config()?),
            cluster: identity.cluster(),
            room,
            state: Mutex::default(),
            next: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Connections whose handshake is done, for as long as somebody takes them.
    pub fn incoming(&self, listener: TcpListener) -> ReceiverStream<io::Result<Arrived>> {
        let (arrived, incoming) = mpsc::channel(MAX_WAITING);
        let gate = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = gate.accept(listener, &arrived) => {}
                // Dropping the rest ends the handshakes that are under way.
                () = arrived.closed() => {}
            }
        });
        ReceiverStream::new(incoming)
    }

    async fn accept(&self, listener: TcpListener, arrived: &mpsc::Sender<io::Result<Arrived>>) {
        let (mut handshakes, mut fails) = (Handshakes::new(self.shared.room.handshakes), false);
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        warn!(%error, "a gRPC port can't accept connections, trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            fails = false;
            handshakes.make_room().await;
            let (gate, arrived) = (self.clone(), arrived.clone());
            handshakes.begin(address.ip().to_canonical(), |progress| async move {
                let greeted = timeout(HANDSHAKE_TIMEOUT, gate.greet(stream, &progress)).await;
                match greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(stream) => {
                        progress.done();
                        stream.pass_on(&arrived).await;
                    }
                    Err(error) => debug!(%address, %error, "a TLS handshake failed"),
                }
            });
        }
    }

    async fn greet(&self, stream: TcpStream, progress: &Progress) -> io::Result<Arrived> {
        let (here, there) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip().to_canonical());
        let origin = Origin { is_here: there.is_loopback() || there == here.to_canonical() };
        stream.set_nodelay(true)?;
        stream.peek(&mut [0]).await?;
        progress.begun();
        let stream = self.shared.tls.accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        // One of an earlier version says nothing of its owner, who is nobody, then.
        let shown = shown.and_then(|own| Certificate::parse(own)).map(Arc::new);
        let shown = shown.filter(|certificate| certificate.peer.cluster == self.shared.cluster);
        let (cut, is_cut) = oneshot::channel();
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { shared: Arc::clone(&self.shared), id };
        let is_known = shown.is_some();
        {
            let mut state = self.shared.state();
            match &shown {
                Some(certificate) => {
                    state.connections.add(id, certificate.peer.name(), cut, &self.shared.room);
                }
                None => {
                    state.strangers.insert(id, cut);
                    if state.strangers.len() > self.shared.room.strangers
                        && let Some((_, oldest)) = state.strangers.pop_first()
                    {
                        // It may have ended just now.
                        let _ = oldest.send(());
                    }
                }
            }
        }
        let stranger_timeout = self.shared.room.stranger_timeout;
        let is_cut = async move {
            // The sender goes with the row, which goes with the connection.
            let _ = match is_known {
                true => is_cut.await.ok(),
                false => timeout(stranger_timeout, is_cut).await.ok().and_then(Result::ok),
            };
        };
        let arrival = Arrival { shown, origin, calls: Arc::new(Semaphore::new(MAX_STRANGERS_CALLS)) };
        Ok(Arrived { stream, is_cut: Some(Box::pin(is_cut)), _entry: entry, arrival })
    }

    /// Refuses these names ([`Peer::name`]), and no others, from here on; connections of theirs are cut.
    pub fn revoke(&self, names: BTreeSet<String>) {
        let mut state = self.shared.state();
        if *state.revoked == names {
            return;
        }
        for name in &names {
            let connections = state.connections.cut(name);
            if connections > 0 {
                warn!(name, connections, "its connections are cut: its certificate is revoked");
            }
        }
        state.revoked = Arc::new(names);
    }

    /// Whether this name is revoked.
    #[must_use]
    pub fn is_revoked(&self, name: &str) -> bool {
        self.shared.state().revoked.contains(name)
    }

    /// A server that looks at each call, and bounds what one connection may ask at once.
    #[must_use]
    pub fn server(&self) -> Server<Stack<GuardLayer, Unlayered>> {
        Server::builder().max_concurrent_streams(MAX_CALLS).layer(GuardLayer::new(self.clone()))
    }
}

impl Shared {
    /// What is in it is whole at any time.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a connection comes from, in the extensions of each of its requests that a gate has passed on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    /// From this machine, by its loopback interface or by another address of its own.
    pub is_here: bool,
}

/// Who makes this call.
///
/// # Errors
/// It came by no gate: that lets nobody call who has shown no certificate, but for what is meant for strangers.
pub fn caller<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::unauthenticated("no certificate of this cluster was shown"))
}

/// Who has come, in the extensions of each request of a connection.
#[derive(Clone, Debug)]
pub struct Arrival {
    shown: Option<Arc<Certificate>>,
    origin: Origin,
    /// Of a stranger: the calls that it may still make beside those under way.
    calls: Arc<Semaphore>,
}

/// A connection whose handshake is done.
pub struct Arrived {
    stream: TlsStream<TcpStream>,
    /// Ready once it is; nothing from then on.
    is_cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    arrival: Arrival,
    _entry: Entry,
}

/// A connection's row, for as long as it is there.
struct Entry {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.connections.remove(self.id);
        state.strangers.remove(&self.id);
    }
}

impl Connected for Arrived {
    type ConnectInfo = Arrival;

    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl Arrived {
    /// Hands it to the server, unless it is cut first. Where nobody takes it the server has ended.
    async fn pass_on(mut self, arrived: &mpsc::Sender<io::Result<Self>>) {
        // Both arms are cancel-safe.
        tokio::select! {
            permit = arrived.reserve() => {
                if let Ok(permit) = permit {
                    permit.send(Ok(self));
                }
            }
            _ = poll_fn(|context| self.look(context).err().map_or(Poll::Pending, Poll::Ready)) => {}
        }
    }

    /// An error from when it was cut on. Whatever the server waits for, it hears of that: one that has answers for somebody
    /// who doesn't take them reads no more.
    fn look(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let is_open = self.is_cut.as_mut().is_some_and(|is_cut| is_cut.as_mut().poll(context).is_pending());
        if is_open {
            return Ok(());
        }
        self.is_cut = None;
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

impl AsyncRead for Arrived {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Arrived {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.look(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
