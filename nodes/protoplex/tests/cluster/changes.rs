//! What operators change while traffic goes on: it costs nobody a request, and no connection that could be kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use protoplex_testkit::cluster::{Cluster, Plan, signal};
use protoplex_testkit::ports::Port;
use protoplex_testkit::until;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::crashes::{Load, Over};
use crate::{get, plan, put, start};

/// A client that keeps its connection.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn open(cluster: &Cluster) -> Self {
        let address = cluster.http().strip_prefix("http://").unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Asks for the demo page's health, and says whether the connection stays.
    fn ask(&mut self) -> std::io::Result<bool> {
        write!(self.0.get_mut(), "GET /files/x HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let (mut length, mut stays) = (0, true);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            stays &= line != "connection: close";
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        assert_eq!(body, b"x");
        Ok(stays)
    }
}

fn pids(cluster: &Cluster, node: &str) -> Vec<Value> {
    let children = cluster.node(node)["children"].clone();
    children.as_array().unwrap().iter().map(|child| child["pid"].clone()).collect()
}

/// Runs an operator's command under load, on new connections and on kept ones; nobody's request may fail.
fn under_load(cluster: &Cluster, act: impl FnOnce()) {
    assert_eq!(put(cluster, "/files/x", b"x", &[]).status, 201);
    let load = Load::default();
    thread::scope(|scope| {
        let _over = Over(&load);
        load.begin(scope, cluster);
        for _ in 0..4 {
            scope.spawn(|| {
                let mut kept = Kept::open(cluster);
                while !load.over.load(Ordering::Relaxed) {
                    match kept.ask() {
                        Ok(true) => load.count(true, &load.failed_reads),
                        // It was told that this was the last.
                        Ok(false) => kept = Kept::open(cluster),
                        Err(error) => {
                            println!("a kept connection: {error}");
                            load.count(false, &load.failed_reads);
                            kept = Kept::open(cluster);
                        }
                    }
                }
            });
        }
        load.goes_on(20);
        act();
        load.goes_on(20);
    });
    load.is_all_there(cluster);
    assert_eq!(load.failed(), [0, 0]);
}

#[test]
fn a_restart_of_all_children_costs_no_request() {
    let cluster = start();
    let before = ["proxy-1", "fileserver-1", "live-1"].map(|node| pids(&cluster, node));
    under_load(&cluster, || {
        let done = cluster.json(&["restart"]);
        let row = |target: &str| json!({"target": target, "ok": true, "changed": true});
        assert_eq!(done, json!([row("fileserver-1"), row("live-1"), row("proxy-1")]));
    });
    let after = ["proxy-1", "fileserver-1", "live-1"].map(|node| pids(&cluster, node));
    for (before, after) in before.iter().zip(&after) {
        assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    }
}

#[test]
fn stopping_and_starting_a_child_costs_no_request() {
    let cluster = start();
    under_load(&cluster, || {
        for child in ["proxy-1:1", "fileserver-1:0"] {
            let stopped = cluster.json(&["stop", child]);
            let expected = json!({"target": child, "ok": true, "changed": true, "cut": 0});
            let Value::Object(mut stopped) = stopped[0].clone() else { panic!("{stopped}") };
            // Nothing is told where nothing was in flight just then.
            let cut = stopped.remove("drained").map_or(json!(0), |drained| drained["requests_cut"].clone());
            stopped.insert("cut".to_owned(), cut);
            assert_eq!(Value::Object(stopped), expected);
            let text = String::from_utf8(cluster.run(&["stop", child]).stdout).unwrap();
            assert_eq!(text, format!("{child}: already stopped\n"));
            let (node, _) = child.split_once(':').unwrap();
            let states = || {
                cluster.node(node)["children"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|child| child["state"].clone())
                    .collect::<Vec<_>>()
            };
            until("the status says so", || states().contains(&json!("STOPPED")).then_some(()));
            assert_eq!(cluster.json(&["start", child])[0]["changed"], true);
        }
    });
}

