//! Two servers of the user's own behind a handler: one key, one server, WebSockets too, until that server dies.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::{get, start};

/// The lease of a member: keys of a dead one move within it.
const LEASE: Duration = Duration::from_secs(5);

/// A server in Python that answers with its own name, the key and the epoch.
const SERVER: &str = r#"
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Room(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = " ".join([sys.argv[2], self.headers["Protoplex-Key"], self.headers["Protoplex-Epoch"]]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Room).serve_forever()
"#;

/// A process that is killed when this is dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn server(port: &Port, name: &str) -> Killed {
    let server =
        Command::new("python3").args(["-c", SERVER, &port.number().to_string(), name]).spawn().unwrap();
    let server = Killed(server);
    until("the server listens", || TcpStream::connect(port.address()).ok());
    server
}

pub(crate) fn join(cluster: &Cluster, port: &Port) -> Killed {
    let backend = format!("http://{}", port.address());
    let mut command = cluster.command(&["join", "--pool", "rooms", "--backend", &backend]);
    Killed(command.stdout(Stdio::null()).spawn().unwrap())
}

pub(crate) fn add_rooms(cluster: &Cluster, members: usize) {
    cluster.json(&[
        "handler",
        "add",
        "rooms",
        "--path",
        "/room/{room}/{*rest}",
        "--key",
        "room:{room}",
        "--pool",
        "rooms",
    ]);
    until("the members have joined", || {
        let way = cluster.json(&["route", &format!("{}/room/x/", cluster.http())]);
        (way["members"].as_array()?.len() == members).then_some(())
    });
}

/// Who answers for a room: name and key.
fn ask(cluster: &Cluster, room: usize) -> Option<(String, String)> {
    let answer = get(&format!("{}/room/{room}/chat", cluster.http()), &[]);
    let text = answer.text();
    let mut words = text.split(' ').map(str::to_owned);
    (answer.status == 200).then(|| (words.next().unwrap(), words.next().unwrap()))
}

#[test]
fn one_key_has_one_server_and_only_the_keys_of_a_dead_server_move() {
    let cluster = start();
    let ports = [Port::take(), Port::take()];
    let mut servers = HashMap::from([("a", server(&ports[0], "a")), ("b", server(&ports[1], "b"))]);
    let _sidecars = ports.each_ref().map(|port| join(&cluster, port));
    add_rooms(&cluster, 2);

    let owner = |room| {
        let (name, key) = until("the room is served", || ask(&cluster, room));
        assert_eq!(key, format!("room:{room}"));
        name
    };
    let before: Vec<_> = (0..20).map(owner).collect();
    assert!(before.contains(&"a".to_owned()) && before.contains(&"b".to_owned()), "{before:?}");
    assert_eq!((0..20).map(owner).collect::<Vec<_>>(), before, "the same again");

    drop(servers.remove("a"));
    let killed = Instant::now();
    for (room, owner) in before.iter().enumerate().filter(|(_, owner)| *owner == "b") {
        assert_eq!(&ask(&cluster, room).expect("its keys are served all the time").0, owner);
    }
    for (room, _) in before.iter().enumerate().filter(|(_, owner)| *owner == "a") {
        until("the room has moved", || ask(&cluster, room).filter(|(name, _)| name == "b"));
    }
    assert!(killed.elapsed() < LEASE, "moved after {:?}", killed.elapsed());

    // Back again: what has moved stays where it is.
    servers.insert("a", server(&ports[0], "a"));
    until("it has joined again", || {
        let way = cluster.json(&["route", &format!("{}/room/x/", cluster.http())]);
        (way["members"].as_array()?.len() == 2).then_some(())
    });
    assert!((0..20).map(owner).all(|name| name == "b"));
}

#[test]
fn a_second_side_car_of_one_name_says_why_it_is_no_member_until_the_first_has_gone() {
    let cluster = start();
    let port = Port::take();
    let _server = server(&port, "a");
    let first = join(&cluster, &port);
    add_rooms(&cluster, 1);

    let backend = format!("http://{}", port.address());
    let mut command = cluster.command(&["join", "--pool", "rooms", "--backend", &backend]);
    let mut second = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let (say, said) = mpsc::channel();
    let lines = BufReader::new(second.0.stdout.take().unwrap()).lines();
    let reader = thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
    let next = || said.recv_timeout(Duration::from_secs(20)).expect("it says something");
    let why = next();
    assert!(why.contains("is no member of pool rooms: the name"), "{why}");
    assert!(why.contains("taken by another instance") && why.contains("--id"), "{why}");

    // Killed, it leaves nothing but its lease.
    drop(first);
    let killed = Instant::now();
    assert!(next().contains("is a member of pool rooms"), "the same reason is not said again");
    assert!(killed.elapsed() < 2 * LEASE, "joined after {:?}", killed.elapsed());
    drop((said, second));
    let _ = reader.join();
}

#[test]
fn a_websocket_reaches_the_owner_of_its_key() {
    let cluster = start();
    let ports = [Port::take(), Port::take()];
    for (port, name) in ports.iter().zip(["a", "b"]) {
        websocket_server(port, name);
    }
    let _sidecars = ports.each_ref().map(|port| join(&cluster, port));
    add_rooms(&cluster, 2);

    let origin = cluster.http().replace("http://", "ws://");
    let greeting = |room: usize| {
        let (mut socket, _) = until("the WebSocket opens", || {
            tungstenite::connect(format!("{origin}/room/{room}/socket")).ok()
        });
        let name = socket.read().unwrap().into_text().unwrap().to_string();
        socket.send(Message::text("x".repeat(70_000))).unwrap();
        assert_eq!(socket.read().unwrap().len(), 70_000, "echoed");
        name
    };
    let first: Vec<_> = (0..10).map(greeting).collect();
    assert_eq!((0..10).map(greeting).collect::<Vec<_>>(), first);
    assert!(first.contains(&"a".to_owned()) && first.contains(&"b".to_owned()), "{first:?}");
}

/// Says its name, then echoes.
pub(crate) fn websocket_server(port: &Port, name: &'static str) {
    let listener = TcpListener::bind(port.address()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // The side-car's health checks connect and say nothing.
                let Ok(mut socket) = tungstenite::accept(stream) else { return };
                let _ = socket.send(Message::text(name));
                while let Ok(message) = socket.read() {
                    if socket.send(message).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

#[test]
fn a_client_can_not_say_which_key_it_is() {
    let cluster = start();
    let port = Port::take();
    let _server = server(&port, "a");
    let _sidecar = join(&cluster, &port);
    add_rooms(&cluster, 1);
    let url = format!("{}/room/1/", cluster.http());
    let answer = until("the room is served", || {
        let answer = get(&url, &["-H", "Protoplex-Key: room:2", "-H", "Protoplex-Epoch: 1"]);
        (answer.status == 200).then_some(answer)
    });
    assert!(answer.text().starts_with("a room:1 "), "{}", answer.text());
}
