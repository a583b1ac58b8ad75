//! Requests to other servers over HTTP/1.1, with a child's own pool of connections.
//!
//! | a connection is | until |
//! | --- | --- |
//! | leased to one request | its answer has been read to the end |
//! | idle in the pool | it is leased again, its `idle_timeout` is over, or the upstream closes it |
//! | closed | |
//!
//! Only a connection on which both messages went to their ends becomes idle; any other is closed at once.

mod answer;
mod connection;
mod length;
mod sending;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::{HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Body, BodyError};
use crate::exchange::{Request, Response};
pub(crate) use answer::Answer;
use connection::{Connection, Lease};
use sending::{Progress, Sending};

/// The settings of a pool as they stand in a configuration, every key with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSettings {
    /// For a new connection. Default 2000.
    pub connect_timeout_ms: u64,
    /// From the last byte of the request that the upstream took to the first of its answer. Default 60000.
    pub first_byte_timeout_ms: u64,
    /// Without a byte of the answer's body while the client waits for it. Default 120000.
    pub body_idle_timeout_ms: u64,
    /// For an unused connection. Default 4000: less than any common server's own, so that we are the ones who
    /// close.
    pub idle_timeout_ms: u64,
    /// Unused connections kept to one address. Default 64.
    pub max_idle_per_origin: usize,
}

/// The settings of a pool, checked. [`RawSettings`] tells what each one means.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented where it is configured, in RawSettings")]
pub struct Settings {
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_idle_per_origin: usize,
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 2_000,
            first_byte_timeout_ms: 60_000,
            body_idle_timeout_ms: 120_000,
            idle_timeout_ms: 4_000,
            max_idle_per_origin: 64,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        RawSettings::default().resolved()
    }
}

impl RawSettings {
    /// Checks the settings, which stand in section `key` (`proxy.upstream`) of the configuration. What is
    /// wrong is added to `problems`; the result is meant for use only where nothing was.
    pub fn resolve(&self, key: &str, problems: &mut Problems) -> Settings {
        let timeouts = [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("first_byte_timeout_ms", self.first_byte_timeout_ms),
            ("body_idle_timeout_ms", self.body_idle_timeout_ms),
            ("idle_timeout_ms", self.idle_timeout_ms),
        ];
        for (name, _) in timeouts.iter().filter(|(_, value)| *value == 0) {
            problems.add(&format!("{key}.{name}"), "must be more than 0");
        }
        self.resolved()
    }

    fn resolved(&self) -> Settings {
        Settings {
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            first_byte_timeout: Duration::from_millis(self.first_byte_timeout_ms),
            body_idle_timeout: Duration::from_millis(self.body_idle_timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            max_idle_per_origin: self.max_idle_per_origin,
        }
    }
}

/// No answer came. Where not a byte of the request was sent it is given back, to be sent elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct SendError {
    /// What failed, and whose fault it is.
    pub kind: SendErrorKind,
    /// The request as it was, if nothing of it was sent.
    pub request: Option<Box<Request>>,
}

