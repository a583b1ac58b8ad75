//! Servers with a closure for a handler, a relay before a backend that takes notes, and a client that sends bytes as
//! they are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, LocalRecorderGuard, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use protoplex_http::tls::{TlsConfig, ensure_local, load};
use protoplex_http::upstream::{Pool, SendErrorKind};
use protoplex_http::{
    AccessLog, Body, BodyError, Exchange, Fronts, Handler, Limits, Listener, Problem, Request, Response,
    Surroundings, forwarded, serve, upgrade,
};
use protoplex_runtime::drain::{Drain, Trigger};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Runs a test as a child runs: on one thread. No test waits for longer.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, within(test));
}

/// The same with a clock that goes on only where the test says so: what happens does not depend on how fast the machine is.
pub(crate) fn run_with_a_still_clock(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        // While a blocking task runs tokio does not wind the clock on by itself. When this one has waited in vain the clock
        // runs again, so that whatever hangs comes to its deadline.
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        let hold = tokio::task::spawn_blocking(move || is_over.recv_timeout(Duration::from_secs(60)));
        within(test).await;
        drop(over);
        let in_vain = hold.await.unwrap() == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        assert!(!in_vain, "it takes too long");
    });
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

/// Waits until a condition holds, which other tasks bring about.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets all tasks take note of what has come to their sockets: the runtime looks there every 61 turns.
pub(crate) async fn settle() {
    for _ in 0..130 {
        tokio::task::yield_now().await;
    }
}

/// Winds a still clock on, and lets all tasks take note of it.
pub(crate) async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    settle().await;
}

/// Limits under which a test of a deadline is short.
pub(crate) fn limits() -> Limits {
    Limits { linger_timeout: Duration::from_secs(2), ..Limits::default() }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) trigger: Trigger,
    pub(crate) task: JoinHandle<()>,
}

struct Closure<F>(F);

impl<F, T> Handler for Closure<F>
where
    F: Fn(Request, Rc<Exchange>) -> T,
    T: Future<Output = Response>,
{
    async fn handle(&self, request: Request, exchange: &Rc<Exchange>) -> Response {
        (self.0)(request, Rc::clone(exchange)).await
    }
}

/// Starts a server on a free port.
pub(crate) fn start<F, T>(limits: Limits, handler: F) -> Server
where
    F: Fn(Request, Rc<Exchange>) -> T + 'static,
    T: Future<Output = Response> + 'static,
{
    start_with(limits, None, AccessLog::off(), handler)
}

pub(crate) fn start_with<F, T>(limits: Limits, tls: Option<TlsConfig>, log: AccessLog, handler: F) -> Server
where
    F: Fn(Request, Rc<Exchange>) -> T + 'static,
    T: Future<Output = Response> + 'static,
{
    start_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), limits, tls, log, handler)
}

/// Starts a server on a socket.
pub(crate) fn start_on<F, T>(
    socket: std::net::TcpListener,
    limits: Limits,
    tls: Option<TlsConfig>,
    log: AccessLog,
    handler: F,
) -> Server
where
    F: Fn(Request, Rc<Exchange>) -> T + 'static,
    T: Future<Output = Response> + 'static,
{
    start_listener(
        Listener { socket, tls, fronts: Fronts::default() },
        limits,
        Surroundings::from,
        log,
        handler,
    )
}

/// Starts a server on a port in the clear, with some networks in front of it.
pub(crate) fn start_behind<F, T>(fronts: Fronts, limits: Limits, handler: F) -> Server
where
    F: Fn(Request, Rc<Exchange>) -> T + 'static,
    T: Future<Output = Response> + 'static,
{
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener { socket, tls: None, fronts };
    start_listener(listener, limits, Surroundings::from, AccessLog::off(), handler)
}

