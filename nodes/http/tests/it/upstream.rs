//! The upstream pool against servers that misbehave in one way each.

use std::cell::Cell;
use std::future::pending;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream;
use protoplex_http::upstream::{Pool, SendError, SendErrorKind, Settings};
use protoplex_http::{Body, BodyError, Request, Response};
use tokio::net::TcpSocket;

use crate::kit::{Raw, begun_and_lost, limits, run, start, text, until, within};

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
            let _ = request.into_body().collect(u64::MAX).await;
            text(format!("{connections}"))
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
        // An answer that is given up closes its connection.
        drop(pool.send(server.address, get("/")).await.unwrap());
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
