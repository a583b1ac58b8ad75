//! The upstream pool against servers that misbehave in one way each.

use std::cell::Cell;
use std::future::pending;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream;
use protoplex_http::upstream::{Pool, SendError, SendErrorKind, Settings};
use protoplex_http::{Body, BodyError, Request, Response};
use tokio::net::TcpSocket;

use crate::kit::{Raw, begun_and_lost, echo, limits, run, start, text, until, within};

fn get(path: &str) -> Request {
    http::Request::get(path).header("host", "a").body(Body::empty()).unwrap()
}

fn post(body: Body) -> Request {
    http::Request::post("/").header("host", "a").body(body).unwrap()
}

fn settings() -> Settings {
    Settings::default()
}

async fn text_of(answer: Result<Response, SendError>) -> String {
    String::from_utf8(answer.unwrap().into_body().collect(1 << 20).await.unwrap().into()).unwrap()
}

/// A server of one thread that treats each connection as it is told, in turn.
fn origin(mut treat: impl FnMut(usize, std::net::TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            treat(at, stream.unwrap());
        }
    });
    address
}

fn read_head(stream: &mut std::net::TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A server of ours that tells in its answers how many connections it has seen.
fn counting() -> crate::kit::Server {
    let peers = Rc::new(std::cell::RefCell::new(std::collections::BTreeSet::new()));
    start(limits(), move |request, exchange| {
        peers.borrow_mut().insert(exchange.peer);
        let connections = peers.borrow().len();
        async move {
            if request.uri().path() == "/early" {
                return text(connections.to_string());
            }
            let large = request.uri().path() == "/large";
            let _ = request.into_body().collect(u64::MAX).await;
            if large { text("x".repeat(1 << 20)) } else { text(format!("{connections}")) }
        }
    })
}

#[test]
fn a_connection_is_used_again_when_both_messages_have_ended() {
    run(async {
        let server = counting();
        let pool = Pool::new(settings());
        for _ in 0..3 {
            assert_eq!(text_of(pool.send(server.address, get("/")).await).await, "1");
            let body =
                Body::stream(stream::iter([Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"b"))]));
            assert_eq!(text_of(pool.send(server.address, post(body)).await).await, "1");
        }
        // An answer that is given up before it has come closes its connection.
        drop(pool.send(server.address, get("/large")).await.unwrap());
        assert_eq!(text_of(pool.send(server.address, get("/")).await).await, "2");
        // So does one that came before the request's body had ended.
        let endless = Body::stream(stream::pending());
        let early = http::Request::post("/early").header("host", "a").body(endless).unwrap();
        assert_eq!(text_of(pool.send(server.address, early).await).await, "2");
        assert_eq!(text_of(pool.send(server.address, get("/")).await).await, "3");
    });
}

#[test]
fn at_most_so_many_connections_stay_idle() {
    run(async {
        let server = counting();
        let pool = Pool::new(Settings { max_idle_per_origin: 1, ..settings() });
        let (first, second) =
            join(pool.send(server.address, get("/")), pool.send(server.address, get("/"))).await;
        text_of(first).await;
        text_of(second).await;
        let (first, second) =
            join(pool.send(server.address, get("/")), pool.send(server.address, get("/"))).await;
        let mut answers = [text_of(first).await, text_of(second).await];
        answers.sort();
        assert_eq!(answers, ["2", "3"], "one of two connections is kept");
    });
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    run(async {
        let (closed, is_closed) = mpsc::channel();
        let address = origin(move |_, mut stream| {
            read_head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            closed.send(stream.read(&mut [0]).unwrap()).unwrap();
        });
        let pool = Pool::new(Settings { idle_timeout: Duration::from_millis(100), ..settings() });
        assert_eq!(text_of(pool.send(address, get("/")).await).await, "");
        until(|| is_closed.try_recv() == Ok(0)).await;
    });
}

