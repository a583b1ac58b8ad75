//! Connections that change their protocol, at the server and through a relay.

use std::time::Duration;

use protoplex_http::forwarded;
use protoplex_http::upgrade::{accept, of_answer, relay_answer};
use protoplex_http::upstream::{Pool, Settings};
use protoplex_http::{Body, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::{Raw, Server, limits, run, start, start_relay, text, within};

const HEAD: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: shout\r\n\r\n";

/// Answers in capitals, and says goodbye when the client has ended its side.
fn shouting(limits: Limits) -> Server {
    start(limits, |request, exchange| async move {
        if request.uri().path() == "/no" {
            return text("no");
        }
        accept(&exchange, "shout", |mut upgraded| async move {
            let mut buffer = [0; 100];
            loop {
                let length = upgraded.read(&mut buffer).await.unwrap();
                if length == 0 {
                    break;
                }
                upgraded.write_all(&buffer[..length].to_ascii_uppercase()).await.unwrap();
            }
            upgraded.write_all(b"BYE").await.unwrap();
            upgraded.shutdown().await.unwrap();
        })
    })
}

async fn read(client: &mut Raw, length: usize) -> String {
    let mut bytes = vec![0; length];
    within(client.0.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_for_itself() {
    run(async {
        let origin = shouting(limits());
        let relay = start_relay(origin.address);
        for address in [origin.address, relay.address] {
            let mut client = Raw::connect(address).await;
            // What follows the head before the answer belongs to the new protocol.
            client.send(format!("{HEAD}early")).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.header("upgrade")), (101, Some("shout")));
            assert_eq!(read(&mut client, 5).await, "EARLY");
            client.send("more").await;
            assert_eq!(read(&mut client, 4).await, "MORE");
            client.0.shutdown().await.unwrap();
            assert_eq!(client.rest().await, b"BYE");
        }
    });
}

#[test]
fn a_refused_upgrade_leaves_an_http_connection() {
    run(async {
        let origin = shouting(limits());
        let relay = start_relay(origin.address);
        for address in [origin.address, relay.address] {
            let mut client = Raw::connect(address).await;
            let refused = HEAD.replace("GET /", "GET /no");
            client
                .send(format!(
                    "{refused}GET /no HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
                ))
                .await;
            assert_eq!(client.answer().await.body, "no");
            assert_eq!(client.answer().await.body, "no");
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.problem().as_str()), (426, "upgrade-required"));
        }
    });
}

#[test]
fn a_client_of_ours_can_upgrade_through_the_pool() {
    run(async {
        let origin = shouting(limits());
        let pool = Pool::new(Settings::default());
        let request = http::Request::get("/")
            .header("host", "a")
            .header("connection", "upgrade")
            .header("upgrade", "shout")
            .body(Body::empty())
            .unwrap();
        let answer = pool.send(origin.address, request).await.unwrap();
        assert_eq!(answer.status(), 101);
        let mut upgraded = of_answer(answer).unwrap();
        upgraded.write_all(b"hello").await.unwrap();
        upgraded.shutdown().await.unwrap();
        let mut text = String::new();
        within(upgraded.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "HELLOBYE");
    });
}

#[test]
fn a_relayed_connection_on_which_nothing_moves_is_closed() {
    run(async {
        let origin = shouting(limits());
        let pool = Pool::new(Settings::default());
        let relay = start(limits(), move |request, exchange| {
            let (pool, address) = (pool.clone(), origin.address);
            async move {
                let head = forwarded::request_head(&exchange);
                let mut answer = pool.ask(address, &head, request.into_body(), None).await.unwrap();
                forwarded::answer_head(&mut answer.head);
                relay_answer(&exchange, answer, Duration::from_millis(150)).into()
            }
        });
        let mut client = Raw::connect(relay.address).await;
        client.send(HEAD).await;
        assert_eq!(client.answer().await.status, 101);
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn an_upstream_that_switches_unasked_is_a_bad_gateway() {
    run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut buffer);
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
            std::io::Write::write_all(&mut stream, answer).unwrap();
            let _ = std::io::Read::read(&mut stream, &mut buffer);
        });
        let relay = start_relay(address);
        let mut client = Raw::connect(relay.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 502);
    });
}
