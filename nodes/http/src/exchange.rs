//! One request and its answer: what a handler is told besides the request, and what it tells for the access
//! log.

use std::any::Any;
use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use http::{StatusCode, Version};
use protoplex_runtime::telemetry::trace;
use tokio::time::Instant;

use crate::access_log::AccessLog;
use crate::body::Body;
use crate::clock;
use crate::drain::Tally;
use crate::forwarded;
use crate::fronts::Fronts;
use crate::head::{Known, RequestHead, ResponseHead};
use crate::http1::Rule;
use crate::http2::Stream;
use crate::meter::Meter;
use crate::problem::Problem;
use crate::request_id::RequestId;
use crate::socket::Socket;
use crate::span;
use crate::trace::Trace;
use crate::tunnel::Relay;
use crate::upgrade::Upgraded;
use crate::upstream::Asked;
use protoplex_runtime::network::Networks;

/// A request as the `http` crate has it, whatever the protocol was: the URI is a path with its query, or `*` with
/// OPTIONS; the authority is in `Host`.
pub type Request = http::Request<Body>;

/// An answer as the `http` crate has it. Content-Length or chunks, `Date` and `Connection` are the server's business.
pub type Response = http::Response<Body>;

/// An answer in the form that is sent at least cost.
#[derive(Debug)]
pub struct Answer {
    /// Status and fields; Content-Length or chunks, `Date` and `Connection` are the server's business.
    pub head: ResponseHead,
    /// What follows.
    pub body: Body,
}

impl Answer {
    /// Its two parts.
    pub fn into_parts(self) -> (ResponseHead, Body) {
        (self.head, self.body)
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        Self { head: ResponseHead::of_parts(&parts), body }
    }
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        Self::from_parts(answer.head.to_parts(), answer.body)
    }
}

/// What a node does with requests. The future is dropped where it stands when the client leaves; the answer's body
/// likewise.
pub trait Service {
    /// Answers a request, whose head is in the exchange.
    fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> impl Future<Output = Answer>;
}

/// The same in the types of the `http` crate, for whoever can spare the time to make them.
pub trait Handler {
    /// Answers a request.
    fn handle(&self, request: Request, exchange: &Rc<Exchange>) -> impl Future<Output = Response>;
}

impl<H: Handler> Service for H {
    async fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> Answer {
        self.handle(exchange.request(body), exchange).await.into()
    }
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
    /// The address that the connection comes from, as a balancer has announced it where one may.
    pub peer: SocketAddr,
    /// How the client reached us.
    pub scheme: Scheme,
    /// The request's own X-Request-Id where it is a sound one, else a new one: 1 to 64 of `[A-Za-z0-9._-]`. Every answer
    /// has it, too.
    pub request_id: RequestId,
    pub(crate) trace: Trace,
    /// What the client sent, whatever the protocol was.
    pub head: RequestHead,
    pub(crate) addresses: Rc<Addresses>,
    /// The client that a trusted proxy tells of.
    pub(crate) brought: Option<IpAddr>,
    pub(crate) started: Instant,
    /// From the head's first byte to its last, where that can be told: in HTTP/1.1.
    pub(crate) head_took: Cell<Option<Duration>>,
    pub(crate) asked: Asked,
    pub(crate) key: RefCell<Option<Box<str>>>,
    pub(crate) upstream: RefCell<Option<Box<str>>>,
    pub(crate) bytes_in: Cell<u64>,
    pub(crate) bytes_out: Cell<u64>,
    pub(crate) status: Cell<StatusCode>,
    pub(crate) fault: Cell<Option<Rule>>,
    /// Heads of answers before the final one (RFC 9110 section 15.2), to be sent as soon as may be.
    interim: RefCell<Vec<ResponseHead>>,
    upgrade_requested: bool,
    tunnel: Cell<Option<Tunnel>>,
    held: Cell<Option<Box<dyn Any>>>,
    recalled: Cell<Option<Instant>>,
    /// Of what lasts of it.
    waker: RefCell<Option<Waker>>,
}

