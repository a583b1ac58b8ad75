//! What the seeds are tested with: three servers of the user's own that note who asks for what, and load.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protoplex_testkit::machines::Machines;
use protoplex_testkit::until;

use crate::running::Running;

/// Keys that are asked for all the time.
pub(super) const ROOMS: usize = 40;

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
pub(super) struct Client {
    proxy: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    fn new(http: &str) -> Self {
        Self { proxy: http.to_owned(), connection: None }
    }

    /// The status of the answer; 0 where there is none.
    pub(super) fn get(&mut self, path: &str) -> u16 {
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

/// The cluster, and what asks it.
pub(super) struct Bench {
    pub(super) machines: Machines,
    ledger: Arc<Mutex<Ledger>>,
    sidecars: Vec<Child>,
    fresh: Arc<AtomicUsize>,
}

impl Bench {
    /// Three backends behind `/room/{room}/` (owned), `/hash/{x}/` and `/spread/`, an app, and every room known.
    pub(super) fn start() -> Self {
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

    pub(super) fn client(&self) -> Client {
        Client::new(&self.machines.http())
    }

    /// A room that nobody has asked for yet.
    pub(super) fn fresh_room(&self) -> String {
        fresh_room(&self.fresh)
    }

    /// Has new rooms asked for all the time, each of which needs the leader: what the slowest takes is how long none leads.
    pub(super) fn newcomers(&self) -> Newcomers {
        let (slowest, answers) = (Arc::<Mutex<Duration>>::default(), Arc::<AtomicUsize>::default());
        let running = Arc::new(AtomicBool::new(true));
        let counted = Arc::clone(&answers);
        let (mut client, fresh) = (self.client(), Arc::clone(&self.fresh));
        let (noted, run) = (Arc::clone(&slowest), Arc::clone(&running));
        let asking = thread::spawn(move || {
            while run.load(Ordering::Relaxed) {
                let (path, began) = (fresh_room(&fresh), Instant::now());
                assert_eq!(client.get(&path), 200, "{path}");
                let mut slowest = noted.lock().unwrap();
                *slowest = began.elapsed().max(*slowest);
                drop(slowest);
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        Newcomers { slowest, answers, running, asking }
    }

    /// Has what is known asked for by two clients until it is stopped.
    pub(super) fn load(&self) -> Load {
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
    pub(super) fn until_assigned(&self, since: Instant) -> Duration {
        let mut client = self.client();
        until("a new room is assigned", || (client.get(&self.fresh_room()) == 200).then_some(()));
        since.elapsed()
    }

    /// No key had two owners, and no epoch went back.
    pub(super) fn check(&self) {
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
    pub(super) fn owners(&self) -> HashMap<String, (u64, usize)> {
        let ledger = self.ledger.lock().unwrap();
        ledger
            .newest
            .iter()
            .filter(|(key, _)| key.len() < 9)
            .map(|(key, owner)| (key.clone(), *owner))
            .collect()
    }

    /// Lines of a node's metrics that begin so.
    pub(super) fn metric(&self, node: &str, name: &str) -> f64 {
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

/// Clients of what is known.
pub(super) struct Load {
    running: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    /// How many answers there were, and what failed.
    pub(super) fn stop(self) -> (usize, Vec<String>) {
        self.running.store(false, Ordering::Relaxed);
        let outcomes = self.clients.into_iter().map(|client| client.join().unwrap());
        outcomes.fold((0, Vec::new()), |(answers, mut failed), (more, worse)| {
            failed.extend(worse);
            (answers + more, failed)
        })
    }
}

/// Events that are published and read all the time, in a group, over whichever seed leads.
pub(super) struct Events {
    publisher: Running,
    feeder: JoinHandle<()>,
    running: Arc<AtomicBool>,
    reader: Running,
}

impl Events {
    pub(super) fn start(machines: &Machines) -> Self {
        let reader = ["--json", "subscribe", "tick.*", "--group", "audit", "--from", "earliest"];
        let reader = Running::start(machines.command(&reader));
        let mut publisher = Running::start(machines.command(&["--json", "emit", "tick.one", "--lines"]));
        let running = Arc::new(AtomicBool::new(true));
        let (run, mut stdin) = (Arc::clone(&running), publisher.stdin.take().unwrap());
        let feeder = thread::spawn(move || {
            for number in 0.. {
                if !run.load(Ordering::Relaxed) || writeln!(stdin, "{number}").is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        assert_eq!(reader.data(), "0", "they flow");
        Self { publisher, feeder, running, reader }
    }

    /// How many were acknowledged, each of which was read.
    pub(super) fn stop(mut self) -> usize {
        self.running.store(false, Ordering::Relaxed);
        self.feeder.join().unwrap();
        // Nothing more comes, so it ends when all are acknowledged.
        let acknowledged = self.publisher.lines.iter().count();
        assert_eq!(self.publisher.child.wait().unwrap().code(), Some(0));
        let mut missing: BTreeSet<_> = (1..acknowledged).map(|number| number.to_string()).collect();
        while !missing.is_empty() {
            missing.remove(&self.reader.data());
        }
        assert_eq!(self.reader.stop(), Some(0));
        acknowledged
    }
}

/// A client of what is not known yet.
pub(super) struct Newcomers {
    slowest: Arc<Mutex<Duration>>,
    answers: Arc<AtomicUsize>,
    running: Arc<AtomicBool>,
    asking: JoinHandle<()>,
}

impl Newcomers {
    /// Waits until so many more were answered that none of before is among them, and every node had its share.
    pub(super) fn until_answered(&self) {
        const MORE: usize = 100;
        let answered = || self.answers.load(Ordering::Relaxed);
        let before = answered();
        until("newcomers are answered", || (answered() > before + MORE).then_some(()));
    }

    /// Tells the slowest first assignment since it told the last time, which is to be below a second.
    pub(super) fn tell(&self, what: &str) {
        let slowest = std::mem::take(&mut *self.slowest.lock().unwrap());
        println!("{what}: the slowest first assignment took {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{what}: {slowest:?}");
    }

    pub(super) fn stop(self) {
        self.running.store(false, Ordering::Relaxed);
        self.asking.join().unwrap();
    }
}

fn fresh_room(fresh: &AtomicUsize) -> String {
    room(1_000_000 + fresh.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn room(number: usize) -> String {
    format!("/room/{number}/x")
}

/// By hash, by spread, and a file.
pub(super) fn known_elsewhere() -> [String; 4] {
    ["/hash/a/x", "/hash/b/x", "/spread/x", "/page.txt"].map(str::to_owned)
}
