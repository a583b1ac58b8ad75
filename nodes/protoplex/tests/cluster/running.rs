//! A command of the operator's that goes on, with its standard input and the lines that it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use protoplex_testkit::cluster::signal;
use rustix::process::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// The command; it is killed when this is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) lines: Receiver<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Self { stdin: child.stdin.take(), child, lines }
    }

    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line comes")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// The data of the next event.
    pub(crate) fn data(&self) -> String {
        self.json()["event"]["data"].to_string()
    }

    /// Ctrl-C, and its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        signal(self.child.id(), Signal::INT);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
