//! Streams over real sockets, against tokio-rustls and `openssl s_client`.

use std::future::Future;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client};

use super::buffer::{BUFFER_BYTES, lent_and_free};
use super::*;
use keys::{Keys, VERSIONS, pattern, short_provider};

pub(super) mod keys;

type Client<S = TcpStream> = client::TlsStream<S>;

/// Runs a test as a child runs: on one thread. No test waits for longer.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { timeout(Duration::from_secs(60), test).await.expect("it takes too long") };
    LocalSet::new().block_on(&runtime, test);
}

/// Lets all tasks take note of what has come to their sockets: the runtime looks there every 61 turns.
async fn settle() {
    for _ in 0..130 {
        tokio::task::yield_now().await;
    }
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, (server, _)) = (client.unwrap(), server.unwrap());
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(config: ClientConfig, stream: S) -> Client<S> {
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

async fn pair_of(client: ClientConfig, server: ServerConfig) -> (Client, Box<TlsStream>) {
    let (near, far) = tcp().await;
    let (client, server) =
        tokio::join!(connect(client, near), TlsStream::accept(Tcp::new(far), Arc::new(server)));
    (client, server.unwrap())
}

async fn pair(version: &'static SupportedProtocolVersion) -> (Client, Box<TlsStream>) {
    let keys = Keys::new();
    pair_of(keys.client(version), keys.server()).await
}

/// Polls once, for nobody.
fn poll_now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

/// What a read finds at once.
fn read_now(stream: &mut TlsStream, space: usize) -> Poll<io::Result<Vec<u8>>> {
    let mut bytes = vec![0; space];
    let mut space = ReadBuf::new(&mut bytes);
    let result = poll_now(|cx| Pin::new(stream).poll_read(cx, &mut space));
    result.map_ok(|()| space.filled().to_vec())
}

fn now<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it has to be there at once"),
    }
}

/// Writes in pieces of changing size, each slice of it in a write of its own kind.
async fn write_pieces<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) {
    let mut sizes = [1, 10_000, 0, 300, 70_000, 16_384, 5].into_iter().cycle();
    let mut left = bytes;
    while !left.is_empty() {
        let (mut now, later) = left.split_at(left.len().min(sizes.next().unwrap()));
        left = later;
        while !now.is_empty() {
            let (head, body) = now.split_at(now.len() / 3);
            let slices = [IoSlice::new(head), IoSlice::new(body)];
            now = &now[writer.write_vectored(&slices).await.unwrap()..];
        }
    }
    writer.flush().await.unwrap();
}

#[test]
fn bytes_of_any_number_go_both_ways_at_once() {
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            for length in [0, 1, 1000, 16_383, 16_384, 16_385, 65_536, 70_000, 102_400] {
                let (up, down) = (pattern(length), pattern(length + 1));
                let (mut client_reader, mut client_writer) = split(&mut client);
                let (mut server_reader, mut server_writer) = split(&mut server);
                let (mut got_up, mut got_down) = (vec![0; length], vec![0; length + 1]);
                let (_, _, up_length, down_length) = tokio::join!(
                    write_pieces(&mut client_writer, &up),
                    write_pieces(&mut server_writer, &down),
                    server_reader.read_exact(&mut got_up),
                    client_reader.read_exact(&mut got_down),
                );
                assert_eq!((up_length.unwrap(), down_length.unwrap()), (length, length + 1));
                assert!(up == got_up && down == got_down, "{length}");
            }
            assert!(read_now(&mut server, 10).is_pending());
            assert_eq!(lent_and_free().0, 0);
        }
    });
}

/// Hands on what a client writes in two pieces, cut at a place, or in single bytes; and answers as they are.
/// Returns how much the client has written.
async fn relay(client: DuplexStream, server: TcpStream, cut: Option<usize>) -> usize {
    let (mut client_reader, mut client_writer) = split(client);
    let (mut server_reader, mut server_writer) = server.into_split();
    let up = async {
        let (mut bytes, mut at) = ([0; 4096], 0);
        while let Ok(length @ 1..) = client_reader.read(&mut bytes).await {
            let mut rest = &bytes[..length];
            while !rest.is_empty() {
                let end = cut.map_or(at + 1, |cut| if at < cut { cut } else { usize::MAX });
                let (piece, later) = rest.split_at(rest.len().min(end - at));
                server_writer.write_all(piece).await.unwrap();
                settle().await;
                at += piece.len();
                rest = later;
            }
        }
        server_writer.shutdown().await.unwrap();
        at
    };
    tokio::join!(up, tokio::io::copy(&mut server_reader, &mut client_writer)).0
}

