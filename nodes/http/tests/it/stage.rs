//! A stage for one misbehaviour at a time: an upstream that does as it is told, a relay before it made as the proxy is
//! made, in the clear or over TLS, and clients that say how what they read has ended.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::join;
use http::StatusCode;
use protoplex_http::tls::{ensure_local, load};
use protoplex_http::upstream::{Pool, SendErrorKind, Settings};
use protoplex_http::{
    AccessLog, Answer, Body, Exchange, Fronts, Limits, Listener, Problem, Service, forwarded, serve, upgrade,
};
use protoplex_runtime::drain::{Drain, Trigger};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::kit::{limits, run, until, within};

/// Runs a test twice: with clients in the clear, and over TLS.
pub(crate) fn in_the_clear_and_over_tls(test: impl AsyncFn(bool)) {
    run(async {
        test(false).await;
        test(true).await;
    });
}

/// A client's connection, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Ends it such that the other side sees an error.
    fn reset(self: Box<Self>);
}

impl Stream for TcpStream {
    fn reset(self: Box<Self>) {
        self.set_zero_linger().unwrap();
    }
}

impl Stream for TlsStream<TcpStream> {
    fn reset(self: Box<Self>) {
        self.get_ref().0.set_zero_linger().unwrap();
    }
}

/// A relay before an upstream.
pub(crate) struct Stage {
    pub(crate) relay: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    pub(crate) notes: Rc<Notes>,
    _trigger: Trigger,
}

/// What the upstream has seen.
#[derive(Default)]
pub(crate) struct Notes {
    /// How many connections there were.
    pub(crate) connections: Cell<usize>,
    /// How many of them are open.
    pub(crate) open: Cell<usize>,
    /// How many exchanges the relay has in flight.
    pub(crate) exchanges: Rc<Cell<usize>>,
    /// The heads of requests, each with the number of its connection.
    pub(crate) heads: RefCell<Vec<(usize, String)>>,
}

struct Relay {
    pool: Rc<Pool>,
    origin: SocketAddr,
    exchanges: Rc<Cell<usize>>,
}

/// Counts an exchange until it is over.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Service for Relay {
    async fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> Answer {
        exchange.hold(Counted::new(&self.exchanges));
        let head = forwarded::request_head(exchange);
        let failed = |status, detail: String| Problem::new(status, "upstream", detail).into();
        match self.pool.ask(self.origin, &head, body, Some(exchange)).await {
            Ok(mut answer) => {
                forwarded::answer_head(&mut answer.head);
                match answer.head.status() {
                    StatusCode::SWITCHING_PROTOCOLS if exchange.head.asks_upgrade() => {
                        upgrade::relay_answer(exchange, answer, Duration::from_secs(60))
                    }
                    StatusCode::SWITCHING_PROTOCOLS => failed(StatusCode::BAD_GATEWAY, "unasked".into()),
                    _ => answer,
                }
            }
            Err(error) => match error.kind {
                SendErrorKind::FirstByteTimeout { .. } => {
                    failed(StatusCode::GATEWAY_TIMEOUT, error.to_string())
                }
                _ => failed(StatusCode::BAD_GATEWAY, error.to_string()),
            },
        }
    }
}

impl Stage {
    /// Starts a relay before an upstream that treats each of its connections as `treat` does.
    pub(crate) async fn start(tls: bool, treat: impl AsyncFn(Peer) + 'static) -> Self {
        Self::start_with(tls, limits(), Settings::default(), treat).await
    }

    pub(crate) async fn start_with(
        tls: bool,
        limits: Limits,
        settings: Settings,
        treat: impl AsyncFn(Peer) + 'static,
    ) -> Self {
        Self::start_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), tls, limits, settings, treat)
            .await
    }

    /// The same with the relay on this socket.
    pub(crate) async fn start_on(
        socket: std::net::TcpListener,
        tls: bool,
        limits: Limits,
        settings: Settings,
        treat: impl AsyncFn(Peer) + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        let notes = Rc::new(Notes::default());
        tokio::task::spawn_local(accept(listener, Rc::clone(&notes), Rc::new(treat)));
        let (server, client) = if tls { certificates() } else { (None, None) };
        let relay = socket.local_addr().unwrap();
        let (trigger, drain) = Drain::new();
        let listeners = vec![Listener { socket, tls: server, fronts: Fronts::default() }];
        let handler =
            Rc::new(Relay { pool: Pool::new(settings), origin, exchanges: Rc::clone(&notes.exchanges) });
        tokio::task::spawn_local(async move {
            serve(listeners, limits, AccessLog::off(), drain, handler).await.unwrap();
        });
        Self { relay, tls: client, notes, _trigger: trigger }
    }

    /// A connection to the relay.
    pub(crate) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.relay).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client::over(stream, self.tls.as_ref()).await
    }

    /// A connection that holds next to nothing of what was not read.
    pub(crate) async fn narrow_client(&self) -> Client {
        Client::over(narrow_connection(self.relay).await, self.tls.as_ref()).await
    }

    /// How TLS clients connect.
    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(self.tls.as_ref().expect("a stage with TLS"))
    }

    /// What a client of its own reads of the answer to a request.
    pub(crate) async fn ask(&self, request: &[u8]) -> Reading {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer_to(request).await
    }

    /// Waits until so many of the upstream's connections are open.
    pub(crate) async fn until_open(&self, connections: usize) {
        within(until(|| self.notes.open.get() == connections)).await;
    }

    /// Waits until the relay has no exchange in flight.
    pub(crate) async fn until_at_rest(&self) {
        within(until(|| self.notes.exchanges.get() == 0)).await;
    }

    /// Waits until the upstream has had so many requests.
    pub(crate) async fn until_asked(&self, requests: usize) {
        within(until(|| self.notes.heads.borrow().len() >= requests)).await;
    }
}

