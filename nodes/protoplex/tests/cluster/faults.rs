//! Processes are killed while the cluster works; what was acknowledged stays, and nobody else notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::curl::{Events, curl};
use protoplex_testkit::until;
use rustix::process::Signal;

use crate::{get, noise, put, start};

/// How long what is under way may take at the end, unless it is configured otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an owner holds its keys without a word from a seed.
const LEASE: Duration = Duration::from_secs(5);

pub(crate) fn kill(pid: u64) {
    signal(u32::try_from(pid).unwrap(), Signal::KILL);
}

/// Who owns the topic, once its channel is in use.
pub(crate) fn owner(cluster: &Cluster, topic: &str) -> String {
    let url = format!("{}/.well-known/mercure?topic={topic}", cluster.http());
    drop(Events::open(&url, &[]));
    cluster.json(&["route", &url])["member"].as_str().unwrap().to_owned()
}

#[test]
fn row_a_child_killed_under_load_harms_only_its_own_requests_and_is_replaced() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    let url = format!("{}/files/x", cluster.http());
    let (stop, served, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let count = if get(&url, &[]).status == 200 { &served } else { &failed };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for child in [0, 1] {
            let before = cluster.child_pid("proxy-1", child);
            let at_kill = served.load(Ordering::Relaxed);
            kill(before);
            until("the child is replaced", || {
                let now = cluster.node("proxy-1")["children"][child].clone();
                (now["state"] == "RUNNING" && now["pid"] != before).then_some(())
            });
            until("requests go on", || (served.load(Ordering::Relaxed) > at_kill + 50).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Of four clients with one request at a time, each kill can cut at most four.
    let failed = failed.into_inner();
    println!("{} served, {failed} failed", served.into_inner());
    assert!(failed <= 8, "{failed} requests failed");
}

#[test]
fn row_the_seed_killed_and_restarted_moves_no_key_and_stops_no_known_route() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    let topics: Vec<_> = (0..10).map(|n| format!("topic-{n}")).collect();
    let before: Vec<_> = topics.iter().map(|topic| owner(&cluster, topic)).collect();
    let term = cluster.json(&["status"])["term"].as_u64().unwrap();
    let events = Events::open(&format!("{}/.well-known/mercure?topic=upload/through", cluster.http()), &[]);

    kill(cluster.node("seed-1")["pid"].as_u64().unwrap());
    for n in 0..50 {
        assert_eq!(get(&format!("{}/files/x", cluster.http()), &[]).status, 200, "request {n}");
    }
    until("the seed leads again", || {
        let output = cluster.run(&["--json", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["term"].as_u64()? > term && status["recovering"] == false).then_some(())
    });
    let after: Vec<_> = topics.iter().map(|topic| owner(&cluster, topic)).collect();
    assert_eq!(after, before);
    // The subscriber from before is still there, and gets what comes now.
    assert_eq!(put(&cluster, "/files/y", b"y", &["-H", "Upload-Id: through"]).status, 201);
    events.next_json(|event| event["type"] == "upload.finished");
}

#[test]
fn row_while_the_seed_is_away_what_is_known_goes_on_and_new_keys_are_answered_503() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    let topic = |name: &str| format!("{}/.well-known/mercure?topic=upload/{name}", cluster.http());
    // One child of the proxy asks; connections are spread over both.
    let through = Events::open(&topic("known"), &[]);
    let seed = u32::try_from(cluster.node("seed-1")["pid"].as_u64().unwrap()).unwrap();
    // A process that stands still keeps its connections: worse than one that is gone.
    signal(seed, Signal::STOP);
    let stopped = Instant::now();
    let mut new_keys = 0;
    while stopped.elapsed() < LEASE + Duration::from_secs(2) {
        assert_eq!(get(&format!("{}/files/x", cluster.http()), &[]).status, 200);
        drop(Events::open(&topic("known"), &[]));
        let refused = get(&topic(&format!("new-{new_keys}")), &[]);
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.header("retry-after").is_some(), "{refused:?}");
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        new_keys += 1;
    }
    println!("{new_keys} new keys were refused in {:?}", stopped.elapsed());
    signal(seed, Signal::CONT);
    until("new keys are owned again", || {
        let answer = curl(["--max-time", "1", &topic("new-0")]);
        (answer.status == 200).then_some(())
    });
    // Whoever listened before still does, at the same owner.
    assert_eq!(put(&cluster, "/files/y", b"y", &["-H", "Upload-Id: known"]).status, 201);
    through.next_json(|event| event["type"] == "upload.finished");
}

