//! Other programs for nodes that run.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use protoplex_runtime::supervisor::{Policy, Process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::StopOnDrop;
use crate::rig::{self, Arguments, Client, Node, eventually, lives, replace, until};

/// How the last upgrade went: its progress and what was wrong.
fn upgrade(node: &Node) -> (String, String) {
    let upgrade = &node.status()["upgrade"];
    let text = |key: &str| upgrade[key].as_str().unwrap_or_default().to_owned();
    (text("progress"), text("error"))
}

fn is_over(node: &Node) -> bool {
    !["", "under_way"].contains(&upgrade(node).0.as_str())
}

/// Has a node go on as another program, and gives how that went.
fn upgraded(node: &Node) -> (String, String) {
    let (status, said) = node.command("upgrade", json!({}));
    assert_eq!(status, 200, "{said}");
    until("the upgrade is over", || is_over(node));
    upgrade(node)
}

fn pids(node: &Node) -> [Option<u32>; 2] {
    [node.child(0).pid, node.child(1).pid]
}

/// Whether a process runs the program that stands there now.
fn runs_present_program(node: &Node, pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == node.program())
}

#[test]
fn a_node_goes_on_as_another_program_and_nobody_notices() {
    for own in [false, true] {
        let node = Node::start_own(&Arguments { own, ..Arguments::default() });
        let before = pids(&node);
        let (meta, instance) =
            (node.announced("meta"), std::fs::read(node.run_file("fixture-1.instance")).unwrap());
        let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut old = Client::connect(node.http());
        let (_, served_by) = old.ask("who").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _stop = StopOnDrop(&stop);
                    while !stop.load(Ordering::Relaxed) {
                        // Being refused is a panic.
                        Client::connect(node.http()).ask("who").expect("nobody is cut");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let _stop = StopOnDrop(&stop);
            node.replace_program("");
            assert!(!runs_present_program(&node, node.pid()));
            assert_eq!(upgraded(&node), ("done".to_owned(), String::new()));
            let then = answered.load(Ordering::Relaxed);
            until("answers go on", || answered.load(Ordering::Relaxed) > then + 200);
        });
        let after = pids(&node);
        assert!(runs_present_program(&node, node.pid()), "the parent is the new program in the old process");
        for pid in after {
            assert!(runs_present_program(&node, pid.unwrap()) && !before.contains(&pid));
        }
        assert_eq!(old.ask("who").unwrap().1, served_by, "who was served is served to the end");
        drop(old);
        until("the old children are gone", || !before.into_iter().flatten().any(lives));
        assert_eq!(node.announced("meta"), meta);
        assert_eq!(std::fs::read(node.run_file("fixture-1.instance")).unwrap(), instance);
        assert_eq!(node.child(0).restarts, 0);
    }
}

#[test]
fn a_signal_does_it_again_and_again_and_a_drain_ends_it_in_good_order() {
    let mut node = Node::start_own(&Arguments::default());
    for _ in 0..3 {
        let before = pids(&node);
        node.replace_program("");
        // As many as may come while it is busy with the first: none may end it.
        node.signal(Signal::USR2);
        until("it is under way", || upgrade(&node).0 == "under_way");
        for _ in 0..20 {
            node.signal(Signal::USR2);
            node.signal(Signal::HUP);
            std::thread::sleep(Duration::from_millis(2));
        }
        until("children are new", || is_over(&node) && pids(&node).iter().all(|pid| !before.contains(pid)));
        assert_eq!(upgrade(&node), ("done".to_owned(), String::new()));
    }
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
    assert!(!node.run_file("fixture-1.json").exists());
}