/// What a server and its clients need for TLS.
pub(crate) fn certificates() -> (Option<protoplex_http::tls::TlsConfig>, Option<Arc<ClientConfig>>) {
    let directory = tempfile::tempdir().unwrap();
    let local = ensure_local(directory.path(), &[]).unwrap();
    let server = load(&local.certificate, &local.key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&local.authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    (Some(server), Some(Arc::new(client)))
}

async fn accept(listener: TcpListener, notes: Rc<Notes>, treat: Rc<impl AsyncFn(Peer) + 'static>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let at = notes.connections.get();
        notes.connections.set(at + 1);
        notes.open.set(notes.open.get() + 1);
        let peer = Peer { at, stream, unread: Vec::new(), notes: Rc::clone(&notes) };
        let treat = Rc::clone(&treat);
        tokio::task::spawn_local(async move { treat(peer).await });
    }
}

/// The upstream's end of a connection. What fails there shows in what it has seen.
pub(crate) struct Peer {
    /// The how many-th connection it is, from 0.
    pub(crate) at: usize,
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
    notes: Rc<Notes>,
}

impl Peer {
    /// The next request's head; `None` once the relay has ended the connection.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap();
                self.notes.heads.borrow_mut().push((self.at, head.clone()));
                return Some(head);
            }
            self.read().await?;
        }
    }

    /// So many bytes of a request's body, or as many as there are.
    pub(crate) async fn body(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length && self.read().await.is_some() {}
        let length = length.min(self.unread.len());
        self.unread.drain(..length).collect()
    }

    /// The data of a chunked body; `None` where it breaks off.
    pub(crate) async fn chunked_body(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                match self.unread.windows(2).position(|bytes| bytes == b"\r\n") {
                    Some(end) => break end,
                    None => self.read().await?,
                }
            };
            let size = std::str::from_utf8(&self.unread[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            self.unread.drain(..line + 2);
            while self.unread.len() < size + 2 {
                self.read().await?;
            }
            body.extend(self.unread.drain(..size));
            assert_eq!(self.unread.drain(..2).collect::<Vec<_>>(), b"\r\n");
            if size == 0 {
                return Some(body);
            }
        }
    }

    /// Sends all of an answer, and reads so many bytes of a request's body meanwhile.
    pub(crate) async fn body_while_answering(&mut self, length: usize, answer: &[u8]) -> Vec<u8> {
        let Self { stream, unread, .. } = self;
        let (mut reads, mut writes) = stream.split();
        let send = async {
            let _ = writes.write_all(answer).await;
        };
        let receive =
            async { while unread.len() < length && matches!(reads.read_buf(unread).await, Ok(1..)) {} };
        join(send, receive).await;
        self.body(length).await
    }

    async fn read(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.unread).await {
            Ok(1..) => Some(()),
            Ok(0) | Err(_) => None,
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// A sound answer.
    pub(crate) async fn answer(&mut self, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat()).await;
    }

    /// Ends the upstream's side in good order.
    pub(crate) async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Waits until the relay has ended its side too, or has reset the connection.
    pub(crate) async fn ended(&mut self) {
        while self.read().await.is_some() {}
    }

    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.notes.open.set(self.notes.open.get() - 1);
    }
}

/// A client's connection.
pub(crate) struct Client(pub(crate) Box<dyn Stream>);

/// What a client has read of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) finish: Finish,
}

/// How reading an answer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// All of the answer has come.
    Whole,
    /// The connection has ended in good order, and the answer says that it was not all.
    Cut,
    /// The connection was reset, or ended without a word of TLS.
    Reset,
}

impl Reading {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The last part of the problem's type.
    pub(crate) fn problem(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        problem["type"].as_str().unwrap().strip_prefix("urn:protoplex:problem:").unwrap().to_owned()
    }
}

/// As little as the system allows, and enough for it to go on without its timers.
const NARROW_SEND_BYTES: u32 = 1;
const NARROW_RECEIVE_BYTES: u32 = 4096;

