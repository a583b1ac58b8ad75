//! Starts the fixture, asks it, and waits for what it should come to.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use protoplex_runtime::running;
use protoplex_runtime::supervisor::{Program, Status};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

pub(crate) const FIXTURE: &str = env!("CARGO_BIN_EXE_runtime-fixture");
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Of a node that has a program of its own.
const PROGRAM: &str = "fixture";

/// What a fixture is started with.
#[derive(Clone)]
pub(crate) struct Arguments {
    /// 0 for a node of one process.
    pub(crate) children: u32,
    pub(crate) listen: String,
    pub(crate) user: Option<&'static str>,
    pub(crate) meta: String,
    /// A fresh one where there is none.
    pub(crate) data: Option<PathBuf>,
    /// Grace and timeout of the drain, in milliseconds.
    pub(crate) timing: (u64, u64),
    pub(crate) log: Option<PathBuf>,
    pub(crate) level: &'static str,
    /// Of the log's file, before it is put aside.
    pub(crate) log_bytes: u64,
    /// A limit of its files does not kill it, as a full disk would not.
    pub(crate) limited: bool,
    /// How many files each of its processes may open; 0 for as many as this one.
    pub(crate) files: u32,
    /// The child that dies whenever it starts.
    pub(crate) hopeless: Option<u32>,
    /// Whether each child has a socket of its own.
    pub(crate) own: bool,
    /// That each child may have.
    pub(crate) connections: u64,
    /// What children show, and adopt while they run.
    pub(crate) word: &'static str,
    /// What they show, and only new ones adopt.
    pub(crate) motto: &'static str,
    /// Lets the meta port be reached from outside, by who has it.
    pub(crate) meta_token: Option<&'static str>,
    /// The section `[meta.tls]`.
    pub(crate) meta_tls: Value,
}

impl Default for Arguments {
    fn default() -> Self {
        let any = "127.0.0.1:0".to_owned();
        Self {
            children: 2,
            listen: any.clone(),
            user: None,
            meta: any,
            data: None,
            timing: (0, 5_000),
            log: None,
            level: "info",
            log_bytes: 0,
            limited: false,
            files: 0,
            hopeless: None,
            own: true,
            connections: 0,
            word: "",
            motto: "",
            meta_token: None,
            meta_tls: json!({}),
        }
    }
}

impl Arguments {
    pub(crate) fn write(&self, file: &Path, data: &Path) {
        let arguments = json!({
            "user": self.user,
            "data": data,
            "children": self.children,
            "listen": self.listen,
            "meta": self.meta,
            "meta_forced": self.meta_token.is_some(),
            "meta_tokens": { "token": self.meta_token, "command_token": "do-as-i-say" },
            "meta_tls": self.meta_tls,
            "timing": { "drain_grace_ms": self.timing.0, "drain_timeout_ms": self.timing.1 },
            "telemetry": { "file": self.log, "level": self.level, "max_bytes": self.log_bytes },
            "own": self.own,
            "connections": self.connections,
            "config": { "hopeless": self.hopeless, "word": self.word, "motto": self.motto, "secret_word": "xyzzy" },
        });
        std::fs::write(file, arguments.to_string()).unwrap();
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
    let file = data.path().join("fixture.json");
    arguments.write(&file, data.path());
    (data, Program::node("fixture-1", PathBuf::from(FIXTURE), vec![file.into()]))
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
    folder: TempDir,
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
        Self::spawn_with(arguments, &[])
    }

    /// The same in this environment.
    pub(crate) fn spawn_with(arguments: &Arguments, environment: &[(&str, &str)]) -> Self {
        Self::spawn_by(arguments, |file| {
            let mut command = Command::new(FIXTURE);
            if arguments.limited {
                command = Command::new("sh");
                command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", FIXTURE]);
            }
            if arguments.files > 0 {
                command = Command::new("sh");
                let limit = format!("ulimit -n {}; exec \"$@\"", arguments.files);
                command.args(["-c", &limit, "sh", FIXTURE]);
            }
            command.arg(file).stdin(Stdio::null()).envs(environment.iter().copied());
            command
        })
    }

    /// The same with a socket, given as systemd gives it.
    pub(crate) fn spawn_with_socket(arguments: &Arguments, socket: TcpListener) -> Self {
        let mut socket = Some(OwnedFd::from(socket));
        Self::spawn_by(arguments, |file| {
            let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$1\"";
            let mut command = Command::new("sh");
            command.args(["-c", script, FIXTURE]).arg(file).stdin(Stdio::from(socket.take().unwrap()));
            command
        })
    }

    /// Starts a program of its own, which [`Node::replace_program`] replaces, and waits until it is ready.
    pub(crate) fn start_own(arguments: &Arguments) -> Self {
        let node = Self::spawn_by(arguments, |file| {
            let program = file.with_file_name(PROGRAM);
            install(&program, "");
            let mut command = Command::new(program);
            command.arg(file).stdin(Stdio::null());
            command
        });
        until("the node is ready", || node.is_ready());
        node
    }

    /// Puts another program in the place of its own: the fixture with a flaw.
    pub(crate) fn replace_program(&self, flaw: &str) {
        install(&self.program(), flaw);
    }

