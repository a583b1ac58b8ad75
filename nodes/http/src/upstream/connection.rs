//! One connection to an upstream: the task that drives it, and the lease of whoever uses it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::sending::Sending;
use super::{Pool, Settings};
use crate::socket::{Socket, Stream};
use crate::upgrade::Upgraded;

/// What comes of a request: the head of its answer and a body, or an error, perhaps with the untouched
/// request.
pub(super) type Answered = Result<http::Response<Incoming>, TrySendError<http::Request<Sending>>>;

/// A connection that is ready for a request, or may soon be.
pub(super) struct Connection {
    sender: http1::SendRequest<Sending>,
    task: AbortHandle,
    upgraded: oneshot::Receiver<Upgraded>,
    idle_since: Rc<Cell<Option<Instant>>>,
}

impl Connection {
    pub(super) async fn open(
        stream: TcpStream,
        origin: SocketAddr,
        pool: &Rc<Pool>,
    ) -> Result<Self, hyper::Error> {
        let stream = UpstreamStream { stream, deaf: false };
        let (sender, engine) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
        let (upgrade, upgraded) = oneshot::channel();
        let idle_since = Rc::new(Cell::new(None));
        let driver =
            Driver { engine, settings: pool.settings.clone(), idle_since: Rc::clone(&idle_since), upgrade };
        let pool = Rc::downgrade(pool);
        let task = tokio::task::spawn_local(async move {
            driver.run().await;
            if let Some(pool) = Weak::upgrade(&pool) {
                pool.prune(origin);
            }
        });
        Ok(Self { sender, task: task.abort_handle(), upgraded, idle_since })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// From now on it is idle.
    pub(super) fn rest(&self) {
        self.idle_since.set(Some(Instant::now()));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection in use. Dropped it closes the connection; what is to be used again must be given back.
pub(super) struct Lease {
    connection: Connection,
    origin: SocketAddr,
    pool: Weak<Pool>,
}

impl Lease {
    pub(super) fn new(connection: Connection, origin: SocketAddr, pool: &Rc<Pool>) -> Self {
        connection.idle_since.set(None);
        Self { connection, origin, pool: Rc::downgrade(pool) }
    }

    /// Hands the request to the connection's task.
    pub(super) fn send(&mut self, request: http::Request<Sending>) -> impl Future<Output = Answered> + use<> {
        self.connection.sender.try_send_request(request)
    }

    /// The connection itself, after a 101.
    pub(super) async fn upgraded(mut self) -> Option<Upgraded> {
        (&mut self.connection.upgraded).await.ok()
    }

    /// Both messages are over: the connection goes back to its pool as soon as its task has seen it, too.
    pub(super) fn give_back(self) {
        let Self { mut connection, origin, pool } = self;
        let Some(pool) = Weak::upgrade(&pool) else { return };
        if connection.is_ready() {
            pool.put(origin, connection);
        } else if !connection.is_closed() {
            tokio::task::spawn_local(async move {
                if connection.sender.ready().await.is_ok() {
                    pool.put(origin, connection);
                }
            });
        }
    }
}

/// What the connection's task does.
struct Driver {
    engine: http1::Connection<TokioIo<UpstreamStream>, Sending>,
    settings: Settings,
    idle_since: Rc<Cell<Option<Instant>>>,
    upgrade: oneshot::Sender<Upgraded>,
}

impl Driver {
    /// Drives the connection to its end, or until it has been idle for too long. Then what is left of it is
    /// handed to whoever waits for an upgrade, if somebody does.
    async fn run(self) {
        let Self { mut engine, settings, idle_since, upgrade } = self;
        let limit = settings.idle_timeout;
        let mut timer = pin!(sleep(limit));
        let ended = poll_fn(|cx| {
            if let Poll::Ready(result) = engine.poll_without_shutdown(cx) {
                return Poll::Ready(result.is_ok());
            }
            loop {
                ready!(timer.as_mut().poll(cx));
                let now = Instant::now();
                let deadline = idle_since.get().unwrap_or(now) + limit;
                if deadline <= now {
                    return Poll::Ready(false);
                }
                timer.as_mut().reset(deadline);
            }
        })
        .await;
        if ended {
            let parts = engine.into_parts();
            let mut socket = Socket::new(Stream::Plain(parts.io.into_inner().stream), UPGRADED_WRITE_TIMEOUT);
            socket.unread(parts.read_buf);
            // Nobody waits for it after a plain end: then it is closed here.
            let _ = upgrade.send(Upgraded::new(socket));
        }
    }
}

/// For an upstream that takes nothing of what an upgraded connection brings.
const UPGRADED_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The stream to an upstream that may answer and close before it has read the request (a 413, say). The
/// answer is still there to be read then, but the engine would stop at its failing write: so such a write
/// waits instead, and how it goes on is told by reading, which ends as well.
struct UpstreamStream {
    stream: TcpStream,
    /// The upstream takes nothing any more.
    deaf: bool,
}

impl UpstreamStream {
    fn unless_deaf<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.deaf = true;
                Poll::Pending
            }
            result => result,
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, space)
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_deaf(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_deaf(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
