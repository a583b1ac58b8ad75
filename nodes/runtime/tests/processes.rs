//! Real nodes with real children, killed and drained.

#![expect(clippy::unwrap_used, reason = "also outside of test functions this is test code")]

#[path = "processes/bad_input.rs"]
mod bad_input;
#[path = "processes/logs.rs"]
mod logs;
#[path = "processes/meta_tls.rs"]
mod meta_tls;
#[path = "processes/privileges.rs"]
mod privileges;
#[path = "processes/rig.rs"]
mod rig;
#[path = "processes/upgrades.rs"]
mod upgrades;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use protoplex_runtime::supervisor::{Policy, Process, State};
use rig::{Arguments, Client, Node, eventually, lives, until};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::json;

#[test]
fn a_client_that_connects_while_no_child_lives_is_served_by_the_successor() {
    let node = Node::start(&Arguments { children: 1, ..Arguments::default() });
    let first = node.child(0).pid;
    node.kill_child(0);
    until("the successor is ready", || node.child(0).pid != first && node.is_ready());
    node.kill_child(0);
    until("the second death is followed by a pause", || node.child(0).state == "BACKOFF");
    let mut client = Client::connect(node.http());
    assert_eq!(node.child(0).state, "BACKOFF", "the client should have come while nobody could accept");
    let (index, pid) = client.ask("who").unwrap();
    assert_eq!((index, Some(pid)), (0, node.child(0).pid));
    assert_eq!(node.child(0).restarts, 2);
}

#[test]
fn under_load_a_killed_child_costs_only_what_it_was_answering() {
    const CLIENTS: usize = 8;
    let node = Node::start(&Arguments::default());
    let (answered, failed, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Being refused is a panic.
                    let answer = Client::connect(node.http()).ask("who");
                    let counter = if answer.is_ok() { &answered } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more = |than: usize| until("answers go on", || answered.load(Ordering::Relaxed) > than + 200);
        more(0);
        node.kill_child(0);
        more(answered.load(Ordering::Relaxed));
        until("the successor is ready", || node.child(0).state == "RUNNING");
        more(answered.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
    });
    assert!(failed.into_inner() <= CLIENTS, "each client waits for one answer at a time");
    assert_eq!(node.child(1).restarts, 0);
}

#[test]
fn a_child_that_dies_again_and_again_is_given_up_and_gets_no_connections() {
    let node = Node::spawn(&Arguments { hopeless: Some(1), ..Arguments::default() });
    let started = Instant::now();
    until("it is given up", || node.child(1).state == "FATAL");
    assert!(
        started.elapsed() > Duration::from_millis(250 + 500 + 1000),
        "each pause is twice the one before"
    );
    assert_eq!((node.child(1).restarts, node.child(1).pid), (4, None));
    until("the other one serves", || node.is_ready());
    assert_eq!(node.status()["degraded"], true);
    for _ in 0..64 {
        assert_eq!(Client::connect(node.http()).ask("who").unwrap().0, 0);
    }
}

