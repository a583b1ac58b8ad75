//! The name of a request is on every answer, whatever becomes of it.

use std::rc::Rc;

use http::StatusCode;
use protoplex_http::{Body, Exchange, Problem, Request, Response, upgrade};

use crate::http2::{connect, get};
use crate::kit::{Raw, Server, limits, run, start, start_relay, text};

/// Answers by the path, with a status or in one of the other ways in which a handler may come to an answer.
async fn by_path(request: Request, exchange: Rc<Exchange>) -> Response {
    match request.uri().path() {
        "/upgrade" => upgrade::accept(&exchange, "shout", |_| async {}),
        "/problem" => Problem::new(StatusCode::NOT_FOUND, "missing", "It is not here.").into_response(),
        "/read" => match request.into_body().collect(u64::MAX).await {
            Ok(read) => text(format!("{} bytes", read.len())),
            Err(error) => text(error.to_string()),
        },
        path => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = path[1..].parse().unwrap();
            // An upstream that has a name of its own for the request.
            response.headers_mut().insert("x-request-id", "theirs".parse().unwrap());
            response
        }
    }
}

/// Heads that are understood, and the status of their answers.
const UNDERSTOOD: [(&str, u16); 12] = [
    ("GET /200 HTTP/1.1\r\nHost: a", 200),
    ("HEAD /200 HTTP/1.1\r\nHost: a", 200),
    ("GET /200 HTTP/1.0\r\nHost: a", 200),
    ("GET /204 HTTP/1.1\r\nHost: a", 204),
    ("GET /304 HTTP/1.1\r\nHost: a", 304),
    ("GET /500 HTTP/1.1\r\nHost: a", 500),
    ("GET /problem HTTP/1.1\r\nHost: a", 404),
    ("GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: shout", 101),
    ("GET /upgrade HTTP/1.1\r\nHost: a", 426),
    // A switch that nobody has asked for.
    ("GET /101 HTTP/1.1\r\nHost: a", 502),
    ("CONNECT a:1 HTTP/1.1\r\nHost: a:1", 501),
    ("POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", 400),
];

async fn is_named(server: &Server, head: &str, status: u16) {
    let mut client = Raw::connect(server.address).await;
    client.send(format!("{head}\r\nX-Request-Id: mine-1\r\n\r\n")).await;
    if status == 400 {
        client.send("no chunk\r\n").await;
    }
    let answer = client.answer().await;
    assert_eq!(answer.status, status, "{head}");
    let names: Vec<_> = answer.head.lines().filter(|line| line.starts_with("x-request-id")).collect();
    assert_eq!(names, ["x-request-id: mine-1"], "{head}");
}

#[test]
fn every_answer_has_the_name_of_its_request() {
    run(async {
        let origin = start(limits(), by_path);
        let relay = start_relay(origin.address);
        for (head, status) in UNDERSTOOD {
            is_named(&origin, head, status).await;
            is_named(&relay, head, status).await;
        }
    });
}

#[test]
fn a_head_that_was_not_understood_is_answered_under_a_new_name() {
    run(async {
        let server = start(limits(), by_path);
        for head in ["GET / HTTP/1.1\r\nX-Request-Id: mine-1\r\n\r\n", "GET / HTTP/1.1\n"] {
            let mut client = Raw::connect(server.address).await;
            client.send(head).await;
            let answer = client.answer().await;
            assert_eq!(
                (answer.status, answer.header("x-request-id").unwrap().len()),
                (400, 32),
                "{answer:?}"
            );
        }
    });
}

#[test]
fn every_answer_by_http_2_has_it_too() {
    run(async {
        let origin = start(limits(), by_path);
        let relay = start_relay(origin.address);
        for server in [&origin, &relay] {
            let (mut client, _connection) = connect(server).await;
            for (path, status) in [("200", 200), ("304", 304), ("problem", 404), ("101", 502)] {
                let mut request = get(&format!("http://a/{path}"));
                request.headers_mut().insert("x-request-id", "mine-1".parse().unwrap());
                let response = client.send_request(request).await.unwrap();
                assert_eq!(response.status(), status, "{path}");
                let names: Vec<_> = response.headers().get_all("x-request-id").iter().collect();
                assert_eq!(names, ["mine-1"], "{path}");
            }
        }
    });
}