/// A client says something, gets it back and ends in good order, through a relay. Returns the number of bytes
/// that it took.
async fn conversation(keys: &Keys, version: &'static SupportedProtocolVersion, cut: Option<usize>) -> usize {
    let (near, middle) = duplex(64 * 1024);
    let (middle_client, far) = tcp().await;
    let relay = spawn_local(relay(middle, middle_client, cut));
    let client = async {
        let mut client = connect(keys.client_with(version, short_provider()), near).await;
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello");
    };
    let server = async {
        let mut server = TlsStream::accept(Tcp::new(far), Arc::new(keys.server())).await.unwrap();
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).await.unwrap();
        server.write_all(&bytes).await.unwrap();
        server.shutdown().await.unwrap();
    };
    tokio::join!(client, server);
    relay.await.unwrap()
}

#[test]
fn bytes_of_a_client_may_be_cut_anywhere() {
    run(async {
        let keys = Keys::new();
        for version in VERSIONS {
            conversation(&keys, version, None).await;
            let (mut cut, mut length) = (0, usize::MAX);
            while cut < length {
                cut += 1;
                length = conversation(&keys, version, Some(cut)).await;
            }
        }
        assert_eq!(lent_and_free().0, 0);
    });
}

/// Hands on a client's first message, and all the rest at once when it has said what it has to say.
async fn hold_back(client: DuplexStream, server: TcpStream, has_spoken: Rc<Notify>) {
    let (mut client_reader, mut client_writer) = split(client);
    let (mut server_reader, mut server_writer) = server.into_split();
    let up = async {
        let mut bytes = [0; 4096];
        let length = client_reader.read(&mut bytes).await.unwrap();
        server_writer.write_all(&bytes[..length]).await.unwrap();
        has_spoken.notified().await;
        let length = client_reader.read(&mut bytes).await.unwrap();
        server_writer.write_all(&bytes[..length]).await.unwrap();
        server_writer
    };
    let _ = tokio::join!(up, tokio::io::copy(&mut server_reader, &mut client_writer));
}

#[test]
fn a_request_that_comes_with_the_end_of_the_handshake_is_read_without_another_edge() {
    run(async {
        let keys = Keys::new();
        let (near, middle) = duplex(64 * 1024);
        let (middle_client, far) = tcp().await;
        let has_spoken = Rc::new(Notify::new());
        spawn_local(hold_back(middle, middle_client, Rc::clone(&has_spoken)));
        let config = keys.client(VERSIONS[1]);
        let client = spawn_local(async move {
            let mut client = connect(config, near).await;
            client.write_all(b"request").await.unwrap();
            has_spoken.notify_one();
            let mut answer = [0; 6];
            client.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut server = TlsStream::accept(Tcp::new(far), Arc::new(keys.server())).await.unwrap();
        assert_eq!(now(read_now(&mut server, 100)).unwrap(), b"request");
        assert!(!server.session.waiting().is_empty(), "tickets go with the answer");
        server.write_all(b"answer").await.unwrap();
        assert!(server.session.waiting().is_empty());
        assert_eq!(client.await.unwrap(), *b"answer");
    });
}

#[test]
fn tickets_reach_a_client_that_says_nothing() {
    run(async {
        let keys = Keys::new();
        let (client_config, server_config) = (keys.client(VERSIONS[1]), Arc::new(keys.server()));
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let (near, far) = tcp().await;
            let accepting = TlsStream::accept(Tcp::new(far), Arc::clone(&server_config));
            let (mut client, server) = tokio::join!(connect(client_config.clone(), near), accepting);
            let mut server = server.unwrap();
            assert_eq!(client.get_ref().1.handshake_kind(), Some(expected));
            assert!(read_now(&mut server, 100).is_pending());
            assert!(server.session.waiting().is_empty());
            settle().await;
            let waiting = timeout(Duration::ZERO, client.read(&mut [0])).await;
            assert!(waiting.is_err(), "only tickets came");
        }
    });
}

#[test]
fn both_sides_know_what_alpn_has_chosen() {
    run(async {
        let keys = Keys::new();
        for (offered, expected) in
            [(&["h2", "http/1.1"][..], Some(&b"h2"[..])), (&["http/1.1"], Some(b"http/1.1")), (&[], None)]
        {
            let (mut client, mut server) = (keys.client(VERSIONS[1]), keys.server());
            server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            client.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
            let (client, server) = pair_of(client, server).await;
            assert_eq!(server.alpn_protocol(), expected);
            assert_eq!(client.get_ref().1.alpn_protocol(), expected);
        }
    });
}

#[test]
fn a_reader_may_take_single_bytes() {
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            let bytes = pattern(40_000);
            client.write_all(&bytes).await.unwrap();
            let mut got = vec![server.read_u8().await.unwrap()];
            assert!(read_now(&mut server, 0).is_ready());
            while got.len() < bytes.len() {
                got.push(server.read_u8().await.unwrap());
            }
            assert!(got == bytes);
            assert_eq!(lent_and_free().0, 0);
        }
    });
}

