//! Clients that leave, that are too many, that are old; and requests in their other forms.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;

use protoplex_http::Limits;

use crate::kit::{OnDrop, Raw, limits, run, start, start_relay, text, until};

#[test]
fn a_client_that_leaves_takes_its_request_along_up_to_the_origin() {
    run(async {
        let (begun, dropped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (begin, gone) = (Rc::clone(&begun), Rc::clone(&dropped));
        let origin = start(limits(), move |_, _| {
            begin.set(begin.get() + 1);
            let guard = OnDrop(Rc::clone(&gone));
            async move {
                let _guard = guard;
                pending().await
            }
        });
        let relay = start_relay(origin.address);
        for (at, address) in [origin.address, relay.address].into_iter().enumerate() {
            let mut client = Raw::connect(address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            until(|| begun.get() as usize == at + 1).await;
            drop(client);
            until(|| dropped.get() as usize == at + 1).await;
        }
    });
}

#[test]
fn at_the_limit_connections_wait_and_are_served_when_there_is_room() {
    run(async {
        let limits = Limits { max_connections: 2, ..limits() };
        let server = start(limits, |_, _| async { text("served") });
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = Raw::connect(server.address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            clients.push(client);
        }
        for client in &mut clients[..2] {
            assert_eq!(client.answer().await.body, "served");
        }
        let mut third = clients.pop().unwrap();
        let mut byte = [0];
        assert!(third.0.try_read(&mut byte).is_err());
        clients.pop();
        assert_eq!(third.answer().await.body, "served");
    });
}

#[test]
fn http_10_is_answered_and_its_connection_closed() {
    run(async {
        let server = start(limits(), |request, _| async move { text(format!("{:?}", request.version())) });
        let mut client = Raw::connect(server.address).await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(
            answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nHTTP/1.0"),
            "{answer}"
        );
    });
}

#[test]
fn a_whole_url_as_target_counts_more_than_host() {
    run(async {
        let server = start(limits(), |request, _| async move {
            text(format!("{} {}", request.headers()["host"].to_str().unwrap(), request.uri()))
        });
        let mut client = Raw::connect(server.address).await;
        client.send("GET http://b.example:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.body, "b.example:81 /x?y");
        client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.body, "a *");
    });
}

#[test]
fn a_handler_that_panics_costs_its_connection_and_no_other() {
    run(async {
        let server = start(limits(), |request, _| async move {
            assert_ne!(request.uri().path(), "/panic");
            text("fine")
        });
        let mut bystander = Raw::connect(server.address).await;
        let mut client = Raw::connect(server.address).await;
        client.send("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.rest().await, b"");
        bystander.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(bystander.answer().await.body, "fine");
    });
}