/// What runs on the connection once it has been upgraded.
pub(crate) enum Tunnel {
    /// A protocol of ours.
    Own(Box<dyn FnOnce(Upgraded) -> LocalBoxFuture<'static, ()>>),
    /// An upstream's.
    Relay(Box<dyn FnOnce(Socket) -> Relay>),
}

/// What is known of a client before its first request.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) peer: SocketAddr,
    pub(crate) scheme: Scheme,
    addresses: OnceCell<Rc<Addresses>>,
}

/// A client's address as it is written, and whether its word is taken.
#[derive(Debug)]
pub(crate) struct Addresses {
    peer: Box<str>,
    ip: Range<u8>,
    /// All trusted proxies, where this is one of them.
    pub(crate) proxies: Option<Rc<Networks>>,
}

impl Client {
    pub(crate) fn new(peer: SocketAddr, scheme: Scheme) -> Self {
        Self { peer, scheme, addresses: OnceCell::new() }
    }

    /// One that may be a trusted proxy: looked up once a connection.
    pub(crate) fn behind(fronts: &Fronts, peer: SocketAddr, scheme: Scheme) -> Self {
        let client = Self::new(peer, scheme);
        if let Some(proxies) = fronts.trusting(peer.ip()) {
            client.addresses.get_or_init(|| Rc::new(Addresses::new(peer, Some(proxies))));
        }
        client
    }

    /// Written once a connection, and as a rule not before its first request.
    fn addresses(&self) -> Rc<Addresses> {
        Rc::clone(self.addresses.get_or_init(|| Rc::new(Addresses::new(self.peer, None))))
    }
}

impl Addresses {
    fn new(peer: SocketAddr, proxies: Option<Rc<Networks>>) -> Self {
        let ip = peer.ip().to_canonical().to_string();
        let peer: Box<str> = peer.to_string().into();
        // It is a part of the other, also where IPv4 came over IPv6: `[::ffff:192.0.2.1]:80`.
        let start = peer.find(&ip).unwrap_or_default();
        Self { ip: start as u8..(start + ip.len()) as u8, peer, proxies }
    }

    /// With its port.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Without, and IPv4 as such even where it came over IPv6.
    pub(crate) fn ip(&self) -> &str {
        &self.peer[usize::from(self.ip.start)..usize::from(self.ip.end)]
    }
}

