//! Configurations that are read anew while a node runs.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::{Load, pids};
use crate::rig::{Arguments, Client, Node, until};

#[test]
fn a_node_of_one_process_adopts_what_it_can_and_refuses_the_rest_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let arguments = Arguments { children: 0, word: "old", log: Some(log.clone()), ..Arguments::default() };
    let mut node = Node::start(&arguments);
    let mut client = Client::connect(node.http());
    client.ask("whisper one").unwrap();
    assert_eq!(node.command("reload", json!({})), (200, json!({"changed": false})));
    node.rewrite(&Arguments { level: "debug", timing: (0, 100), ..arguments.clone() });
    node.signal(Signal::HUP);
    until("the level is another", || node.status()["log_level"] == "debug");
    client.ask("whisper two").unwrap();
    until("it whispers", || std::fs::read_to_string(&log).unwrap().contains("two"));
    assert!(!std::fs::read_to_string(&log).unwrap().contains("one"));

    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let adopted = Arguments { level: "debug", timing: (0, 100), ..arguments };
    for (other, name) in [
        (Arguments { word: "new", ..adopted.clone() }, "fixture.word"),
        (Arguments { listen, ..adopted.clone() }, "the address of fixture"),
        (Arguments { data: Some("/elsewhere".into()), ..adopted.clone() }, "data"),
        (Arguments { level: "loud", ..adopted.clone() }, "the log level \"loud\""),
    ] {
        node.rewrite(&other);
        let (status, problem) = node.command("reload", json!({}));
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            status == 422 && detail.contains(name) && detail.contains("the old one goes on"),
            "{problem}"
        );
        assert_eq!(node.status()["log_level"], "debug");
    }
    client.ask("who").expect("no connection noticed");
    // How it drains is adopted, too.
    let asked = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(1), "it is cut");
    assert!(asked.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_wish_to_reload_that_comes_before_the_node_can_is_kept_until_then() {
    let arguments = Arguments { children: 1, ..Arguments::default() };
    let (mut node, pipe) = Node::spawn_waiting(&arguments);
    let held = || u64::from_str_radix(&Node::of_process(node.pid(), "SigBlk:"), 16).unwrap();
    until("it holds the signal back", || held() & 1 == 1);
    node.signal(Signal::HUP);
    node.go_on(&arguments, pipe);
    until("it is ready", || node.is_ready());
    until("it has read its configuration anew", || node.status()["reload"]["ok"] == true);
}

#[test]
fn what_children_can_adopt_they_adopt_while_every_connection_lives_on() {
    let arguments = Arguments { word: "old", motto: "old", ..Arguments::default() };
    let node = Node::start(&arguments);
    let before = pids(&node);
    let mut client = Client::connect(node.http());
    client.ask("before").unwrap();
    node.rewrite(&Arguments { word: "new", ..arguments.clone() });
    node.signal(Signal::HUP);
    until("both have adopted it", || {
        node.status()["children"].as_array().unwrap().iter().all(|child| child["details"]["word"] == "new")
    });
    assert_eq!(pids(&node), before);
    client.ask("after").unwrap();
    until("the reload is noted", || node.status()["reload"]["ok"] == true);
    // For what only a new child can adopt, each is replaced.
    let failed = Load::during(&node, |_| {
        node.rewrite(&Arguments { motto: "new", ..arguments.clone() });
        assert_eq!(node.command("reload", json!({})), (200, json!({"changed": true})));
    });
    assert_eq!(failed, 0);
    assert_ne!(pids(&node), before);
    assert_eq!(node.status()["children"][1]["details"]["motto"], "new");
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    let node = Node::start(&Arguments::default());
    let (before, status) = (pids(&node), node.status());
    std::fs::write(node.arguments(), "{ \"data\": ").unwrap();
    let (code, problem) = node.command("reload", json!({}));
    assert_eq!(code, 422);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("the old one goes on") && detail.contains("line 1 column"), "{detail}");
    assert_eq!(node.status()["reload"]["ok"], false);
    // One that reads well, but whose address is taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    node.rewrite(&Arguments { listen, children: 3, ..Arguments::default() });
    let (code, problem) = node.command("reload", json!({}));
    assert_eq!(code, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("is in use"), "{problem}");
    // One that changes what can't change.
    node.rewrite(&Arguments { data: Some("/elsewhere".into()), ..Arguments::default() });
    assert_eq!(node.command("reload", json!({})).0, 422);
    assert_eq!((pids(&node), node.status()["addresses"].clone()), (before, status["addresses"].clone()));
    Client::connect(node.http()).ask("who").unwrap();
}

#[test]
fn children_are_added_and_taken_away_while_every_connection_lives_on() {
    let arguments = Arguments { children: 1, ..Arguments::default() };
    let node = Node::start(&arguments);
    let before = pids(&node);
    let mut client = Client::connect(node.http());
    client.ask("before").unwrap();
    let failed = Load::during(&node, |more| {
        node.rewrite(&Arguments { children: 3, ..arguments.clone() });
        assert_eq!(node.command("reload", json!({})).0, 200);
        until("three serve", || node.is_ready() && pids(&node).iter().filter(|pid| **pid > 0).count() == 3);
        for index in 0..3 {
            until("each of them accepts", || Client::connect(node.http()).ask("who").unwrap().0 == index);
        }
        more();
        node.rewrite(&Arguments { children: 1, ..arguments.clone() });
        assert_eq!(node.command("reload", json!({})).0, 200);
        more();
    });
    assert_eq!(failed, 0);
    assert_eq!(pids(&node), before);
    assert_eq!(client.ask("after").unwrap(), (0, before[0]));
}

#[test]
fn an_address_is_added_and_taken_away_while_every_connection_lives_on() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::start(&Arguments::default());
    let (before, old) = (pids(&node), node.http());
    let mut client = Client::connect(old);
    client.ask("before").unwrap();
    node.rewrite(&Arguments { listen: free.to_string(), ..Arguments::default() });
    assert_eq!(node.command("reload", json!({})), (200, json!({"changed": true})));
    until("the new address is served", || TcpStream::connect(free).is_ok());
    Client::connect(free).ask("who").unwrap();
    until("the old one is not", || TcpStream::connect(old).is_err());
    client.ask("after").unwrap();
    assert_eq!(pids(&node), before);
    assert_eq!(node.announced("http"), Some(free));
}

#[test]
fn fewer_children_and_more_again_find_their_names_free() {
    let arguments = Arguments::default();
    let node = Node::start(&arguments);
    for children in [1, 2, 1, 3, 1, 2] {
        node.rewrite(&Arguments { children, ..arguments.clone() });
        assert_eq!(node.command("reload", json!({})).0, 200);
    }
    until("all run", || pids(&node).len() == 2 && (0..2).all(|index| node.child(index).state == "RUNNING"));
    assert_eq!(node.child(1).restarts, 0);
}
