//! WebSockets that are relayed when the drain starts: both sides are told to go away, and nothing is broken off.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protoplex_http::tls::{ensure_local, load};
use protoplex_http::{AccessLog, Limits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::kit::{
    Metrics, Raw, Server, limits, pass, run, run_with_a_still_clock, settle, start_relay_under, tls_over,
    until, within,
};

const HEAD: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// Our Close to a client.
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

fn relay(tunnel_drain_timeout: Duration, origin: SocketAddr) -> Server {
    start_relay_under(Limits { tunnel_drain_timeout, ..limits() }, None, AccessLog::off(), origin)
}

/// What the backend's side of a WebSocket was told last, once it is over; `None` where that was no Close.
pub(crate) type Told = Rc<RefCell<Vec<Option<CloseCode>>>>;

/// A WebSocket server that sends every message back.
pub(crate) async fn echo() -> (SocketAddr, Told) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Told::default();
    let notes = Rc::clone(&told);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let notes = Rc::clone(&notes);
            tokio::task::spawn_local(async move {
                let mut socket = accept_async(stream).await.unwrap();
                let mut last = None;
                while let Some(message) = socket.next().await {
                    match message {
                        Ok(Message::Close(frame)) => last = frame.map(|frame| frame.code),
                        Ok(message) => socket.send(message).await.unwrap(),
                        Err(_) => last = None,
                    }
                }
                notes.borrow_mut().push(last);
            });
        }
    });
    (address, told)
}

async fn connect(relay: SocketAddr) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(relay).await.unwrap();
    client_async(format!("ws://{relay}/"), stream).await.unwrap().0
}

/// A connection through a relay whose backend is the test.
async fn by_hand(tunnel_drain_timeout: Duration) -> (Server, Raw, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = relay(tunnel_drain_timeout, listener.local_addr().unwrap());
    let mut client = Raw::connect(relay.address).await;
    client.send(HEAD).await;
    let (mut backend, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(backend.read_u8().await.unwrap());
    }
    backend.write_all(SWITCH.as_bytes()).await.unwrap();
    assert_eq!(client.answer().await.status, 101);
    (relay, client, backend)
}

