//! One request and its answer: what a handler is told besides the request, and what it tells for the access
//! log.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use futures_util::future::LocalBoxFuture;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderValue};
use http::uri::Uri;
use http::{Method, StatusCode, Version, request};

use crate::access_log::AccessLog;
use crate::body::Body;
use crate::forwarded;
use crate::framing::{Rule, decimal, is_host};
use crate::gate::Gate;
use crate::http2::Stream;
use crate::meter::Meter;
use crate::problem::Problem;
use crate::upgrade::{self, Upgraded};

/// A request as handlers see it, whatever the protocol was: the URI is a path with its query, or `*` with
/// OPTIONS; the authority is in `Host`.
pub type Request = http::Request<Body>;

/// An answer. Content-Length or chunks, `Date` and `Connection` are the server's business.
pub type Response = http::Response<Body>;

/// What a node does with requests.
pub trait Handler {
    /// Answers a request. The future is dropped where it stands when the client leaves; the answer's body
    /// likewise.
    fn handle(&self, request: Request, exchange: &Rc<Exchange>) -> impl Future<Output = Response>;
}

/// How the client reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request and its answer. Ends, and is logged, once the answer's body has been sent or given up.
pub struct Exchange {
    /// The client's address.
    pub peer: SocketAddr,
    /// How the client reached us.
    pub scheme: Scheme,
    /// The request's own X-Request-Id where it is a sound one, else a new one: 1 to 64 of `[A-Za-z0-9._-]`.
    pub request_id: Box<str>,
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) host: Box<str>,
    pub(crate) target: Box<str>,
    pub(crate) started: Instant,
    pub(crate) key: RefCell<Option<Box<str>>>,
    pub(crate) upstream: RefCell<Option<Box<str>>>,
    pub(crate) bytes_in: Cell<u64>,
    pub(crate) bytes_out: Cell<u64>,
    pub(crate) status: Cell<StatusCode>,
    pub(crate) fault: Cell<Option<Rule>>,
    upgrade_requested: bool,
    tunnel: Cell<Option<Tunnel>>,
    held: Cell<Option<Box<dyn Any>>>,
}

/// What runs on the connection once it has been upgraded.
pub(crate) type Tunnel = Box<dyn FnOnce(Upgraded) -> LocalBoxFuture<'static, ()>>;

/// What is known of a client before its first request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) peer: SocketAddr,
    pub(crate) scheme: Scheme,
}

/// Logged where the client has left before its answer's head, as nginx does.
pub(crate) const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Exchange {
    /// Notes the key that the request was routed by.
    pub fn note_key(&self, key: &str) {
        self.key.replace(Some(key.into()));
    }

    /// Notes the member or address that answers the request.
    pub fn note_upstream(&self, upstream: &str) {
        self.upstream.replace(Some(upstream.into()));
    }

    /// Keeps a value, such as a count of what is in flight, until the exchange has ended: one only, the last.
    pub fn hold(&self, value: impl Any) {
        self.held.set(Some(Box::new(value)));
    }

    /// The exchange of a request whose head is as handlers are to see it.
    pub(crate) fn of(client: Client, head: &request::Parts) -> Self {
        let host = head.headers.get(HOST).map_or("", |host| host.to_str().unwrap_or(""));
        Self {
            peer: client.peer,
            scheme: client.scheme,
            request_id: forwarded::request_id(&head.headers),
            version: head.version,
            method: head.method.clone(),
            host: host.into(),
            target: head.uri.path_and_query().map_or("", |target| target.as_str()).into(),
            started: Instant::now(),
            key: RefCell::default(),
            upstream: RefCell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            status: Cell::new(StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or_default()),
            fault: Cell::default(),
            upgrade_requested: upgrade::is_requested(head.version, &head.headers),
            tunnel: Cell::default(),
            held: Cell::default(),
        }
    }

    /// The exchange of a request whose head was refused, so that nothing of it is known.
    pub(crate) fn refused(client: Client, rule: Rule) -> Self {
        let (head, ()) = http::Request::new(()).into_parts();
        let mut exchange = Self::of(client, &head);
        exchange.method = Method::from_bytes(b"-").unwrap_or_default();
        exchange.target = "-".into();
        exchange.fault.set(Some(rule));
        exchange
    }

    pub(crate) fn set_tunnel(&self, tunnel: Tunnel) {
        self.tunnel.set(Some(tunnel));
    }

    /// What the connection is to be used for after this answer, if that was asked for.
    pub(crate) fn take_tunnel(&self, answer: &Response) -> Option<Tunnel> {
        let granted = answer.status() == StatusCode::SWITCHING_PROTOCOLS && self.upgrade_requested;
        self.tunnel.take().filter(|_| granted)
    }

    /// The answer as it may go to the client: the handler's, unless the request's body turned out to break a
    /// rule while it was handled, or the handler asks for what can't be.
    pub(crate) fn settle(&self, answer: Response, tunnel: bool) -> Response {
        if let Some(rule) = self.fault.get() {
            return rule.problem().into_response();
        }
        if answer.status().is_informational() && !tunnel {
            let detail = "The request was answered with a switch of protocols that it did not ask for.";
            return Problem::new(StatusCode::BAD_GATEWAY, "unexpected-upgrade", detail).into_response();
        }
        answer
    }
}

