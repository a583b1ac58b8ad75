//! Three seeds, each with a datastore, on one PostgreSQL: the leader dies, is stopped, leaves; all of them are gone; the
//! database is gone. Backends check for themselves that no key ever has two owners and that no epoch goes back.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protoplex_testkit::machines::{Machines, SEEDS};
use protoplex_testkit::until;
use rustix::process::Signal;

use crate::get;

/// Of members.
const LEASE: Duration = Duration::from_secs(5);
/// Keys that are asked for all the time.
const ROOMS: usize = 40;

/// What the backends were asked, in the order in which they were.
#[derive(Default)]
struct Ledger {
    /// The newest epoch of each key, and which backend was asked at it.
    newest: HashMap<String, (u64, usize)>,
    wrong: Vec<String>,
    served: usize,
}

impl Ledger {
    fn note(&mut self, backend: usize, key: &str, epoch: u64) {
        self.served += 1;
        let (newest, owner) = *self.newest.entry(key.to_owned()).or_insert((epoch, backend));
        if epoch < newest {
            self.wrong
                .push(format!("{key}: backend {backend} at epoch {epoch:#x}, after {owner} at {newest:#x}"));
        } else if epoch == newest && owner != backend {
            self.wrong.push(format!("{key}: backends {owner} and {backend} both at epoch {epoch:#x}"));
        }
        self.newest.insert(key.to_owned(), (epoch.max(newest), backend));
    }
}

/// Reads one message's head; nothing at the end of the connection.
fn head(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Some(lines);
        }
        lines.push(line.to_owned());
    }
}

