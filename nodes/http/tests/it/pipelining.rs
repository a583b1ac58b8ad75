//! Several requests at once on a connection: answered in order, the sound ones before the first bad one, none
//! after it.

use std::cell::RefCell;
use std::rc::Rc;

use protoplex_http::{Body, Response};

use crate::kit::{Raw, limits, run, start, text};

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
