//! Where the lines of real nodes go, and who gets to see them.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::rig::{Arguments, Client, Node, until};

/// A node whose log is a file, and the file.
fn start(arguments: Arguments) -> (Node, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("x.log");
    (Node::start(&Arguments { log: Some(log.clone()), ..arguments }), log, folder)
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The lines that are whole: where there is no room half a line may stand there until it is cut off again.
fn all(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(json).collect()
}

/// Lines of other processes may come behind it at any time.
fn until_written(log: &Path, text: &str) {
    until("all is written", || all(log).iter().any(|line| line["text"] == text));
}

fn shown(node: &Node, query: &str) -> Vec<Value> {
    node.follow(&format!("/logs?{query}")).filter(|line| !line.is_empty()).map(|line| json(&line)).collect()
}

#[test]
fn a_follower_misses_no_line_and_sees_none_twice_through_rotations() {
    // Fewer than are kept, ten files, for the reader may come late to them.
    const LINES: usize = 190;
    let (node, log, folder) = start(Arguments { children: 1, log_bytes: 4096, ..Arguments::default() });
    let mut followed = node.follow("/logs?lines=0&follow=true&node=fixture-1");
    assert_eq!(followed.next().unwrap(), "", "it begins at once");
    let mut client = Client::connect(node.http());
    for n in 0..LINES {
        client.ask(&format!("say {n}")).unwrap();
    }
    let said = followed.filter(|line| !line.is_empty()).map(|line| json(&line)["text"].clone());
    assert!(said.take(LINES).eq((0..LINES).map(|n| n.to_string())));
    assert!(fs::metadata(&log).unwrap().len() <= 4096);
    let aside = fs::read_dir(folder.path()).unwrap().count() - 2;
    assert!((5..=10).contains(&aside), "{aside} files were put aside");
}

#[test]
fn what_is_shown_is_the_nodes_own_and_of_the_level_and_child_that_was_asked_for() {
    let (node, log, _folder) = start(Arguments::default());
    let mut client = Client::connect(node.http());
    let (index, _) = client.ask("say one").unwrap();
    client.ask("level loud").unwrap();
    client.ask("say two").unwrap();
    until_written(&log, "two");
    let strange = all(&log).last().unwrap().to_string().replace("fixture-1", "other-1");
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str(&format!("{strange}\nno JSON\n[]\n"));
    fs::write(&log, text).unwrap();

    let texts =
        |query: &str| -> Vec<_> { shown(&node, query).iter().map(|line| line["text"].clone()).collect() };
    assert_eq!(texts("lines=1"), ["two"]);
    assert_eq!(texts(&format!("lines=3&child={index}")), [Value::from("one"), Value::Null, "two".into()]);
    assert_eq!(texts(&format!("child={}", 1 - index)), Vec::<Value>::new());
    // Where root runs this the parent has a warning of its own.
    let grave = shown(&node, &format!("level=warn&lines=100&child={index}"));
    assert_eq!((grave.len(), &grave[0]["message"]), (1, &"refused".into()));
    assert!(grave[0]["error"].as_str().unwrap().contains("\"loud\" can't be understood"), "{grave:?}");
    assert_eq!(grave[0]["level"], "WARN");
    let since = format!("lines=100&since={}", grave[0]["time"].as_str().unwrap());
    assert_eq!(texts(&since), ["two"]);
}

#[test]
fn each_child_is_told_of_when_it_is_ready_and_how_long_that_took() {
    let (_node, log, _folder) = start(Arguments::default());
    let is_told = |child: usize| {
        let told = |line: &Value| {
            line["message"] == "ready"
                && line["process"] == format!("fixture-1:{child}")
                && line["after_ms"].is_u64()
        };
        all(&log).iter().filter(|line| told(line)).count() == 1
    };
    until("it is told", || is_told(0) && is_told(1));
}

#[test]
fn row_what_cannot_be_shown_is_refused_in_words() {
    let (node, _, _folder) = start(Arguments::default());
    let silent = Node::start(&Arguments::default());
    for (node, query, status, says) in [
        (&node, "level=loud", 400, "\"loud\" is no level"),
        (&node, "lines=many", 400, "query can't be understood"),
        (&node, "colour=red", 400, "query can't be understood"),
        (&node, "child=0,x", 400, "child"),
        (&node, "child=2", 404, "fixture-1 has 2 children, counted from 0"),
        (&node, "node=proxy-1", 404, "this is fixture-1, and no other"),
        (&silent, "", 409, "it logs to standard error"),
    ] {
        let (head, body) = node.request("GET", &format!("/logs?{query}")).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{query}: {head}");
        assert!(head.contains("application/problem+json"), "{query}: {head}");
        assert!(json(&body)["detail"].as_str().unwrap().contains(says), "{query}: {body}");
    }
}

#[test]
fn the_level_changes_while_the_node_runs_and_a_bad_one_changes_nothing() {
    let (node, log, _folder) = start(Arguments { children: 1, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    for line in ["whisper 1", "level debug", "whisper 2", "level loud", "whisper 3", "level warn", "say 4"] {
        client.ask(line).unwrap();
    }
    client.ask("level info").unwrap();
    client.ask("say 5").unwrap();
    until_written(&log, "5");
    let lines = all(&log);
    let texts: Vec<_> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert_eq!(texts, ["2", "3", "5"]);
    let refused = lines.iter().find(|line| line["message"] == "refused").unwrap();
    assert_eq!(refused["level"], "WARN");
}

/// Lets a process write files up to this size.
fn limit(pid: u32, bytes: Option<u64>) {
    let pid = Pid::from_raw(pid.try_into().unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

#[test]
fn where_there_is_no_room_lines_are_counted_and_requests_go_on_and_so_does_the_log_when_there_is() {
    const ROOM: u64 = 8192;
    let (node, log, _folder) = start(Arguments { children: 1, limited: true, ..Arguments::default() });
    let child = node.child(0).pid.unwrap();
    limit(child, Some(ROOM));
    let mut client = Client::connect(node.http());
    for n in 0..200 {
        client.ask(&format!("say {n}")).unwrap();
    }
    let details = || node.status()["children"][0]["details"]["log"].clone();
    until("it is told", || details().as_str().is_some_and(|told| told.contains(" lines lost: ")));
    // Each attempt leaves half a line for an instant.
    until("no line is cut, and no room is left unused", || {
        let text = fs::read_to_string(&log).unwrap();
        (ROOM - 200..=ROOM).contains(&(text.len() as u64)) && text.ends_with('\n')
    });

    limit(child, None);
    client.ask("say there is room").unwrap();
    until("it goes on", || all(&log).iter().any(|line| line["log"] == "log"));
    let lost = all(&log).iter().find_map(|line| line["lines"].as_u64()).unwrap();
    // The last one may come behind the line that tells of those that were lost.
    until("each line is there, or was counted", || {
        all(&log).iter().filter(|line| line["message"] == "said").count() as u64 + lost == 201
    });
    until("it is told", || details() == format!("{lost} lines were lost, and it goes on"));
    let metric = format!("protoplex_log_lines_lost_total{{child=\"0\",log=\"log\"}} {lost}\n");
    assert!(node.get("/metrics").contains(&metric), "{metric} in {}", node.get("/metrics"));
}

#[test]
fn a_disk_that_stands_still_delays_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&log).status().unwrap();
    assert!(made.success());
    // Opened, and not read.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let pipe = options.open(&log).unwrap();
    let node = Node::start(&Arguments { children: 1, log: Some(log), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    let long = "x".repeat(8000);
    for _ in 0..1000 {
        client.ask(&format!("say {long}")).unwrap();
    }
    until("what was lost is told once the disk goes on", || {
        // There may be nothing to read right now.
        let _ = (&pipe).read(&mut vec![0; 1 << 20]);
        let told = node.status()["children"][0]["details"]["log"].clone();
        told.as_str().is_some_and(|told| told.contains(" lines "))
    });
}