#[test]
fn a_reload_changes_limits_while_every_connection_lives_on() {
    let cluster = start();
    let config = cluster.folder().join("protoplex.toml");
    let before = pids(&cluster, "proxy-1");
    let pid = cluster.node("proxy-1")["pid"].as_u64().unwrap() as u32;
    under_load(&cluster, || {
        let mut kept = Kept::open(&cluster);
        assert!(kept.ask().unwrap());
        std::fs::write(&config, "[proxy.limits]\nmax_head_bytes = 2048\n").unwrap();
        assert_eq!(cluster.json(&["restart", "--reload", "proxy-1"])[0]["ok"], true);
        let large = format!("X-Large: {}", "x".repeat(4000));
        until("a head over the new limit is refused", || {
            (get(&format!("{}/files/x", cluster.http()), &["-H", &large]).status == 431).then_some(())
        });
        assert!(kept.ask().unwrap(), "who was connected before is not cut off");
        // The same by a signal.
        std::fs::write(&config, "").unwrap();
        signal(pid, Signal::HUP);
        until("a head under the default limit is taken", || {
            (get(&format!("{}/files/x", cluster.http()), &["-H", &large]).status == 200).then_some(())
        });
    });
    assert_eq!(pids(&cluster, "proxy-1"), before);
}

