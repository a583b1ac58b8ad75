//! The room server in Python that `examples/rooms` is: real processes of it, killed, stopped, drained, without a seed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::curl::{Events, curl};
use protoplex_testkit::machines::{Machines, SEEDS};
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use rustix::process::Signal;

use crate::keyed_requests::{Killed, add_rooms};
use crate::outside::{Seed, address, enrolled};
use crate::{get, start};

/// Of a member.
const LEASE: Duration = Duration::from_secs(5);
const ROOMS: usize = 24;

/// One of the example's servers, at its own port.
struct RoomServer {
    name: &'static str,
    port: Port,
    process: Killed,
}

impl RoomServer {
    fn start(cluster: &Cluster, name: &'static str) -> Self {
        let (seed, folder) = (address(cluster), cluster.folder());
        let credentials = enrolled(|arguments| cluster.json(arguments), &seed, folder, name);
        Self::start_at(&seed, &credentials, folder, name)
    }

    /// One that knows this seed.
    fn start_at(seed: &str, credentials: &Path, folder: &Path, name: &'static str) -> Self {
        let port = Port::take();
        let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/rooms/rooms.py");
        let log = File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new("python3");
        // No folder of compiled modules beside the sources.
        command.arg("-B").arg(example).args(["--listen", &port.address(), "--name", name]);
        command.args(["--seed", seed, "--drain", "2", "--renew-after", "2"]);
        command.arg("--credentials").arg(credentials).arg("--store").arg(folder.join("rooms.sqlite"));
        let process = Killed(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        Self { name, port, process }
    }

    fn signal(&self, number: Signal) {
        signal(self.process.0.id(), number);
    }
}

/// What a room answers: who, at which epoch, and all that was said in it.
#[derive(Clone, Debug, PartialEq)]
struct Room {
    server: String,
    epoch: u64,
    said: Vec<String>,
}

fn url(http: &str, room: usize) -> String {
    format!("{http}/room/{room}/messages")
}

fn read(http: &str, room: usize) -> Option<Room> {
    // Not longer than that: its owner may be stopped.
    let answer = curl(["--max-time", "2", &url(http, room)]);
    if answer.status != 200 {
        return None;
    }
    let said = answer.json()["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["text"].as_str().unwrap().to_owned())
        .collect();
    let server = answer.header("room-server").unwrap().to_owned();
    Some(Room { server, epoch: answer.header("room-epoch").unwrap().parse().unwrap(), said })
}

/// The status.
fn say(http: &str, room: usize, text: &str) -> u16 {
    get(&url(http, room), &["--max-time", "10", "--data-binary", text]).status
}

/// Says one thing in each room.
fn open_all(http: &str) -> BTreeMap<usize, Room> {
    let mut rooms = BTreeMap::new();
    for room in 0..ROOMS {
        until("somebody takes the room", || (say(http, room, &format!("hello {room}")) == 201).then_some(()));
        let opened = read(http, room).unwrap();
        assert_eq!(opened.said, [format!("hello {room}")]);
        rooms.insert(room, opened);
    }
    rooms
}

fn members(cluster: &Cluster, wanted: usize) {
    until("the members are there", || {
        let way = cluster.json(&["route", &format!("{}/room/x/", cluster.http())]);
        (way["members"].as_array()?.len() == wanted).then_some(())
    });
}

/// An answer of a server that is asked behind the proxy's back, by its status line and head.
struct Direct {
    reader: BufReader<TcpStream>,
}

impl Direct {
    fn open(server: &RoomServer) -> Self {
        let stream = TcpStream::connect(server.port.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    fn send(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Status and head of the next answer, its body left out.
    fn answer(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.reader.read_line(&mut head).unwrap(), 0, "the connection ended behind {head:?}");
        }
        let length =
            head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        self.reader.read_exact(&mut vec![0; length.unwrap_or(0)]).unwrap();
        (head[9..12].parse().unwrap(), head)
    }
}

fn head(method: &str, room: usize, epoch: u64, more: &str) -> String {
    format!(
        "{method} /room/{room}/messages HTTP/1.1\r\nHost: rooms\r\nProtoplex-Key: room:{room}\r\nProtoplex-Epoch: \
         {epoch}\r\n{more}\r\n"
    )
}

#[test]
fn rooms_of_a_killed_server_come_up_at_the_other_with_all_that_was_said() {
    let cluster = start();
    let [a, b] = ["a", "b"].map(|name| RoomServer::start(&cluster, name));
    add_rooms(&cluster, 2);
    let before = open_all(cluster.http());
    for server in [&a, &b] {
        assert!(before.values().any(|room| room.server == server.name), "{before:?}");
    }
    for (room, known) in &before {
        assert_eq!(read(cluster.http(), *room).as_ref(), Some(known), "always at one server, at one epoch");
    }
    // The other one, asked in spite of that, denies it, as it does at another epoch.
    let (room, of_a) = before.iter().find(|(_, room)| room.server == "a").unwrap();
    for (server, epoch) in [(&b, of_a.epoch), (&a, of_a.epoch - 1)] {
        let mut direct = Direct::open(server);
        direct.send(&head("GET", *room, epoch, ""));
        let (status, head) = direct.answer();
        assert!(status == 421 && head.contains("Protoplex-Misdirected"), "{head}");
    }
    let stream = Events::open(&format!("{}/room/{room}/stream", cluster.http()), &["-H", "Last-Event-ID: 1"]);
    assert_eq!(say(cluster.http(), *room, "to the stream"), 201);
    assert_eq!(stream.next_data(), "\"to the stream\"");

    a.signal(Signal::KILL);
    for (room, known) in &before {
        let moved = until("the room is somewhere", || read(cluster.http(), *room));
        assert_eq!(moved.said[..1], known.said, "nothing is forgotten");
        assert_eq!(moved.server, "b");
        assert!(
            if known.server == "b" { moved.epoch == known.epoch } else { moved.epoch > known.epoch },
            "{moved:?} {known:?}"
        );
    }
    assert_eq!(read(cluster.http(), *room).unwrap().said[1..], ["to the stream"]);
}

#[test]
fn a_server_that_was_stopped_beyond_its_lease_serves_and_writes_nothing_of_what_it_had() {
    let cluster = start();
    let [a, _b] = ["a", "b"].map(|name| RoomServer::start(&cluster, name));
    add_rooms(&cluster, 2);
    let before = open_all(cluster.http());
    let (room, of_a) = before.iter().find(|(_, room)| room.server == "a").unwrap();

    // One request has passed the check of the lease, and waits for its message, when the process is stopped.
    let mut late = Direct::open(&a);
    late.send(&head("POST", *room, of_a.epoch, "Content-Length: 4\r\nExpect: 100-continue\r\n"));
    assert_eq!(late.answer().0, 100);
    for _ in 0..3 {
        let mut other = Direct::open(&a);
        other.send(&head("GET", *room, of_a.epoch, ""));
        assert_eq!(other.answer().0, 200);
    }
    a.signal(Signal::STOP);
    let stopped = Instant::now();
    let moved = until("the room is at the other", || read(cluster.http(), *room));
    assert!(moved.server == "b" && moved.epoch > of_a.epoch && moved.said == of_a.said, "{moved:?}");
    assert!(stopped.elapsed() > LEASE - Duration::from_secs(2), "while its lease ran");
    assert_eq!(say(cluster.http(), *room, "meanwhile"), 201);

    a.signal(Signal::CONT);
    late.send("late");
    let (status, answer) = late.answer();
    assert!(status == 421 && answer.contains("Protoplex-Misdirected: fenced"), "{answer}");
    let mut again = Direct::open(&a);
    again.send(&head("GET", *room, of_a.epoch, ""));
    let (status, answer) = again.answer();
    assert!(status == 421 && answer.contains("Protoplex-Misdirected: not-owned"), "{answer}");
    let now = read(cluster.http(), *room).unwrap();
    assert_eq!(now.said[of_a.said.len()..], ["meanwhile"]);
    // It is a member again, without what it had: what nobody has asked for meanwhile it may get again, at a later epoch.
    members(&cluster, 2);
    for (room, known) in before {
        let now = until("the room is served", || read(cluster.http(), room));
        assert_eq!(now.said[..1], known.said);
        assert_eq!(now.epoch == known.epoch, known.server == "b", "{now:?} {known:?}");
    }
}

#[test]
fn a_seed_that_is_killed_and_comes_back_finds_every_room_at_its_epoch() {
    let cluster = start();
    let _servers = ["a", "b"].map(|name| RoomServer::start(&cluster, name));
    let certificate = || std::fs::read(cluster.folder().join("credentials-a/cert.pem")).unwrap();
    let first = certificate();
    add_rooms(&cluster, 2);
    let before = open_all(cluster.http());
    until("it has renewed its certificate", || (certificate() != first).then_some(()));
    let term = cluster.json(&["status"])["term"].as_u64().unwrap();
    signal(u32::try_from(cluster.node("seed-1")["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    until("the seed leads again, and knows who owns what", || {
        let output = cluster.run(&["--json", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["term"].as_u64()? > term && status["recovering"] == false).then_some(())
    });
    let seed = Seed::of(&cluster);
    for (room, known) in &before {
        assert_eq!(until("the room is served", || read(cluster.http(), *room)), *known);
        let owner = until("the seed knows", || seed.owner(&format!("room:{room}")));
        assert_eq!(owner.1, known.epoch, "{room}");
    }
    members(&cluster, 2);
}

#[test]
fn a_server_that_knows_an_understudy_finds_the_leader_and_keeps_its_rooms_over_a_hand_over() {
    let mut machines = Machines::start(env!("CARGO_BIN_EXE_protoplex"));
    let leader = machines.leader();
    let understudy = (1..=SEEDS).map(|index| format!("seed-{index}")).find(|seed| *seed != leader).unwrap();
    let (leads, stands_by) = (machines.port(&leader), machines.port(&understudy));
    let operator = |arguments: &[&str]| machines.json(arguments);
    let credentials = enrolled(operator, &leads, machines.folder(), "a");
    let asked = Seed::at(&stands_by, &credentials).ask("/v1/keys/rooms/a%2Fb?c", &[]);
    assert_eq!(asked.status, 307, "{asked:?}");
    assert_eq!(asked.header("location"), Some(&*format!("https://{leads}/v1/keys/rooms/a%2Fb?c")));
    assert_eq!(asked.json()["leader"], leads);

    let handler = [
        "handler",
        "add",
        "rooms",
        "--path",
        "/room/{room}/{*rest}",
        "--key",
        "room:{room}",
        "--pool",
        "rooms",
    ];
    machines.json(&handler);
    let _server = RoomServer::start_at(&stands_by, &credentials, machines.folder(), "a");
    let http = format!("http://{}", machines.http());
    let before = open_all(&http);
    assert_eq!(machines.stop(&leader), Some(0));
    for (room, known) in &before {
        assert_eq!(until("the room is served", || read(&http, *room)), *known);
    }
    let next = machines.leader();
    assert_ne!(next, leader);
    let seed = Seed::at(&machines.port(&next), &credentials);
    for (room, known) in &before {
        let owner = until("its owner has said so", || seed.owner(&format!("room:{room}")));
        assert_eq!(owner.1, known.epoch, "room {room}");
    }
    // New ones are given to it, too.
    until("a new room opens", || (say(&http, ROOMS, "hello") == 201).then_some(()));
}

#[test]
fn rooms_move_to_a_newcomer_and_from_one_that_leaves_without_a_failed_request() {
    let cluster = start();
    let mut a = RoomServer::start(&cluster, "a");
    add_rooms(&cluster, 1);
    let opened = open_all(cluster.http());
    let b = RoomServer::start(&cluster, "b");
    let (running, said) = (AtomicBool::new(true), AtomicUsize::new(0));
    let (failed, written) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::<usize, Vec<String>>::new()));
    thread::scope(|scope| {
        for client in 0..2 {
            let (cluster, running, said, failed, written) = (&cluster, &running, &said, &failed, &written);
            scope.spawn(move || {
                for number in 0.. {
                    if !running.load(Ordering::Relaxed) {
                        return;
                    }
                    // Rooms of its own, so that their order is its own.
                    let room = (2 * number + client) % ROOMS;
                    let text = format!("{client} {number}");
                    match say(cluster.http(), room, &text) {
                        201 => written.lock().unwrap().entry(room).or_default().push(text),
                        status => failed.lock().unwrap().push((room, text, status)),
                    }
                    said.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let of = |server: &str| {
            (0..ROOMS)
                .filter(|room| read(cluster.http(), *room).is_some_and(|it| it.server == server))
                .count()
        };
        let _ends = Ends(&running);
        members(&cluster, 2);
        let begun = Instant::now();
        while of("b") < ROOMS / 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{} rooms have moved", of("b"));
        }
        a.signal(Signal::TERM);
        let status = until("it has left", || a.process.0.try_wait().unwrap());
        assert!(status.success(), "{status}");
        assert_eq!(of("b"), ROOMS);
        let so_far = said.load(Ordering::Relaxed);
        until("requests go on", || (said.load(Ordering::Relaxed) > so_far + 20).then_some(()));
    });
    println!("{} messages", said.into_inner());
    assert_eq!(failed.into_inner().unwrap(), []);
    for (room, written) in written.into_inner().unwrap() {
        let now = read(cluster.http(), room).unwrap();
        assert_eq!(now.server, b.name);
        assert_eq!(now.said[..1], opened[&room].said);
        assert_eq!(now.said[1..], written, "in their order, each once");
    }
}

/// Ends the clients, also where the test fails meanwhile.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn row_the_example_says_what_is_wrong_in_a_line() {
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/rooms/rooms.py");
    for (arguments, says) in [
        (["--listen", "x"], "--listen x: write HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], "write HOST:PORT"),
        (["--credentials", "nope"], "--credentials nope: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(&example).args(arguments).current_dir(folder.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains(says), "{error}");
    }
}