#[test]
fn row_connections_that_wait_for_a_dead_child_are_served_by_its_successor() {
    let cluster = start();
    let children = [0, 1].map(|child| u32::try_from(cluster.child_pid("proxy-1", child)).unwrap());
    // Children that stand still accept nothing: what comes now waits in their queues.
    children.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let port: u16 = cluster.http().rsplit_once(':').unwrap().1.parse().unwrap();
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            write!(connection, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            connection
        })
        .collect();
    children.iter().for_each(|pid| signal(*pid, Signal::KILL));
    for mut connection in waiting {
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[test]
fn ctrl_c_waits_for_no_watcher_and_ends_its_stream_in_good_order() {
    let mut cluster = start();
    let watcher = Events::open(&format!("{}/.well-known/mercure?topic=upload/x", cluster.http()), &[]);
    let asked = Instant::now();
    assert_eq!(cluster.stop(), Some(0));
    assert!(asked.elapsed() < DRAIN_TIMEOUT / 2, "it took {:?}", asked.elapsed());
    assert_eq!(watcher.ended(), Some(0), "curl calls the answer complete");
}

#[test]
fn what_was_answered_201_survives_the_death_of_everything() {
    let mut cluster = start();
    let bodies: Vec<_> = (0..5).map(|n| noise(100 + n, 200_000)).collect();
    for (n, body) in bodies.iter().enumerate() {
        assert_eq!(put(&cluster, &format!("/files/{n}"), body, &[]).status, 201);
    }
    cluster.kill();
    cluster.start();
    for (n, body) in bodies.iter().enumerate() {
        assert_eq!(&get(&format!("{}/files/{n}", cluster.http()), &[]).body, body, "file {n}");
    }
}

#[test]
fn a_killed_fileserver_child_loses_no_file() {
    let cluster = start();
    for round in 0..3 {
        let body = noise(200 + round, 300_000);
        let path = format!("/files/round-{round}");
        assert_eq!(put(&cluster, &path, &body, &[]).status, 201);
        for child in [0, 1] {
            kill(cluster.child_pid("fileserver-1", child));
        }
        until("the file is served", || {
            (get(&format!("{}{path}", cluster.http()), &[]).body == body).then_some(())
        });
    }
}

#[test]
fn a_killed_live_child_gets_its_keys_back_and_subscribers_come_again() {
    let cluster = start();
    let before: Vec<_> = (0..10).map(|n| owner(&cluster, &format!("again-{n}"))).collect();
    for child in [0, 1] {
        let pid = cluster.child_pid("live-1", child);
        kill(pid);
        until("the child is replaced", || (cluster.child_pid("live-1", child) != pid).then_some(()));
    }
    let after: Vec<_> = (0..10).map(|n| owner(&cluster, &format!("again-{n}"))).collect();
    assert_eq!(after, before);
}

#[test]
fn row_a_datastore_that_stands_still_for_a_while_ends_no_lead_for_good() {
    let cluster = start();
    let datastore = u32::try_from(cluster.node("datastore-1")["pid"].as_u64().unwrap()).unwrap();
    let term = || -> Option<u64> {
        let status: serde_json::Value =
            serde_json::from_slice(&cluster.run(&["--json", "status"]).stdout).ok()?;
        (status["leading"] == true && status["recovering"] == false).then(|| status["term"].as_u64())?
    };
    let mut before = until("the seed leads", term);
    for _ in 0..3 {
        signal(datastore, Signal::STOP);
        until("the lead is over", || {
            let status: serde_json::Value =
                serde_json::from_slice(&cluster.run(&["--json", "status"]).stdout).ok()?;
            (status["leading"] == false).then_some(())
        });
        signal(datastore, Signal::CONT);
        before = until("the seed leads anew", || term().filter(|term| *term > before));
    }
    let added = cluster.run(&["handler", "add", "x", "--path", "/x/{x}", "--key", "{x}", "--pool", "x"]);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
}

#[test]
fn row_a_seed_that_dies_too_often_ends_nobody_else_and_is_started_again_by_a_signal() {
    let mut cluster = start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    wear_out(&cluster, "seed-1");
    for n in 0..50 {
        assert_eq!(get(&format!("{}/files/x", cluster.http()), &[]).status, 200, "request {n}");
    }
    // Without a seed no new child could begin: those that serve stay.
    let fileserver = cluster.child_pid("fileserver-1", 0);
    let refused = cluster.run(&["restart", "fileserver-1"]);
    let told = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!refused.status.success() && told.contains("no seed leads, and without one"), "{told}");
    assert_eq!(cluster.child_pid("fileserver-1", 0), fileserver);
    assert_eq!(get(&format!("{}/files/x", cluster.http()), &[]).status, 200);

    signal(cluster.pid(), Signal::HUP);
    until("the seed leads again", || cluster.run(&["status"]).status.success().then_some(()));
    until("an upload is taken", || (put(&cluster, "/files/y", b"y", &[]).status == 201).then_some(()));
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn a_node_that_died_too_often_is_tried_again_and_one_that_was_drained_by_a_signal() {
    let cluster = start();
    let pid = wear_out(&cluster, "live-1");
    let again = until("it is tried again", || {
        started(&cluster.logs(), "live-1").last().copied().filter(|now| *now != pid)
    });
    until("it is ready", || {
        let status = cluster.json(&["status"]);
        let live = status["nodes"].as_array()?.iter().find(|node| node["node"] == "live-1")?;
        (live["ready"] == true).then_some(())
    });
    assert_eq!(cluster.json(&["drain", "live-1"])[0]["ok"], true);
    assert_eq!(started(&cluster.logs(), "live-1").last(), Some(&again));
    let gone = cluster.run(&["start", "live-1"]);
    let told = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(!gone.status.success() && told.contains("kill -HUP"), "{told}");
    signal(cluster.pid(), Signal::HUP);
    until("it was started", || {
        started(&cluster.logs(), "live-1").last().filter(|it| **it != again).map(|_| ())
    });
}

/// The pids of a node of `up`, as that tells them.
fn started(logs: &str, node: &str) -> Vec<u64> {
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let its = lines.filter(|line| line["process"] == node && line["message"] == "started");
    its.filter_map(|line| line["pid"].as_u64()).collect()
}

/// Kills a node until it is given up; its last pid.
fn wear_out(cluster: &Cluster, node: &str) -> u64 {
    let mut killed = Vec::new();
    until("it is given up", || {
        let logs = cluster.logs();
        let pid = *started(&logs, node).last()?;
        if !killed.contains(&pid) {
            kill(pid);
            killed.push(pid);
        }
        logs.contains("died too often; it is not started again").then_some(())
    });
    assert!(killed.len() > 1);
    *killed.last().unwrap()
}
