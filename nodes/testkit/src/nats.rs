//! A real NATS server with JetStream of Debian's package, on a free port, in a folder of its own.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::ports::Port;
use crate::until;

/// Debian has it off the path of users who aren't root.
const PROGRAMS: [&str; 3] = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// The server. It is stopped and its folder removed when this is dropped, and it ends with the test's process, too.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    port: Port,
    arguments: Vec<String>,
    /// The thread that starts processes: they are told of its end, and it ends with this.
    starter: mpsc::Sender<(Command, mpsc::Sender<Child>)>,
    process: Mutex<Option<Child>>,
}

impl Server {
    /// Starts a server, and waits until it answers.
    ///
    /// # Panics
    /// When NATS isn't installed, or doesn't start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with more arguments: `["--auth", "token"]`, say.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(arguments: &[&str]) -> Self {
        let (starter, orders) = mpsc::channel::<(Command, mpsc::Sender<Child>)>();
        thread::spawn(move || {
            for (mut command, reply) in orders {
                let child = command.spawn().expect("setpriv and nats-server can be started");
                reply.send(child).expect("somebody waits for it");
            }
        });
        let server = Self {
            folder: tempfile::Builder::new().prefix("protoplex-nats-").tempdir().expect("a folder"),
            port: Port::take(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            starter,
            process: Mutex::new(None),
        };
        server.resume();
        server
    }

    /// `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.port.address())
    }

    /// Ends it as a crash does, by SIGKILL.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn kill(&self) {
        let mut child = self.process().take().expect("it runs");
        child.kill().expect("it is this process' child");
        child.wait().expect("it is this process' child");
    }

    /// Has it answer nobody from here on, though its connections stand, as on a machine that hangs.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn stop(&self) {
        let process = self.process();
        let id = Pid::from_child(process.as_ref().expect("it runs"));
        kill_process(id, Signal::STOP).expect("it is this process' child");
    }

    /// Starts it again on the same data and port, and waits until it answers.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn resume(&self) {
        *self.process() = Some(self.spawn());
        until("NATS answers", || {
            let stream = TcpStream::connect(self.port.address()).ok()?;
            stream.set_read_timeout(Some(READ_TIMEOUT)).ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok()?;
            line.starts_with("INFO ").then_some(())
        });
    }

    fn spawn(&self) -> Child {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.folder.path().join("log"))
            .expect("the folder can be written");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=SIGKILL"]).arg(program());
        command.args(["-js", "-a", "127.0.0.1", "-p", &self.port.number().to_string(), "-sd"]);
        command.arg(self.folder.path()).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let (reply, started) = mpsc::channel();
        self.starter.send((command, reply)).expect("the thread lasts as long as this");
        started.recv().expect("it was started")
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.process().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program() -> PathBuf {
    let found = PROGRAMS.into_iter().map(PathBuf::from).find(|program| program.exists());
    found.expect("NATS is installed (scripts/install-test-tools)")
}