#[test]
fn a_reload_without_a_target_reaches_seed_and_datastore_too() {
    let cluster = start();
    let config = cluster.folder().join("protoplex.toml");
    let told = || -> Vec<Value> {
        let output = cluster.run(&["--json", "restart", "--reload"]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    std::fs::write(&config, "[log]\nlevel = \"debug\"\n").unwrap();
    let row = |node: &str| json!({"target": node, "ok": true, "changed": true});
    assert_eq!(told(), ["datastore-1", "fileserver-1", "live-1", "proxy-1", "seed-1"].map(row));
    // What only a new process can adopt is named, by the one node whom it concerns.
    std::fs::write(&config, "[log]\nlevel = \"debug\"\n[seed]\nmax_keys = 5\n").unwrap();
    let refused: Vec<_> = told().into_iter().filter(|row| row["ok"] == false).collect();
    let [seed] = &refused[..] else { panic!("{refused:?}") };
    let error = seed["error"].as_str().unwrap();
    assert!(error.starts_with("seed.max_keys can't change while the node runs"), "{error}");
    assert_eq!(get(cluster.http(), &[]).status, 200);
}

#[test]
fn commands_reach_a_meta_port_that_other_machines_reach_over_tls() {
    let cluster = plan().set("meta.proxy=0.0.0.0:0").set("meta.exposed=true").start();
    let meta = cluster.node("proxy-1")["meta"].as_str().unwrap().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(get(&format!("http://{meta}/status"), &[]).status, 400, "it is not for everybody");
    assert_eq!(cluster.json(&["restart", "proxy-1"])[0]["ok"], true);
    let tail = cluster.run(&["tail", "-n", "1", "--no-follow", "proxy-1"]);
    assert!(tail.status.success(), "{}", String::from_utf8_lossy(&tail.stderr));
    assert!(String::from_utf8_lossy(&tail.stdout).contains("proxy-1"));
    assert_eq!(cluster.json(&["drain", "proxy-1"])[0]["ok"], true);
}

#[test]
fn a_signal_to_up_has_every_node_read_its_configuration_anew() {
    let cluster = start();
    let nodes = ["datastore-1", "fileserver-1", "live-1", "proxy-1", "seed-1"].map(|name| cluster.node(name));
    std::fs::write(cluster.folder().join("protoplex.toml"), "[log]\nlevel = \"debug\"\n").unwrap();
    signal(cluster.pid(), Signal::HUP);
    for node in &nodes {
        let meta = node["meta"].as_str().unwrap();
        until("it has read it", || {
            let status = get(&format!("http://{meta}/status"), &[]).json();
            (status["log_level"] == "debug").then_some(())
        });
    }
    // The same for another program.
    signal(cluster.pid(), Signal::USR2);
    for node in &nodes {
        let page = format!("http://{}/status", node["meta"].as_str().unwrap());
        until("it has gone on", || {
            let answer = get(&page, &[]);
            (answer.status == 200 && answer.json()["upgrade"]["progress"] == "done").then_some(())
        });
    }
    let now = nodes.each_ref().map(|node| cluster.node(node["node"].as_str().unwrap())["pid"].clone());
    assert_eq!(now, nodes.map(|node| node["pid"].clone()), "and goes on");
}

/// Runs a command in a terminal of its own, closes that in the middle of what it shows, and ends as the command does.
const IN_TERMINAL: &str = r#"
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
# XOFF: whoever writes has to wait.
os.write(terminal, b'\x13')
with open(f'/proc/{pid}/syscall') as syscall:
    while ' 0x1 ' not in syscall.read()[:8]:
        time.sleep(0.02)
        syscall.seek(0)
os.close(terminal)
for _ in range(400):
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        sys.exit(os.waitstatus_to_exitcode(status) % 256)
    time.sleep(0.05)
os.kill(pid, 15)
sys.exit('it goes on without its terminal')
"#;

/// As `nohup` runs a command: what it writes goes to a file, and it is to outlive its terminal, which is closed once a token
/// is shown. Later it is told SIGHUP, then SIGTERM.
const BEYOND_TERMINAL: &str = r#"
import os, pty, signal, sys, time
out = os.open('out', os.O_CREAT | os.O_WRONLY)
pid, terminal = pty.fork()
if pid == 0:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.dup2(out, 1)
    os.execv(sys.argv[1], sys.argv[1:])
while '"token"' not in open('out').read():
    time.sleep(0.05)
os.close(terminal)
for _ in range(2):
    time.sleep(0.5)
    if os.waitpid(pid, os.WNOHANG)[0]:
        sys.exit('it ended')
    os.kill(pid, signal.SIGHUP)
os.kill(pid, signal.SIGTERM)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)
"#;

#[test]
fn up_that_is_to_outlive_its_terminal_does_and_takes_a_signal_for_a_reload() {
    let (folder, output) = up_in_terminal(BEYOND_TERMINAL);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(folder.path().join("protoplex-data/log/protoplex.log")).unwrap();
    let reloads = log.lines().filter(|line| line.contains("read the configuration anew"));
    assert!(reloads.filter(|line| line.contains("\"proxy-1\"")).count() > 1, "{log}");
}

#[test]
fn up_ends_with_its_terminal_as_with_ctrl_c() {
    let (folder, output) = up_in_terminal(IN_TERMINAL);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let left = std::fs::read_dir(folder.path().join("protoplex-data/run")).unwrap().map(Result::unwrap);
    let left: Vec<_> =
        left.map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    assert!(left.is_empty(), "every node has ended in good order: {left:?}");
}

/// Runs `up` by such a script, in a folder of its own.
fn up_in_terminal(script: &str) -> (TempDir, Output) {
    let folder = tempfile::tempdir().unwrap();
    let ports = [Port::take(), Port::take(), Port::take()];
    let [seed, datastore, http] = ports.each_ref().map(Port::address);
    let any = |key: &str| format!("{key}=127.0.0.1:0");
    let mut settings = vec![
        format!("seed.listen={seed}"),
        format!("datastore.listen={datastore}"),
        format!("proxy.http=[\"{http}\"]"),
        "proxy.https=[]".to_owned(),
        "fileserver.http=[\"127.0.0.1:0\"]".to_owned(),
        "fileserver.https=[]".to_owned(),
    ];
    settings.extend(
        ["seed", "datastore", "proxy", "fileserver", "live"].map(|kind| any(&format!("meta.{kind}"))),
    );
    let output = Command::new("python3")
        .args(["-c", script, env!("CARGO_BIN_EXE_protoplex"), "--json", "up"])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .current_dir(folder.path())
        .output()
        .unwrap();
    (folder, output)
}

#[test]
fn up_ends_well_once_every_node_was_drained() {
    let mut cluster = start();
    for node in ["proxy-1", "live-1", "fileserver-1", "seed-1", "datastore-1"] {
        assert_eq!(cluster.json(&["drain", node])[0]["ok"], true, "{node}");
    }
    assert_eq!(cluster.ended(), Some(0));
}

#[test]
fn without_a_seed_the_status_shows_what_runs_here_and_why_it_shows_no_more() {
    let cluster = start();
    let live = cluster.node("live-1")["pid"].as_u64().unwrap() as u32;
    assert_eq!(cluster.json(&["drain", "seed-1"])[0]["ok"], true);
    signal(live, Signal::STOP);
    let output = cluster.run(&["status"]);
    let (shown, told) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.starts_with("protoplex: no seed answers at 127.0.0.1:"), "{told}");
    let states: Vec<_> =
        shown.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>()).collect();
    for row in
        [["proxy-1", "RUNNING"], ["proxy-1:1", "RUNNING"], ["datastore-1", "RUNNING"], ["live-1", "SILENT"]]
    {
        assert!(states.contains(&row.to_vec()), "{row:?} in {shown}");
    }
    signal(live, Signal::CONT);
    let output = cluster.run(&["--json", "status"]);
    assert_eq!(output.status.code(), Some(3));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(status["seed_error"].as_str().unwrap().starts_with("no seed answers"), "{status}");
    let nodes: Vec<_> = status["nodes"].as_array().unwrap().iter().map(|node| &node["node"]).collect();
    assert_eq!(nodes, ["datastore-1", "fileserver-1", "live-1", "proxy-1"]);
    let proxy = &status["nodes"][3];
    assert_eq!(
        proxy["listens"][0],
        format!("http {}", cluster.http().replace("http://localhost", "127.0.0.1"))
    );
    assert!(proxy["children"][1]["open_files"].as_u64() > Some(3), "{proxy}");
}

