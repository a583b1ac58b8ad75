//! Events between real processes: published and subscribed to by commands, told by nodes, kept over crashes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::nats;
use protoplex_testkit::until;
use rustix::process::Signal;
use serde_json::Value;

use crate::running::Running;
use crate::{plan, put, start};

/// `protoplex --json subscribe …` on a cluster.
fn subscribe(cluster: &Cluster, arguments: &[&str]) -> Running {
    Running::start(cluster.command(&[&["--json", "subscribe"], arguments].concat()))
}

/// Runs a command to its end with this on its standard input.
fn with_input(cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let mut command = cluster.command(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_happens_in_a_cluster_is_told() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/told", b"told", &["-H", "Upload-Id: my-own-id"]).status, 201);
    let told = subscribe(&cluster, &["#", "--from", "earliest"]);
    let mut topics = BTreeSet::new();
    let (mut finished, mut stored) = (None, None);
    while finished.is_none() || stored.is_none() || !topics.contains("handlers.changed") {
        let event = told.json()["event"].clone();
        assert_eq!(event["specversion"], "1.0");
        match event["type"].as_str().unwrap() {
            "upload.finished" => finished = Some(event.clone()),
            "file.stored" => stored = Some(event.clone()),
            _ => {}
        }
        topics.insert(event["type"].as_str().unwrap().to_owned());
    }
    let (finished, stored) = (finished.unwrap(), stored.unwrap());
    assert_eq!((&finished["data"]["path"], &finished["data"]["size"]), (&"/files/told".into(), &4.into()));
    assert_eq!(finished["subject"], "upload/my-own-id");
    assert_eq!(finished["data"]["reference"], stored["data"]["reference"]);
    assert!(topics.contains("node.joined") && topics.contains("build.deployed"), "{topics:?}");
    assert_eq!(told.stop(), Some(0));
}

#[test]
fn events_are_given_as_arguments_lines_and_whole() {
    let cluster = start();
    let all = subscribe(&cluster, &["room.#", "--group", "all", "--from", "earliest"]);
    let emitted = cluster.json(&[
        "emit",
        "room.closed",
        "{\"n\": 1.0}",
        "--subject",
        "room/42",
        "--id",
        "once",
        "--extension",
        "team=blue",
    ]);
    assert!(
        emitted["position"].as_u64().unwrap() > 0 && emitted["id"] == "once" && emitted["repeated"] == false
    );
    let event = all.json();
    assert_eq!(event["attempt"], 1);
    let event = &event["event"];
    assert_eq!((&event["subject"], &event["team"]), (&"room/42".into(), &"blue".into()));
    assert!(event["source"].as_str().unwrap().starts_with("/operator/"));
    assert_eq!(event["data"].to_string(), "{\"n\":1.0}");
    let again = cluster.run(&["emit", "room.closed", "{}", "--id", "once"]);
    assert!(text(&again.stdout).contains("known already"), "{}", text(&again.stdout));

    let lines = with_input(&cluster, &["emit", "room.line", "--lines"], "{\"n\": 1}\n\n{\"n\": 2}\n");
    assert_eq!((lines.status.code(), text(&lines.stdout).lines().count()), (Some(0), 2));
    assert_eq!((all.data(), all.data()), ("{\"n\":1}".to_owned(), "{\"n\":2}".to_owned()));
    let whole = r#"{"specversion":"1.0","id":"w","source":"/elsewhere","type":"room.whole","data":"x"}"#;
    assert!(with_input(&cluster, &["emit", "--cloudevent", "-"], whole).status.success());
    assert_eq!(all.json()["event"]["source"], "/elsewhere");
    assert!(
        with_input(&cluster, &["emit", "room.text", "-", "--content-type", "text/plain"], "hello\n")
            .status
            .success()
    );
    assert_eq!(all.data(), "\"hello\"");
    let delayed = cluster.json(&["emit", "room.late", "--delay", "1s"]);
    assert!(delayed["due_at_ms"].as_i64().unwrap() > 0);
    assert_eq!(all.json()["event"]["type"], "room.late");
    assert_eq!(all.stop(), Some(0));
    let listed = cluster.json(&["subscriptions", "list"]);
    assert_eq!((&listed["carrier"], &listed["subscriptions"][0]["name"]), (&"seed".into(), &"all".into()));
    assert!(cluster.run(&["subscriptions", "remove", "all"]).status.success());
    assert_eq!(cluster.run(&["subscriptions", "remove", "all"]).status.code(), Some(1));
}

#[test]
fn row_what_is_no_event_or_no_pattern_is_refused_with_advice() {
    let cluster = start();
    for (arguments, code, says) in [
        (&["emit", "a..b"][..], 2, "no word between the dots is empty"),
        (&["emit", "a.*"], 2, "no word has"),
        (&["emit", "a", "{\"n\" 1}"], 2, "line 1 column 6"),
        (&["emit", "a", "hello"], 2, "--content-type text/plain"),
        (&["emit", "a", "1", "--extension", "Team=x"], 2, "a-z and 0-9"),
        (&["emit", "a", "1", "--source", "a b"], 2, "a URI"),
        (&["emit", "--cloudevent", "{\"id\": 1}"], 2, "no specversion"),
        (&["emit", "--cloudevent", "[1"], 2, "line 1 column"),
        (&["emit"], 2, "<TYPE>"),
        (&["subscribe", "#.a"], 2, "comes last"),
        (&["subscribe", "a", "--group", "a.b"], 2, "subscription name"),
        (&["subscribe", "a", "--from", "yesterday"], 2, "earliest or a position"),
        (&["--seed", "127.0.0.1:1", "emit", "a"], 3, "no seed answers at 127.0.0.1:1"),
        (&["--seed", "127.0.0.1:1", "subscribe", "a"], 3, "no seed answers at 127.0.0.1:1"),
        (&["--seed", "127.0.0.1:1", "subscriptions", "list"], 3, "no seed answers at 127.0.0.1:1"),
    ] {
        let output = cluster.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{arguments:?}: {}", text(&output.stderr));
    }
    let lines = with_input(&cluster, &["emit", "a", "--lines"], "1\n2\n{\n4\n");
    assert_eq!(
        (lines.status.code(), text(&lines.stdout).lines().count()),
        (Some(2), 2),
        "what came before counts"
    );
    assert!(text(&lines.stderr).contains("line 3 of standard input"), "{}", text(&lines.stderr));
    let large = format!("\"{}\"\n", "x".repeat(1 << 20));
    for arguments in [&["emit", "a", "-"][..], &["emit", "a", "--lines"], &["emit", "--cloudevent", "-"]] {
        let refused = with_input(&cluster, arguments, &large);
        let error = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && error.contains("at most 1048576 bytes"), "{error}");
    }
    let taken = subscribe(&cluster, &["b", "--durable", "d", "--from", "earliest"]);
    cluster.run(&["emit", "b", "1"]);
    taken.line();
    let second = cluster.run(&["subscribe", "b", "--durable", "d"]);
    assert!(text(&second.stderr).contains("has a subscriber already"), "{}", text(&second.stderr));
    let other = cluster.run(&["subscribe", "c", "--group", "d", "--count", "1"]);
    assert_eq!(other.status.code(), Some(1), "{}", text(&other.stderr));
}

