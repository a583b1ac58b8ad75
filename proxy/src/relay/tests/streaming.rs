//! Bodies pass both ways as they come, no faster than they are taken, and never look whole when they are not.

use std::sync::Arc;

use proto::Placement::{Owned, Spread};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc};

use super::*;

/// More than all buffers between two ends together.
const FLOOD: usize = 160 << 20;
/// Longer than a stream that is not held up needs for its next step.
const STALL: Duration = Duration::from_millis(300);

#[test]
fn an_answer_passes_before_it_has_ended() {
    run(async || {
        let seen = Rc::new(Notify::new());
        let first_seen = Rc::clone(&seen);
        let member = Member::start(async move |mut peer| {
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            peer.say_chunk("first").await;
            first_seen.notified().await;
            peer.say_chunk("second").await;
            peer.say_chunk("").await;
        })
        .await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        let mut client = proxy.connect().await;
        client.say("GET /at/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.chunk().await, "first");
        seen.notify_one();
        assert_eq!(client.chunk().await, "second");
        assert_eq!(client.chunk().await, "");
    });
}

#[test]
fn a_request_passes_before_it_has_ended() {
    for placement in [Spread, Owned] {
        run(async || {
            let (tell, mut told) = mpsc::unbounded_channel();
            let member = Member::start(async move |mut peer| {
                peer.head().await;
                loop {
                    let chunk = peer.chunk().await;
                    tell.send(chunk.clone()).unwrap();
                    if chunk.is_empty() {
                        break;
                    }
                }
                peer.ok("done").await;
            })
            .await;
            let proxy = Proxy::start(placement, "k", &[&member]).await;
            proxy.seed.owners("k", &[(member.address, 1)]);
            let mut client = proxy.connect().await;
            client.say("POST /at/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for piece in ["one", "two", ""] {
                client.say_chunk(piece).await;
                assert_eq!(told.recv().await.unwrap(), piece);
            }
            assert_eq!(client.answer().await.1, "done");
        });
    }
}

#[test]
fn a_member_that_does_not_read_holds_the_client_up() {
    for placement in [Spread, Owned] {
        run(async || {
            let read_on = Rc::new(Notify::new());
            let reads = Rc::clone(&read_on);
            let member = Member::start(async move |mut peer| {
                let head = peer.head().await;
                reads.notified().await;
                let length = peer.body(&head).await.len();
                peer.ok(&length.to_string()).await;
            })
            .await;
            let proxy = Proxy::start(placement, "k", &[&member]).await;
            proxy.seed.owners("k", &[(member.address, 1)]);
            let mut client = proxy.connect().await;
            client.say(format!("POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Length: {FLOOD}\r\n\r\n")).await;
            let sent = flood(&mut client).await;
            assert!(sent < FLOOD / 2, "{sent} bytes were taken from the client though nobody read them");
            read_on.notify_one();
            client.say(vec![b'x'; FLOOD - sent]).await;
            assert_eq!(client.answer().await.1, FLOOD.to_string());
        });
    }
}

#[test]
fn a_client_that_does_not_read_holds_the_member_up() {
    run(async || {
        let (tell, mut told) = mpsc::unbounded_channel();
        let member = Member::start(async move |mut peer| {
            peer.head().await;
            peer.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {FLOOD}\r\n\r\n")).await;
            let sent = flood(&mut peer).await;
            tell.send(sent).unwrap();
            peer.say(vec![b'x'; FLOOD - sent]).await;
        })
        .await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        let mut client = proxy.connect().await;
        client.say("GET /at/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let sent = told.recv().await.unwrap();
        assert!(sent < FLOOD / 2, "{sent} bytes were taken from the member though nobody read them");
        assert_eq!(client.answer().await.1.len(), FLOOD);
    });
}

/// Writes until the other side takes no more.
async fn flood(peer: &mut Peer) -> usize {
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < FLOOD {
        match timeout(STALL, peer.stream.write(&piece)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    sent
}

#[test]
fn an_answer_may_come_before_the_request_has_ended() {
    for placement in [Spread, Owned] {
        run(async || {
            let member = Member::start(async |mut peer| {
                peer.head().await;
                peer.say(
                    "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
                )
                .await;
                peer.until_closed().await;
            })
            .await;
            let proxy = Proxy::start(placement, "k", &[&member]).await;
            proxy.seed.owners("k", &[(member.address, 1)]);
            let mut client = proxy.connect().await;
            client
                .say("POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nonly the beginning")
                .await;
            let (head, body) = client.answer().await;
            assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
            assert_eq!(body, "no");
        });
    }
}

#[test]
fn trailers_pass() {
    run(async || {
        let member = Member::start(async |mut peer| {
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
            peer.say_chunk("data").await;
            peer.say("0\r\nX-Sum: 42\r\n\r\n").await;
        })
        .await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        let mut client = proxy.connect().await;
        client.say("GET /at/x HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.chunk().await, "data");
        assert_eq!(client.chunk().await, "");
        let trailers = format!("x\r\n{}", client.head().await);
        assert_eq!(peer::fields(&trailers, "x-sum"), ["42"]);
    });
}

#[test]
fn a_truncated_answer_is_broken_off() {
    for (head, end) in [("Content-Length: 100", ""), ("Transfer-Encoding: chunked", "0\r\n\r\n")] {
        run(async || {
            let member = Member::start(async move |mut peer| {
                peer.head().await;
                peer.say(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).await;
                peer.say(if end.is_empty() { "partial" } else { "7\r\npartial\r\n" }).await;
            })
            .await;
            let proxy = Proxy::start(Spread, "", &[&member]).await;
            let mut client = proxy.connect().await;
            client.say("GET /at/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = client.head().await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let rest = String::from_utf8(client.until_closed().await).unwrap();
            assert!(rest.len() < 100 && !rest.ends_with("0\r\n\r\n"), "{rest:?} looks whole");
        });
    }
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    for beginning in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npartial"] {
        run(async || {
            let (asked, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (tell_asked, tell_closed) = (Arc::clone(&asked), Arc::clone(&closed));
            let member = Member::start(async move |mut peer| {
                peer.head().await;
                peer.say(beginning).await;
                tell_asked.notify_one();
                peer.until_closed().await;
                tell_closed.notify_one();
            })
            .await;
            let proxy = Proxy::start(Spread, "", &[&member]).await;
            let mut client = proxy.connect().await;
            client.say("GET /at/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            asked.notified().await;
            if !beginning.is_empty() {
                client.head().await;
            }
            drop(client);
            closed.notified().await;
        });
    }
}

#[test]
fn connections_to_members_are_used_again() {
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        let mut client = proxy.connect().await;
        for _ in 0..5 {
            client.say("POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nping").await;
            assert!(client.answer().await.1.ends_with("ping"));
        }
        for _ in 0..5 {
            proxy.get("x").await;
        }
        assert_eq!(member.connections.get(), 1);
    });
}