async fn read(from: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    within(from.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Whether nothing has come.
async fn is_silent(from: &TcpStream) -> bool {
    settle().await;
    matches!(from.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn drained(metrics: &Metrics, what: &str) -> u64 {
    metrics.counter(&format!("protoplex_http_drained_total{{what={what:?}}}"))
}

#[test]
fn both_sides_of_a_websocket_are_told_to_go_away_and_end_in_good_order() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run(async {
        let (origin, told) = echo().await;
        let relay = relay(Duration::from_secs(1), origin);
        let stream = TcpStream::connect(relay.address).await.unwrap();
        part(relay, stream, &told).await;
    });
    run(async {
        let (origin, told) = echo().await;
        let certificates = tempfile::tempdir().unwrap();
        let local = ensure_local(certificates.path(), &[]).unwrap();
        let tls = load(&local.certificate, &local.key).unwrap();
        let limits = Limits { tunnel_drain_timeout: Duration::from_secs(1), ..limits() };
        let relay = start_relay_under(limits, Some(tls), AccessLog::off(), origin);
        let stream = TcpStream::connect(relay.address).await.unwrap();
        part(relay, tls_over(stream, &local.authority).await, &told).await;
    });
    assert_eq!((drained(&metrics, "websockets_closed"), drained(&metrics, "tunnels_cut")), (2, 0));
}

/// Opens a WebSocket, has the relay drain, and sees both sides part.
async fn part(relay: Server, stream: impl AsyncRead + AsyncWrite + Unpin, told: &Told) {
    let (mut socket, _) = client_async(format!("ws://{}/", relay.address), stream).await.unwrap();
    for text in ["hello".to_owned(), "x".repeat(1 << 20)] {
        socket.send(Message::text(text.clone())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    relay.trigger.pull();
    let Message::Close(Some(close)) = within(socket.next()).await.unwrap().unwrap() else { panic!() };
    assert_eq!(close.code, CloseCode::Away);
    assert!(within(socket.next()).await.is_none(), "the connection ends in good order");
    within(until(|| *told.borrow() == [Some(CloseCode::Away)])).await;
    within(relay.task).await.unwrap();
}

#[test]
fn a_message_that_is_under_way_arrives_whole_before_the_close() {
    run_with_a_still_clock(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = relay(Duration::from_secs(10), listener.local_addr().unwrap());
        // More than all sockets on the way take, each way.
        let big = Message::binary(vec![7; 15 << 20]);
        let sent = big.clone();
        let backend = tokio::task::spawn_local(async move {
            let mut socket = accept_async(listener.accept().await.unwrap().0).await.unwrap();
            socket.send(sent).await.unwrap();
            let first = socket.next().await.unwrap().unwrap();
            let last = socket.next().await.unwrap().unwrap();
            (first, last)
        });
        let mut socket = connect(relay.address).await;
        // Nobody reads before the time has come at which it is to be closed.
        let (mut sink, mut stream) = socket.split();
        let upload = sink.send(big.clone());
        let pull = async {
            settle().await;
            relay.trigger.pull();
            pass(Duration::from_millis(7_600)).await;
            within(stream.next()).await.unwrap().unwrap()
        };
        let (uploaded, downloaded) = tokio::join!(upload, pull);
        uploaded.unwrap();
        assert!(downloaded == big);
        socket = sink.reunite(stream).unwrap();
        assert!(within(socket.next()).await.unwrap().unwrap().is_close());
        let (first, last) = within(backend).await.unwrap();
        assert!(first == big && last.is_close());
    });
}

#[test]
fn a_close_waits_for_the_end_of_a_message_and_later_only_of_a_frame() {
    run_with_a_still_clock(async {
        // The end of a frame comes after the time at which it is to be closed.
        let (relay, mut client, mut backend) = by_hand(Duration::from_secs(10)).await;
        backend.write_all(&[0x01, 3, b'a']).await.unwrap();
        assert_eq!(read(&mut client.0, 3).await, [0x01, 3, b'a']);
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(4_900)).await;
        backend.write_all(b"bc").await.unwrap();
        assert_eq!(read(&mut client.0, 2).await, b"bc");
        assert!(is_silent(&client.0).await, "the message is not whole");
        backend.write_all(&[0x80, 1, b'd', 0x81, 1, b'e']).await.unwrap();
        assert_eq!(read(&mut client.0, 3).await, [0x80, 1, b'd']);
        pass(Duration::from_millis(2_700)).await;
        // Where it was not to be closed yet the next message has passed, too.
        let mut rest = read(&mut client.0, 4).await;
        if rest[0] == 0x81 {
            rest.extend(read(&mut client.0, 3).await);
            rest.drain(..3);
        }
        assert_eq!(rest, GOING_AWAY);
        // The client is not in a message: the backend was told at once.
        let masked = read(&mut backend, 8).await;
        assert_eq!(
            (&masked[..2], masked[6] ^ masked[2], masked[7] ^ masked[3]),
            (&[0x88, 0x82][..], 3, 0xe9)
        );
        drop((client, backend));
        within(relay.task).await.unwrap();

        // A message that does not end is interrupted between its frames.
        let (relay, mut client, mut backend) = by_hand(Duration::from_secs(10)).await;
        backend.write_all(&[0x01, 1, b'a']).await.unwrap();
        assert_eq!(read(&mut client.0, 3).await, [0x01, 1, b'a']);
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(4_900)).await;
        assert!(is_silent(&client.0).await, "the message is not whole");
        pass(Duration::from_millis(4_000)).await;
        assert_eq!(read(&mut client.0, 4).await, GOING_AWAY);
        client.send([0x88, 0x80, 0, 0, 0, 0]).await;
        assert_eq!(client.rest().await, b"");
        drop((client, backend));
        within(relay.task).await.unwrap();
    });
}

#[test]
fn a_client_that_never_answers_the_close_is_cut_when_the_time_is_over() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run_with_a_still_clock(async {
        let (relay, mut client, _backend) = by_hand(Duration::from_secs(10)).await;
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(7_600)).await;
        assert_eq!(read(&mut client.0, 4).await, GOING_AWAY);
        client.send([0x81, 0x80, 0, 0, 0, 0]).await;
        pass(Duration::from_millis(2_300)).await;
        assert!(is_silent(&client.0).await && !relay.task.is_finished());
        pass(Duration::from_millis(200)).await;
        assert_eq!(client.rest().await, b"", "an end, and no reset");
        within(relay.task).await.unwrap();
        assert_eq!((drained(&metrics, "websockets_closed"), drained(&metrics, "tunnels_cut")), (0, 1));
    });
}

#[test]
fn a_close_of_the_backends_own_is_not_followed_by_another() {
    run_with_a_still_clock(async {
        let (relay, mut client, mut backend) = by_hand(Duration::from_secs(10)).await;
        backend.write_all(&[0x88, 2, 0x03, 0xe8]).await.unwrap();
        assert_eq!(read(&mut client.0, 4).await, [0x88, 2, 0x03, 0xe8]);
        relay.trigger.pull();
        settle().await;
        pass(Duration::from_millis(7_600)).await;
        assert!(is_silent(&client.0).await);
        client.send([0x88, 0x80, 0, 0, 0, 0]).await;
        assert_eq!(client.rest().await, b"");
        drop((client, backend));
        within(relay.task).await.unwrap();
    });
}

#[test]
fn the_closes_of_many_websockets_are_spread() {
    run_with_a_still_clock(async {
        let (origin, told) = echo().await;
        let relay = relay(Duration::from_secs(4), origin);
        let closed = Rc::new(RefCell::new(0));
        for _ in 0..200 {
            let mut socket = connect(relay.address).await;
            let closed = Rc::clone(&closed);
            tokio::task::spawn_local(async move {
                while let Some(message) = socket.next().await {
                    *closed.borrow_mut() += u32::from(message.unwrap().is_close());
                }
            });
        }
        relay.trigger.pull();
        settle().await;
        let mut each_second = Vec::new();
        for _ in 0..3 {
            let before = *closed.borrow();
            for _ in 0..10 {
                pass(Duration::from_millis(100)).await;
                settle().await;
            }
            each_second.push(*closed.borrow() - before);
        }
        within(relay.task).await.unwrap();
        assert!(each_second.iter().all(|count| *count > 30), "{each_second:?}");
        assert_eq!((*closed.borrow(), told.borrow().len()), (200, 200));
        assert!(told.borrow().iter().all(|code| *code == Some(CloseCode::Away)));
    });
}