#[test]
fn a_client_that_takes_nothing_costs_one_buffer_and_can_still_send() {
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            let bytes = pattern(1_000_000);
            let mut written = Vec::new();
            // The sockets' own buffers fill first.
            while let Poll::Ready(length) = poll_now(|cx| Pin::new(&mut server).poll_write(cx, &bytes)) {
                written.extend_from_slice(&bytes[..length.unwrap()]);
                assert!(server.session.waiting().len() <= BUFFER_BYTES);
            }
            assert!(!server.session.waiting().is_empty());
            assert_eq!(lent_and_free().0, 1);
            assert!(poll_now(|cx| Pin::new(&mut server).poll_flush(cx)).is_pending());
            assert!(poll_now(|cx| Pin::new(&mut server).poll_shutdown(cx)).is_pending());
            for _ in 0..10 {
                client.write_all(b"still here").await.unwrap();
                assert_eq!(server.read_exact(&mut [0; 10]).await.unwrap(), 10);
                assert!(read_now(&mut server, 10).is_pending());
            }
            let (sent, received) = tokio::join!(server.shutdown(), async {
                let mut received = Vec::new();
                client.read_to_end(&mut received).await.map(|_| received)
            });
            sent.unwrap();
            assert!(received.unwrap() == written);
            assert_eq!(lent_and_free().0, 0);
        }
    });
}

/// Somebody who waits, and is told.
#[derive(Default)]
struct Waiter(AtomicBool);

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_reader_does_not_take_the_place_of_a_writer_that_waits() {
    run(async {
        let (mut client, mut server) = pair(VERSIONS[1]).await;
        let bytes = pattern(100_000);
        while poll_now(|cx| Pin::new(&mut server).poll_write(cx, &bytes)).is_ready() {}
        let (writer, reader) = (Arc::new(Waiter::default()), Arc::new(Waiter::default()));
        let waker = Waker::from(Arc::clone(&writer));
        assert!(Pin::new(&mut server).poll_flush(&mut Context::from_waker(&waker)).is_pending());
        let waker = Waker::from(Arc::clone(&reader));
        let mut space = [0; 10];
        let mut space = ReadBuf::new(&mut space);
        assert!(Pin::new(&mut server).poll_read(&mut Context::from_waker(&waker), &mut space).is_pending());
        let mut left = [0; 10_000];
        while !writer.0.load(Ordering::Relaxed) {
            client.read_exact(&mut left).await.unwrap();
        }
        assert!(!reader.0.load(Ordering::Relaxed));
        client.write_all(b"more").await.unwrap();
        while !reader.0.load(Ordering::Relaxed) {
            settle().await;
        }
        assert_eq!(now(read_now(&mut server, 10)).unwrap(), b"more");
    });
}

#[test]
fn garbage_instead_of_a_hello_is_answered_with_an_alert() {
    run(async {
        let keys = Keys::new();
        for garbage in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0; 50], &[22, 3, 1, 0, 4, 9, 0, 0, 0]] {
            let (mut client, far) = tcp().await;
            client.write_all(garbage).await.unwrap();
            let error = TlsStream::accept(Tcp::new(far), Arc::new(keys.server())).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            let mut alert = Vec::new();
            client.read_to_end(&mut alert).await.unwrap();
            assert!(matches!(alert[..], [21, 3, _, 0, 2, 2, _]), "{alert:?}");
        }
        assert_eq!(lent_and_free().0, 0);
    });
}

#[test]
fn a_client_that_leaves_during_the_handshake_is_told_from_one_that_talks_nonsense() {
    run(async {
        let keys = Keys::new();
        for begun in [&[][..], &[22, 3, 1, 0, 100, 1]] {
            let (mut client, far) = tcp().await;
            client.write_all(begun).await.unwrap();
            drop(client);
            let error = TlsStream::accept(Tcp::new(far), Arc::new(keys.server())).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        }
    });
}

#[test]
fn an_error_tells_the_client_and_comes_after_what_was_fine() {
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            client.write_all(b"fine").await.unwrap();
            // A record longer than any.
            client.get_mut().0.write_all(&[23, 3, 3, 0xff, 0xff, 0]).await.unwrap();
            let mut bytes = Vec::new();
            for _ in 0..2 {
                let error = server.read_to_end(&mut bytes).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            }
            assert_eq!(bytes, b"fine");
            assert!(server.write(b"x").await.is_err());
            let error = client.read(&mut [0]).await.unwrap_err();
            assert!(error.to_string().contains("alert"), "{error}");
        }
    });
}

