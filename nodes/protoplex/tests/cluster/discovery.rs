//! Which nodes there are, what they can be asked for, and what they answer: discover, inspect, request, top.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use protoplex_testkit::cluster::{Cluster, signal};
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::keyed_requests::{join, server};
use crate::{get, start};

const KINDS: [&str; 5] = ["datastore", "fileserver", "live", "proxy", "seed"];

fn told(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The lines of a node's processes that name a trace.
fn lines_of(cluster: &Cluster, trace: &str) -> Vec<Value> {
    let lines = cluster.logs();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["trace_id"] == trace && line["message"] == "was asked").collect()
}

#[test]
fn what_there_is_is_discovered_and_tells_what_it_can_be_asked_for() {
    let cluster = start();
    let port = Port::take();
    let _server = server(&port, "a");
    let _sidecar = join(&cluster, &port);
    let joined = format!("rooms/{}", port.address());
    let services = until("all are discovered", || {
        let services = cluster.json(&["discover"]);
        let kinds: Vec<_> = services["kinds"].as_array()?.iter().map(|kind| kind["kind"].clone()).collect();
        (kinds == KINDS && services["pools"][0]["members"][0]["member"] == joined.as_str())
            .then_some(services)
    });
    assert_eq!(services["pools"].as_array().unwrap().len(), 1, "pools of nodes are no services: {services}");
    assert_eq!(services["kinds"][3]["versions"][env!("CARGO_PKG_VERSION")], 1);
    assert_eq!(services["kinds"][3]["instances"][0]["children"], 2);

    let (text, _) = told(&cluster.run(&["discover"]));
    let lines: Vec<_> = KINDS.iter().map(|kind| format!("{kind} [1]")).collect();
    assert_eq!(text, format!("{}\nrooms [1]  joined\n", lines.join("\n")));
    let (text, _) = told(&cluster.run(&["discover", "--instances", "--versions", "proxy"]));
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.starts_with(&format!("proxy [1]  {version}\n  proxy-1  127.0.0.1:")), "{text}");
    assert!(text.contains("2 children") && text.lines().count() == 2, "{text}");

    for node in KINDS.map(|kind| format!("{kind}-1")) {
        let interface = &cluster.json(&["inspect", &node])[0];
        assert_eq!(
            (interface["node"].as_str(), interface["version"].as_str()),
            (Some(&*node), Some(version))
        );
        let names: Vec<_> = interface["methods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|method| method["name"].as_str().unwrap())
            .collect();
        for name in ["ping", "status", "inspect", "metrics", "change_loglevel"] {
            assert!(names.contains(&name), "{node}: {names:?}");
        }
        let payload = json!({"payload": [node, null, 1.5]});
        let answer = cluster.json(&["request", &format!("{node}.ping"), &payload.to_string()]);
        assert_eq!(answer, payload["payload"]);
        assert_eq!(cluster.json(&["request", &format!("{node}.status")])["node"], node.as_str());
        let measures =
            cluster.json(&["request", &format!("{node}.metrics"), r#"{"prefixes":["process_cpu"]}"#]);
        assert!(
            measures[0]["value"].is_f64() && measures[0]["name"] == "process_cpu_seconds_total",
            "{measures}"
        );
    }
    let (text, _) = told(&cluster.run(&["inspect", "seed"]));
    assert!(text.contains("\nrpc seed-1.drain()\n") && !text.contains("seed-1.start"), "{text}");
    let (text, _) = told(&cluster.run(&["inspect", "proxy"]));
    assert!(text.contains("\nrpc proxy-1.change_loglevel(level: text, [for_s: number])\n"), "{text}");
}

#[test]
fn row_an_unknown_method_field_or_node_is_answered_with_what_there_is() {
    let cluster = start();
    let table = [
        (&["request", "proxy-1.pnig"][..], "proxy-1: there is no method \"pnig\", do you mean ping?"),
        (&["request", "proxy-1.ping", r#"{"paylod":1}"#], "has no field \"paylod\", do you mean payload?"),
        (
            &["request", "proxy-1.stop", r#"{"child":"0"}"#],
            "child of stop is a whole number from 0, not \"0\"",
        ),
        (&["request", "proxy-1.ping", "[1]"], "the arguments are no object"),
        (&["request", "proxy-1.ping", "{"], "the arguments are no JSON: EOF"),
        (&["request", "proxy-1.change_loglevel"], "needs level"),
        (&["request", "proxy-1"], "write NODE.METHOD"),
        (&["request", "proxy-1.ping", "-C", "2"], "--count"),
        (&["request", "proxy-1.ping", "--trace-id", "x"], "32 hexadecimal digits"),
        (&["request", "nobody.ping"], "there is no node \"nobody\"; there are datastore-1"),
        (&["inspect", "nobody"], "there is no node \"nobody\""),
        (&["top", "nobody"], "there is no node \"nobody\""),
        (&["top", "--interval", "1ms"], "from 100ms to 1h"),
        (&["request", "proxy-1.ping", "--timeout", "0s"], "from 100ms to 1h"),
        (&["discover", "prxoy"], "there is no \"prxoy\"; there are datastore, "),
        (&["join", "--pool", "p", "--backend", "http://127.0.0.1:1", "--interval", "0s"], "from 100ms to 1h"),
        (
            &["join", "--pool", "p", "--backend", "http://127.0.0.1:1", "--health", "//127.0.0.1:2/x"],
            "a path of the backend itself",
        ),
    ];
    for (arguments, why) in table {
        let output = cluster.command(arguments).stdin(Stdio::null()).output().unwrap();
        let (_, error) = told(&output);
        assert!(error.contains(why), "{arguments:?}: {error}");
        let is_not_there = ["there is no ", "do you mean ping?"].iter().any(|words| why.contains(words));
        assert_eq!(output.status.code(), Some(if is_not_there { 1 } else { 2 }), "{arguments:?}: {error}");
    }

    // Without our command line, too; whoever would command says who that is.
    let meta = format!("http://{}", cluster.node("proxy-1")["meta"].as_str().unwrap());
    let post = |path: &str, body: &str| get(&format!("{meta}{path}"), &["-d", body]);
    assert_eq!(post("/rpc/ping", r#"{"payload":7}"#).text(), "7");
    assert_eq!(get(&format!("{meta}/rpc"), &[]).json()["node"], "proxy-1");
    assert_eq!(post("/rpc/nothing", "").status, 403, "nobody asks for that");
    assert_eq!(post("/rpc/drain", "{}").status, 403);
    assert_eq!(post("/rpc/ping?node=proxy-2", "{}").status, 421);
    let large = cluster.folder().join("large");
    std::fs::write(&large, format!(r#"{{"payload":"{}"}}"#, "x".repeat(1 << 20))).unwrap();
    assert_eq!(post("/rpc/ping", &format!("@{}", large.display())).status, 413);
    assert_eq!(cluster.json(&["request", "proxy-1.ping"]), Value::Null, "it still runs");
}

#[test]
fn a_request_is_traced_measured_and_carried_out() {
    let cluster = start();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut asking = cluster.command(&["request", "live.ping", "-", "--trace-id", trace]);
    let mut asking = asking.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    asking.stdin.take().unwrap().write_all(b"{\"payload\": \"from standard input\"}\n").unwrap();
    let (text, _) = told(&asking.wait_with_output().unwrap());
    assert_eq!(text, "\"from standard input\"\n");
    let line = until("the trace is in the log", || lines_of(&cluster, trace).pop());
    assert_eq!((&line["node"], &line["method"]), (&json!("live-1"), &json!("ping")), "{line}");

    let report = cluster.json(&["request", "proxy.ping", "-N", "200", "-C", "4"]);
    assert_eq!(
        (&report["calls"], &report["failed"], &report["concurrency"]),
        (&json!(200), &json!(0), &json!(4))
    );
    let us = |name: &str| report[name].as_u64().unwrap();
    assert!(0 < us("p50_us") && us("p50_us") <= us("p99_us") && us("p99_us") <= us("max_us"), "{report}");
    let (text, _) = told(&cluster.run(&["request", "proxy.ping", "-N", "20"]));
    assert!(text.contains("20 calls, 1 at a time, in ") && text.contains("p99"), "{text}");

    let meta = format!("http://{}/status", cluster.node("proxy-1")["meta"].as_str().unwrap());
    let level = || get(&meta, &[]).json()["log_level"].as_str().unwrap().to_owned();
    let before = level();
    let changed = cluster.json(&["request", "proxy-1.change_loglevel", r#"{"level":"debug","for_s":2}"#]);
    assert_eq!((changed["changed"].as_bool(), level()), (Some(true), "debug".to_owned()));
    until("it logs as before", || (level() == before).then_some(()));

    let pid = cluster.child_pid("proxy-1", 0);
    cluster.json(&["request", "proxy-1.restart", r#"{"child":0}"#]);
    assert_ne!(cluster.child_pid("proxy-1", 0), pid);
}

#[test]
fn without_a_seed_this_machines_nodes_are_still_asked() {
    let mut cluster = start();
    cluster.json(&["drain", "seed-1"]);
    let output = cluster.run(&["discover"]);
    let (text, error) = told(&output);
    assert_eq!(output.status.code(), Some(3));
    assert!(text.contains("proxy [1]") && !text.contains("seed"), "{text}");
    assert!(error.contains("only nodes of this data directory are known: no seed answers at"), "{error}");
    for command in [&["inspect", "proxy-9"][..], &["request", "proxy-9.ping"], &["drain", "proxy-9"]] {
        let refused = cluster.run(command);
        let (_, error) = told(&refused);
        assert_eq!(refused.status.code(), Some(3), "{error}");
        assert!(
            error.contains("proxy-9 does not run here, and whether it runs elsewhere can't be told"),
            "{error}"
        );
    }
    assert_eq!(cluster.json(&["request", "proxy-1.ping", r#"{"payload":1}"#]), 1);
    cluster.stop();
    let output = cluster.run(&["discover"]);
    assert_eq!(output.status.code(), Some(3), "{:?}", told(&output));
}

/// Runs `top` in a terminal of 100 by 30, presses these keys once it shows what is waited for (without a space: those are left
/// as they were), ends as the command does, and writes all that was drawn to a file.
const TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
keys, wanted, command = sys.argv[1], sys.argv[2], sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    os.environ.setdefault('WITH_TERM', 'xterm-256color')
    os.environ['TERM'] = os.environ['WITH_TERM']
    os.execv(command[0], command)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 100, 0, 0))
seen, pressed, until = b'', False, time.time() + 40
while time.time() < until:
    if select.select([terminal], [], [], 0.1)[0]:
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            break
    if wanted.encode() in seen and not pressed:
        pressed = True
        for key in keys:
            os.write(terminal, key.encode())
            time.sleep(0.3)
else:
    os.kill(pid, 9)
status = os.waitpid(pid, 0)[1]
open('seen', 'wb').write(seen)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"#;

#[test]
fn top_shows_what_every_process_uses() {
    let cluster = start();
    let table = cluster.json(&["top", "--interval", "300ms"]);
    assert_eq!((&table["overview"]["nodes"], &table["overview"]["ready"]), (&json!(5), &json!(5)), "{table}");
    assert_eq!(table["overview"]["leader"], "seed-1");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5 + 3 * 2, "five nodes, three of which have two children: {table}");
    for row in rows {
        assert!(row["cpu"].is_f64() && row["memory_bytes"].as_u64().unwrap() > 1 << 20, "{row}");
        assert_eq!(row["state"], "RUNNING");
    }
    let proxy = rows.iter().find(|row| row["node"] == "proxy-1" && row["child"] == 0).unwrap();
    assert!(proxy["requests"].is_f64() && proxy["connections"].is_u64(), "{proxy}");
    let (text, _) = told(&cluster.run(&["top", "--once", "--interval", "100ms", "--sort", "memory", "live"]));
    assert!(text.contains("1 of 1 node ready") && text.contains("live-1:1  RUNNING"), "{text}");

    for (keys, wanted) in [("cssrq", "proxy-1:1"), ("\u{3}", "leads,")] {
        let top = cluster.command(&["top", "--interval", "200ms"]);
        let shown = Command::new("python3")
            .args(["-c", TERMINAL, keys, wanted])
            .arg(top.get_program())
            .args(top.get_args())
            .current_dir(cluster.folder())
            .output()
            .unwrap();
        assert_eq!(shown.status.code(), Some(0), "{:?}", told(&shown));
        let seen =
            String::from_utf8_lossy(&std::fs::read(cluster.folder().join("seen")).unwrap()).into_owned();
        assert!(seen.contains("RUNNING") && seen.contains("REQ/S"), "{seen}");
        assert!(
            seen.contains("\u{1b}[?1049h") && seen.contains("\u{1b}[?1049l"),
            "the terminal is as it was"
        );
    }
}

#[test]
fn row_top_moves_no_cursor_of_a_terminal_that_has_none() {
    let cluster = start();
    let top = cluster.command(&["top", "--interval", "100ms"]);
    let mut shown = Command::new("python3");
    shown.args(["-c", TERMINAL, "q", "leads,"]).arg(top.get_program()).args(top.get_args());
    let shown = shown.env("WITH_TERM", "dumb").current_dir(cluster.folder()).output().unwrap();
    assert_eq!(shown.status.code(), Some(0), "{:?}", told(&shown));
    let seen = String::from_utf8_lossy(&std::fs::read(cluster.folder().join("seen")).unwrap()).into_owned();
    assert!(seen.contains("RUNNING") && seen.contains("proxy-1:1") && !seen.contains('\u{1b}'), "{seen}");
}

#[test]
fn top_ends_well_when_it_is_told_to_and_shows_who_is_silent() {
    let mut cluster = start();
    let pid = cluster.node("live-1")["pid"].as_u64().unwrap() as u32;
    signal(pid, Signal::STOP);
    let table = cluster.json(&["top", "--interval", "100ms", "live", "proxy"]);
    signal(pid, Signal::CONT);
    let live: Vec<_> =
        table["rows"].as_array().unwrap().iter().filter(|row| row["node"] == "live-1").collect();
    assert_eq!(live.len(), 1, "{table}");
    assert_eq!(live[0]["state"], "SILENT");
    cluster.stop();
    let output = cluster.run(&["top"]);
    assert_eq!(output.status.code(), Some(3), "{:?}", told(&output));
}