    /// Where its own program stands.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join(PROGRAM)
    }

    /// Starts one that waits for its arguments, in a pipe.
    pub(crate) fn spawn_waiting(arguments: &Arguments) -> (Self, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let data = arguments.data.clone().unwrap_or_else(|| folder.path().join("data"));
        let pipe = folder.path().join("fixture.json");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let process = Command::new(FIXTURE).arg(&pipe).stdin(Stdio::null()).spawn().unwrap();
        (Self { process, data, http: None, meta: None, folder }, pipe)
    }

    /// Gives it what it waits for, and waits until it listens. From then on its arguments are a file's.
    pub(crate) fn go_on(&mut self, arguments: &Arguments, pipe: PathBuf) {
        let mut writer = std::fs::File::options().write(true).open(&pipe).unwrap();
        let file = pipe.with_extension("new");
        arguments.write(&file, &self.data);
        let text = std::fs::read(&file).unwrap();
        std::fs::rename(&file, &pipe).unwrap();
        writer.write_all(&text).unwrap();
        drop(writer);
        self.meet();
    }

    fn meet(&mut self) {
        until("the node is announced", || self.running().is_some());
        let running = self.running().unwrap();
        self.http = running.address("http");
        self.meta = running.address("meta");
    }

    fn spawn_by(arguments: &Arguments, mut command: impl FnMut(&Path) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = arguments.data.clone().unwrap_or_else(|| folder.path().join("data"));
        let file = folder.path().join("fixture.json");
        arguments.write(&file, &data);
        let process = command(&file).spawn().unwrap();
        let mut node = Self { process, data, http: None, meta: None, folder };
        node.meet();
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
        let file = folder.path().join("fixture.json");
        arguments.write(&file, &data);
        let output = Command::new(FIXTURE).arg(file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    fn running(&self) -> Option<running::Running> {
        running::list(&self.data).unwrap().into_iter().find(|running| running.pid == self.pid())
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http.unwrap()
    }

    pub(crate) fn meta(&self) -> SocketAddr {
        self.meta.unwrap()
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

    /// Where its arguments stand.
    pub(crate) fn arguments(&self) -> PathBuf {
        self.folder.path().join("fixture.json")
    }

    /// Puts other arguments in the place of those that it was started with; it goes by them once it is told.
    pub(crate) fn rewrite(&self, arguments: &Arguments) {
        arguments.write(&self.arguments(), arguments.data.as_ref().unwrap_or(&self.data));
    }

    /// Where it says that it listens now.
    pub(crate) fn announced(&self, name: &str) -> Option<SocketAddr> {
        self.running()?.address(name)
    }

    /// A page of the meta port.
    pub(crate) fn get(&self, path: &str) -> String {
        self.request("GET", path).unwrap().1
    }

    /// The status of a page of the meta port, asked for with more header fields.
    pub(crate) fn status_of(&self, method: &str, path: &str, fields: &str) -> u16 {
        let (head, _) = self.request_with(method, path, fields).unwrap();
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Gives a command, with its arguments; the answer's status, and what it says.
    pub(crate) fn command(&self, name: &str, arguments: Value) -> (u16, Value) {
        let arguments = arguments.to_string();
        let length = format!("Protoplex-Operator: test\r\nContent-Length: {}\r\n", arguments.len());
        let (head, body) = self.exchange("POST", &format!("/rpc/{name}"), &length, &arguments).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// Gives a command, and doesn't wait for what comes of it. Its operator goes away once this is dropped.
    pub(crate) fn command_and_leave(&self, name: &str, arguments: Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.meta.unwrap()).unwrap();
        let arguments = arguments.to_string();
        let length = format!("Content-Length: {}\r\n", arguments.len());
        let fields = format!("Host: localhost\r\nProtoplex-Operator: test\r\n{length}");
        write!(stream, "POST /rpc/{name} HTTP/1.1\r\n{fields}\r\n{arguments}").unwrap();
        stream
    }

    /// What the kernel tells of one of its processes, in a line that begins so.
    pub(crate) fn of_process(pid: u32, line: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|told| told.strip_prefix(line)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> io::Result<(String, String)> {
        self.request_with(method, path, "Protoplex-Operator: test\r\n")
    }

    fn request_with(&self, method: &str, path: &str, fields: &str) -> io::Result<(String, String)> {
        self.exchange(method, path, fields, "")
    }

    fn exchange(&self, method: &str, path: &str, fields: &str, body: &str) -> io::Result<(String, String)> {
        let mut stream = TcpStream::connect(self.meta.unwrap())?;
        let fields = format!("Host: localhost\r\nConnection: close\r\n{fields}");
        write!(stream, "{method} {path} HTTP/1.1\r\n{fields}\r\n{body}")?;
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
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        assert!(lines.next().unwrap().ends_with(" 200 OK"));
        let deadline = Instant::now() + DEADLINE;
        let in_time = move |_: &String| assert!(Instant::now() < deadline, "the page goes on for too long");
        lines.skip_while(|line| !line.is_empty()).skip(1).inspect(in_time)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.request("GET", "/readyz").is_ok_and(|(head, _)| head.starts_with("HTTP/1.1 200 "))
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

/// Puts a fixture somewhere, in one step.
fn install(program: &Path, flaw: &str) {
    let mut bytes = std::fs::read(FIXTURE).unwrap();
    bytes.extend_from_slice(format!("#{flaw}").as_bytes());
    replace(program, &bytes);
}

/// Puts a program somewhere, in one step: a file that runs can't be written to.
pub(crate) fn replace(program: &Path, bytes: &[u8]) {
    let draft = program.with_extension("new");
    std::fs::write(&draft, bytes).unwrap();
    std::fs::set_permissions(&draft, Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(draft, program).unwrap();
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
    /// Says a line, and waits for nothing.
    pub(crate) fn say(mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
    }

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
