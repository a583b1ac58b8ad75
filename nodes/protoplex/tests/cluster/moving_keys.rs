//! Keys that go from one member to another while all of them live: in a drain, and since nobody asks for them.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::curl::Events;
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use rustix::process::Signal;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::faults::owner;
use crate::keyed_requests::{Killed, add_rooms, server, websocket_server};
use crate::{get, plan, start};

const ROOMS: usize = 24;

fn join_for(cluster: &Cluster, port: &Port, drain: &str) -> Killed {
    let backend = format!("http://{}", port.address());
    let mut command = cluster.command(&["join", "--pool", "rooms", "--drain", drain, "--backend", &backend]);
    Killed(command.stdout(Stdio::null()).spawn().unwrap())
}

/// Server and epoch that answer for a room.
fn ask(cluster: &Cluster, room: usize) -> Option<(String, u64)> {
    let answer = get(&format!("{}/room/{room}/chat", cluster.http()), &[]);
    let text = answer.text();
    let words: Vec<_> = text.split(' ').collect();
    (answer.status == 200).then(|| (words[0].to_owned(), words[2].parse().unwrap()))
}

#[test]
fn a_member_that_drains_gives_its_keys_up_bit_by_bit_and_none_has_two_owners() {
    let cluster = start();
    let ports = [Port::take(), Port::take()];
    let _servers = [server(&ports[0], "a"), server(&ports[1], "b")];
    let sidecars = ports.each_ref().map(|port| join_for(&cluster, port, "4s"));
    add_rooms(&cluster, 2);
    let mut known: Vec<_> =
        (0..ROOMS).map(|room| until("the room is open", || ask(&cluster, room))).collect();
    let of_a: Vec<_> = (0..ROOMS).filter(|room| known[*room].0 == "a").collect();
    assert!(of_a.len() >= ROOMS / 3, "{known:?}");

    signal(sidecars[0].0.id(), Signal::TERM);
    let begun = Instant::now();
    let mut moved = BTreeMap::new();
    while moved.len() < of_a.len() {
        assert!(begun.elapsed() < Duration::from_secs(30), "only {} of {} moved", moved.len(), of_a.len());
        for (room, known) in known.iter_mut().enumerate() {
            let Some((server, epoch)) = ask(&cluster, room) else { continue };
            let (before, last_epoch) = &*known;
            assert!(epoch >= *last_epoch, "room {room} went back to an earlier epoch");
            if server != *before {
                assert!(
                    server == "b" && epoch > *last_epoch,
                    "{room}: {before} {last_epoch}, {server} {epoch}"
                );
                moved.insert(room, begun.elapsed());
            }
            *known = (server, epoch);
        }
    }
    let (first, last) = (moved.values().min().unwrap(), moved.values().max().unwrap());
    assert!(*last - *first > Duration::from_secs(1), "all at once: {moved:?}");
    assert_eq!(moved.keys().copied().collect::<Vec<_>>(), of_a, "only those of the one that leaves");
}