#[test]
fn a_group_goes_on_where_one_of_it_is_killed() {
    const EVENTS: usize = 300;
    let cluster = start();
    let group = || subscribe(&cluster, &["work", "--group", "workers", "--from", "earliest"]);
    let (mut one, two) = (group(), group());
    until("both are there", || {
        let list = cluster.json(&["subscriptions", "list"]);
        (list["subscriptions"][0]["subscribers"] == 2).then_some(())
    });
    let input: String = (0..EVENTS).map(|n| format!("{n}\n")).collect();
    assert!(with_input(&cluster, &["emit", "work", "--lines"], &input).status.success());
    let mut done = BTreeSet::new();
    for _ in 0..10 {
        done.insert(one.data());
    }
    one.child.kill().unwrap();
    one.child.wait().unwrap();
    // What it had printed is lost with it only where nobody has read it.
    done.extend(
        one.lines
            .iter()
            .filter_map(|line| Some(serde_json::from_str::<Value>(&line).ok()?["event"]["data"].to_string())),
    );
    while done.len() < EVENTS {
        done.insert(two.data());
    }
    assert_eq!(two.stop(), Some(0));
}

#[test]
fn a_command_is_run_until_it_succeeds() {
    let cluster = start();
    let seen = cluster.folder().join("seen");
    // Fails at first.
    let exec = format!("cat >> {0}; test $PROTOPLEX_EVENT_ATTEMPT -gt 1", seen.display());
    let runner = Running::start(cluster.command(&[
        "subscribe",
        "job",
        "--durable",
        "runner",
        "--from",
        "earliest",
        "--count",
        "1",
        "--exec",
        &exec,
    ]));
    cluster.run(&["emit", "job", "\"do it\""]);
    let lines = until("it is run twice", || {
        let text = std::fs::read_to_string(&seen).ok()?;
        (text.lines().count() == 2).then_some(text)
    });
    assert!(lines.lines().all(|line| line.contains("do it")));
    let mut runner = runner;
    assert_eq!(runner.child.wait().unwrap().code(), Some(0), "one has succeeded");
}

