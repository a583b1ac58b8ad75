//! A node that drains while everything is going on that can last.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::curl::Events;
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use rustix::process::Signal;
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::keyed_requests::{Killed, add_rooms, join};
use crate::{get, plan};

/// Speaks WebSocket at `/room/1/socket`, and never answers anything else. Tells of each request that it never answers, and
/// of the code that each WebSocket was closed with.
fn backend(port: &Port) -> (mpsc::Receiver<()>, mpsc::Receiver<Option<CloseCode>>) {
    let listener = TcpListener::bind(port.address()).unwrap();
    let ((asks, asked), (closes, closed)) = (mpsc::channel(), mpsc::channel());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (asks, closes) = (asks.clone(), closes.clone());
            thread::spawn(move || {
                let mut begin = [0; 64];
                // The side-car's health checks connect and say nothing.
                let Ok(length @ 1..) = stream.peek(&mut begin) else { return };
                if begin[..length].starts_with(b"GET /room/1/socket ") {
                    let mut socket = tungstenite::accept(stream).unwrap();
                    let mut last = None;
                    while let Ok(message) = socket.read() {
                        if let Message::Close(frame) = message {
                            last = frame.map(|frame| frame.code);
                        }
                    }
                    let _ = closes.send(last);
                } else {
                    let _ = asks.send(());
                    let _ = stream.read_to_end(&mut Vec::new());
                }
            });
        }
    });
    (asked, closed)
}

/// Asks for what is never answered.
fn ask_in_vain(address: &str, asked: &mpsc::Receiver<()>) -> TcpStream {
    let mut mute = TcpStream::connect(address).unwrap();
    mute.write_all(b"GET /room/1/mute HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    asked.recv_timeout(Duration::from_secs(30)).unwrap();
    mute
}

#[test]
fn what_becomes_of_everything_is_the_answer_of_who_ends_it_and_outlives_an_upgrade() {
    let (cluster, asked, _sidecar) = with_mute_room("drain.drain_timeout_ms=500");
    let address = cluster.http().strip_prefix("http://").unwrap();
    let page = format!("http://{}/status", cluster.node("proxy-1")["meta"].as_str().unwrap());
    let _mute = ask_in_vain(address, &asked);
    let stopped = cluster.json(&["stop", "proxy-1:0"]);
    assert_eq!(stopped[0]["drained"]["requests_cut"], 1, "{stopped}");
    cluster.json(&["start", "proxy-1:0"]);
    cluster.json(&["upgrade", "proxy-1"]);
    let kept = get(&page, &[]).json();
    assert_eq!(kept["drained"]["requests_cut"], 1, "{kept}");
    let _mute = ask_in_vain(address, &asked);
    let drained = cluster.json(&["drain", "proxy-1"]);
    assert_eq!(drained[0]["drained"]["requests_cut"], 1, "{drained}");
    assert!(cluster.logs().contains("requests cut 2"));
}

/// A child's last word was lost where its parent noticed its end at the same time.
#[test]
fn the_last_word_of_a_child_is_heard_however_late_its_parent_listens() {
    let (cluster, asked, _sidecar) = with_mute_room("drain.drain_timeout_ms=1500");
    let address = cluster.http().strip_prefix("http://").unwrap();
    let _mute = ask_in_vain(address, &asked);
    let node = cluster.node("proxy-1");
    let (parent, child) = (node["pid"].as_u64().unwrap() as u32, cluster.child_pid("proxy-1", 0));
    let stopped = thread::scope(|scope| {
        let stopping = scope.spawn(|| cluster.json(&["stop", "proxy-1:0"]));
        until("it drains", || (cluster.node("proxy-1")["children"][0]["state"] == "STOPPING").then_some(()));
        signal(parent, Signal::STOP);
        until("it has ended", || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('Z').then_some(())
        });
        signal(parent, Signal::CONT);
        stopping.join().unwrap()
    });
    assert_eq!(stopped[0]["drained"]["requests_cut"], 1, "{stopped}");
}

/// The new program took the child for one that had to be replaced.
#[test]
fn an_upgrade_leaves_to_its_end_who_is_stopped_and_its_operator_is_answered() {
    let (cluster, asked, _sidecar) = with_mute_room("drain.drain_timeout_ms=1500");
    let _mute = ask_in_vain(cluster.http().strip_prefix("http://").unwrap(), &asked);
    let (stopped, upgraded) = thread::scope(|scope| {
        let stopping = scope.spawn(|| cluster.json(&["stop", "proxy-1:0"]));
        until("it drains", || (cluster.node("proxy-1")["children"][0]["state"] == "STOPPING").then_some(()));
        let upgraded = cluster.json(&["upgrade", "proxy-1"]);
        (stopping.join().unwrap(), upgraded)
    });
    assert_eq!((&stopped[0]["ok"], &upgraded[0]["ok"]), (&json!(true), &json!(true)), "{stopped} {upgraded}");
    assert_eq!(stopped[0]["drained"]["requests_cut"], 1);
    assert_eq!(cluster.node("proxy-1")["children"][0]["state"], "STOPPED");
}

/// A cluster with a room that nobody is answered in.
fn with_mute_room(setting: &str) -> (Cluster, mpsc::Receiver<()>, Killed) {
    let cluster = plan().set(setting).set("proxy.children=1").start();
    let port = Port::take();
    let (asked, _closed) = backend(&port);
    let sidecar = join(&cluster, &port);
    add_rooms(&cluster, 1);
    let address = cluster.http().strip_prefix("http://").unwrap();
    until("the room is open", || tungstenite::connect(format!("ws://{address}/room/1/socket")).ok());
    (cluster, asked, sidecar)
}

#[test]
fn row_a_drain_that_never_ends_is_cut_and_told_and_what_lasts_is_ended_by_its_own_rules() {
    let cluster = plan()
        .set("drain.drain_timeout_ms=3000")
        .set("proxy.children=1")
        .set("proxy.limits.tunnel_drain_timeout_ms=1000")
        .set("proxy.limits.event_stream_drain_timeout_ms=1000")
        .start();
    let port = Port::take();
    let (asked, closed) = backend(&port);
    let _sidecar = join(&cluster, &port);
    add_rooms(&cluster, 1);
    let address = cluster.http().strip_prefix("http://").unwrap();
    let (mut socket, _) =
        until("the WebSocket opens", || tungstenite::connect(format!("ws://{address}/room/1/socket")).ok());
    let events = Events::open(&format!("{}/.well-known/mercure?topic=drain", cluster.http()), &[]);
    let mut mute = ask_in_vain(address, &asked);

    cluster.json(&["restart", "proxy-1"]);
    let Message::Close(Some(close)) = socket.read().unwrap() else { panic!("a Close comes") };
    assert_eq!(close.code, CloseCode::Away);
    assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    assert_eq!(closed.recv_timeout(Duration::from_secs(30)).unwrap(), Some(CloseCode::Away));
    assert_eq!(events.ended(), Some(0), "the stream of the live node, which does not drain, is complete");
    let mut answer = Vec::new();
    // Cut: an end or a reset.
    let _ = mute.read_to_end(&mut answer);
    assert!(answer.is_empty());

    let told = until("the child has told", || {
        let logs = cluster.logs();
        logs.lines().find(|line| line.contains("\"drained\"")).map(str::to_owned)
    });
    for count in
        ["\"requests_cut\":1", "\"websockets_closed\":1", "\"event_streams_ended\":1", "\"tunnels_cut\":0"]
    {
        assert!(told.contains(count), "{count} in {told}");
    }
}
