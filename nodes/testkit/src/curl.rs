//! Requests by curl, a client that is not ours.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status; 0 where there was none.
    pub status: u16,
    /// Lines of its last head, the status line first.
    pub head: Vec<String>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.iter().filter_map(|line| line.split_once(':'));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// Runs `curl -sS` with these arguments, at most a minute long.
///
/// # Panics
/// When curl can't be run.
pub fn curl<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Answer {
    let head = tempfile::NamedTempFile::new().expect("a temporary file");
    let output = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "--max-time", "60", "-D"])
        .arg(head.path())
        .args(arguments)
        .output()
        .expect("curl is installed");
    let text = std::fs::read_to_string(head.path()).unwrap_or_default();
    // Interim answers (100) come before the last head.
    let last = text.split("\r\n\r\n").filter(|head| head.starts_with("HTTP/")).last().unwrap_or_default();
    let head: Vec<_> = last.lines().map(str::to_owned).collect();
    let status = head.first().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    Answer { status: status.unwrap_or(0), head, body: output.stdout }
}

/// `curl -N` on a stream of events, ended when this is dropped.
#[derive(Debug)]
pub struct Events {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Events {
    /// Subscribes, and returns once the stream stands.
    ///
    /// # Panics
    /// When it doesn't within half a minute.
    pub fn open(url: &str, more: &[&str]) -> Self {
        let mut process = Command::new("curl")
            .args(["-sS", "-N", "-i", "--noproxy", "*", "--max-time", "300"])
            .args(more)
            .arg(url)
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is installed");
        let stdout = process.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || forward(stdout, &sender));
        let events = Self { process, lines };
        // The head ends with an empty line.
        while !events.next_line().is_empty() {}
        events
    }

    /// The data of the next event.
    ///
    /// # Panics
    /// When none comes within half a minute, or the stream ends.
    pub fn next_data(&self) -> String {
        loop {
            if let Some(data) = self.next_line().strip_prefix("data:") {
                return data.trim_start().to_owned();
            }
        }
    }

    /// The data of the first event for which `wanted` is true.
    ///
    /// # Panics
    /// As [`Self::next_data`], or when the data is no JSON.
    pub fn next_json(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            let data = serde_json::from_str(&self.next_data()).expect("the events of this stream are JSON");
            if wanted(&data) {
                return data;
            }
        }
    }

    /// The exit code of curl once the stream has ended by itself: 0 where it was complete.
    ///
    /// # Panics
    /// When it doesn't end within half a minute.
    pub fn ended(mut self) -> Option<i32> {
        crate::until("the stream has ended", || self.process.try_wait().expect("it is our child")).code()
    }

    fn next_line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(30)).expect("the stream goes on")
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn forward(stdout: impl Read, lines: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if lines.send(line).is_err() {
            return;
        }
    }
}
