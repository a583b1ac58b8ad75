//! What operators tell a node and its children by the meta port.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::{Load, pids};
use crate::rig::{Arguments, Client, Node, until};

#[test]
fn a_restart_of_every_child_fails_nobody() {
    for own in [false, true] {
        let node = Node::start(&Arguments { own, ..Arguments::default() });
        let before = pids(&node);
        let mut watcher = Client::connect(node.http());
        watcher.ask("before").unwrap();
        let failed = Load::during(&node, |more| {
            assert_eq!(node.command("restart", json!({})), (200, json!({"changed": true})));
            more();
        });
        assert_eq!(failed, 0);
        let after = pids(&node);
        assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
        let (_, pid) = watcher.ask("after").expect("who is being served is served to the end");
        assert!(before.contains(&pid));
    }
}

#[test]
fn one_child_alone_is_restarted_without_a_gap() {
    for own in [false, true] {
        let node = Node::start(&Arguments { children: 1, own, ..Arguments::default() });
        let first = pids(&node);
        // It drains for as long as this one stays.
        let mut watcher = Client::connect(node.http());
        watcher.ask("before").unwrap();
        let failed = Load::during(&node, |_| {
            assert_eq!(node.command("restart", json!({"child": 0})).0, 200);
        });
        assert_eq!(failed, 0);
        assert_ne!(pids(&node), first);
        watcher.ask("after").unwrap();
    }
}

#[test]
fn what_a_stopped_child_would_have_accepted_its_sibling_does() {
    let node = Node::start(&Arguments::default());
    let failed = Load::during(&node, |more| {
        assert_eq!(node.command("stop", json!({"child": 1})), (200, json!({"changed": true})));
        assert_eq!(node.child(1).state, "STOPPED");
        assert_eq!(
            node.command("stop", json!({"child": 1})),
            (200, json!({"changed": false})),
            "it is stopped already"
        );
        more();
        for _ in 0..64 {
            assert_eq!(Client::connect(node.http()).ask("who").unwrap().0, 0);
        }
        assert_eq!(node.command("start", json!({"child": 1})), (200, json!({"changed": true})));
        assert_eq!(
            node.command("start", json!({"child": 1})),
            (200, json!({"changed": false})),
            "it runs already"
        );
    });
    assert_eq!(failed, 0);
    until("both serve again", || Client::connect(node.http()).ask("who").unwrap().0 == 1);
}

#[test]
fn a_stopped_node_refuses_and_serves_again_on_the_same_port_when_it_is_started() {
    let node = Node::start(&Arguments::default());
    assert_eq!(node.command("stop", json!({})).0, 200);
    assert!(!node.is_ready());
    until("clients are refused", || TcpStream::connect(node.http()).is_err());
    assert_eq!(node.command("start", json!({})).0, 200);
    assert!(node.is_ready());
    until("clients are served", || TcpStream::connect(node.http()).is_ok());
    Client::connect(node.http()).ask("who").unwrap();
}