#[test]
fn each_side_ends_for_itself() {
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            client.write_all(b"last").await.unwrap();
            client.shutdown().await.unwrap();
            let mut bytes = Vec::new();
            server.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes, b"last");
            assert_eq!(now(read_now(&mut server, 10)).unwrap(), b"");
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(server.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            bytes.clear();
            client.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes, b"answer");

            let (mut client, mut server) = pair(version).await;
            server.shutdown().await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            client.write_all(b"late").await.unwrap();
            assert_eq!(server.read_exact(&mut [0; 4]).await.unwrap(), 4);
        }
    });
}

#[test]
fn an_end_without_a_close_notify_is_an_error_after_all_that_came() {
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            client.write_all(b"last").await.unwrap();
            client.get_mut().0.shutdown().await.unwrap();
            let mut bytes = Vec::new();
            for _ in 0..2 {
                let error = server.read_to_end(&mut bytes).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
            assert_eq!(bytes, b"last");
            // It has ended only its own side.
            server.write_all(b"answer").await.unwrap();
            assert_eq!(client.read_exact(&mut [0; 6]).await.unwrap(), 6);
        }
    });
}

#[test]
fn an_idle_stream_holds_no_bytes() {
    assert!(size_of::<TlsStream>() <= 1280, "{}", size_of::<TlsStream>());
    run(async {
        for version in VERSIONS {
            let (mut client, mut server) = pair(version).await;
            for length in [1000, 300_000] {
                let bytes = pattern(length);
                let mut got = vec![0; length];
                let echo = async {
                    server.read_exact(&mut got).await.unwrap();
                    server.write_all(&got).await.unwrap();
                    server.flush().await.unwrap();
                };
                let mut back = vec![0; length];
                let ask = async {
                    client.write_all(&bytes).await.unwrap();
                    client.flush().await.unwrap();
                    client.read_exact(&mut back).await.unwrap();
                };
                tokio::join!(echo, ask);
                assert!(back == bytes);
                assert!(read_now(&mut server, 10).is_pending());
                assert_eq!(server.session.held_bytes(), 0);
                assert_eq!(lent_and_free().0, 0);
            }
            // The beginning of a record, and no more for now.
            client.get_mut().0.write_all(&[23, 3, 3, 0x40, 0, 1, 2]).await.unwrap();
            while server.session.held_bytes() == 0 {
                assert!(read_now(&mut server, 10).is_pending());
                settle().await;
            }
            assert_eq!((server.session.held_bytes(), lent_and_free().0), (7, 0));
        }
    });
}

/// Starts `openssl s_client` with a server that gives back what it is sent.
fn openssl(version: &str, listener: TcpListener) -> (Child, JoinHandle<()>) {
    let client = Command::new("openssl")
        .args(["s_client", version, "-brief", "-connect"])
        .arg(listener.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let server = spawn_local(async move {
        let (far, _) = listener.accept().await.unwrap();
        let config = Arc::new(Keys::new().server());
        let mut server = TlsStream::accept(Tcp::new(far), config).await.unwrap();
        let mut bytes = [0; 1000];
        while let Ok(length @ 1..) = server.read(&mut bytes).await {
            server.write_all(&bytes[..length]).await.unwrap();
        }
        let _ = server.shutdown().await;
    });
    (client, server)
}

#[test]
fn openssl_gets_its_answers_its_new_keys_and_no_renegotiation() {
    run(async {
        for (version, command, told) in [
            ("-tls1_2", "R", "no renegotiation"),
            ("-tls1_3", "k", "KEYUPDATE"),
            ("-tls1_3", "K", "KEYUPDATE"),
        ] {
            let (mut client, server) = openssl(version, TcpListener::bind("127.0.0.1:0").await.unwrap());
            let mut input = client.stdin.take().unwrap();
            let mut output = BufReader::new(client.stdout.take().unwrap()).lines();
            let mut errors = BufReader::new(client.stderr.take().unwrap()).lines();
            input.write_all(b"one\n").await.unwrap();
            assert_eq!(output.next_line().await.unwrap().as_deref(), Some("one"));
            input.write_all(format!("{command}\n").as_bytes()).await.unwrap();
            while !errors.next_line().await.unwrap().expect(told).contains(told) {}
            if command != "R" {
                input.write_all(b"two\n").await.unwrap();
                assert_eq!(output.next_line().await.unwrap().as_deref(), Some("two"));
            }
            drop(input);
            server.await.unwrap();
        }
    });
}