#[test]
fn the_status_follows_a_node_to_its_new_addresses() {
    let cluster = start();
    let ports = [Port::take(), Port::take()];
    let config = cluster.folder().join("protoplex.toml");
    let listen = |port: &Port| {
        let text = format!("[proxy]\nhttp = [\"{}\"]\nhttps = []\nchildren = 1\n", port.address());
        std::fs::write(&config, text).unwrap();
    };
    listen(&ports[0]);
    let seed = cluster.node("seed-1")["listens"][0].as_str().unwrap().replace("grpc ", "");
    let more = ["proxy", "--node", "proxy-2", "--seed", &seed, "--set", "meta.proxy=127.0.0.1:0"];
    let process = Ended(cluster.command(&more).spawn().unwrap());
    let listens = || cluster.node("proxy-2")["listens"].clone();
    let is = |port: &Port| (listens() == json!([format!("http {}", port.address())])).then_some(());
    until("the seed knows where it listens", || is(&ports[0]));
    listen(&ports[1]);
    assert_eq!(cluster.json(&["restart", "--reload", "proxy-2"])[0]["changed"], true);
    until("the seed knows where it listens now", || is(&ports[1]));
    assert_eq!(cluster.node("proxy-2")["pid"], process.0.id());
}

/// A node beside those of a cluster, which is told to end when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        signal(self.0.id(), Signal::TERM);
        self.0.wait().expect("it is our child");
    }
}

/// A certificate of this name, in place of the one that is there.
fn renew(folder: &Path, name: &str) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args(["-keyout", "key.pem", "-out", "certificate.pem", "-subj"])
        .arg(format!("/CN={name}"))
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Whose certificate a new client is shown.
fn shown(cluster: &Cluster) -> String {
    let output =
        Command::new("curl").args(["-skv", "-o", "/dev/null", cluster.https()]).output().unwrap().stderr;
    let text = String::from_utf8_lossy(&output).into_owned();
    let subject = text.lines().find_map(|line| line.split_once("subject: CN"));
    subject.map_or(text.clone(), |(_, name)| name.trim_matches([' ', '=']).to_owned())
}

#[test]
fn a_certificate_that_was_renewed_in_place_is_taken_over_by_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    renew(folder.path(), "old");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let cluster = plan()
        .set(&format!("proxy.tls_certificate={}", file("certificate.pem")))
        .set(&format!("proxy.tls_key={}", file("key.pem")))
        .start();
    assert_eq!(shown(&cluster), "old");
    let before = pids(&cluster, "proxy-1");
    renew(folder.path(), "new");
    assert_eq!(cluster.json(&["restart", "--reload", "proxy-1"])[0]["changed"], true);
    until("the new one is shown", || (shown(&cluster) == "new").then_some(()));
    assert_eq!(pids(&cluster, "proxy-1"), before);
    // One that doesn't fit its key is refused, and the good one goes on.
    std::fs::write(file("certificate.pem"), "rubbish").unwrap();
    let output = cluster.run(&["restart", "--reload", "proxy-1"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && said.contains("proxy.tls_certificate: "), "{said}");
    assert_eq!(shown(&cluster), "new");
}