/// What failed before the first byte of an answer.
#[derive(Debug, thiserror::Error)]
pub enum SendErrorKind {
    /// The upstream refused the connection, or can't be reached.
    #[error("can't connect to {origin}: {cause}")]
    Connect {
        /// The upstream.
        origin: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// No connection within `connect_timeout`.
    #[error("no connection to {origin} within {after:?}")]
    ConnectTimeout {
        /// The upstream.
        origin: SocketAddr,
        /// How long it was tried.
        after: Duration,
    },
    /// The upstream closed or reset the connection before a byte of its answer.
    #[error("{origin} closed the connection before it answered: {cause}")]
    Closed {
        /// The upstream.
        origin: SocketAddr,
        /// What the connection said.
        cause: String,
    },
    /// Nothing of the answer within `first_byte_timeout`.
    #[error("{origin} did not begin to answer within {after:?}")]
    FirstByteTimeout {
        /// The upstream.
        origin: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// The upstream's answer is not HTTP, or leaves open where it ends.
    #[error("{origin} answered something that is not HTTP: {cause}")]
    Protocol {
        /// The upstream.
        origin: SocketAddr,
        /// How it was found out.
        cause: String,
    },
    /// The request's own body failed while it was sent: as a rule the client's fault, see the [`BodyError`].
    #[error("the request's body failed: {0}")]
    RequestBody(BodyError),
    /// The request can't be sent over HTTP/1.1 as it is. Ours.
    #[error("the request can't be sent: {0}")]
    Unsendable(String),
}

/// A child's connections to other servers, by address. Unused ones are kept for a while.
pub struct Pool {
    settings: Settings,
    idle: RefCell<HashMap<SocketAddr, Vec<Connection>>>,
}

impl Pool {
    /// A pool without connections.
    pub fn new(settings: Settings) -> Rc<Self> {
        Rc::new(Self { settings, idle: RefCell::default() })
    }

    /// Sends a request (URI in origin form, hop-by-hop fields already removed) and returns the answer as soon
    /// as its head is there, even while the request's body is still being sent. After a 101 see
    /// [`crate::upgrade::relay`] and [`crate::upgrade::of_answer`]. Must be called within a `LocalSet`.
    ///
    /// With `Expect: 100-continue` the body is not touched before the upstream has asked for it, or has kept
    /// silent for a second. A pooled connection that proves dead is replaced by a fresh one, once: for any request
    /// before anything was sent; after that for an idempotent one whose body was not touched, since the upstream may
    /// have closed just then (RFC 9110 section 9.2.2). Dropping the future, or the answer's body before its end,
    /// closes the connection.
    ///
    /// # Errors
    /// No answer came; see [`SendErrorKind`].
    pub async fn send(self: &Rc<Self>, origin: SocketAddr, request: Request) -> Result<Response, SendError> {
        let mut request = request;
        *request.version_mut() = Version::HTTP_11;
        frame(&mut request);
        if let Some(connection) = self.take(origin) {
            let (head, body) = request.into_parts();
            let spare = head.method.is_idempotent().then(|| head.clone());
            let (sending, progress) = Sending::wrap(Request::from_parts(head, body));
            request = match self.send_on(connection, origin, sending, &progress).await {
                // Closed by the upstream while it was idle.
                Err(SendError { kind: SendErrorKind::Closed { .. }, request: Some(unsent) }) => *unsent,
                Err(SendError { kind: kind @ SendErrorKind::Closed { .. }, request: None }) => {
                    match spare.and_then(|head| Some((head, progress.untouched()?))) {
                        Some((head, body)) => Request::from_parts(head, body),
                        None => return Err(SendError { kind, request: None }),
                    }
                }
                result => return result,
            }
        }
        match self.connect(origin).await {
            Ok(connection) => {
                let (sending, progress) = Sending::wrap(request);
                self.send_on(connection, origin, sending, &progress).await
            }
            Err(kind) => Err(SendError { kind, request: Some(Box::new(request)) }),
        }
    }

    async fn connect(self: &Rc<Self>, origin: SocketAddr) -> Result<Connection, SendErrorKind> {
        let after = self.settings.connect_timeout;
        let connected = async {
            let stream = TcpStream::connect(origin).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        match timeout(after, connected).await {
            Err(_) => Err(SendErrorKind::ConnectTimeout { origin, after }),
            Ok(Err(cause)) => Err(SendErrorKind::Connect { origin, cause }),
            Ok(Ok(stream)) => Connection::open(stream, origin, self)
                .await
                .map_err(|error| SendErrorKind::Closed { origin, cause: error.to_string() }),
        }
    }

    async fn send_on(
        self: &Rc<Self>,
        connection: Connection,
        origin: SocketAddr,
        request: http::Request<Sending>,
        progress: &Rc<Progress>,
    ) -> Result<Response, SendError> {
        let mut lease = Lease::new(connection, origin, self);
        let answer = match self.first_byte(&mut lease, request, progress).await {
            None => {
                let after = self.settings.first_byte_timeout;
                return Err(SendError {
                    kind: SendErrorKind::FirstByteTimeout { origin, after },
                    request: None,
                });
            }
            Some(Ok(answer)) => answer,
            Some(Err(mut error)) => {
                let request = error.take_message().map(|request| Box::new(Sending::unwrap(request)));
                return Err(SendError { kind: failure(origin, error.error(), progress), request });
            }
        };
        let (head, body) = answer.into_parts();
        if let Some(fault) = length::fault(&head.headers) {
            let kind = SendErrorKind::Protocol { origin, cause: fault.to_owned() };
            return Err(SendError { kind, request: None });
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = lease.upgraded().await;
            let closed =
                || SendErrorKind::Closed { origin, cause: "it ended with its switch of protocols".into() };
            let upgraded = upgraded.ok_or_else(|| SendError { kind: closed(), request: None })?;
            return Ok(Response::from_parts(head, Body::upgraded(upgraded)));
        }
        let answer = Answer::new(body, lease, Rc::clone(progress), self.settings.body_idle_timeout);
        Ok(Response::from_parts(head, Body::answer(answer)))
    }

    /// Waits for the head of the answer; `None` if it is the upstream that keeps us waiting for too long.
    async fn first_byte(
        &self,
        lease: &mut Lease,
        request: http::Request<Sending>,
        progress: &Progress,
    ) -> Option<connection::Answered> {
        let mut answer = pin!(lease.send(request));
        loop {
            let deadline = progress.since() + self.settings.first_byte_timeout;
            match timeout_at(deadline, &mut answer).await {
                Ok(answered) => return Some(answered),
                Err(_) if progress.since() + self.settings.first_byte_timeout > Instant::now() => {}
                Err(_) => return None,
            }
        }
    }

    /// An idle connection that is fit for use, the youngest first: so in quiet times the others age and go.
    fn take(&self, origin: SocketAddr) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&origin)?;
        while let Some(connection) = connections.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn put(&self, origin: SocketAddr, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(origin).or_default();
        if connections.len() < self.settings.max_idle_per_origin {
            connection.rest();
            connections.push(connection);
        }
    }

    /// Forgets the connections to an address that have ended.
    fn prune(&self, origin: SocketAddr) {
        let mut idle = self.idle.borrow_mut();
        if let Some(connections) = idle.get_mut(&origin) {
            connections.retain(|connection| !connection.is_closed());
            if connections.is_empty() {
                idle.remove(&origin);
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Has the engine send a body of unknown length whatever the method: of GET and HEAD it would leave it out.
fn frame(request: &mut Request) {
    let body = request.body();
    let unknown = !http_body::Body::is_end_stream(body) && body.exact_length().is_none();
    if unknown && [Method::GET, Method::HEAD].contains(request.method()) {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Whose fault it is that no answer came.
fn failure(origin: SocketAddr, error: &hyper::Error, progress: &Progress) -> SendErrorKind {
    if let Some(error) = progress.take_error() {
        SendErrorKind::RequestBody(error)
    } else if error.is_parse() {
        SendErrorKind::Protocol { origin, cause: error.to_string() }
    } else if error.is_user() {
        SendErrorKind::Unsendable(error.to_string())
    } else {
        SendErrorKind::Closed { origin, cause: error.to_string() }
    }
}