#[test]
fn a_stop_at_once_cuts_what_a_stop_would_wait_for() {
    let node = Node::start(&Arguments { timing: (0, 60_000), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    let started = Instant::now();
    assert_eq!(node.command("stop", json!({"now": true})).0, 200);
    assert!(started.elapsed() < Duration::from_secs(30));
    client.ask("last").unwrap_err();
}

#[test]
fn a_child_that_was_given_up_can_be_started_by_hand() {
    let arguments = Arguments { hopeless: Some(1), ..Arguments::default() };
    let node = Node::spawn(&arguments);
    until("it is given up", || node.child(1).state == "FATAL");
    let (status, problem) = node.command("start", json!({"child": 1}));
    assert_eq!(status, 500);
    assert!(problem["detail"].as_str().unwrap().contains("child 1 is FATAL"), "{problem}");
    node.rewrite(&Arguments { hopeless: None, ..arguments });
    assert_eq!(node.command("reload", json!({})).0, 200);
    assert_eq!(node.command("start", json!({"child": 1})).0, 200);
    assert_eq!(node.child(1).state, "RUNNING");
    assert_eq!(node.status()["degraded"], false);
}

#[test]
fn a_child_that_does_not_exist_can_not_be_commanded() {
    let node = Node::start(&Arguments::default());
    for command in ["start", "stop", "restart", "drain"] {
        let (status, problem) = node.command(command, json!({"child": 2}));
        assert_eq!(status, 404);
        assert_eq!(problem["detail"], "there is no child 2: the node has children 0 to 1");
        assert_eq!(node.command(command, json!({"chlid": 0})).0, 400, "an unknown key is no wish for all");
    }
    assert_eq!((node.child(0).state.as_str(), node.child(1).restarts), ("RUNNING", 0));
}

#[test]
fn a_node_that_is_told_to_drain_ends_in_order() {
    let mut node = Node::start(&Arguments::default());
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    let mut operator = node.command_and_leave("drain", json!({}));
    until("it accepts no more", || TcpStream::connect(node.http()).is_err());
    client.ask("last").unwrap();
    drop(client);
    let mut answer = String::new();
    operator.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("{\"changed\":true}"), "once that is done: {answer}");
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn a_page_in_some_browser_can_not_command_a_node() {
    let node = Node::start(&Arguments::default());
    let before = pids(&node);
    assert_eq!(node.status_of("POST", "/rpc/stop", "Origin: https://example.com\r\n"), 403);
    assert_eq!(node.status_of("GET", "/rpc/stop", ""), 405);
    assert_eq!(pids(&node), before);
}

#[test]
fn a_command_that_means_another_node_is_refused() {
    let node = Node::start(&Arguments::default());
    let before = pids(&node);
    let (status, problem) = node.command("stop?node=fixture-2", json!({}));
    assert_eq!(status, 421);
    assert!(problem["detail"].as_str().unwrap().starts_with("This is fixture-1, not fixture-2"), "{problem}");
    assert_eq!(pids(&node), before);
    assert_eq!(node.command("restart?node=fixture-1", json!({"child": 0})).0, 200);
    assert_eq!(node.status_of("GET", "/status", "X: y\r\n"), 200);
}

#[test]
fn who_a_stopping_child_still_serves_it_serves_to_the_end_even_where_it_is_replaced() {
    let node = Node::start(&Arguments { children: 1, timing: (0, 20_000), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    let first = pids(&node);
    std::thread::scope(|scope| {
        scope.spawn(|| node.command("stop", json!({"child": 0})));
        until("it stops", || node.child(0).state == "STOPPING");
        assert_eq!(node.command("restart", json!({"child": 0})).0, 200);
        assert_ne!(pids(&node), first);
        client.ask("last").expect("the predecessor goes on with what it has");
        drop(client);
    });
}

#[test]
fn a_command_goes_on_where_its_operator_goes_away() {
    let node = Node::start(&Arguments::default());
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    let first = pids(&node);
    let told = node.command_and_leave("restart", json!({}));
    until("the command is under way", || node.child(0).pid != Some(first[0]));
    drop(told);
    until("it is carried out to its end all the same", || {
        (0..first.len()).all(|index| {
            let child = node.child(index);
            child.state == "RUNNING" && child.pid != Some(first[index])
        })
    });
    client.ask("last").unwrap();
}

#[test]
fn a_stop_that_a_start_crosses_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let node = Node::start(&Arguments { children: 1, log: Some(log.clone()), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| node.command("stop", json!({"child": 0})));
        until("it stops", || node.child(0).state == "STOPPING");
        let _start = node.command_and_leave("start", json!({"child": 0}));
        until("the start has come", || {
            std::fs::read_to_string(&log).unwrap_or_default().contains("\"command\":\"/rpc/start\"")
        });
        // Whoever comes later is served later.
        (0..3).for_each(|_| drop(node.status()));
        client.ask("last").unwrap();
        drop(client);
        let (status, said) = stop.join().unwrap();
        assert_eq!((status, &said["detail"]), (409, &json!("child 0 was started again meanwhile")));
        until("it runs", || node.child(0).state == "RUNNING");
    });
}

#[test]
fn a_drain_in_the_middle_of_a_restart_ends_the_node() {
    let mut node = Node::start(&Arguments { children: 4, ..Arguments::default() });
    let first = pids(&node);
    let _told = node.command_and_leave("restart", json!({}));
    until("the restart is under way", || node.child(0).pid != Some(first[0]));
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn the_log_level_changes_for_all_processes_at_once_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let node = Node::start(&Arguments { children: 1, log: Some(log.clone()), ..Arguments::default() });
    let whispered = |text: &str| std::fs::read_to_string(&log).unwrap_or_default().contains(text);
    Client::connect(node.http()).ask("whisper one").unwrap();
    assert_eq!(node.command("change_loglevel", json!({"level": "loud"})).0, 400);
    assert_eq!(node.command("change_loglevel", json!({"level": "debug"})), (200, json!({"changed": true})));
    assert_eq!(node.command("change_loglevel", json!({"level": "debug"})), (200, json!({"changed": false})));
    assert_eq!(node.status()["log_level"], "debug");
    until("the child whispers", || {
        Client::connect(node.http()).ask("whisper two").unwrap();
        whispered("two")
    });
    assert!(!whispered("one"));
    assert_eq!(node.child(0).restarts, 0);
}