/// A listener whose connections hold next to nothing of what is sent: with a narrow client's, about 6 KiB.
pub(crate) fn narrow_listener() -> std::net::TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(NARROW_SEND_BYTES).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(8).unwrap().into_std().unwrap()
}

/// A client's end of one.
pub(crate) async fn narrow_connection(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(NARROW_RECEIVE_BYTES).unwrap();
    let stream = socket.connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl Client {
    /// A client in the clear, or over TLS.
    pub(crate) async fn over(stream: TcpStream, tls: Option<&Arc<ClientConfig>>) -> Self {
        let Some(config) = tls else { return Self(Box::new(stream)) };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = TlsConnector::from(Arc::clone(config));
        Self(Box::new(connector.connect(name, stream).await.unwrap()))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Ends the client's side.
    pub(crate) async fn half_close(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    pub(crate) fn reset(self) {
        self.0.reset();
    }

    /// The answer to a request that begins like this.
    pub(crate) async fn answer_to(&mut self, request: &[u8]) -> Reading {
        self.answer(request.starts_with(b"HEAD ")).await
    }

    /// The next head, and nothing of what follows it.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match within(self.0.read_u8()).await {
                Ok(byte) => head.push(byte),
                Err(error) => {
                    panic!("{error} instead of an answer, behind {:?}", String::from_utf8_lossy(&head))
                }
            }
        }
        String::from_utf8(head).unwrap().to_lowercase()
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self, bodiless: bool) -> Reading {
        let head = self.head().await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reading = Reading { status, head, body: Vec::new(), finish: Finish::Whole };
        if bodiless || status < 200 || status == 204 || status == 304 {
            return reading;
        }
        let length = reading.header("content-length").map(|length| length.parse::<usize>().unwrap());
        let chunked = reading.header("transfer-encoding") == Some("chunked");
        assert!(length.is_none() || !chunked, "{reading:?}");
        reading.finish = match length {
            Some(length) => self.fill(&mut reading.body, length).await,
            None if chunked => self.chunks(&mut reading.body).await,
            None => match self.rest(&mut reading.body).await {
                true => Finish::Whole,
                false => Finish::Reset,
            },
        };
        reading
    }

    async fn fill(&mut self, bytes: &mut Vec<u8>, length: usize) -> Finish {
        let end = bytes.len() + length;
        while bytes.len() < end {
            let mut piece = vec![0; (end - bytes.len()).min(1 << 16)];
            match within(self.0.read(&mut piece)).await {
                Ok(0) => return Finish::Cut,
                Ok(length) => bytes.extend_from_slice(&piece[..length]),
                Err(_) => return Finish::Reset,
            }
        }
        Finish::Whole
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> Finish {
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                let finish = self.fill(&mut line, 1).await;
                if finish != Finish::Whole {
                    return finish;
                }
            }
            let size = std::str::from_utf8(&line).unwrap().trim();
            let size = usize::from_str_radix(size, 16).expect("a chunk's size");
            if size == 0 {
                break;
            }
            let finish = self.fill(body, size).await;
            if finish != Finish::Whole {
                return finish;
            }
            let mut end = Vec::new();
            let finish = self.fill(&mut end, 2).await;
            if finish != Finish::Whole {
                return finish;
            }
            assert_eq!(end, b"\r\n");
        }
        let mut trailers = b"\r\n".to_vec();
        while !trailers.ends_with(b"\r\n\r\n") {
            let finish = self.fill(&mut trailers, 1).await;
            if finish != Finish::Whole {
                return finish;
            }
        }
        Finish::Whole
    }

    /// All that comes until the connection ends; whether that is in good order.
    pub(crate) async fn rest(&mut self, bytes: &mut Vec<u8>) -> bool {
        within(self.0.read_to_end(bytes)).await.is_ok()
    }

    /// Nothing more comes but the end, in good order.
    pub(crate) async fn assert_ended(&mut self) {
        let mut rest = Vec::new();
        let sound = self.rest(&mut rest).await;
        assert_eq!((String::from_utf8_lossy(&rest).as_ref(), sound), ("", true));
    }

    /// Another request is answered on this connection.
    pub(crate) async fn assert_stays(&mut self, path: &str) -> Reading {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let reading = self.answer(false).await;
        assert_eq!((reading.status, reading.finish), (200, Finish::Whole), "{reading:?}");
        reading
    }
}

/// Bytes of which each tells where it is, so that none can be missing, doubled or out of place unseen.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Says where two bodies differ, without printing them.
pub(crate) fn assert_same(read: &[u8], sent: &[u8]) {
    let differs = read.iter().zip(sent).position(|(read, sent)| read != sent);
    assert_eq!((read.len(), differs), (sent.len(), None), "the length, and the first byte that is wrong");
}

/// A body in chunks of a size.
pub(crate) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut chunks = Vec::new();
    for piece in body.chunks(size) {
        write!(chunks, "{:x}\r\n", piece.len()).unwrap();
        chunks.extend_from_slice(piece);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    chunks
}