#[test]
fn subscribers_of_a_live_child_that_is_stopped_are_sent_away_over_its_time_and_find_their_channels() {
    let cluster = start();
    let topics: Vec<_> = (0..16).map(|number| format!("moving-{number}")).collect();
    let address = |topic: &str| format!("{}/.well-known/mercure?topic={topic}", cluster.http());
    let streams: Vec<_> = topics.iter().map(|topic| (topic, Events::open(&address(topic), &[]))).collect();
    let leaving = |topic: &str| owner(&cluster, topic) == "live-1:0";
    let (of_leaving, staying): (Vec<_>, Vec<_>) = streams.into_iter().partition(|(topic, _)| leaving(topic));
    assert!(of_leaving.len() >= 4 && staying.len() >= 4, "{} {}", of_leaving.len(), staying.len());
    let begun = Instant::now();
    let ended: Vec<_> = thread::scope(|scope| {
        let stopping = scope.spawn(|| cluster.json(&["stop", "live-1:0"]));
        let waiting: Vec<_> = of_leaving
            .into_iter()
            .map(|(topic, stream)| {
                scope.spawn(move || {
                    assert_eq!(stream.ended(), Some(0), "the stream of {topic} was complete");
                    (topic, begun.elapsed())
                })
            })
            .collect();
        let ended = waiting.into_iter().map(|stream| stream.join().unwrap()).collect();
        stopping.join().unwrap();
        ended
    });
    let times = || ended.iter().map(|(_, time)| *time);
    assert!(
        times().max().unwrap() - times().min().unwrap() > Duration::from_millis(200),
        "at once: {ended:?}"
    );
    for (topic, _) in ended {
        let _again = until("somebody else has the channel", || {
            (owner(&cluster, topic) == "live-1:1").then(|| Events::open(&address(topic), &[]))
        });
    }
    let token = cluster.json(&["token", "live", "--publish", "*"])["token"].as_str().unwrap().to_owned();
    for (topic, stream) in staying {
        let answer = get(
            &format!("{}/.well-known/mercure", cluster.http()),
            &["-H", &format!("Authorization: Bearer {token}"), "-d", &format!("topic={topic}&data=still")],
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(stream.next_data(), "still");
    }
}

#[test]
fn a_key_that_nobody_asks_for_is_free_and_one_in_use_by_a_web_socket_is_not() {
    let cluster = plan().set("seed.idle_ms=1000").start();
    let port = Port::take();
    websocket_server(&port, "a");
    let _sidecar = join_for(&cluster, &port, "0s");
    add_rooms(&cluster, 1);
    let address = cluster.http().strip_prefix("http://").unwrap();
    let open = |room: &str| {
        until("the WebSocket opens", || tungstenite::connect(format!("ws://{address}/room/{room}/x")).ok()).0
    };
    let mut used = open("used");
    assert_eq!(used.read().unwrap(), Message::text("a"));
    drop(open("left"));
    let owner = |room: &str| {
        let way = cluster.json(&["route", &format!("{}/room/{room}/x", cluster.http())]);
        way["member"] != ""
    };
    assert!(owner("used") && owner("left"));
    let begun = Instant::now();
    // A second, an eighth of it, a lease, and a look through all keys.
    until("nobody owns it", || (!owner("left")).then_some(()));
    assert!(begun.elapsed() > Duration::from_secs(5));
    assert!(owner("used"), "somebody uses it");
    used.send(Message::text("still here")).unwrap();
    assert_eq!(used.read().unwrap(), Message::text("still here"));
}

/// Though its server lives, and says nothing.
#[test]
fn web_sockets_end_once_their_key_has_another_server() {
    let cluster = start();
    let ports = [Port::take(), Port::take()];
    for (port, name) in ports.iter().zip(["a", "b"]) {
        websocket_server(port, name);
    }
    let sidecars = ports.each_ref().map(|port| join_for(&cluster, port, "1s"));
    add_rooms(&cluster, 2);
    let origin = cluster.http().replace("http://", "ws://");
    let open = |room: &str| {
        let url = format!("{origin}/room/{room}/x");
        let mut socket = until("the WebSocket opens", || tungstenite::connect(&url).ok()).0;
        let name = socket.read().unwrap().into_text().unwrap().to_string();
        (socket, name)
    };
    let rooms = ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"];
    let (of_a, mut of_b): (Vec<_>, Vec<_>) =
        rooms.map(|room| (room, open(room))).into_iter().partition(|(_, (_, name))| name == "a");
    assert!(!of_a.is_empty() && !of_b.is_empty());

    signal(sidecars[0].0.id(), Signal::TERM);
    for (room, (mut socket, _)) in of_a {
        match socket.read() {
            Ok(Message::Close(Some(frame))) => assert_eq!(frame.code, CloseCode::Away, "{room}"),
            other => panic!("{room}: {other:?}"),
        }
        assert_eq!(open(room).1, "b", "{room}");
    }
    for (room, (socket, _)) in &mut of_b {
        socket.send(Message::text("still here")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("still here"), "{room}");
    }
}