/// What ended exchanges are recorded in.
pub(crate) struct Ledger {
    pub(crate) log: AccessLog,
    pub(crate) meter: Meter,
}

/// Ends an exchange when it is dropped, as everything that carries an answer is in the end.
pub(crate) struct End {
    pub(crate) exchange: Rc<Exchange>,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) seat: Seat,
}

/// What an exchange occupies of its connection.
pub(crate) enum Seat {
    /// All of it: the gate lets the next request in when the exchange has ended.
    Http1(Gate),
    /// A stream.
    Http2(Stream),
}

impl Drop for End {
    fn drop(&mut self) {
        self.exchange.held.take();
        self.ledger.meter.exchange_over(&self.exchange);
        self.ledger.log.write(&self.exchange);
        match &self.seat {
            Seat::Http1(gate) => gate.exchange_over(),
            Seat::Http2(stream) => stream.over(self.exchange.status.get().as_u16() != CLIENT_CLOSED_REQUEST),
        }
    }
}

/// Makes the head of a request what handlers are to see, whatever form the client has given it: absolute URLs
/// (RFC 9112 section 3.2.2) and HTTP/2's `:authority` (RFC 9113 section 8.3.1) end up in `Host`, HTTP/2's several
/// cookies in one field. What HTTP/1.1's framing check refuses is refused of HTTP/2 here, where its engine lets it pass.
pub(crate) fn normalise(head: &mut request::Parts) -> Result<(), Problem> {
    if head.method == Method::CONNECT {
        let detail = "This server does not open connections to other servers.";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "connect-not-supported", detail));
    }
    if head.version == Version::HTTP_2 {
        check_target(&head.uri).and_then(|()| check_length(&head.headers)).map_err(Rule::problem)?;
        join_cookies(&mut head.headers);
    }
    if let Some(authority) = head.uri.authority() {
        let host = authority.as_str();
        let same =
            host_fields(&head.headers).all(|other| other.as_bytes().eq_ignore_ascii_case(host.as_bytes()));
        // HTTP/1.1 says to go by the URL, HTTP/2 that the two must not differ.
        if !is_host(host.as_bytes()) || (head.version == Version::HTTP_2 && !same) {
            return Err(Rule::BadHost.problem());
        }
        let host = HeaderValue::from_str(host).map_err(|_| Rule::BadHost.problem())?;
        head.headers.insert(HOST, host);
        let target = head.uri.path_and_query().cloned();
        head.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    } else if head.version == Version::HTTP_2 {
        let mut hosts = host_fields(&head.headers);
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if is_host(host.as_bytes()) => {}
            (None, _) => return Err(Rule::MissingHost.problem()),
            (Some(_), Some(_)) => return Err(Rule::HostTwice.problem()),
            _ => return Err(Rule::BadHost.problem()),
        }
    }
    Ok(())
}

/// The engine takes text of any kind for a path.
fn check_target(uri: &Uri) -> Result<(), Rule> {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if target.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(Rule::BadTarget) }
}

/// The engine takes one length that is said twice.
fn check_length(headers: &HeaderMap) -> Result<(), Rule> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(_), Some(_)) => Err(Rule::ContentLengthTwice),
        (Some(length), None) if decimal(length.as_bytes()).is_none() => Err(Rule::BadContentLength),
        _ => Ok(()),
    }
}

/// HTTP/2 may split cookies over several fields, of which an HTTP/1.1 server would read the first (RFC 9113
/// section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Of sound values, with a sound separator: it can't fail.
    if let Ok(cookies) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookies);
    }
}

fn host_fields(headers: &HeaderMap) -> impl Iterator<Item = &HeaderValue> {
    headers.get_all(HOST).into_iter()
}
