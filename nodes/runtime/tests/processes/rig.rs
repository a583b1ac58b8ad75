//! Starts the fixture, asks it, and waits for what it should come to.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use protoplex_runtime::running;
use protoplex_runtime::supervisor::{Program, Status};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

const FIXTURE: &str = env!("CARGO_BIN_EXE_runtime-fixture");
const DEADLINE: Duration = Duration::from_secs(20);

/// What a fixture is started with.
#[derive(Clone)]
pub(crate) struct Arguments {
    /// 0 for a node of one process.
    pub(crate) children: u32,
    pub(crate) listen: String,
    pub(crate) meta: String,
    /// A fresh one where there is none.
    pub(crate) data: Option<PathBuf>,
    /// Grace and timeout of the drain, in milliseconds.
    pub(crate) timing: (u64, u64),
    pub(crate) log: Option<PathBuf>,
    /// Of the log's file, before it is put aside.
    pub(crate) log_bytes: u64,
    /// A limit of its files does not kill it, as a full disk would not.
    pub(crate) limited: bool,
    /// The child that dies whenever it starts.
    pub(crate) hopeless: Option<u32>,
}

impl Default for Arguments {
    fn default() -> Self {
        let any = "127.0.0.1:0".to_owned();
        Self {
            children: 2,
            listen: any.clone(),
            meta: any,
            data: None,
            timing: (0, 5_000),
            log: None,
            log_bytes: 0,
            limited: false,
            hopeless: None,
        }
    }
}

impl Arguments {
    fn json(&self, data: &std::path::Path) -> String {
        json!({
            "data": data,
            "children": self.children,
            "listen": self.listen,
            "meta": self.meta,
            "meta_forced": false,
            "timing": { "drain_grace_ms": self.timing.0, "drain_timeout_ms": self.timing.1 },
            "telemetry": { "file": self.log, "max_bytes": self.log_bytes },
            "config": { "hopeless": self.hopeless },
        })
        .to_string()
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until something is so, while tasks of the runtime go on.
pub(crate) async fn eventually(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a process runs; a zombie doesn't.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// A fixture for a supervisor, and its data directory.
pub(crate) fn program(arguments: &Arguments) -> (TempDir, Program) {
    let data = tempfile::tempdir().unwrap();
    let argument = arguments.json(data.path()).into();
    (data, Program::node("fixture-1", PathBuf::from(FIXTURE), vec![argument]))
}

/// Waits until a supervised process is ready, and gives its pid.
pub(crate) async fn ready(status: &mut watch::Receiver<Status>) -> u32 {
    let ready = status.wait_for(|status| status.ready);
    tokio::time::timeout(DEADLINE, ready).await.expect("ready in time").unwrap().pid.unwrap()
}

/// A fixture that runs, killed when this is dropped.
pub(crate) struct Node {
    process: Child,
    data: PathBuf,
    http: Option<SocketAddr>,
    meta: Option<SocketAddr>,
    _folder: TempDir,
}

/// A child as its node's status page tells of it.
#[derive(serde::Deserialize)]
pub(crate) struct ChildStatus {
    pub(crate) state: String,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
}

impl Node {
    /// Starts it and waits until it listens.
    pub(crate) fn spawn(arguments: &Arguments) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = arguments.data.clone().unwrap_or_else(|| folder.path().join("data"));
        let mut command = Command::new(FIXTURE);
        if arguments.limited {
            command = Command::new("sh");
            command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", FIXTURE]);
        }
        let process = command.arg(arguments.json(&data)).stdin(Stdio::null()).spawn().unwrap();
        let mut node = Self { process, data, http: None, meta: None, _folder: folder };
        until("the node is announced", || node.running().is_some());
        let running = node.running().unwrap();
        node.http = running.address("http");
        node.meta = running.address("meta");
        node
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(arguments: &Arguments) -> Self {
        let node = Self::spawn(arguments);
        until("the node is ready", || node.is_ready());
        node
    }

    /// Starts one that should not start; gives its exit code and what it says.
    pub(crate) fn refused(arguments: &Arguments) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let data = arguments.data.clone().unwrap_or_else(|| folder.path().join("data"));
        let output = Command::new(FIXTURE).arg(arguments.json(&data)).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    fn running(&self) -> Option<running::Running> {
        running::list(&self.data).unwrap().into_iter().find(|running| running.pid == self.pid())
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http.unwrap()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.data.clone()
    }

    pub(crate) fn run_file(&self, name: &str) -> PathBuf {
        self.data.join("run").join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Waits for its end; gives its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the node does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A page of the meta port.
    pub(crate) fn get(&self, path: &str) -> String {
        self.request(path).unwrap().1
    }

    pub(crate) fn request(&self, path: &str) -> io::Result<(String, String)> {
        let mut stream = TcpStream::connect(self.meta.unwrap())?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: meta\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Ok((head.to_owned(), body.to_owned()))
    }

    /// A page that goes on, line by line, without its head; not for ever.
    pub(crate) fn follow(&self, path: &str) -> impl Iterator<Item = String> {
        let mut stream = TcpStream::connect(self.meta.unwrap()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // To HTTP/1.0 nothing is sent in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: meta\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        assert!(lines.next().unwrap().ends_with(" 200 OK"));
        let deadline = Instant::now() + DEADLINE;
        let in_time = move |_: &String| assert!(Instant::now() < deadline, "the page goes on for too long");
        lines.skip_while(|line| !line.is_empty()).skip(1).inspect(in_time)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.request("/readyz").is_ok_and(|(head, _)| head.starts_with("HTTP/1.1 200 "))
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status")).unwrap()
    }

    pub(crate) fn child(&self, index: usize) -> ChildStatus {
        serde_json::from_value(self.status()["children"][index].clone()).unwrap()
    }

    pub(crate) fn kill_child(&self, index: usize) {
        signal(self.child(index).pid.unwrap(), Signal::KILL);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection to a node.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("nobody is refused");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Says a line, and gives index and pid of the child that answers.
    pub(crate) fn ask(&mut self, line: &str) -> io::Result<(u32, u32)> {
        // In one piece: a second one would wait until the first is acknowledged.
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        let (index, pid) = answer.trim_end().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((index.parse().unwrap(), pid.parse().unwrap()))
    }
}