#[test]
fn a_drain_is_announced_then_stops_accepting_then_finishes() {
    let timing = (1_500, 20_000);
    let mut node = Node::start(&Arguments { children: 1, timing, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    node.signal(Signal::TERM);
    until("the drain is announced", || !node.is_ready());
    assert_eq!(node.status()["draining"], true);
    Client::connect(node.http()).ask("in the grace period").expect("new clients are served until it is over");
    until("it accepts no more", || TcpStream::connect(node.http()).is_err());
    client.ask("last").expect("what is in flight is finished");
    assert_eq!(node.child(0).state, "STOPPING");
    drop(client);
    assert_eq!(node.wait(), Some(0));
    assert!(!node.run_file("fixture-1.json").exists(), "it is no longer announced");
}

#[test]
fn what_does_not_finish_is_cut_when_the_drain_is_over() {
    let mut node = Node::start(&Arguments { timing: (0, 200), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    node.signal(Signal::INT);
    assert_eq!(node.wait(), Some(0));
    client.ask("last").unwrap_err();
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let mut node = Node::start(&Arguments { timing: (60_000, 60_000), ..Arguments::default() });
    let children = [node.child(0).pid.unwrap(), node.child(1).pid.unwrap()];
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    node.signal(Signal::INT);
    until("the drain is announced", || !node.is_ready());
    node.signal(Signal::INT);
    assert_eq!(node.wait(), Some(1));
    assert!(!children.into_iter().any(lives));
}

#[test]
fn signals_to_the_whole_group_are_the_parents_to_understand() {
    let mut node = Node::start(&Arguments { timing: (0, 20_000), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    let (index, pid) = client.ask("first").unwrap();
    rig::signal(pid, Signal::INT);
    rig::signal(pid, Signal::TERM);
    assert_eq!(client.ask("second").unwrap(), (index, pid));
    node.signal(Signal::TERM);
    drop(client);
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn children_of_a_killed_parent_finish_and_end_and_a_new_parent_takes_its_place() {
    let arguments = Arguments { timing: (0, 20_000), ..Arguments::default() };
    let mut node = Node::start(&arguments);
    let children = [node.child(0).pid.unwrap(), node.child(1).pid.unwrap()];
    let instance = |node: &Node| {
        let text = std::fs::read_to_string(node.run_file("fixture-1.instance")).unwrap();
        text.split(' ').next().unwrap().to_owned()
    };
    let first = instance(&node);
    let mut client = Client::connect(node.http());
    let (_, busy) = client.ask("first").unwrap();
    node.signal(Signal::KILL);
    node.wait();
    let arguments = Arguments { listen: node.http().to_string(), data: Some(node.data()), ..arguments };
    let mut next = Node::start(&arguments);
    let second = instance(&next);
    assert_ne!(second, first, "who may still serve keeps what it holds");
    until("the idle one ends", || children.into_iter().filter(|pid| lives(*pid)).eq([busy]));
    assert_eq!(client.ask("last").expect("what is in flight is finished").1, busy);
    drop(client);
    until("the busy one ends", || !lives(busy));
    assert!(next.is_ready());

    let children = [next.child(0).pid.unwrap(), next.child(1).pid.unwrap()];
    next.signal(Signal::KILL);
    next.wait();
    until("its children end", || !children.into_iter().any(lives));
    assert_eq!(instance(&Node::start(&arguments)), second, "none of them is left");
}

#[test]
fn children_run_without_huge_pages_unless_the_operator_says_otherwise() {
    let told = |environment: &[(&str, &str)]| {
        let node = Node::spawn_with(&Arguments::default(), environment);
        until("a child runs", || node.child(0).pid.is_some());
        std::fs::read_to_string(format!("/proc/{}/environ", node.child(0).pid.unwrap())).unwrap()
    };
    assert!(told(&[]).contains("MIMALLOC_ALLOW_THP=0\0"));
    assert!(told(&[("MIMALLOC_ALLOW_THP", "1")]).contains("MIMALLOC_ALLOW_THP=1\0"));
}

#[test]
fn a_child_that_talks_rubbish_is_killed_and_replaced() {
    let node = Node::start(&Arguments { children: 1, ..Arguments::default() });
    let first = node.child(0).pid;
    // It may be dead before it has answered.
    let _ = Client::connect(node.http()).ask("rubbish");
    until("it is replaced", || node.child(0).pid.is_some_and(|pid| Some(pid) != first) && node.is_ready());
    assert_eq!(node.child(0).restarts, 1);
}

#[test]
fn a_panic_ends_its_connection_only() {
    let node = Node::start(&Arguments { children: 1, ..Arguments::default() });
    let mut bystander = Client::connect(node.http());
    let before = bystander.ask("first").unwrap();
    Client::connect(node.http()).ask("panic").unwrap_err();
    assert_eq!(bystander.ask("second").unwrap(), before);
    assert!(node.get("/metrics").contains("protoplex_panics_total{child=\"0\"} 1\n"));
}

#[test]
fn a_child_that_sheds_takes_no_traffic_and_runs_on() {
    let node = Node::start(&Arguments { children: 1, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("shed").unwrap();
    until("it is not ready", || !node.is_ready());
    let child = node.child(0);
    assert_eq!((child.state.as_str(), child.restarts), ("RUNNING", 0));
    client.ask("relax").unwrap();
    until("it is ready again", || node.is_ready());
}

#[test]
fn metrics_of_all_children_stand_under_one_heading() {
    let node = Node::start(&Arguments::default());
    let mut client = Client::connect(node.http());
    let (index, pid) = client.ask("a \"line\"").unwrap();
    let text = node.get("/metrics");
    let answers = format!("fixture_answers_total{{child=\"{index}\",line=\"a \\\"line\\\"\"}} 1\n");
    assert!(text.contains(&answers), "{text}");
    let heading = "# TYPE fixture_index gauge\nfixture_index{child=\"0\"} 0\nfixture_index{child=\"1\"} 1\n";
    assert!(text.contains(heading), "{text}");
    assert_eq!(text.matches("# TYPE process_resident_memory_bytes gauge").count(), 1);
    assert_eq!(text.matches("\nprocess_resident_memory_bytes").count(), 3, "parent and children");
    rig::signal(pid, Signal::STOP);
    let text = node.get("/metrics");
    assert!(!text.contains("fixture_answers_total"), "a child that doesn't answer is left out");
    assert!(text.contains(&format!("protoplex_child_restarts_total{{child=\"{index}\"}} 0\n")), "{text}");
    rig::signal(pid, Signal::CONT);
    until("it is asked again", || node.get("/metrics").contains(&answers));
}

#[test]
fn the_status_page_tells_all() {
    let node = Node::start(&Arguments { children: 1, ..Arguments::default() });
    let status = node.status();
    for (key, value) in [("node", "fixture-1"), ("kind", "fixture"), ("version", env!("CARGO_PKG_VERSION"))] {
        assert_eq!(status[key], value);
    }
    assert_eq!(
        (&status["ready"], &status["draining"], &status["degraded"]),
        (&true.into(), &false.into(), &false.into())
    );
    let names: Vec<_> =
        status["addresses"].as_array().unwrap().iter().map(|address| &address["name"]).collect();
    assert_eq!(names, ["meta", "http", "internal"]);
    let child = &status["children"][0];
    assert_eq!((&child["state"], &child["ready"]), (&"RUNNING".into(), &true.into()));
    assert_eq!(child["details"], serde_json::json!({ "answers": 0 }));
    assert_eq!(node.get("/healthz"), "ok\n");
    let internal = status["addresses"][2]["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(status["addresses"][2]["child"], 0);
    Client::connect(internal).ask("over its own socket").unwrap();
}

#[test]
fn a_node_of_one_process_drains_likewise() {
    let mut node = Node::start(&Arguments { children: 0, timing: (0, 20_000), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    assert!(node.get("/metrics").contains("fixture_answers_total{line=\"first\"} 1\n"));
    assert_eq!(node.status()["details"], serde_json::json!({ "answers": 0 }));
    node.signal(Signal::TERM);
    until("it accepts no more", || TcpStream::connect(node.http()).is_err());
    client.ask("last").expect("what is in flight is finished");
    drop(client);
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn a_node_of_one_process_adopts_what_it_can_and_refuses_the_rest_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let arguments = Arguments { children: 0, word: "old", log: Some(log.clone()), ..Arguments::default() };
    let mut node = Node::start(&arguments);
    let mut client = Client::connect(node.http());
    client.ask("whisper one").unwrap();
    assert_eq!(node.command("/reload"), (200, json!({"changed": false})));
    node.rewrite(&Arguments { level: "debug", timing: (0, 100), ..arguments.clone() });
    node.signal(Signal::HUP);
    until("the level is another", || node.get("/log-level") == "{\"level\":\"debug\"}");
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
        let (status, problem) = node.command("/reload");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            status == 422 && detail.contains(name) && detail.contains("the old one goes on"),
            "{problem}"
        );
        assert_eq!(node.get("/log-level"), "{\"level\":\"debug\"}");
    }
    client.ask("who").expect("no connection noticed");
    // How it drains is adopted, too.
    let asked = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(1), "it is cut");
    assert!(asked.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_limit_of_files_that_its_connections_exceed_is_told_with_both_figures() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let limit = getrlimit(Resource::Nofile).maximum.unwrap();
    let enough = (limit - 256) / 2;
    for (connections, told) in [(enough, false), (enough + 1, true)] {
        let arguments =
            Arguments { children: 1, connections, log: Some(log.clone()), ..Arguments::default() };
        let node = Node::start(&arguments);
        let text = std::fs::read_to_string(&log).unwrap();
        let warning = text.lines().find(|line| line.contains("LimitNOFILE="));
        assert_eq!(warning.is_some(), told, "{text}");
        let figures =
            |line: &str| line.contains(&format!("\"limit\":{limit}")) && line.contains("\"needed\":");
        assert!(warning.is_none_or(figures), "{text}");
        let status = node.status();
        assert_eq!(status["file_limit"], limit);
        assert!(status["open_files"].as_u64() > Some(3), "{status}");
        let before = status["children"][0]["open_files"].as_u64().unwrap();
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(node.http())).collect();
        assert!(clients.iter_mut().all(|client| client.ask("who").is_ok()));
        let now = node.status()["children"][0]["open_files"].as_u64().unwrap();
        assert!(now >= before + 20, "{before} {now}");
    }
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
fn a_start_is_refused_with_all_its_causes() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let arguments = Arguments {
        listen: address.to_string(),
        meta: "0.0.0.0:0".to_owned(),
        log: Some(PathBuf::from("/nonexistent/log")),
        ..Arguments::default()
    };
    let (code, told) = Node::refused(&arguments);
    assert_eq!(code, Some(2));
    let lines: Vec<_> = told.lines().collect();
    let [exposed, in_use, log] = lines[..] else { panic!("{told}") };
    assert_eq!(
        exposed,
        "the meta port on 0.0.0.0:0 could be reached from outside: use a loopback address, or force it"
    );
    assert!(in_use.starts_with(&format!("{address} is in use by ")), "{in_use}");
    let end = format!(
        " (pid {}): http of fixture-1 can't listen there; stop what listens, or choose another port",
        std::process::id()
    );
    assert!(in_use.ends_with(&end), "{in_use}");
    assert_eq!(log, "the log /nonexistent/log: No such file or directory (os error 2)");
}

#[test]
fn a_port_shared_with_a_process_that_would_share_it_is_in_use_too() {
    let node = Node::start(&Arguments::default());
    let (code, told) = Node::refused(&Arguments { listen: node.http().to_string(), ..Arguments::default() });
    assert_eq!(code, Some(2));
    assert!(told.starts_with(&format!("{} is in use by ", node.http())), "{told}");
}

#[test]
fn a_second_node_of_the_same_name_is_refused() {
    let node = Node::start(&Arguments::default());
    let (code, told) = Node::refused(&Arguments { data: Some(node.data()), ..Arguments::default() });
    assert_eq!(code, Some(2));
    let data = node.data();
    let expected = format!(
        "fixture-1 is already running on {} (pid {}): stop it first, or give this one another --data\n",
        data.display(),
        node.pid()
    );
    assert_eq!(told, expected);
    assert!(node.is_ready());
}

#[tokio::test]
async fn a_supervised_node_is_kept_alive_and_drains_when_told() {
    let arguments = Arguments::default();
    let (data, program) = rig::program(&arguments);
    let process = Process::start(program, Policy::new(Duration::from_secs(20)));
    let mut status = process.status();
    let first = rig::ready(&mut status).await;
    rig::signal(first, Signal::INT);
    rig::signal(first, Signal::KILL);
    status.wait_for(|status| status.restarts == 1).await.unwrap();
    let second = rig::ready(&mut status).await;
    assert_ne!(first, second);
    process.drain();
    process.ended().await;
    assert_eq!(process.status().borrow().state, State::Exited);
    assert!(protoplex_runtime::running::list(data.path()).unwrap().is_empty());
}

#[tokio::test]
async fn a_node_whose_supervisor_is_gone_drains_by_itself() {
    let (data, program) = rig::program(&Arguments::default());
    let process = Process::start(program, Policy::new(Duration::from_secs(20)));
    let pid = rig::ready(&mut process.status()).await;
    assert_eq!(protoplex_runtime::running::list(data.path()).unwrap()[0].pid, pid);
    drop(process);
    eventually("it ends", || !lives(pid)).await;
    assert!(!data.path().join("run/fixture-1.json").exists(), "it ended in good order");
}

#[tokio::test]
async fn ending_a_node_ends_its_children_too() {
    let arguments = Arguments { timing: (60_000, 60_000), ..Arguments::default() };
    let (data, program) = rig::program(&arguments);
    let process = Process::start(program, Policy::new(Duration::from_secs(120)));
    rig::ready(&mut process.status()).await;
    let address = protoplex_runtime::running::list(data.path()).unwrap()[0].address("http").unwrap();
    let mut client = Client::connect(address);
    let (_, child) = client.ask("first").unwrap();
    process.drain();
    process.end();
    process.ended().await;
    eventually("its children end", || !lives(child)).await;
}

/// Asks again and again, each time on a new connection and on one that is kept, until it is told to stop; counts answers
/// and failures.
struct Load {
    answered: AtomicUsize,
    failed: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    /// Runs while something is done to a node; gives the number of failures.
    fn during(node: &Node, act: impl FnOnce(&dyn Fn())) -> usize {
        let load = Self { answered: 0.into(), failed: 0.into(), stop: false.into() };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| load.ask(node));
            }
            let more = || {
                let before = load.answered.load(Ordering::Relaxed);
                until("answers go on", || load.answered.load(Ordering::Relaxed) > before + 200);
            };
            // Where an assertion fails, too.
            let _stop = StopOnDrop(&load.stop);
            more();
            act(&more);
            more();
        });
        load.failed.into_inner()
    }

    fn ask(&self, node: &Node) {
        while !self.stop.load(Ordering::Relaxed) {
            // Being refused is a panic.
            let answer = Client::connect(node.http()).ask("who");
            let counter = if answer.is_ok() { &self.answered } else { &self.failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn pids(node: &Node) -> Vec<u32> {
    let children = node.status()["children"].as_array().unwrap().clone();
    children.iter().map(|child| child["pid"].as_u64().unwrap_or_default() as u32).collect()
}

#[test]
fn a_restart_of_every_child_fails_nobody() {
    for own in [false, true] {
        let node = Node::start(&Arguments { own, ..Arguments::default() });
        let before = pids(&node);
        let mut watcher = Client::connect(node.http());
        watcher.ask("before").unwrap();
        let failed = Load::during(&node, |more| {
            assert_eq!(node.command("/restart"), (200, json!({"changed": true})));
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
            assert_eq!(node.command("/restart?child=0").0, 200);
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
        assert_eq!(node.command("/stop?child=1"), (200, json!({"changed": true})));
        assert_eq!(node.child(1).state, "STOPPED");
        assert_eq!(node.command("/stop?child=1"), (200, json!({"changed": false})), "it is stopped already");
        more();
        for _ in 0..64 {
            assert_eq!(Client::connect(node.http()).ask("who").unwrap().0, 0);
        }
        assert_eq!(node.command("/start?child=1"), (200, json!({"changed": true})));
        assert_eq!(node.command("/start?child=1"), (200, json!({"changed": false})), "it runs already");
    });
    assert_eq!(failed, 0);
    until("both serve again", || Client::connect(node.http()).ask("who").unwrap().0 == 1);
}

#[test]
fn a_stopped_node_refuses_and_serves_again_on_the_same_port_when_it_is_started() {
    let node = Node::start(&Arguments::default());
    assert_eq!(node.command("/stop").0, 200);
    assert!(!node.is_ready());
    until("clients are refused", || TcpStream::connect(node.http()).is_err());
    assert_eq!(node.command("/start").0, 200);
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
    assert_eq!(node.command("/stop?now=true").0, 200);
    assert!(started.elapsed() < Duration::from_secs(30));
    client.ask("last").unwrap_err();
}

#[test]
fn a_child_that_was_given_up_can_be_started_by_hand() {
    let arguments = Arguments { hopeless: Some(1), ..Arguments::default() };
    let node = Node::spawn(&arguments);
    until("it is given up", || node.child(1).state == "FATAL");
    let (status, problem) = node.command("/start?child=1");
    assert_eq!(status, 500);
    assert!(problem["detail"].as_str().unwrap().contains("child 1 is FATAL"), "{problem}");
    node.rewrite(&Arguments { hopeless: None, ..arguments });
    assert_eq!(node.command("/reload").0, 200);
    assert_eq!(node.command("/start?child=1").0, 200);
    assert_eq!(node.child(1).state, "RUNNING");
    assert_eq!(node.status()["degraded"], false);
}

#[test]
fn a_child_that_does_not_exist_can_not_be_commanded() {
    let node = Node::start(&Arguments::default());
    for command in ["start", "stop", "restart", "drain"] {
        let (status, problem) = node.command(&format!("/{command}?child=2"));
        assert_eq!(status, 404);
        assert_eq!(problem["detail"], "there is no child 2: the node has children 0 to 1");
        assert_eq!(node.command(&format!("/{command}?chlid=0")).0, 400, "an unknown key is no wish for all");
    }
    assert_eq!((node.child(0).state.as_str(), node.child(1).restarts), ("RUNNING", 0));
}

#[test]
fn a_node_that_is_told_to_drain_ends_in_order() {
    let mut node = Node::start(&Arguments::default());
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    let mut operator = node.command_and_leave("/drain");
    until("it accepts no more", || TcpStream::connect(node.http()).is_err());
    client.ask("last").unwrap();
    drop(client);
    let mut answer = String::new();
    operator.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("{\"changed\":true}"), "once that is done: {answer}");
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn a_child_that_can_not_be_started_for_want_of_files_is_started_once_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let node = Node::start(&Arguments { children: 1, log: Some(log.clone()), ..Arguments::default() });
    let first = pids(&node)[0];
    let pid = Pid::from_raw(node.pid().try_into().unwrap());
    // Nothing that is open is closed by it.
    let few = Rlimit { current: Some(5), ..getrlimit(Resource::Nofile) };
    let before = prlimit(pid, Resource::Nofile, few).unwrap();
    kill_process(Pid::from_raw(first.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    until("it was tried", || {
        std::fs::read_to_string(&log).unwrap().contains("can't be started just now, trying again")
    });
    prlimit(pid, Resource::Nofile, before).unwrap();
    until("it is started", || node.is_ready() && pids(&node)[0] != first);
}

#[test]
fn a_child_that_hangs_is_killed_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let node = Node::start(&Arguments { children: 1, log: Some(log.clone()), ..Arguments::default() });
    let first = pids(&node);
    Client::connect(node.http()).say("hang");
    until("it is replaced", || node.child(0).restarts == 1 && node.is_ready());
    let text = std::fs::read_to_string(&log).unwrap();
    let stack =
        text.lines().find(|line| line.contains("\"message\":\"stuck\"")).expect("where it hung is logged");
    assert!(stack.contains("processes/fixture.rs"), "{stack}");
    assert_ne!(pids(&node), first);
    Client::connect(node.http()).ask("who").unwrap();
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
        assert_eq!(node.command("/reload"), (200, json!({"changed": true})));
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
    let (code, problem) = node.command("/reload");
    assert_eq!(code, 422);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("the old one goes on") && detail.contains("line 1 column"), "{detail}");
    assert_eq!(node.status()["reload"]["ok"], false);
    // One that reads well, but whose address is taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    node.rewrite(&Arguments { listen, children: 3, ..Arguments::default() });
    let (code, problem) = node.command("/reload");
    assert_eq!(code, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("is in use"), "{problem}");
    // One that changes what can't change.
    node.rewrite(&Arguments { data: Some("/elsewhere".into()), ..Arguments::default() });
    assert_eq!(node.command("/reload").0, 422);
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
        assert_eq!(node.command("/reload").0, 200);
        until("three serve", || node.is_ready() && pids(&node).iter().filter(|pid| **pid > 0).count() == 3);
        for index in 0..3 {
            until("each of them accepts", || Client::connect(node.http()).ask("who").unwrap().0 == index);
        }
        more();
        node.rewrite(&Arguments { children: 1, ..arguments.clone() });
        assert_eq!(node.command("/reload").0, 200);
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
    assert_eq!(node.command("/reload"), (200, json!({"changed": true})));
    until("the new address is served", || TcpStream::connect(free).is_ok());
    Client::connect(free).ask("who").unwrap();
    until("the old one is not", || TcpStream::connect(old).is_err());
    client.ask("after").unwrap();
    assert_eq!(pids(&node), before);
    assert_eq!(node.announced("http"), Some(free));
}

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
    assert_eq!(node.command("/stop?child=1").0, 200);
    told_until(&manager, &status);
    node.signal(Signal::TERM);
    told_until(&manager, "STOPPING=1");
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
    assert_eq!(node.command("/stop?child=0").0, 200);
    assert_eq!(Client::connect(node.http()).ask("who").unwrap().0, 1);
}

#[test]
fn a_page_in_some_browser_can_not_command_a_node() {
    let node = Node::start(&Arguments::default());
    let before = pids(&node);
    assert_eq!(node.status_of("POST", "/stop", "Origin: https://example.com\r\n"), 403);
    assert_eq!(node.status_of("GET", "/stop", ""), 405);
    assert_eq!(pids(&node), before);
}

#[test]
fn the_configuration_is_shown_without_what_is_secret() {
    let node = Node::start(&Arguments { word: "shown", ..Arguments::default() });
    let config: serde_json::Value = serde_json::from_str(&node.get("/config")).unwrap();
    assert_eq!(
        config["config"],
        json!({"hopeless": null, "word": "shown", "motto": "", "secret_word": "***"})
    );
    assert_eq!(config["common"]["node"], "fixture-1");
}

#[test]
fn a_command_that_means_another_node_is_refused() {
    let node = Node::start(&Arguments::default());
    let before = pids(&node);
    let (status, problem) = node.command("/stop?node=fixture-2");
    assert_eq!(status, 421);
    assert!(problem["detail"].as_str().unwrap().starts_with("This is fixture-1, not fixture-2"), "{problem}");
    assert_eq!(pids(&node), before);
    assert_eq!(node.command("/restart?node=fixture-1&child=0").0, 200);
    assert_eq!(node.status_of("GET", "/status", "X: y\r\n"), 200);
}

#[test]
fn who_a_stopping_child_still_serves_it_serves_to_the_end_even_where_it_is_replaced() {
    let node = Node::start(&Arguments { children: 1, timing: (0, 20_000), ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    let first = pids(&node);
    std::thread::scope(|scope| {
        scope.spawn(|| node.command("/stop?child=0"));
        until("it stops", || node.child(0).state == "STOPPING");
        assert_eq!(node.command("/restart?child=0").0, 200);
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
    let told = node.command_and_leave("/restart");
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
    let node = Node::start(&Arguments { children: 1, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    client.ask("first").unwrap();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| node.command("/stop?child=0"));
        until("it stops", || node.child(0).state == "STOPPING");
        let _start = node.command_and_leave("/start?child=0");
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
fn fewer_children_and_more_again_find_their_names_free() {
    let arguments = Arguments::default();
    let node = Node::start(&arguments);
    for children in [1, 2, 1, 3, 1, 2] {
        node.rewrite(&Arguments { children, ..arguments.clone() });
        assert_eq!(node.command("/reload").0, 200);
    }
    until("all run", || pids(&node).len() == 2 && (0..2).all(|index| node.child(index).state == "RUNNING"));
    assert_eq!(node.child(1).restarts, 0);
}

#[test]
fn a_child_without_a_file_to_spare_takes_over_its_siblings_socket() {
    let node = Node::start(&Arguments { own: false, files: 512, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    let (index, pid) = client.ask("hoard").unwrap();
    assert_eq!(node.command(&format!("/stop?child={}", 1 - index)).0, 200);
    let mut waiting: Vec<_> = (0..32).map(|_| Client::connect(node.http())).collect();
    client.ask("relent").expect("it goes on");
    for client in &mut waiting {
        assert_eq!(client.ask("who").unwrap(), (index, pid));
    }
}

#[test]
fn a_drain_in_the_middle_of_a_restart_ends_the_node() {
    let mut node = Node::start(&Arguments { children: 4, ..Arguments::default() });
    let first = pids(&node);
    let _told = node.command_and_leave("/restart");
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
    assert_eq!(node.command("/log-level?level=loud").0, 400);
    assert_eq!(node.command("/log-level?level=debug"), (200, json!({"changed": true})));
    assert_eq!(node.command("/log-level?level=debug"), (200, json!({"changed": false})));
    assert_eq!(node.get("/log-level"), "{\"level\":\"debug\"}");
    until("the child whispers", || {
        Client::connect(node.http()).ask("whisper two").unwrap();
        whispered("two")
    });
    assert!(!whispered("one"));
    assert_eq!(node.child(0).restarts, 0);
}

#[test]
fn log_lines_name_node_and_child() {
    let data = tempfile::tempdir().unwrap();
    let log = data.path().join("node.log");
    let arguments = Arguments { log: Some(log.clone()), ..Arguments::default() };
    let node = Node::start(&arguments);
    let (index, _) = Client::connect(node.http()).ask("who").unwrap();
    let mut client = Client::connect(node.http());
    let _ = client.ask("panic");
    drop(node);
    let mut text = String::new();
    std::fs::File::open(&log).unwrap().read_to_string(&mut text).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["node"] == "fixture-1"), "{text}");
    let started = lines.iter().find(|line| line["message"] == "started").unwrap();
    assert_eq!((&started["process"], started.get("child")), (&"fixture-1:0".into(), None));
    let panicked = lines.iter().find(|line| line["message"] == "panicked").unwrap();
    assert!(panicked["child"].is_u64() && index < 2, "{panicked}");
}
