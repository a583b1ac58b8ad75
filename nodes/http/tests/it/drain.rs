//! The end in good order: what is in flight is finished, what is idle is closed, then the server returns.

use std::rc::Rc;
use std::time::Duration;

use protoplex_http::Limits;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::kit::{Raw, curl, limits, run, settle, start, text, within};

#[test]
fn a_drain_finishes_what_is_in_flight_and_closes_what_is_idle() {
    run(async {
        let (begun, go) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (begin, wait) = (Rc::clone(&begun), Rc::clone(&go));
        let server = start(limits(), move |request, _| {
            let (begin, wait) = (Rc::clone(&begin), Rc::clone(&wait));
            async move {
                if request.uri().path() == "/slow" {
                    begin.notify_one();
                    wait.notified().await;
                }
                text("done")
            }
        });
        let mut silent = Raw::connect(server.address).await;
        let mut idle = Raw::connect(server.address).await;
        idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(idle.answer().await.header("connection"), None);
        let mut busy = Raw::connect(server.address).await;
        busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        begun.notified().await;

        server.trigger.pull();
        assert_eq!(idle.rest().await, b"");
        assert_eq!(silent.rest().await, b"");
        let refused = || async { TcpStream::connect(server.address).await.is_err() };
        while !refused().await {
            tokio::task::yield_now().await;
        }
        assert!(!server.task.is_finished());
        go.notify_one();
        let answer = busy.answer().await;
        assert_eq!((answer.body.as_str(), answer.header("connection")), ("done", Some("close")));
        assert_eq!(busy.rest().await, b"");
        within(server.task).await.unwrap();
    });
}

#[test]
fn a_request_that_is_on_its_way_when_the_drain_starts_is_still_answered() {
    run(async {
        let server = start(limits(), |_, _| async { text("done") });
        let mut client = Raw::connect(server.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.answer().await;
        client.send("GET / HTTP/1.1\r\nHo").await;
        settle().await;
        server.trigger.pull();
        settle().await;
        client.send("st: a\r\n\r\n").await;
        let answer = client.answer().await;
        assert_eq!((answer.body.as_str(), answer.header("connection")), ("done", Some("close")));
        within(server.task).await.unwrap();
    });
}

#[test]
fn who_waits_at_the_limit_when_the_drain_starts_is_still_served() {
    run(async {
        let server = start(Limits { max_connections: 1, ..limits() }, |_, _| async { text("served") });
        let mut idle = Raw::connect(server.address).await;
        idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(idle.answer().await.body, "served");
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut client = Raw::connect(server.address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            waiting.push(client);
        }
        server.trigger.pull();
        for mut client in waiting {
            let answer = client.answer().await;
            assert_eq!((answer.body.as_str(), answer.header("connection")), ("served", Some("close")));
        }
        within(server.task).await.unwrap();
    });
}

#[test]
fn a_drain_tells_http_2_clients_to_go_and_lets_their_streams_end() {
    run(async {
        let (begun, go) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (begin, wait) = (Rc::clone(&begun), Rc::clone(&go));
        let server = start(limits(), move |_, _| {
            let (begin, wait) = (Rc::clone(&begin), Rc::clone(&wait));
            async move {
                begin.notify_one();
                wait.notified().await;
                text("done")
            }
        });
        let url = format!("http://{}/", server.address);
        let request = tokio::task::spawn_local(async move { curl(&["--http2-prior-knowledge", &url]).await });
        begun.notified().await;
        server.trigger.pull();
        go.notify_one();
        assert_eq!(request.await.unwrap(), (true, "done".into()));
        within(server.task).await.unwrap();
    });
}

#[test]
fn a_tunnel_outlives_the_start_of_a_drain_only_by_its_limit() {
    run(async {
        let limits = Limits { tunnel_drain_timeout: Duration::from_millis(100), ..limits() };
        let server = start(limits, |_, exchange| async move {
            protoplex_http::upgrade::accept(&exchange, "test", |upgraded| async move {
                let _upgraded = upgraded;
                std::future::pending().await
            })
        });
        let mut client = Raw::connect(server.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 101);
        server.trigger.pull();
        assert_eq!(client.rest().await, b"");
        within(server.task).await.unwrap();
    });
}
