//! The one log of a machine, and how an operator follows it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::until;
use rustix::process::Signal;
use serde_json::Value;

use crate::faults::kill;
use crate::{plan, start};

const DEADLINE: Duration = Duration::from_secs(30);

/// A `protoplex --json tail` that runs.
struct Tail {
    process: Child,
    lines: mpsc::Receiver<String>,
    notes: mpsc::Receiver<String>,
}

impl Tail {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut command = cluster.command(&[&["--json", "tail"], arguments].concat());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = forward(process.stdout.take().unwrap());
        let notes = forward(process.stderr.take().unwrap());
        Self { process, lines, notes }
    }

    /// The next lines, up to and with one for which this holds.
    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = self.lines.recv_timeout(DEADLINE);
            let line = line.unwrap_or_else(|_| panic!("waited in vain: {what}, after {lines:#?}"));
            lines.push(serde_json::from_str(&line).unwrap());
            if lines.last().is_some_and(&holds) {
                return lines;
            }
        }
    }

    fn note(&self) -> String {
        self.notes.recv_timeout(DEADLINE).expect("it says something on standard error")
    }

    fn end(&mut self, with: Signal) -> Option<i32> {
        signal(self.process.id(), with);
        self.process.wait().unwrap().code()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn forward(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line).ok())
    });
    lines
}

/// Makes each child of the proxy log a line.
fn make_proxies_log(cluster: &Cluster, name: &str) {
    let output =
        cluster.run(&["handler", "add", name, "--path", &format!("/{name}"), "--key", "k", "--pool", "p"]);
    assert!(output.status.success(), "{output:?}");
}

/// The version that a line of the proxy tells of.
fn version(line: &Value) -> Option<u64> {
    (line["message"] == "new routing table").then(|| line["version"].as_u64()).flatten()
}

fn time(line: &Value) -> String {
    line["time"].as_str().unwrap().to_owned()
}

/// All that was ever logged, in order of time.
fn logged(cluster: &Cluster) -> Vec<Value> {
    let text = cluster.logs();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut lines: Vec<_> = lines.filter(|line| line["node"].is_string()).collect();
    lines.sort_by_key(time);
    lines
}

#[test]
fn all_nodes_of_a_machine_share_one_log() {
    let cluster = start();
    let files = std::fs::read_dir(cluster.data().join("log")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".lock"));
    names.sort();
    assert_eq!(names, ["access.log", "protoplex.log"]);
    let mut lines = logged(&cluster);
    for node in ["up", "datastore-1", "seed-1", "live-1", "fileserver-1", "proxy-1"] {
        assert!(lines.iter().any(|line| line["node"] == node), "{node} in {lines:#?}");
    }

    let shown = cluster.run(&["tail", "--no-follow", "-n", "3", "live-1", "proxy-1:0"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success() && shown.stderr.is_empty(), "{text}");
    for says in [" INFO live-1", " INFO proxy-1:0 protoplex_proxy::serve: new routing table handlers="] {
        assert!(text.lines().any(|line| line.contains(says)), "{says} in {text}");
    }
    assert!(!text.contains("proxy-1:1 ") && !text.contains('\x1b') && text.lines().count() <= 6, "{text}");
    let shown = cluster.run(&["--json", "tail", "--no-follow", "-n", "1000"]);
    let shown: Vec<Value> = shown
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    // `up` is no node, and has no meta port.
    lines.retain(|line| line["node"] != "up");
    assert!(shown.len() >= lines.len(), "{} of {} lines", shown.len(), lines.len());
    assert!(shown.is_sorted_by_key(time), "{shown:#?}");
}