/// Starts a server on a listener, in the surroundings that are made around its drain.
pub(crate) fn start_listener<F, T>(
    listener: Listener,
    limits: Limits,
    surroundings: impl FnOnce(Drain) -> Surroundings,
    log: AccessLog,
    handler: F,
) -> Server
where
    F: Fn(Request, Rc<Exchange>) -> T + 'static,
    T: Future<Output = Response> + 'static,
{
    let address = listener.socket.local_addr().unwrap();
    let (trigger, drain) = Drain::new();
    let surroundings = surroundings(drain);
    let task = tokio::task::spawn_local(async move {
        serve(vec![listener], limits, log, surroundings, Rc::new(Closure(handler))).await.unwrap();
    });
    Server { address, trigger, task }
}

/// A server that relays everything to another, as the proxy does.
pub(crate) fn start_relay(origin: SocketAddr) -> Server {
    start_relay_with(None, AccessLog::off(), origin)
}

pub(crate) fn start_relay_with(tls: Option<TlsConfig>, log: AccessLog, origin: SocketAddr) -> Server {
    start_relay_under(limits(), tls, log, origin)
}

pub(crate) fn start_relay_under(
    limits: Limits,
    tls: Option<TlsConfig>,
    log: AccessLog,
    origin: SocketAddr,
) -> Server {
    start_watched_relay(limits, tls, log, origin, |_| {})
}

/// The same with a look at each exchange before it is relayed.
pub(crate) fn start_watched_relay(
    limits: Limits,
    tls: Option<TlsConfig>,
    log: AccessLog,
    origin: SocketAddr,
    look: impl Fn(&Rc<Exchange>) + 'static,
) -> Server {
    let pool = Pool::new(protoplex_http::upstream::Settings::default());
    start_with(limits, tls, log, move |request, exchange| {
        let pool = Rc::clone(&pool);
        look(&exchange);
        async move {
            let head = forwarded::request_head(&exchange);
            match pool.ask(origin, &head, request.into_body(), Some(&exchange)).await {
                Ok(mut answer) => {
                    forwarded::answer_head(&mut answer.head);
                    upgrade::relay_answer(&exchange, answer, Duration::from_secs(3600)).into()
                }
                Err(error) => {
                    let status = match error.kind {
                        SendErrorKind::FirstByteTimeout { .. } => http::StatusCode::GATEWAY_TIMEOUT,
                        _ => http::StatusCode::BAD_GATEWAY,
                    };
                    Problem::new(status, "upstream", error.to_string()).into_response()
                }
            }
        }
    })
}

/// A backend that takes down what it is sent and never answers, behind one relay in the clear and one with TLS.
pub(crate) struct Watched {
    pub(crate) plain: Server,
    tls: Server,
    authority: CertificateDer<'static>,
    seen: Rc<RefCell<Vec<Vec<u8>>>>,
    open: Rc<Cell<usize>>,
    _certificates: tempfile::TempDir,
}

impl Watched {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        let (seen, open) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
        let (notes, count) = (Rc::clone(&seen), Rc::clone(&open));
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let at = notes.borrow().len();
                notes.borrow_mut().push(Vec::new());
                count.set(count.get() + 1);
                let (notes, count) = (Rc::clone(&notes), Rc::clone(&count));
                tokio::task::spawn_local(async move {
                    let mut piece = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut piece).await {
                        notes.borrow_mut()[at].extend_from_slice(&piece[..length]);
                    }
                    count.set(count.get() - 1);
                });
            }
        });
        let certificates = tempfile::tempdir().unwrap();
        let local = ensure_local(certificates.path(), &[]).unwrap();
        let tls = load(&local.certificate, &local.key).unwrap();
        Self {
            plain: start_relay(origin),
            tls: start_relay_with(Some(tls), AccessLog::off(), origin),
            authority: CertificateDer::from_pem_file(&local.authority).unwrap(),
            seen,
            open,
            _certificates: certificates,
        }
    }

    /// A connection to the relay with TLS, for this protocol.
    pub(crate) async fn connect_tls(&self, protocol: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.tls.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        handshake(stream, self.authority.clone(), vec![protocol.as_bytes().to_vec()]).await
    }

    /// What the backend was sent on each of its connections.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.borrow().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Waits until the backend has had so many connections, and each of them has ended.
    pub(crate) async fn until_broken_off(&self, connections: usize) {
        within(until(|| self.seen.borrow().len() == connections && self.open.get() == 0)).await;
    }
}