#[test]
fn row_programs_that_can_not_go_on_change_nothing() {
    let node = Node::start_own(&Arguments::default());
    let before = (node.pid(), pids(&node));
    let refused = |expected: &str| {
        let (status, said) = node.command("upgrade", json!({}));
        let said = said["detail"].as_str().unwrap_or_default().to_owned();
        assert!(status == 422 && said.contains(expected), "{status} {said}");
        assert_eq!(upgrade(&node), ("failed".to_owned(), said));
        assert_eq!((node.pid(), pids(&node)), before);
        assert!(before.1.contains(&Some(Client::connect(node.http()).ask("who").unwrap().1)));
    };
    for (program, expected) in [
        (
            "#!/bin/sh\necho it lacks a library >&2\nexit 127\n",
            "it can't go on with the node: it lacks a library",
        ),
        ("#!/bin/sh\nkill -SEGV $$\n", "signal: 11 (SIGSEGV)"),
        ("#!/bin/sh\nexit 0\n", "it ended with exit status: 0, without a word"),
        ("#!/bin/sh\necho ready\n", "without a word"),
        ("#!/bin/sh\nexec sleep 60\n", "did not say within 10 s"),
        ("no program", "Exec format error"),
    ] {
        replace(&node.program(), program.as_bytes());
        refused(expected);
    }
    std::fs::set_permissions(node.program(), std::fs::Permissions::from_mode(0o644)).unwrap();
    refused("Permission denied");
    std::fs::remove_file(node.program()).unwrap();
    refused("No such file or directory");
}

#[test]
fn row_a_configuration_that_the_new_program_refuses_changes_nothing() {
    let arguments = Arguments::default();
    let node = Node::start_own(&arguments);
    let before = pids(&node);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    for (wrong, expected) in [
        (Arguments { listen, ..arguments.clone() }, "is in use"),
        (
            Arguments { meta: "127.0.0.1:1".to_owned(), ..arguments.clone() },
            "the address of the meta port can't be",
        ),
        (Arguments { data: Some(node.data().join("other")), ..arguments.clone() }, "data can't be"),
    ] {
        node.rewrite(&wrong);
        let (status, said) = node.command("upgrade", json!({}));
        assert!(status == 422 && said["detail"].as_str().unwrap().contains(expected), "{status} {said}");
        assert_eq!(pids(&node), before);
    }
    std::fs::write(node.arguments(), "{").unwrap();
    let (status, said) = node.command("upgrade", json!({}));
    assert!(status == 422 && said["detail"].as_str().unwrap().contains("line 1"), "{status} {said}");
    assert!(node.is_ready());
}

#[test]
fn row_a_program_whose_children_die_goes_back_to_the_old_one() {
    for (flaw, kept) in [("child 0", true), ("child 1", false)] {
        let node = Node::start_own(&Arguments { own: false, ..Arguments::default() });
        let (before, old) = (pids(&node), std::fs::read_link(format!("/proc/{}/exe", node.pid())).unwrap());
        node.replace_program(flaw);
        let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _stop = StopOnDrop(&stop);
                while !stop.load(Ordering::Relaxed) {
                    Client::connect(node.http()).ask("who").expect("nobody is cut");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _stop = StopOnDrop(&stop);
            let (progress, error) = upgraded(&node);
            assert_eq!(progress, "failed");
            assert!(error.contains(&format!("{flaw} is FATAL and did not become ready")), "{error}");
        });
        assert!(answered.load(Ordering::Relaxed) > 0);
        until("the old program serves", || node.is_ready() && pids(&node).iter().all(Option::is_some));
        assert_eq!(pids(&node)[0] == before[0], kept, "only who ran by the new program is replaced");
        assert_eq!(pids(&node)[1], before[1]);
        for pid in pids(&node).into_iter().flatten().chain([node.pid()]) {
            let runs = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            assert_eq!(runs.to_str().unwrap().strip_suffix(" (deleted)"), old.to_str(), "of {pid}");
        }
        // It is no dead end.
        node.replace_program("");
        assert_eq!(upgraded(&node), ("done".to_owned(), String::new()));
        assert!(runs_present_program(&node, node.pid()));
    }
}