#[test]
fn several_nodes_are_followed_through_rotations_and_no_line_is_missing_or_comes_twice() {
    let cluster = plan().set("log.max_bytes=4096").set("log.keep=0").start();
    let files = || std::fs::read_dir(cluster.data().join("log")).unwrap().count();
    let tail = Tail::start(&cluster, &["proxy-1:0", "fileserver-1"]);
    let mut lines = tail.until("the proxy's first lines", |line| version(line).is_some());
    let files_before = files();
    for round in 0..12 {
        make_proxies_log(&cluster, &format!("round-{round}"));
        let before = lines.iter().filter_map(version).max();
        lines.extend(tail.until("the proxy's new table", |line| version(line) > before));
        if round % 4 == 0 {
            kill(cluster.child_pid("fileserver-1", 0));
            lines.extend(tail.until("the fileserver's child died", |line| line["message"] == "died"));
        }
    }
    assert!(files() > files_before, "it was put aside on the way");
    let logged = logged(&cluster);
    for (node, is_wanted) in [
        ("proxy-1", (|line: &Value| line["child"] == 0) as fn(&Value) -> bool),
        ("fileserver-1", |_: &Value| true),
    ] {
        let mut shown: Vec<_> = lines.iter().filter(|line| line["node"] == node).collect();
        shown.sort_by_key(|line| time(line));
        let logged = logged.iter().filter(|line| line["node"] == node && is_wanted(line));
        let logged: Vec<_> = logged.skip_while(|line| *line != shown[0]).take(shown.len()).collect();
        assert_eq!(shown, logged);
    }
}

#[test]
fn only_grave_lines_are_shown_to_who_asks_for_those() {
    let cluster = start();
    let mut tail = Tail::start(&cluster, &["-l", "warn"]);
    kill(cluster.child_pid("live-1", 1));
    let lines = tail.until("the child died", |line| line["message"] == "died");
    assert!(lines.iter().all(|line| line["level"] == "WARN" || line["level"] == "ERROR"), "{lines:#?}");
    assert_eq!(
        (&lines.last().unwrap()["node"], &lines.last().unwrap()["process"]),
        (&"live-1".into(), &"live-1:1".into())
    );
    assert_eq!(tail.end(Signal::INT), Some(0), "Ctrl-C is the usual end");
}

#[test]
fn a_node_that_was_started_again_is_found_again() {
    let cluster = start();
    let tail = Tail::start(&cluster, &["proxy-1", "live-1"]);
    let before = cluster.node("proxy-1");
    let mut lines = tail.until("it shows the proxy", |line| line["node"] == "proxy-1");
    kill(before["pid"].as_u64().unwrap());
    assert!(tail.note().starts_with("protoplex: proxy-1 is away, and is tried again: "));
    assert_eq!(tail.note(), "protoplex: proxy-1 is back");
    let after = until("the proxy is there again", || {
        let after = cluster.node("proxy-1");
        (after["ready"] == true && after["pid"] != before["pid"]).then_some(after)
    });
    make_proxies_log(&cluster, "later");
    let later = cluster.json(&["status"])["table_version"].as_u64();
    lines.extend(tail.until("it goes on", |line| version(line) >= later));
    let pid = &after["children"][0]["pid"];
    let started = lines.iter().filter(|line| line["message"] == "started" && line["pid"] == *pid);
    assert_eq!(started.count(), 1, "what was missed is shown: {lines:#?}");
    lines.sort_by_key(time);
    let died =
        |line: &&Value| line["node"] == "up" && line["message"] == "died" && line["process"] == "proxy-1";
    assert_eq!(logged(&cluster).iter().filter(died).count(), 1, "up tells it in the same log");
    assert!(lines.windows(2).all(|two| two[0] != two[1]), "nothing is shown twice: {lines:#?}");
}

#[test]
fn row_a_node_that_is_not_there_is_named_with_those_that_are() {
    let cluster = start();
    let output = cluster.run(&["tail", "--no-follow", "proxy-2"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let known = "there is no node \"proxy-2\"; there are datastore-1, fileserver-1, live-1, proxy-1, seed-1";
    assert!(error.contains(known), "{error}");
    let output = cluster.run(&["tail", "proxy-1:7"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("proxy-1 has 2 children"), "{error}");
}

#[test]
fn a_reader_of_the_tail_that_has_seen_enough_ends_it_quietly() {
    let cluster = start();
    let mut command = cluster.command(&["tail", "proxy-1"]);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(process.stdout.take());
    make_proxies_log(&cluster, "more");
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
