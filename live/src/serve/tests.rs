//! A live node on real sockets, spoken to by curl, its keys assigned by a seed that does as the test says.

mod cluster;
mod mercure;
mod registrations;
mod seed;

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// No condition of these tests takes longer, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// The answer that curl got.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// As sent, in lower case names.
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The type of the problem that the answer is.
    fn problem(&self) -> String {
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status, "{self:?}");
        problem["type"].as_str().unwrap().trim_start_matches("urn:protoplex:problem:").to_owned()
    }
}

/// One request with curl, to its end.
async fn curl(arguments: &[&str]) -> Answer {
    let command = Command::new("curl").args(["-sS", "-i", "--max-time", "15"]).args(arguments).output();
    let Output { status, stdout, stderr } = command.await.unwrap();
    assert!(status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    let text = String::from_utf8(stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// An event stream that curl follows.
struct Curl {
    lines: Lines<BufReader<ChildStdout>>,
    /// Killed when dropped.
    _process: Child,
}

impl Curl {
    /// Connected, and past the opening block.
    async fn follow(arguments: &[&str]) -> Self {
        let mut process = Command::new("curl")
            .args(["-sS", "-N", "-i"])
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut stream = Self { lines, _process: process };
        let head = stream.block().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let opening = stream.block().await.unwrap();
        assert!(opening.starts_with("id: #"), "{opening}");
        stream
    }

    /// The lines up to the next empty one; None at the stream's end.
    async fn block(&mut self) -> Option<String> {
        let mut block = String::new();
        let read = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let line = line.trim_end_matches('\r');
                if line.is_empty() {
                    return Some(block);
                }
                block = format!("{block}{line}\n");
            }
            None
        };
        timeout(DEADLINE, read).await.expect("nothing came of the stream")
    }

    /// The data of the next event.
    async fn data(&mut self) -> String {
        let block = self.block().await.expect("the stream has ended");
        block.lines().find_map(|line| line.strip_prefix("data: ")).expect(&block).to_owned()
    }
}
