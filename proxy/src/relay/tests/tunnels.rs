//! Connections that stop speaking HTTP.

use futures_util::{SinkExt, StreamExt};
use proto::Placement::{Owned, Spread};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};

use super::*;

/// A WebSocket server that sends every message back.
async fn websocket_echo() -> Member {
    Member::start(async |peer| {
        let mut socket = accept_async(peer.stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    })
    .await
}

#[test]
fn a_websocket_passes_both_ways_until_both_have_ended() {
    for placement in [Spread, Owned] {
        run(async || {
            let member = websocket_echo().await;
            let proxy = Proxy::start(placement, "k", &[&member]).await;
            proxy.seed.owners("k", &[(member.address, 1)]);
            let url = format!("ws://{}/at/room", proxy.address);
            let (mut socket, answer) = client_async(url, proxy.connect().await.stream).await.unwrap();
            assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
            for text in ["hello".to_owned(), "x".repeat(1 << 20)] {
                socket.send(Message::text(text.clone())).await.unwrap();
                assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
            }
            socket.close(None).await.unwrap();
            while let Some(last) = socket.next().await {
                assert!(last.unwrap().is_close());
            }
        });
    }
}

#[test]
fn a_member_may_decline_an_upgrade() {
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        let mut client = proxy.connect().await;
        client
            .say("GET /at/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        let (head, echoed) = client.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(peer::fields(&echoed, "upgrade"), ["websocket"]);
    });
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_a_502() {
    run(async || {
        let member = Member::start(async |mut peer| {
            peer.head().await;
            peer.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: surprise\r\n\r\n")
                .await;
            peer.until_closed().await;
        })
        .await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        assert_problem(&proxy.get("x").await, "502", "upstream-failed");
    });
}