#[test]
fn a_pooled_connection_that_proves_dead_is_replaced_and_the_request_sent_whole() {
    run(async {
        let (closed, wait) = mpsc::channel();
        let address = origin(move |at, mut stream| {
            read_head(&mut stream);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{at}");
            stream.write_all(answer.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
            drop(stream);
            closed.send(()).unwrap();
        });
        let pool = Pool::new(settings());
        let mut first = pool.send(address, get("/")).await.unwrap().into_body();
        assert_eq!(first.chunk().await.unwrap().unwrap(), "0");
        assert!(first.chunk().await.is_none());
        // The thread is held here, so that the pool can't have noticed.
        wait.recv().unwrap();
        assert_eq!(text_of(pool.send(address, post(Body::from("body"))).await).await, "1");
    });
}

/// A server that answers a connection's first request, and closes it when it has read the second; each answer tells
/// which connection it came on, and how often connections were closed so.
fn closing_at_the_second(closed: Arc<AtomicUsize>) -> SocketAddr {
    origin(move |at, mut stream| {
        let closed = Arc::clone(&closed);
        thread::spawn(move || {
            read_head(&mut stream);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{at}");
            stream.write_all(answer.as_bytes()).unwrap();
            if !read_head(&mut stream).is_empty() {
                closed.fetch_add(1, Ordering::SeqCst);
            }
        });
    })
}

#[test]
fn an_idempotent_request_that_meets_the_end_of_its_pooled_connection_is_sent_once_more() {
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        run(async {
            let closed = Arc::new(AtomicUsize::new(0));
            let address = closing_at_the_second(Arc::clone(&closed));
            let pool = Pool::new(settings());
            assert_eq!(text_of(pool.send(address, get("/")).await).await, "0");
            let request = http::Request::builder().method(method).uri("/").header("host", "a");
            let answer = pool.send(address, request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200, "{method}");
            assert_eq!(closed.load(Ordering::SeqCst), 1, "it was read once, then sent anew");
        });
    }
}

#[test]
fn what_may_have_had_an_effect_or_lost_its_body_is_not_sent_once_more() {
    let begun = || Body::stream(stream::iter([Ok(Bytes::from_static(b"a"))]));
    for (method, body) in
        [("POST", Body::empty as fn() -> Body), ("PATCH", Body::empty), ("PUT", begun), ("GET", begun)]
    {
        run(async {
            let closed = Arc::new(AtomicUsize::new(0));
            let address = closing_at_the_second(Arc::clone(&closed));
            let pool = Pool::new(settings());
            assert_eq!(text_of(pool.send(address, get("/")).await).await, "0");
            let request = http::Request::builder().method(method).uri("/").header("host", "a");
            let error = pool.send(address, request.body(body()).unwrap()).await.unwrap_err();
            assert!(matches!(error.kind, SendErrorKind::Closed { .. }), "{method}: {error}");
            assert!(error.request.is_none());
            assert_eq!(closed.load(Ordering::SeqCst), 1);
        });
    }
}

#[test]
fn a_body_that_was_kept_back_goes_along_when_its_request_is_sent_once_more() {
    run(async {
        let address = origin(|at, mut stream| {
            read_head(&mut stream);
            if at == 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                read_head(&mut stream);
                return;
            }
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).unwrap();
            stream
                .write_all(&[&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"[..], &body].concat())
                .unwrap();
        });
        let pool = Pool::new(settings());
        assert_eq!(text_of(pool.send(address, get("/")).await).await, "");
        let put = http::Request::put("/").header("host", "a").header("expect", "100-continue");
        assert_eq!(text_of(pool.send(address, put.body(Body::from("body")).unwrap()).await).await, "body");
    });
}

#[test]
fn a_fresh_connection_that_is_closed_is_not_replaced() {
    run(async {
        let (tell, told) = mpsc::channel();
        let address = origin(move |at, mut stream| {
            read_head(&mut stream);
            tell.send(at).unwrap();
        });
        let error = Pool::new(settings()).send(address, get("/")).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::Closed { .. }), "{error}");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [0]);
    });
}