#[test]
fn a_seed_killed_while_events_are_published_loses_none_that_was_acknowledged() {
    const EVENTS: u32 = 3000;
    let cluster = start();
    let subscriber = subscribe(&cluster, &["run.*", "--durable", "d", "--from", "earliest"]);
    let mut publisher = Running::start(cluster.command(&["--json", "emit", "run.x", "--lines"]));
    let mut input = publisher.stdin.take().unwrap();
    let writer = thread::spawn(move || {
        for n in 0..EVENTS {
            writeln!(input, "{n}").unwrap();
            if n % 100 == 0 {
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let mut acknowledged = 0;
    for quarter in 1..=3 {
        while acknowledged < EVENTS * quarter / 4 {
            assert_eq!(serde_json::from_str::<Value>(&publisher.line()).unwrap()["due_at_ms"], Value::Null);
            acknowledged += 1;
        }
        let seed = cluster.node("seed-1")["pid"].as_u64().unwrap();
        signal(u32::try_from(seed).unwrap(), Signal::KILL);
    }
    while acknowledged < EVENTS {
        publisher.line();
        acknowledged += 1;
    }
    writer.join().unwrap();
    let mut seen = BTreeSet::new();
    let mut first_times = Vec::new();
    while seen.len() < EVENTS as usize {
        let n: u32 = subscriber.data().parse().unwrap();
        if seen.insert(n) {
            first_times.push(n);
        }
    }
    assert!(first_times.is_sorted(), "in the order of their publication");
    assert_eq!(subscriber.stop(), Some(0));
}

#[test]
fn row_nats_that_goes_away_is_said_and_loses_nothing() {
    let nats = nats::Server::start_with(&["--auth", "a token of this test"]);
    let file = format!("[events]\nnats = \"{}\"\nnats_token = \"a token of this test\"\n", nats.url());
    let cluster = plan().file(&file).start();
    let subscriber = subscribe(&cluster, &["n", "--durable", "d", "--from", "earliest"]);
    assert_eq!(cluster.json(&["subscriptions", "list"])["carrier"], "nats");
    assert!(cluster.run(&["emit", "n", "1"]).status.success());
    assert_eq!(subscriber.data(), "1");
    assert_eq!(put(&cluster, "/files/before", b"before", &[]).status, 201);

    nats.kill();
    let refused = until("it is known", || {
        let refused = cluster.run(&["emit", "n", "2"]);
        (refused.status.code() == Some(3)).then_some(refused)
    });
    assert!(text(&refused.stderr).contains("NATS"), "{}", text(&refused.stderr));
    assert_eq!(
        put(&cluster, "/files/meanwhile", b"meanwhile", &[]).status,
        201,
        "nothing else waits for NATS"
    );
    let early = cluster.json(&["emit", "n", "3", "--delay", "100ms"]);
    assert!(early["due_at_ms"].as_i64().is_some(), "what is published later is kept by the datastore");

    let mut late = cluster.command(&["--json", "subscribe", "n", "--group", "late", "--from", "earliest"]);
    let mut late = late.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(late.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.starts_with("protoplex: waiting: NATS"), "{told}");
    assert_eq!(late.try_wait().unwrap(), None, "it waits");

    nats.resume();
    let mut first = String::new();
    BufReader::new(late.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("\"data\":1"), "{first}");
    signal(late.id(), Signal::INT);
    assert_eq!(late.wait().unwrap().code(), Some(0));
    let mut got = BTreeSet::new();
    while !got.contains("3") {
        got.insert(subscriber.data());
    }
    let uploads = subscribe(&cluster, &["upload.finished", "--from", "earliest"]);
    let paths: BTreeSet<_> =
        (0..2).map(|_| uploads.json()["event"]["data"]["path"].as_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/files/before", "/files/meanwhile"].map(str::to_owned).into());
    assert!(!cluster.logs().contains("a token of this test"), "the token is in no log");
}
