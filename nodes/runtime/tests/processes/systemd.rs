//! A node as a systemd service, with a test in the place of systemd.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::rig::{Arguments, Client, Node, until};

/// What a process tells its service manager, until there is a line like this.
fn told_until(manager: &UnixDatagram, line: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut message = [0; 4096];
    while !lines.iter().any(|told| told == line) {
        let length = manager.recv(&mut message).expect("it is told in time");
        lines.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
    }
    lines
}

#[test]
fn systemd_is_told_of_readiness_reloads_and_the_end_and_that_the_node_lives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut node = Node::spawn_with(&Arguments::default(), &environment);
    told_until(&manager, "READY=1");
    for _ in 0..3 {
        told_until(&manager, "WATCHDOG=1");
    }
    node.signal(Signal::HUP);
    let told = told_until(&manager, "READY=1");
    assert!(told.iter().any(|line| line == "RELOADING=1"), "{told:?}");
    assert!(told.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{told:?}");
    let status = format!("STATUS={}", "ready, 1 of 2 children");
    assert_eq!(node.command("stop", json!({"child": 1})).0, 200);
    told_until(&manager, &status);
    node.signal(Signal::TERM);
    told_until(&manager, "STOPPING=1");
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn a_node_goes_on_while_systemd_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "20000")];
    let mut node = Node::spawn_with(&Arguments::default(), &environment);
    // Its socket is full, whatever the system's limit is.
    let filler = UnixDatagram::unbound().unwrap();
    filler.connect(&path).unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send(b"FILLER=1").is_ok() {}
    for _ in 0..10 {
        Client::connect(node.http()).ask("who").unwrap();
        assert_eq!(node.command("ping", json!({})).0, 200);
    }
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn sockets_that_systemd_has_bound_are_served_by_all_children() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    // It came before the node did.
    let mut early = Client::connect(listener.local_addr().unwrap());
    let node = Node::spawn_with_socket(&Arguments { listen, ..Arguments::default() }, listener);
    early.ask("who").unwrap();
    assert_eq!(node.http(), node.announced("http").unwrap());
    for index in 0..2 {
        until("each of them accepts", || Client::connect(node.http()).ask("who").unwrap().0 == index);
    }
    drop(early);
    assert_eq!(node.command("stop", json!({"child": 0})).0, 200);
    assert_eq!(Client::connect(node.http()).ask("who").unwrap().0, 1);
}
