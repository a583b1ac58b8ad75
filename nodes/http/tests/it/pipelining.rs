//! Several requests at once on a connection: answered in order, the sound ones before the first bad one, none
//! after it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use protoplex_http::{AccessLog, Body, Response};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::kit::{Raw, Server, limits, run, start, start_with, text};
use crate::stage::{Client, Stage, certificates, in_the_clear_and_over_tls};

#[test]
fn requests_are_answered_in_order() {
    run(async {
        let server = start(limits(), |request, _| async move {
            if request.uri().path() == "/slow" {
                tokio::task::yield_now().await;
            }
            text(request.uri().path())
        });
        let mut client = Raw::connect(server.address).await;
        let mut bytes = Vec::new();
        for path in ["/slow", "/b", "/slow", "/c"] {
            bytes.extend_from_slice(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        }
        client.send(bytes).await;
        for path in ["/slow", "/b", "/slow", "/c"] {
            assert_eq!(client.answer().await.body, path);
        }
    });
}

#[test]
fn what_comes_before_a_bad_request_is_answered_first_and_what_comes_after_it_is_not_looked_at() {
    run(async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let paths = Rc::clone(&seen);
        let server = start(limits(), move |request, _| {
            paths.borrow_mut().push(request.uri().path().to_owned());
            async move {
                let body = request.into_body().collect(100).await.unwrap();
                Response::new(Body::stream(futures_util::stream::iter([Ok(body), Ok("!".into())])))
            }
        });
        let mut client = Raw::connect(server.address).await;
        client
            .send(
                "GET /a HTTP/1.1\r\nHost: a\r\n\r\n\
                 POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                 POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nc\
                 GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n\
                 GET /never HTTP/1.1\r\nHost: a\r\n\r\n",
            )
            .await;
        for body in ["!", "abc!", "c!"] {
            assert_eq!(client.answer().await.body, body);
        }
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "host-twice"));
        assert_eq!(client.rest().await, b"");
        assert_eq!(*seen.borrow(), ["/a", "/b", "/c"]);
    });
}

#[test]
fn an_unread_body_that_came_along_does_not_cost_the_connection() {
    run(async {
        let server = start(limits(), |_, _| async { text("no") });
        let mut client = Raw::connect(server.address).await;
        for _ in 0..3 {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
            let answer = client.answer().await;
            assert_eq!((answer.body.as_str(), answer.header("connection")), ("no", None));
        }
    });
}

/// A server that answers with the target and what was sent, to some targets only once it is told to.
fn start_sample(tls: bool, release: &Rc<Notify>) -> (Server, Option<Arc<ClientConfig>>) {
    let (server_tls, client_tls) = if tls { certificates() } else { (None, None) };
    let release = Rc::clone(release);
    let server = start_with(limits(), server_tls, AccessLog::off(), move |request, _| {
        let release = Rc::clone(&release);
        async move {
            let (parts, body) = request.into_parts();
            if parts.uri.path() == "/held" {
                release.notified().await;
            }
            let body = body.collect(1 << 20).await.unwrap();
            text(format!("{} {}", parts.uri.path(), String::from_utf8_lossy(&body)))
        }
    });
    (server, client_tls)
}

async fn client_of((server, tls): &(Server, Option<Arc<ClientConfig>>)) -> Client {
    let stream = TcpStream::connect(server.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Client::over(stream, tls.as_ref()).await
}

/// The first of two requests is answered while the second, of which so much has come, waits for the rest or for its
/// handler.
fn answered_while_the_next_one_waits(second: &str, rest: &str, answer: &str) {
    in_the_clear_and_over_tls(async |tls| {
        let release = Rc::new(Notify::new());
        let server = start_sample(tls, &release);
        let mut client = client_of(&server).await;
        for _ in 0..2 {
            client.send(format!("{}{second}", "GET /first HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3))).await;
            for _ in 0..3 {
                assert_eq!(client.answer(false).await.text(), "/first ");
            }
            release.notify_one();
            client.send(rest).await;
            assert_eq!(client.answer(false).await.text(), answer);
        }
    });
}

macro_rules! answered_while_the_next_one_waits {
    ($($row:ident: $second:literal, $rest:literal => $answer:literal;)*) => {
        $(#[test] fn $row() { answered_while_the_next_one_waits($second, $rest, $answer); })*
    };
}

answered_while_the_next_one_waits! {
    an_answer_goes_out_while_the_next_ones_handler_waits:
        "GET /held HTTP/1.1\r\nHost: a\r\n\r\n", "" => "/held ";
    an_answer_goes_out_while_the_next_ones_head_is_on_its_way:
        "GET /b HTTP/1.1\r\nHo", "st: a\r\n\r\n" => "/b ";
    an_answer_goes_out_while_the_next_ones_body_is_on_its_way:
        "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe", "llo" => "/b hello";
}

#[test]
fn an_answer_goes_out_while_the_next_ones_upstream_waits() {
    in_the_clear_and_over_tls(async |tls| {
        let release = Rc::new(Notify::new());
        let released = Rc::clone(&release);
        let stage = Stage::start(tls, async move |mut peer| {
            while let Some(head) = peer.head().await {
                if head.starts_with("GET /held ") {
                    released.notified().await;
                }
                peer.answer(head.split(' ').nth(1).unwrap()).await;
            }
        })
        .await;
        let mut client = stage.client().await;
        for _ in 0..2 {
            client.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\nGET /held HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(client.answer(false).await.text(), "/first");
            release.notify_one();
            assert_eq!(client.answer(false).await.text(), "/held");
        }
    });
}

#[test]
fn a_thousand_requests_at_once_get_a_thousand_answers_in_order() {
    in_the_clear_and_over_tls(async |tls| {
        let server = start_sample(tls, &Rc::new(Notify::new()));
        let mut client = client_of(&server).await;
        let requests: Vec<_> = (0..1000).map(|at| format!("GET /{at} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        client.send(requests.concat()).await;
        for at in 0..1000 {
            assert_eq!(client.answer(false).await.text(), format!("/{at} "));
        }
        client.assert_stays("/last").await;
    });
}

#[test]
fn answers_that_still_wait_to_be_sent_go_before_a_refusal() {
    in_the_clear_and_over_tls(async |tls| {
        let server = start_sample(tls, &Rc::new(Notify::new()));
        for before in [1, 2, 200] {
            let mut client = client_of(&server).await;
            let requests = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n".repeat(before);
            client.send(format!("{requests}GET /bad HTTP/1.1\r\nHost : a\r\n\r\n")).await;
            for _ in 0..before {
                let answer = client.answer(false).await;
                assert_eq!((answer.status, answer.text()), (200, "/a "));
            }
            let refused = client.answer(false).await;
            assert_eq!((refused.status, refused.header("connection")), (400, Some("close")));
            client.assert_ended().await;
        }
    });
}
