//! Exchanges that are recalled while something of them lasts, as by a proxy whose upstream owns the key no more.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protoplex_http::{AccessLog, Exchange, Limits};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::drain_streams::{CHUNKED, EVENTS, assert_parted, say, take};
use crate::drain_tunnels::echo;
use crate::kit::{Metrics, Raw, Server, limits, run, settle, start_watched_relay, until, within};

/// The exchanges of a relay, to be recalled.
type Seen = Rc<RefCell<Vec<Rc<Exchange>>>>;

fn relay(origin: std::net::SocketAddr) -> (Server, Seen) {
    let seen = Seen::default();
    let note = Rc::clone(&seen);
    let limits = Limits {
        tunnel_drain_timeout: Duration::from_millis(500),
        event_stream_drain_timeout: Duration::from_millis(500),
        ..limits()
    };
    let look = move |exchange: &Rc<Exchange>| note.borrow_mut().push(Rc::clone(exchange));
    (start_watched_relay(limits, None, AccessLog::off(), origin, look), seen)
}

fn recalled(metrics: &Metrics, what: &str) -> u64 {
    metrics.counter(&format!("protoplex_http_recalled_total{{what={what:?}}}"))
}

#[test]
fn a_websocket_is_told_to_go_away_and_its_neighbour_goes_on() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run(async {
        let (origin, told) = echo().await;
        let (relay, seen) = relay(origin);
        let open = async || {
            let stream = TcpStream::connect(relay.address).await.unwrap();
            let (mut socket, _) = client_async(format!("ws://{}/", relay.address), stream).await.unwrap();
            socket.send(Message::text("hello")).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
            socket
        };
        let (mut gone, mut neighbour) = (open().await, open().await);
        seen.borrow()[0].recall();
        let last = within(gone.next()).await.unwrap().unwrap();
        let Message::Close(Some(frame)) = last else { panic!("{last}") };
        assert_eq!(frame.code, CloseCode::Away);
        assert!(within(gone.next()).await.is_none());
        within(until(|| recalled(&metrics, "websockets_closed") == 1)).await;
        assert_eq!(*told.borrow(), [Some(CloseCode::Away)], "the upstream, too");
        neighbour.send(Message::text("still here")).await.unwrap();
        assert_eq!(within(neighbour.next()).await.unwrap().unwrap(), Message::text("still here"));
    });
    assert_eq!(recalled(&metrics, "tunnels_cut"), 0);
    assert_eq!(metrics.counter("protoplex_http_drained_total{what=\"websockets_closed\"}"), 0);
}

#[test]
fn an_event_stream_ends_behind_an_event_or_is_cut_and_what_comes_after_is_served() {
    let metrics = Metrics::default();
    let _kept = metrics.keep();
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (relay, seen) = relay(listener.local_addr().unwrap());
        let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut client = Raw::connect(relay.address).await;
        for (events, is_whole) in [("data: 1\n\n", true), ("data: 1\n\ndata: 2", false)] {
            client.send(request).await;
            let mut backend = take(&listener).await;
            backend.write_all(format!("{EVENTS}{CHUNKED}").as_bytes()).await.unwrap();
            say(&mut backend, events).await;
            seen.borrow().last().unwrap().recall();
            if is_whole {
                assert_parted(&client.answer().await.body, events);
            } else {
                let rest = String::from_utf8(within(client.rest()).await).unwrap();
                assert!(rest.contains("data: 2") && !rest.ends_with("0\r\n\r\n"), "{rest}");
            }
            settle().await;
        }
    });
    let became = ["event_streams_ended", "event_streams_cut"].map(|what| recalled(&metrics, what));
    assert_eq!(became, [1, 1]);
}