/// TLS with a server whose certificate is of the authority in this file.
pub(crate) async fn tls_over(stream: TcpStream, authority: &Path) -> TlsStream<TcpStream> {
    within(handshake(stream, CertificateDer::from_pem_file(authority).unwrap(), Vec::new())).await
}

async fn handshake(
    stream: TcpStream,
    authority: CertificateDer<'static>,
    alpn_protocols: Vec<Vec<u8>>,
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn_protocols;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

pub(crate) fn text(text: impl Into<String>) -> Response {
    Response::new(Body::from(text.into()))
}

/// Answers with what the body was, or with the name of what ended it.
pub(crate) async fn echo(request: Request) -> Response {
    match request.into_body().collect(u64::MAX).await {
        Ok(bytes) => Response::new(Body::from(bytes)),
        Err(error) => {
            let mut response = text(error.to_string());
            *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
            response
        }
    }
}

/// A body that fails once its first part is on its way.
pub(crate) fn begun_and_lost(error: BodyError) -> Body {
    let begun = stream::iter([Ok(Bytes::from_static(b"begun"))]);
    Body::stream(begun.chain(stream::once(async {
        tokio::task::yield_now().await;
        Err(error)
    })))
}

/// Keeps the metrics that are made on this thread while [`Metrics::keep`]'s guard lives.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>);

impl Metrics {
    pub(crate) fn keep(&self) -> LocalRecorderGuard<'_> {
        set_default_local_recorder(self)
    }

    /// A counter by its name, with its labels where it has some: `name{label="value"}`.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// A gauge likewise.
    pub(crate) fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.counter(name))
    }

    fn number(&self, key: &Key) -> Arc<AtomicU64> {
        let labels = key.labels().map(|label| format!("{{{}={:?}}}", label.key(), label.value()));
        let name = key.name().to_owned() + &labels.collect::<String>();
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.number(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.number(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Raises a counter when it is dropped.
pub(crate) struct OnDrop(pub(crate) Rc<Cell<u32>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A connection on which bytes are sent as they are.
pub(crate) struct Raw<S = TcpStream>(pub(crate) S);

/// An answer as it was read from a [`Raw`] connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The last part of the problem's type.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        problem["type"].as_str().unwrap().strip_prefix("urn:protoplex:problem:").unwrap().to_owned()
    }
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Everything until the connection ends in good order.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        within(self.0.read_to_end(&mut rest)).await.expect("the connection was reset");
        rest
    }

    /// The next answer, whose body must have a length or chunks.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within(self.0.read_u8()).await.expect("an answer"));
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: String::new() };
        if let Some(length) = answer.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            within(self.0.read_exact(&mut body)).await.unwrap();
            answer.body = String::from_utf8(body).unwrap();
        } else if answer.header("transfer-encoding").is_some() {
            while self.chunk(&mut answer.body).await {}
        }
        answer
    }

    async fn chunk(&mut self, body: &mut String) -> bool {
        let mut size = Vec::new();
        while !size.ends_with(b"\r\n") {
            size.push(within(self.0.read_u8()).await.unwrap());
        }
        let size = usize::from_str_radix(String::from_utf8(size).unwrap().trim(), 16).unwrap();
        let mut data = vec![0; size + 2];
        within(self.0.read_exact(&mut data)).await.unwrap();
        body.push_str(std::str::from_utf8(&data[..size]).unwrap());
        size > 0
    }
}

/// Runs curl; what it wrote to standard output, and whether it was content.
pub(crate) async fn curl(arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "15", "--noproxy", "*"]).args(arguments);
    let output = command.kill_on_drop(true).output().await.expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
}