#[test]
fn row_a_bad_configuration_is_refused_with_its_line_and_the_old_one_goes_on() {
    let cluster = start();
    let pid = cluster.node("proxy-1")["pid"].as_u64().unwrap() as u32;
    std::fs::write(
        cluster.folder().join("protoplex.toml"),
        "[proxy]\ntunnel_idle_timeout_ms = 5\nchildrn = 3\n",
    )
    .unwrap();
    let output = cluster.run(&["restart", "--reload", "proxy-1"]);
    assert_eq!(output.status.code(), Some(2), "the command reads that file, too");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("protoplex.toml:3: unknown key \"childrn\""), "{said}");
    signal(pid, Signal::HUP);
    until("the node says why", || cluster.logs().contains("protoplex.toml:3: unknown key").then_some(()));
    assert_eq!(get(cluster.http(), &[]).status, 200);
}

#[test]
fn row_a_child_or_node_that_does_not_exist_is_named_and_nothing_else_happens() {
    let cluster = start();
    let output = cluster.run(&["restart", "proxy-2"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(
            "there is no node \"proxy-2\"; there are datastore-1, fileserver-1, live-1, proxy-1, seed-1"
        ),
        "{said}"
    );
    let output = cluster.run(&["stop", "proxy-1:7"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "proxy-1:7: FAILED: there is no child 7: the node has children 0 to 1\n"
    );
    let output = cluster.run(&["restart", "seed-1"]);
    assert_eq!(output.status.code(), Some(1), "one process has no children to replace");
}

#[test]
fn a_drained_node_ends_and_is_not_started_again() {
    let mut cluster = start();
    let pid = cluster.node("live-1")["pid"].as_u64().unwrap();
    assert_eq!(cluster.json(&["drain", "live-1"])[0]["ok"], true);
    until("it has ended", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    // Everybody else goes on, and `up` ends in good order.
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    assert_eq!(cluster.stop(), Some(0));
}

/// A cluster that is started by a link, which may lead to another program later.
fn start_by_link(folder: &Path) -> (Cluster, PathBuf) {
    let link = folder.join("protoplex");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_protoplex"), &link).unwrap();
    (Plan::new(link.to_str().unwrap()).start(), link)
}

#[test]
fn an_upgrade_costs_no_request_and_leaves_every_node_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, _) = start_by_link(folder.path());
    let nodes = ["datastore-1", "fileserver-1", "live-1", "proxy-1", "seed-1"];
    let before = nodes.map(|node| (cluster.node(node)["pid"].clone(), pids(&cluster, node)));
    let version = env!("CARGO_PKG_VERSION");
    let row =
        |target: &str| json!({"target": target, "ok": true, "changed": true, "from": version, "to": version});
    under_load(&cluster, || assert_eq!(cluster.json(&["upgrade"]), json!(nodes.map(row))));
    for (node, (pid, children)) in nodes.iter().zip(&before) {
        assert_eq!(cluster.node(node)["pid"], *pid, "of {node}");
        assert!(pids(&cluster, node).iter().all(|child| !children.contains(child)), "of {node}");
    }
    assert!(!cluster.logs().contains("\"message\":\"died\""), "nobody had to be started again");
    let output = cluster.run(&["upgrade", "proxy-1:0"]);
    assert_eq!(output.status.code(), Some(2), "it has no program of its own");
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn row_a_program_that_crashes_at_start_is_refused_and_the_nodes_behind_it_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, link) = start_by_link(folder.path());
    let before = pids(&cluster, "fileserver-1");
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, "#!/bin/sh\nkill -SEGV $$\n").unwrap();
    std::fs::set_permissions(&link, std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_protoplex"));
        command.arg("--data").arg(cluster.data()).args(["upgrade", "fileserver-1", "proxy-1"]);
        command.output().unwrap()
    };
    let output = command();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        said,
        format!(
            "fileserver-1: FAILED: {}: it can't go on with the node: it ended with signal: 11 (SIGSEGV), without a word\n\
             proxy-1: left as it is\n",
            link.display()
        )
    );
    let status = Command::new(env!("CARGO_BIN_EXE_protoplex"))
        .arg("--data")
        .arg(cluster.data())
        .args(["--json", "status"])
        .output()
        .unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let fileserver =
        status["nodes"].as_array().unwrap().iter().find(|node| node["node"] == "fileserver-1").unwrap();
    let children = fileserver["children"].as_array().unwrap();
    assert_eq!(children.iter().map(|child| child["pid"].clone()).collect::<Vec<_>>(), before);
    assert_eq!(get(cluster.http(), &[]).status, 200);
}
