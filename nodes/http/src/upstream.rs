//! Requests to other servers over HTTP/1.1, with a child's own pool of connections.
//!
//! | a connection is | until |
//! | --- | --- |
//! | leased to one request | its answer has been read to the end |
//! | idle in the pool | it is leased again, its `idle_timeout` is over, or the upstream closes it |
//! | closed | |
//!
//! Only a connection on which both messages went to their ends becomes idle; any other is closed at once.

mod asked;
mod flight;
mod idle;
mod upload;

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::Version;
use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::body::{Body, BodyError};
use crate::clock;
use crate::exchange::{Answer, Exchange, Request, Response};
use crate::head::RequestHead;
use crate::socket::Stream;
use crate::tcp::Tcp;
use crate::turn;
pub(crate) use asked::Asked;
pub(crate) use flight::Flight;
use idle::Idle;

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
#[derive(Clone, Copy, Debug)]
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

/// The same of [`Pool::ask`], which leaves the request's head with its caller.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct AskError {
    /// What failed, and whose fault it is.
    pub kind: SendErrorKind,
    /// The request's body as it was, if nothing of the request was sent.
    pub unsent: Option<Body>,
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
}

/// A child's connections to other servers, by address. Unused ones are kept for a while.
pub struct Pool {
    settings: Cell<Settings>,
    idle: Idle,
}

impl Pool {
    /// A pool without connections.
    pub fn new(settings: Settings) -> Rc<Self> {
        Rc::new(Self { settings: Cell::new(settings), idle: Idle::default() })
    }

    /// From now on these count, for requests to come.
    pub fn change(&self, settings: Settings) {
        self.settings.set(settings);
    }

    /// Sends a request (hop-by-hop fields already removed) and returns the answer as soon as its head is there, even
    /// while the request's body is still being sent. After a 101 see [`crate::upgrade::relay_answer`] and
    /// [`crate::upgrade::of_answer`]. Must be called within a `LocalSet`. Answers before the final one go to the `exchange`
    /// for which it is asked, and so does how long it took.
    ///
    /// With `Expect: 100-continue` the body is not touched before the upstream has asked for it, or has kept
    /// silent for a second. A pooled connection that proves dead is replaced by a fresh one, once: for any request
    /// before anything was sent; after that for an idempotent one whose body was not touched or is wholly in memory, since
    /// the upstream may have closed just then (RFC 9110 section 9.2.2). Dropping the future, or the answer's body before its end,
    /// closes the connection.
    ///
    /// # Errors
    /// No answer came; see [`SendErrorKind`].
    pub async fn ask(
        self: &Rc<Self>,
        origin: SocketAddr,
        head: &RequestHead,
        body: Body,
        exchange: Option<&Exchange>,
    ) -> Result<Answer, AskError> {
        let (mut body, mut begun) = (body, false);
        let asked = exchange.map(|exchange| &exchange.asked);
        // Before a connection is taken: it would be lost with this future, or go stale meanwhile.
        turn::its_end().await;
        let mut pooled = self.idle.take(origin);
        loop {
            let may_be_dead = pooled.is_some();
            let stream = match pooled.take() {
                Some(stream) => stream,
                None => match Box::pin(self.connect(origin, asked)).await {
                    Ok(stream) => stream,
                    Err(kind) => return Err(AskError { kind, unsent: (!begun).then_some(body) }),
                },
            };
            let mut flight = Flight::new(self, origin, stream, head, body);
            if let (true, Some(asked)) = (may_be_dead, asked) {
                asked.begin(origin, flight.began());
            }
            match poll_fn(|cx| flight.poll_ask(cx, head, exchange)).await {
                Ok((answer, content)) => return Ok(flight.answer(head, answer, content, asked)),
                Err(SendErrorKind::Closed { .. }) if may_be_dead && flight.can_be_sent_anew(head) => {
                    begun = !flight.is_unsent();
                    body = flight.take_body();
                }
                Err(kind) => {
                    if let Some(asked) = asked {
                        asked.over.set(Some(clock::now()));
                    }
                    let AskError { kind, unsent } = flight.failed(kind);
                    return Err(AskError { kind, unsent: unsent.filter(|_| !begun) });
                }
            }
        }
    }

    /// The same as [`Pool::ask`] in the `http` crate's types, the URI in origin form.
    ///
    /// # Errors
    /// No answer came; see [`SendErrorKind`].
    pub async fn send(self: &Rc<Self>, origin: SocketAddr, request: Request) -> Result<Response, SendError> {
        let (mut parts, body) = request.into_parts();
        parts.version = Version::HTTP_11;
        match self.ask(origin, &RequestHead::of_parts(&parts), body, None).await {
            Ok(answer) => Ok(answer.into()),
            Err(AskError { kind, unsent }) => {
                let request = unsent.map(|body| Box::new(Request::from_parts(parts, body)));
                Err(SendError { kind, request })
            }
        }
    }

    async fn connect(&self, origin: SocketAddr, asked: Option<&Asked>) -> Result<Stream, SendErrorKind> {
        let (after, began) = (self.settings.get().connect_timeout, clock::now());
        if let Some(asked) = asked {
            asked.begin(origin, began);
        }
        let connected = timeout(after, TcpStream::connect(origin)).await;
        if let Some(asked) = asked {
            let now = clock::now();
            match connected {
                Ok(Ok(_)) => asked.connect.set(Some(now - began)),
                _ => asked.over.set(Some(now)),
            }
        }
        match connected {
            Err(_) => Err(SendErrorKind::ConnectTimeout { origin, after }),
            Ok(Err(cause)) => Err(SendErrorKind::Connect { origin, cause }),
            Ok(Ok(tcp)) => Ok(Stream::Plain(Tcp::new(tcp))),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("settings", &self.settings).finish_non_exhaustive()
    }
}
