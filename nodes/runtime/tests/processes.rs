//! Real nodes with real children, killed and drained.

#![expect(clippy::unwrap_used, reason = "also outside of test functions this is test code")]

#[path = "processes/bad_input.rs"]
mod bad_input;
#[path = "processes/commands.rs"]
mod commands;
#[path = "processes/logs.rs"]
mod logs;
#[path = "processes/meta_tls.rs"]
mod meta_tls;
#[path = "processes/privileges.rs"]
mod privileges;
#[path = "processes/reloads.rs"]
mod reloads;
#[path = "processes/rig.rs"]
mod rig;
#[path = "processes/systemd.rs"]
mod systemd;
#[path = "processes/upgrades.rs"]
mod upgrades;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use protoplex_runtime::supervisor::{Policy, Process, State};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::json;

use rig::{Arguments, Client, Node, eventually, lives, until};

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
        "the meta port on 0.0.0.0:0 could be reached from outside: use a loopback address, or meta.exposed = true"
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
fn a_child_without_a_file_to_spare_takes_over_its_siblings_socket() {
    let node = Node::start(&Arguments { own: false, files: 512, ..Arguments::default() });
    let mut client = Client::connect(node.http());
    let (index, pid) = client.ask("hoard").unwrap();
    assert_eq!(node.command("stop", json!({"child": 1 - index})).0, 200);
    let mut waiting: Vec<_> = (0..32).map(|_| Client::connect(node.http())).collect();
    client.ask("relent").expect("it goes on");
    for client in &mut waiting {
        assert_eq!(client.ask("who").unwrap(), (index, pid));
    }
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