/// Logged where the client has left before its answer's head, as nginx does.
pub(crate) const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Exchange {
    /// The client's address: the peer's, or the one that a trusted proxy tells of.
    pub fn client_ip(&self) -> IpAddr {
        self.brought.unwrap_or_else(|| self.peer.ip())
    }

    /// The same as it is written.
    pub(crate) fn client_text(&self) -> Cow<'_, str> {
        match self.brought {
            None => Cow::Borrowed(self.addresses.ip()),
            Some(ip) => Cow::Owned(ip.to_string()),
        }
    }

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

    /// Asks what lasts of it, a tunnel or a stream of events, to end as in a drain.
    pub fn recall(&self) {
        self.recalled.set(self.recalled.get().or_else(|| Some(Instant::now())));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Since when that is asked, if it is; where it is not, the task is woken when it is.
    pub(crate) fn recalled(&self, cx: &Context<'_>) -> Option<Instant> {
        let recalled = self.recalled.get();
        if recalled.is_none() {
            let mut waker = self.waker.borrow_mut();
            match &mut *waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        recalled
    }

    /// The request as the `http` crate has it.
    pub fn request(&self, body: Body) -> Request {
        Request::from_parts(self.head.to_parts(), body)
    }

    /// The exchange of a request whose head is as handlers are to see it.
    pub(crate) fn of(client: &Client, head: RequestHead) -> Self {
        let (addresses, trace) = (client.addresses(), Trace::of(&head));
        let proxies = addresses.proxies.as_deref();
        Self {
            peer: client.peer,
            scheme: client.scheme,
            request_id: RequestId::of(&head, &trace),
            trace,
            upgrade_requested: head.asks_upgrade(),
            brought: proxies.and_then(|proxies| forwarded::client(&head.fields, proxies)),
            head,
            addresses,
            started: clock::now(),
            head_took: Cell::default(),
            asked: Asked::default(),
            key: RefCell::default(),
            upstream: RefCell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            status: Cell::new(StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or_default()),
            fault: Cell::default(),
            interim: RefCell::default(),
            tunnel: Cell::default(),
            held: Cell::default(),
            recalled: Cell::default(),
            waker: RefCell::default(),
        }
    }

    /// The exchange of a request whose head was refused, so that nothing of it is known.
    pub(crate) fn refused(client: &Client, rule: Rule) -> Self {
        let exchange = Self::of(client, RequestHead::unknown());
        exchange.fault.set(Some(rule));
        exchange
    }

    pub(crate) fn set_tunnel(&self, tunnel: Tunnel) {
        self.tunnel.set(Some(tunnel));
    }

    /// Has an answer before the final one sent, where the client's protocol is able to.
    pub(crate) fn inform(&self, mut head: ResponseHead) {
        if self.head.version == Version::HTTP_11 {
            forwarded::answer_head(&mut head);
            self.name(&mut head);
            self.interim.borrow_mut().push(head);
        }
    }

    pub(crate) fn take_interim(&self) -> Vec<ResponseHead> {
        self.interim.take()
    }

    /// What the connection is to be used for after this answer, if that was asked for.
    pub(crate) fn take_tunnel(&self, status: StatusCode) -> Option<Tunnel> {
        let granted = status == StatusCode::SWITCHING_PROTOCOLS && self.upgrade_requested;
        self.tunnel.take().filter(|_| granted)
    }

    /// The answer as it goes to the client: the handler's, unless the request's body turned out to break a rule while it was
    /// handled, or the handler asks for what can't be. With the request's name.
    pub(crate) fn settle(&self, answer: Answer, tunnel: bool) -> Answer {
        let mut answer = self.sound(answer, tunnel);
        self.name(&mut answer.head);
        answer
    }

    fn sound(&self, answer: Answer, tunnel: bool) -> Answer {
        if let Some(rule) = self.fault.get() {
            return rule.problem().into();
        }
        if answer.head.status.is_informational() && !tunnel {
            let detail = "The request was answered with a switch of protocols that it did not ask for.";
            return Problem::new(StatusCode::BAD_GATEWAY, "unexpected-upgrade", detail).into();
        }
        answer
    }

    fn name(&self, head: &mut ResponseHead) {
        if head.fields.known(Known::XRequestId).next().is_some() {
            head.fields.retain(|field| field.known != Known::XRequestId);
        }
        head.fields.push_known(Known::XRequestId, b"x-request-id", self.request_id.as_bytes());
    }
}

/// What exchanges are recorded in.
pub(crate) struct Ledger {
    pub(crate) log: AccessLog,
    pub(crate) meter: Meter,
    pub(crate) tally: Tally,
}

/// Ends an exchange when it is dropped, as everything that carries an answer is in the end.
pub(crate) struct End {
    pub(crate) exchange: Rc<Exchange>,
    ledger: Rc<Ledger>,
    /// What it occupies of an HTTP/2 connection.
    stream: Option<Stream>,
}

impl End {
    /// Of an exchange that begins.
    pub(crate) fn of(exchange: &Rc<Exchange>, ledger: &Rc<Ledger>, stream: Option<Stream>) -> Self {
        ledger.tally.exchange_begins();
        Self { exchange: Rc::clone(exchange), ledger: Rc::clone(ledger), stream }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.exchange.held.take();
        let now = clock::now();
        self.ledger.tally.exchange_ends();
        self.ledger.meter.exchange_over(&self.exchange, now);
        self.ledger.log.write(&self.exchange, now);
        if self.exchange.trace.is_sampled()
            && let Some(exporter) = trace::exporter()
        {
            span::export(&self.exchange, exporter, now);
        }
        if let Some(stream) = &self.stream {
            stream.over(self.exchange.status.get().as_u16() != CLIENT_CLOSED_REQUEST);
        }
    }
}