#[test]
fn an_answer_that_leaves_open_where_it_ends_is_refused_and_its_connection_closed() {
    for (method, fields) in [
        ("GET", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("GET", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n"),
        ("HEAD", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("HEAD", "Content-Length: 5\r\nContent-Length: 6\r\n\r\n"),
        ("GET", "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", "Content-Length: 5, 5\r\n\r\nhello"),
        ("GET", "Content-Length: +5\r\n\r\nhello"),
        ("GET", "Content-Length: -1\r\n\r\n"),
        ("GET", "Content-Length: 0x5\r\n\r\nhello"),
        ("GET", "Content-Length: 99999999999999999999\r\n\r\nhello"),
        ("HEAD", "Content-Length:\r\n\r\n"),
        ("GET", "Transfer-Encoding: gzip\r\n\r\nhello"),
        ("GET", "Transfer-Encoding: identity\r\n\r\nhello"),
        ("GET", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("GET", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("GET", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ] {
        run(async {
            let address = origin(move |at, mut stream| {
                read_head(&mut stream);
                if at > 0 {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsound").unwrap();
                    return;
                }
                stream.write_all(format!("HTTP/1.1 200 OK\r\n{fields}").as_bytes()).unwrap();
                // Nobody else is served before this connection is closed.
                while stream.read(&mut [0]).is_ok_and(|length| length > 0) {}
            });
            let pool = Pool::new(settings());
            let request = http::Request::builder().method(method).uri("/").header("host", "a");
            let request = request.body(Body::empty()).unwrap();
            let error = within(pool.send(address, request)).await.unwrap_err();
            assert!(matches!(error.kind, SendErrorKind::Protocol { .. }), "{fields:?}: {error}");
            assert_eq!(text_of(within(pool.send(address, get("/"))).await).await, "sound", "{fields:?}");
        });
    }
}

#[test]
fn bytes_behind_an_answer_are_never_taken_for_the_next_one() {
    run(async {
        let address = origin(|at, mut stream| {
            read_head(&mut stream);
            let answer = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{text}");
            let planted = if at == 0 { answer("false") } else { String::new() };
            stream.write_all((answer("sound") + &planted).as_bytes()).unwrap();
            while stream.read(&mut [0]).is_ok_and(|length| length > 0) {}
        });
        let pool = Pool::new(settings());
        for _ in 0..2 {
            assert_eq!(text_of(within(pool.send(address, get("/"))).await).await, "sound");
        }
    });
}

#[test]
fn a_body_of_unknown_length_goes_along_whatever_the_method() {
    run(async {
        let server = start(limits(), |request, _| echo(request));
        for method in ["GET", "POST", "DELETE"] {
            let request = http::Request::builder().method(method).uri("/").header("host", "a");
            let body = Body::stream(stream::iter([Ok(Bytes::from_static(b"query"))]));
            let answer = Pool::new(settings()).send(server.address, request.body(body).unwrap()).await;
            assert_eq!(text_of(answer).await, "query", "{method}");
        }
    });
}

#[test]
fn an_empty_piece_of_a_body_is_not_its_end_and_holds_nothing_up() {
    run(async {
        let server = start(limits(), |request, _| echo(request));
        let pieces = ["", "a", "", "b", ""].map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let answer =
            Pool::new(settings()).send(server.address, post(Body::stream(stream::iter(pieces)))).await;
        assert_eq!(text_of(answer).await, "ab");
    });
}

#[test]
fn a_refused_connection_gives_the_request_back() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Pool::new(settings()).send(address, post(Body::from("body"))).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::Connect { .. }), "{error}");
        let body = error.request.unwrap().into_body();
        assert_eq!(body.collect(10).await.unwrap(), "body");
    });
}

#[test]
fn a_connection_that_does_not_come_about_is_given_up() {
    run(async {
        // A queue of one place, taken: further connections are left waiting by the kernel.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let _waiting = Raw::connect(address).await;
        let pool = Pool::new(Settings { connect_timeout: Duration::from_millis(200), ..settings() });
        let error = pool.send(address, get("/")).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::ConnectTimeout { .. }), "{error}");
        assert!(error.request.is_some());
    });
}