#[test]
fn row_a_program_that_fails_after_its_rehearsal_goes_back() {
    let node = Node::start_own(&Arguments::default());
    let before = pids(&node);
    node.replace_program("refuses");
    assert_eq!(upgraded(&node), ("failed".to_owned(), "it has changed its mind".to_owned()));
    assert_eq!(pids(&node), before);
    assert!(node.is_ready());
}

#[test]
fn what_was_stopped_or_drains_stays_so_and_what_died_too_often_has_another_try() {
    let node = Node::start_own(&Arguments { children: 3, own: false, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    let (index, _) = client.ask("who").unwrap();
    let [stopped, other]: [u32; 2] =
        [0, 1, 2].into_iter().filter(|child| *child != index).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(node.command("stop", json!({"child": stopped})).0, 200);
    let _told = node.command_and_leave("drain", json!({"child": index}));
    until("it drains", || node.child(index as usize).state == "STOPPING");
    node.replace_program("");
    assert_eq!(node.command("upgrade", json!({})).0, 200);
    until("one is replaced", || {
        node.child(other as usize).state == "RUNNING" && upgrade(&node).0 == "under_way"
    });
    client.ask("who").expect("it is served to its end");
    drop(client);
    until("it is over", || is_over(&node));
    assert_eq!(upgrade(&node), ("done".to_owned(), String::new()));
    assert_eq!(node.child(stopped as usize).state, "STOPPED");
    assert_eq!(node.command("start", json!({"child": stopped})).0, 200);
    assert!(runs_present_program(&node, node.child(stopped as usize).pid.unwrap()));
}

#[test]
fn a_new_program_goes_by_the_present_configuration() {
    let arguments = Arguments { own: false, ..Arguments::default() };
    let node = Node::start_own(&arguments);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    drop(taken);
    let log = node.data().join("other.log");
    node.rewrite(&Arguments {
        children: 3,
        listen: listen.to_string(),
        log: Some(log.clone()),
        log_bytes: 1 << 20,
        word: "present",
        ..arguments
    });
    assert_eq!(upgraded(&node), ("done".to_owned(), String::new()));
    assert_eq!(node.announced("http"), Some(listen));
    Client::connect(listen).ask("who").unwrap();
    assert_eq!(node.status()["children"].as_array().unwrap().len(), 3);
    assert_eq!(node.status()["children"][2]["details"]["word"], "present");
    until("it is logged", || std::fs::read_to_string(&log).unwrap().contains("runs by another program"));
}

#[test]
fn a_node_of_one_process_ends_its_code_and_goes_on_with_its_socket() {
    let node = Node::start_own(&Arguments { children: 0, ..Arguments::default() });
    let pid = node.pid();
    let mut client = Client::connect(node.http());
    client.ask("who").unwrap();
    node.replace_program("");
    assert_eq!(node.command("upgrade", json!({})).0, 200);
    // Whoever comes waits in the socket while no program accepts.
    let mut next = Client::connect(node.http());
    client.ask("who").expect("who was served is served to the end");
    drop(client);
    next.ask("who").unwrap();
    drop(next);
    until("the upgrade is over", || node.request("GET", "/status").is_ok() && is_over(&node));
    assert_eq!(upgrade(&node), ("done".to_owned(), String::new()));
    assert!(node.pid() == pid && runs_present_program(&node, pid));
    assert_eq!(Client::connect(node.http()).ask("who").unwrap().1, pid);

    node.replace_program("child 0");
    assert_eq!(node.command("upgrade", json!({})).0, 200);
    until("the upgrade is over", || node.request("GET", "/status").is_ok() && upgrade(&node).0 == "failed");
    assert_eq!(upgrade(&node).1, "it did not become ready");
    until("the program before serves", || node.is_ready());
    assert_eq!(Client::connect(node.http()).ask("who").unwrap().1, pid);
}

#[tokio::test]
async fn a_supervisor_notices_nothing() {
    let (_data, program) = rig::program(&Arguments::default());
    let process = Process::start(program, Policy::new(Duration::from_secs(5)));
    let mut status = process.status();
    let pid = rig::ready(&mut status).await;
    let started = status.borrow_and_update().started;
    let program = || std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let was_executed = || String::from_utf8_lossy(&program()).contains("PROTOPLEX_CONTROL=successor");
    assert!(!was_executed());
    rig::signal(pid, Signal::USR2);
    eventually("it runs by the new program", was_executed).await;
    rig::ready(&mut status).await;
    process.drain();
    tokio::time::timeout(Duration::from_secs(20), process.ended()).await.expect("it still takes orders");
    let now = status.borrow();
    assert_eq!((now.restarts, now.started.is_none() || now.started == started), (0, true));
}

#[test]
fn row_an_upgrade_of_a_node_that_drains_is_refused() {
    let node = Node::start_own(&Arguments { timing: (60_000, 60_000), ..Arguments::default() });
    node.signal(Signal::TERM);
    until("the drain is announced", || !node.is_ready());
    let (status, said) = node.command("upgrade", json!({}));
    assert_eq!((status, &said["detail"]), (409, &Value::from("the node is about to end")));
}

#[test]
fn no_order_to_end_is_lost_while_one_program_follows_the_other() {
    // From before the old program hands over to after the new one listens: moments that nothing tells from outside, so many
    // are tried.
    for wait_ms in (30..130).step_by(4) {
        let mut node = Node::start_own(&Arguments { children: 1, own: false, ..Arguments::default() });
        let _told = node.command_and_leave("upgrade", json!({}));
        until("it is under way", || !["", "failed"].contains(&upgrade(&node).0.as_str()));
        std::thread::sleep(Duration::from_millis(wait_ms));
        node.signal(Signal::TERM);
        assert_eq!(node.wait(), Some(0), "after {wait_ms} ms");
    }
}

#[test]
fn whoever_asks_the_meta_port_meanwhile_is_answered() {
    let node = Node::start_own(&Arguments::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let _stop = StopOnDrop(&stop);
                while !stop.load(Ordering::Relaxed) {
                    let (head, _) = node.request("GET", "/readyz").expect("nobody is cut");
                    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        for _ in 0..5 {
            assert_eq!(upgraded(&node), ("done".to_owned(), String::new()));
        }
    });
}

#[test]
fn an_announcement_that_can_not_be_written_is_no_reason_to_end() {
    let node = Node::start_own(&Arguments::default());
    std::fs::create_dir(node.run_file("fixture-1.json.new")).unwrap();
    assert_eq!(upgraded(&node), ("done".to_owned(), String::new()));
    assert!(node.is_ready() && node.run_file("fixture-1.json").exists());
}

#[test]
fn a_new_child_that_hangs_is_ended_before_the_old_program_goes_on() {
    let node = Node::start_own(&Arguments { children: 1, own: false, ..Arguments::default() });
    let first = node.child(0).pid;
    node.replace_program("hangs");
    assert_eq!(node.command("upgrade", json!({})).0, 200);
    // It has 20 s to become ready.
    let begun = Instant::now();
    while !is_over(&node) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it takes too long");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (progress, error) = upgrade(&node);
    assert!(progress == "failed" && error.contains("child 0 is STARTING"), "{progress} {error}");
    assert_eq!(node.child(0).pid, first);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.pid())).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "of them it left none behind: {children}");
}

#[test]
fn a_node_of_one_process_whose_program_was_replaced_meanwhile_goes_on_as_it_was() {
    let node = Node::start_own(&Arguments { children: 0, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("who").unwrap();
    assert_eq!(node.command("upgrade", json!({})).0, 200);
    // Its code still ends: there is somebody to serve.
    replace(&node.program(), b"no program");
    drop(client);
    until("the upgrade is over", || node.request("GET", "/status").is_ok() && is_over(&node));
    let (progress, error) = upgrade(&node);
    assert!(progress == "failed" && error.contains("it is another one than was rehearsed"), "{error}");
    until("it serves", || node.is_ready());
    assert_eq!(Client::connect(node.http()).ask("who").unwrap().1, node.pid());
}