fn field<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A server of the user's own: it answers everything, and notes key and epoch where there are such.
fn backend(number: usize, ledger: Arc<Mutex<Ledger>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let ledger = Arc::clone(&ledger);
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                while let Some(head) = head(&mut reader) {
                    if let (Some(key), Some(epoch)) =
                        (field(&head, "protoplex-key"), field(&head, "protoplex-epoch"))
                    {
                        ledger.lock().unwrap().note(number, key, epoch.parse().unwrap());
                    }
                    let body = number.to_string();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A client's connection to the proxy, opened anew where it was closed.
struct Client {
    proxy: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new(http: &str) -> Self {
        Self { proxy: http.to_owned(), connection: None }
    }

    /// The status of the answer; 0 where there is none.
    fn get(&mut self, path: &str) -> u16 {
        // An idle connection may have been closed just now: then the request goes out once more.
        let kept = self.connection.is_some();
        match self.exchange(path) {
            Some(status) => status,
            None if kept => self.exchange(path).unwrap_or(0),
            None => 0,
        }
    }

    fn exchange(&mut self, path: &str) -> Option<u16> {
        let mut reader = match self.connection.take() {
            Some(reader) => reader,
            None => {
                let stream = TcpStream::connect(&self.proxy).ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
                BufReader::new(stream)
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: rooms.example.com\r\n\r\n");
        reader.get_mut().write_all(request.as_bytes()).ok()?;
        let head = head(&mut reader)?;
        let length: usize = field(&head, "content-length")?.parse().ok()?;
        reader.read_exact(&mut vec![0; length]).ok()?;
        if field(&head, "connection") != Some("close") {
            self.connection = Some(reader);
        }
        head.first()?.split(' ').nth(1)?.parse().ok()
    }
}

struct Bench {
    machines: Machines,
    ledger: Arc<Mutex<Ledger>>,
    sidecars: Vec<Child>,
    fresh: Arc<AtomicUsize>,
}

impl Bench {
    /// Three backends behind `/room/{room}/` (owned), `/hash/{x}/` and `/spread/`, an app, and every room known.
    fn start() -> Self {
        let machines = Machines::start(env!("CARGO_BIN_EXE_protoplex"));
        let app = machines.folder().join("app");
        std::fs::create_dir(&app).unwrap();
        std::fs::write(app.join("page.txt"), "a page").unwrap();
        machines.json(&["deploy", app.to_str().unwrap()]);
        let rooms = ["--path", "/room/{room}/{*rest}", "--key", "room:{room}", "--placement", "owned"];
        let hash = ["--path", "/hash/{x}/{*rest}", "--key", "{x}", "--placement", "hash"];
        let spread = ["--path", "/spread/{*rest}", "--placement", "spread"];
        for (name, more) in [("rooms", &rooms[..]), ("hash", &hash), ("spread", &spread)] {
            machines.json(&[&["handler", "add", name, "--pool", "rooms"], more].concat());
        }
        let files = ["--path", "/{*rest}", "--key", "{path}", "--placement", "hash", "--pool", "files"];
        machines.json(&[&["handler", "add", "files"], &files[..]].concat());

        let ledger = Arc::<Mutex<Ledger>>::default();
        let sidecars = (0..3).map(|number| {
            let backend = format!("http://{}", backend(number, Arc::clone(&ledger)));
            let mut join = machines.command(&["join", "--pool", "rooms", "--backend", &backend]);
            join.stdout(Stdio::null()).spawn().unwrap()
        });
        let bench = Self { sidecars: sidecars.collect(), machines, ledger, fresh: Arc::default() };
        until("the members have joined", || {
            let way = bench.machines.json(&["route", &format!("http://{}/room/0/x", bench.machines.http())]);
            (way["members"].as_array()?.len() == 3).then_some(())
        });
        let mut client = bench.client();
        for path in (0..ROOMS).map(room).chain(known_elsewhere()) {
            until(&path, || (client.get(&path) == 200).then_some(()));
        }
        bench
    }

    fn client(&self) -> Client {
        Client::new(&self.machines.http())
    }

    /// A room that nobody has asked for yet.
    fn fresh_room(&self) -> String {
        fresh_room(&self.fresh)
    }

    /// Has new rooms asked for all the time, each of which needs the leader: what the slowest takes is how long none leads.
    fn newcomers(&self) -> Newcomers {
        let slowest = Arc::<Mutex<Duration>>::default();
        let running = Arc::new(AtomicBool::new(true));
        let (mut client, fresh) = (self.client(), Arc::clone(&self.fresh));
        let (noted, run) = (Arc::clone(&slowest), Arc::clone(&running));
        let asking = thread::spawn(move || {
            while run.load(Ordering::Relaxed) {
                let (path, began) = (fresh_room(&fresh), Instant::now());
                assert_eq!(client.get(&path), 200, "{path}");
                let mut slowest = noted.lock().unwrap();
                *slowest = began.elapsed().max(*slowest);
                drop(slowest);
                thread::sleep(Duration::from_millis(2));
            }
        });
        Newcomers { slowest, running, asking }
    }

    /// Has what is known asked for by two clients until it is stopped.
    fn load(&self) -> Load {
        let running = Arc::new(AtomicBool::new(true));
        let run = Arc::clone(&running);
        let clients = (0..2).map(|number| {
            let (mut client, running) = (self.client(), Arc::clone(&run));
            let paths: Vec<_> = (0..ROOMS).map(room).chain(known_elsewhere()).collect();
            thread::spawn(move || {
                let (mut answers, mut failed) = (0, Vec::new());
                let began = Instant::now();
                for path in paths.iter().cycle().skip(number * 7) {
                    if !running.load(Ordering::Relaxed) {
                        break;
                    }
                    match client.get(path) {
                        200 => answers += 1,
                        status => failed.push(format!("{path}: {status} after {:?}", began.elapsed())),
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                (answers, failed)
            })
        });
        Load { running, clients: clients.collect() }
    }

    /// Asks for new rooms until one is assigned, and answers how long that took.
    fn until_assigned(&self, since: Instant) -> Duration {
        let mut client = self.client();
        until("a new room is assigned", || (client.get(&self.fresh_room()) == 200).then_some(()));
        since.elapsed()
    }

    /// No key had two owners, and no epoch went back.
    fn check(&self) {
        let ledger = self.ledger.lock().unwrap();
        assert!(
            ledger.wrong.is_empty(),
            "{} wrong of {}: {:#?}",
            ledger.wrong.len(),
            ledger.served,
            ledger.wrong
        );
        assert!(ledger.served > ROOMS, "hardly anything was served");
    }

    /// Who owns each room, at which epoch.
    fn owners(&self) -> HashMap<String, (u64, usize)> {
        let ledger = self.ledger.lock().unwrap();
        ledger
            .newest
            .iter()
            .filter(|(key, _)| key.len() < 9)
            .map(|(key, owner)| (key.clone(), *owner))
            .collect()
    }

    /// Lines of a node's metrics that begin so.
    fn metric(&self, node: &str, name: &str) -> f64 {
        let (_, text) = self.machines.meta(node, "metrics").unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for sidecar in &mut self.sidecars {
            let _ = sidecar.kill();
            let _ = sidecar.wait();
        }
    }
}

struct Load {
    running: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    /// How many answers there were, and what failed.
    fn stop(self) -> (usize, Vec<String>) {
        self.running.store(false, Ordering::Relaxed);
        let outcomes = self.clients.into_iter().map(|client| client.join().unwrap());
        outcomes.fold((0, Vec::new()), |(answers, mut failed), (more, worse)| {
            failed.extend(worse);
            (answers + more, failed)
        })
    }
}

struct Newcomers {
    slowest: Arc<Mutex<Duration>>,
    running: Arc<AtomicBool>,
    asking: JoinHandle<()>,
}

impl Newcomers {
    /// Tells the slowest first assignment since it told the last time, which is to be below a second.
    fn tell(&self, what: &str) {
        let slowest = std::mem::take(&mut *self.slowest.lock().unwrap());
        println!("{what}: the slowest first assignment took {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{what}: {slowest:?}");
    }

    fn stop(self) {
        self.running.store(false, Ordering::Relaxed);
        self.asking.join().unwrap();
    }
}

fn fresh_room(fresh: &AtomicUsize) -> String {
    room(1_000_000 + fresh.fetch_add(1, Ordering::Relaxed))
}

fn room(number: usize) -> String {
    format!("/room/{number}/x")
}

/// By hash, by spread, and a file.
fn known_elsewhere() -> [String; 4] {
    ["/hash/a/x", "/hash/b/x", "/spread/x", "/page.txt"].map(str::to_owned)
}

#[test]
fn a_leader_killed_under_load_fails_no_request_for_what_is_known_and_moves_no_key() {
    let mut bench = Bench::start();
    assert_eq!(bench.machines.leader(), "seed-1");
    let before = bench.owners();
    let load = bench.load();
    // All of its machine, the datastore that everybody used among it.
    bench.machines.kill("datastore-1");
    bench.machines.kill("seed-1");
    let took = bench.until_assigned(Instant::now());
    println!("leader killed: assignments flow again after {took:?}");
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    let leader = bench.machines.leader();
    assert_ne!(leader, "seed-1");

    // Whoever was the leader comes back, as an understudy.
    bench.machines.start_machine(1);
    until("it has joined", || {
        let status = bench.machines.status();
        let seeds = status["seeds"].as_array()?.clone();
        (seeds.len() == SEEDS && seeds.iter().all(|seed| seed["ready"] == true)).then_some(())
    });
    assert_eq!(bench.machines.leader(), leader);
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 100, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before, "no key has moved, and none has another epoch");
    bench.check();
}

#[test]
fn a_leader_that_was_stopped_for_ten_seconds_does_no_harm_and_learns_it() {
    let bench = Bench::start();
    assert_eq!(bench.machines.leader(), "seed-1");
    let before = bench.owners();
    let load = bench.load();
    let began = Instant::now();
    bench.machines.signal("seed-1", Signal::STOP);
    let took = bench.until_assigned(began);
    println!("leader stopped: assignments flow again after {took:?}");
    assert!(took < LEASE + Duration::from_secs(1), "{took:?}");
    thread::sleep(Duration::from_secs(10).saturating_sub(began.elapsed()));
    let mut client = bench.client();
    let rooms: Vec<_> = (0..20).map(|_| bench.fresh_room()).collect();
    bench.machines.signal("seed-1", Signal::CONT);
    for room in &rooms {
        assert_eq!(client.get(room), 200);
    }
    until("it has learnt who leads", || {
        bench.machines.meta("seed-1", "status")?.1.contains("understudy of").then_some(())
    });
    let leader = bench.machines.leader();
    assert_ne!(leader, "seed-1");
    assert_eq!(bench.metric("seed-1", "protoplex_seed_leading"), 0.0);
    for room in &rooms {
        assert_eq!(client.get(room), 200);
    }
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 100, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before);
    bench.check();
}

#[test]
fn a_planned_hand_over_takes_less_than_a_second_and_fails_no_request() {
    let mut bench = Bench::start();
    let before = bench.owners();
    let load = bench.load();
    let newcomers = bench.newcomers();
    // Each is given time to do what it does now and then, too.
    let settle = || thread::sleep(Duration::from_secs(1));

    settle();
    assert_eq!(bench.machines.leader(), "seed-1");
    let drained = bench.machines.run(&["drain", "seed-1"]);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let second = bench.machines.leader();
    assert_ne!(second, "seed-1");
    settle();
    newcomers.tell("drain of the leader");

    // The next one goes on as another program, and comes back as an understudy.
    bench.machines.restart("seed-1");
    bench.machines.ready("seed-1");
    let upgraded = bench.machines.run(&["upgrade", &second]);
    assert!(upgraded.status.success(), "{}", String::from_utf8_lossy(&upgraded.stderr));
    until("another one leads", || (bench.machines.leader() != second).then_some(()));
    bench.machines.ready(&second);
    settle();
    newcomers.tell("upgrade of the leader");

    // The next one is ended by SIGTERM, as systemd does.
    let third = bench.machines.leader();
    assert_eq!(bench.machines.stop(&third), Some(0));
    assert_ne!(bench.machines.leader(), third);
    settle();
    newcomers.tell("SIGTERM to the leader");

    newcomers.stop();
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 100, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before, "no key has moved");
    bench.check();
}

#[test]
fn with_every_seed_gone_what_is_known_goes_on_and_says_so() {
    let mut bench = Bench::start();
    let before = bench.owners();
    let load = bench.load();
    (1..=SEEDS).for_each(|index| bench.machines.kill(&format!("seed-{index}")));
    let gone = Instant::now();
    until("the nodes say that no seed is there", || {
        let (status, text) = bench.machines.meta("proxy-1", "readyz")?;
        (status == 200 && text.contains("no seed has been reachable")).then_some(())
    });
    thread::sleep((LEASE * 3).saturating_sub(gone.elapsed()));
    for node in ["proxy-1", "fileserver-1", "live-1"] {
        let (status, text) = bench.machines.meta(node, "readyz").unwrap();
        assert!(status == 200 && text.starts_with("ready\nfor "), "{node}: {status} {text}");
        assert_eq!(bench.metric(node, "protoplex_seed_reachable"), 0.0);
        assert!(bench.metric(node, "protoplex_seed_lost_seconds") > 10.0);
    }
    let refused = get(&format!("http://{}{}", bench.machines.http(), bench.fresh_room()), &[]);
    assert_eq!(refused.status, 503, "a new key can't be assigned");
    assert!(refused.header("retry-after").is_some());
    let status = bench.machines.run(&["status"]);
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(3));
    assert!(told.contains("No seed has led for ") && told.contains("what is known goes on"), "{told}");

    bench.machines.start_seed(2);
    let back = Instant::now();
    let took = bench.until_assigned(back);
    println!("all seeds gone for {:?}: assignments flow {took:?} after one is ready again", back - gone);
    until("the nodes have found it", || {
        let lost = ["proxy-1", "fileserver-1", "live-1"].map(|node| bench.machines.meta(node, "readyz"));
        lost.iter().all(|page| page.as_ref().is_some_and(|(_, text)| text == "ready\n")).then_some(())
    });
    assert_eq!(bench.metric("proxy-1", "protoplex_seed_reachable"), 1.0);
    let (answers, failed) = load.stop();
    assert!(failed.is_empty() && answers > 1000, "{answers}: {failed:#?}");
    assert_eq!(bench.owners(), before, "every key is where it was");
    bench.check();
}

#[test]
fn row_a_database_that_is_away_ends_no_seed_and_epochs_go_on_growing() {
    let bench = Bench::start();
    bench.machines.server.kill();
    until("no seed leads", || {
        let (status, text) = bench.machines.meta("proxy-1", "readyz")?;
        (status == 200 && text.contains("no seed has")).then_some(())
    });
    let mut client = bench.client();
    for path in known_elsewhere() {
        assert_eq!(client.get(&path), 200, "{path}: what needs no owner goes on");
    }
    let (status, _) = bench.machines.meta("seed-1", "readyz").unwrap();
    assert_eq!(status, 503, "a seed that could not lead is not ready");
    bench.machines.server.resume();
    bench.until_assigned(Instant::now());
    for path in (0..ROOMS).map(room) {
        until(&path, || (client.get(&path) == 200).then_some(()));
    }
    bench.machines.leader();
    bench.check();
}