#[test]
fn an_upstream_that_does_not_answer_is_given_up() {
    run(async {
        let server = start(limits(), |_, _| pending());
        let pool = Pool::new(Settings { first_byte_timeout: Duration::from_millis(200), ..settings() });
        let error = pool.send(server.address, get("/")).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::FirstByteTimeout { .. }), "{error}");
        assert!(error.request.is_none());
    });
}

#[test]
fn waiting_for_a_slow_client_is_not_the_upstreams_fault() {
    run(async {
        let server = counting();
        let pool = Pool::new(Settings { first_byte_timeout: Duration::from_millis(100), ..settings() });
        let slow = stream::once(async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            Ok(Bytes::from_static(b"late"))
        });
        assert_eq!(text_of(pool.send(server.address, post(Body::stream(slow))).await).await, "1");
    });
}

#[test]
fn an_answer_that_stalls_or_breaks_off_ends_in_an_error_that_says_which() {
    run(async {
        let (keep, kept) = mpsc::channel();
        let address = origin(move |at, mut stream| {
            read_head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").unwrap();
            if at == 0 {
                keep.send(stream).unwrap();
            }
        });
        let pool = Pool::new(Settings { body_idle_timeout: Duration::from_millis(200), ..settings() });
        let stalled = pool.send(address, get("/")).await.unwrap().into_body().collect(100).await.unwrap_err();
        assert!(matches!(stalled, BodyError::UpstreamTooSlow(_)), "{stalled}");
        let broken = pool.send(address, get("/")).await.unwrap().into_body().collect(100).await.unwrap_err();
        assert!(matches!(broken, BodyError::Upstream(_)), "{broken}");
        drop(kept);
    });
}

#[test]
fn an_upstream_that_closes_or_talks_nonsense_is_told_apart() {
    run(async {
        let address = origin(|at, mut stream| {
            read_head(&mut stream);
            if at == 1 {
                stream.write_all(b"220 mail.example ESMTP\r\n\r\n").unwrap();
            }
        });
        let pool = Pool::new(settings());
        let error = pool.send(address, get("/")).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::Closed { .. }), "{error}");
        let error = pool.send(address, get("/")).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::Protocol { .. }), "{error}");
    });
}

#[test]
fn an_early_answer_is_returned_while_the_body_is_still_being_sent() {
    run(async {
        let (keep, kept) = mpsc::channel();
        let address = origin(move |_, mut stream| {
            read_head(&mut stream);
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").unwrap();
            keep.send(stream).unwrap();
        });
        let endless = Body::stream(stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 4096]))));
        let answer = within(Pool::new(settings()).send(address, post(endless))).await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.into_body().collect(10).await.unwrap(), "no");
        drop(kept);
    });
}

#[test]
fn an_early_answer_survives_an_upstream_that_closes_at_once() {
    run(async {
        let address = origin(|_, mut stream| {
            read_head(&mut stream);
            stream
                .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
                .unwrap();
        });
        let endless = Body::stream(stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 4096]))));
        let answer = within(Pool::new(settings()).send(address, post(endless))).await.unwrap();
        assert_eq!(answer.status(), 413);
    });
}

#[test]
fn a_request_body_that_fails_breaks_the_request_off() {
    run(async {
        let ends = Rc::new(Cell::new(None));
        let end = Rc::clone(&ends);
        let server = start(limits(), move |request, _| {
            let end = Rc::clone(&end);
            async move {
                end.set(Some(request.into_body().collect(100).await.is_err()));
                text("")
            }
        });
        let body = begun_and_lost(BodyError::ClientGone);
        let error = Pool::new(settings()).send(server.address, post(body)).await.unwrap_err();
        assert!(matches!(error.kind, SendErrorKind::RequestBody(BodyError::ClientGone)), "{error}");
        until(|| ends.get().is_some()).await;
        assert_eq!(ends.get(), Some(true), "the upstream must not take it for whole");
    });
}
