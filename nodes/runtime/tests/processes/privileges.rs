//! Nodes that are started as root and work as somebody else.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Signal, geteuid};
use serde_json::json;
use tempfile::TempDir;

use super::rig::{Arguments, Client, FIXTURE, Node, until};

/// Of every Linux.
const NOBODY: &str = "nobody";
const NOBODY_ID: u32 = 65534;

/// Whether this process may become somebody else. Where not, the test says that it shows nothing.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        println!("SKIPPED: only root can become somebody else");
    }
    is_root
}

/// A folder that everybody may look into, but only its owner may write to.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn arguments(folder: &TempDir) -> Arguments {
    let data = folder.path().join("data");
    let log = Some(data.join("node.log"));
    Arguments { children: 1, user: Some(NOBODY), data: Some(data), log, ..Arguments::default() }
}

/// A free one below 1024; none where anybody may bind those.
fn privileged_port() -> Option<SocketAddr> {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim() != "1024" {
        println!("SKIPPED in part: here ports below 1024 are for everybody");
        return None;
    }
    let mut ports = (600..1024).rev().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    ports.find(|address| TcpListener::bind(address).is_ok())
}

fn owners(folder: &Path) -> Vec<(String, u32)> {
    let mut found = vec![(folder.display().to_string(), fs::metadata(folder).unwrap().uid())];
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(owners(&entry.path())),
            false => found.push((entry.path().display().to_string(), entry.metadata().unwrap().uid())),
        }
    }
    found
}

#[test]
fn a_node_that_is_started_as_root_binds_as_root_and_does_all_else_as_its_user() {
    if !is_root() {
        return;
    }
    let folder = open_folder();
    let low = privileged_port();
    let arguments = Arguments {
        listen: low.map_or("127.0.0.1:0".to_owned(), |low| low.to_string()),
        ..arguments(&folder)
    };
    // The user may execute its program.
    let mut node = Node::start_own(&arguments);
    let (_, child) = Client::connect(node.http()).ask("who").unwrap();
    for pid in [node.pid(), child] {
        assert_eq!(Node::of_process(pid, "Uid:"), format!("{NOBODY_ID} {NOBODY_ID} {NOBODY_ID} {NOBODY_ID}"));
        assert_eq!(Node::of_process(pid, "Gid:"), format!("{NOBODY_ID} {NOBODY_ID} {NOBODY_ID} {NOBODY_ID}"));
        assert_eq!(Node::of_process(pid, "Groups:"), NOBODY_ID.to_string());
        assert_eq!(Node::of_process(pid, "CapPrm:"), "0".repeat(16));
    }
    let theirs: Vec<_> = owners(&node.data()).into_iter().filter(|(_, uid)| *uid != NOBODY_ID).collect();
    assert!(theirs.is_empty(), "{theirs:?}");
    // It still can replace its children, and says what to do about a port that it can't have any more.
    assert_eq!(node.command("restart", json!({})).0, 200);
    // So it can its program.
    let replaced = node.child(0).pid;
    assert_eq!(node.command("upgrade", json!({})).0, 200);
    until("it is the program of another process image", || {
        let done = node.request("GET", "/status").is_ok() && node.status()["upgrade"]["progress"] == "done";
        done && node.child(0).pid != replaced
    });
    let uids = Node::of_process(node.child(0).pid.unwrap(), "Uid:");
    assert_eq!(uids, format!("{NOBODY_ID} {NOBODY_ID} {NOBODY_ID} {NOBODY_ID}"));
    if let (Some(_), Some(another)) = (low, privileged_port()) {
        node.rewrite(&Arguments { listen: another.to_string(), ..arguments.clone() });
        let (status, problem) = node.command("reload", json!({}));
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 409 && detail.contains("CAP_NET_BIND_SERVICE"), "{problem}");
        Client::connect(node.http()).ask("who").unwrap();
    }
    node.rewrite(&Arguments { user: None, ..arguments.clone() });
    assert!(
        node.command("reload", json!({})).1["detail"]
            .as_str()
            .unwrap()
            .starts_with("user or group can't change")
    );
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
    // What there is of it is its own at the next start, too.
    Node::start(&arguments);
}

#[test]
fn a_link_in_the_data_directory_leads_root_nowhere() {
    if !is_root() {
        return;
    }
    let folder = open_folder();
    let arguments = arguments(&folder);
    drop(Node::start(&arguments));
    let precious = folder.path().join("precious");
    fs::write(&precious, "of root alone").unwrap();
    let data = arguments.data.clone().unwrap();
    for name in ["run/fixture-1.lock", "run/fixture-1.instance", "run/fixture-1.json.new", "node.log"] {
        let planted = data.join(name);
        // There is none of those with an end in `new`.
        let _ = fs::remove_file(&planted);
        symlink(&precious, &planted).unwrap();
        let (code, told) = Node::refused(&arguments);
        assert!(code == Some(2) && told.contains("Permission denied"), "{name}: {told}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "of root alone", "{name}");
        assert_eq!(fs::metadata(&precious).unwrap().uid(), 0, "{name}");
        fs::remove_file(&planted).unwrap();
    }
}

#[test]
fn a_link_on_the_way_to_the_data_directory_leads_root_nowhere() {
    if !is_root() {
        return;
    }
    let folder = open_folder();
    let (theirs, roots) = (folder.path().join("theirs"), folder.path().join("roots"));
    fs::create_dir(&theirs).unwrap();
    fs::create_dir(&roots).unwrap();
    chown(&theirs, Some(NOBODY_ID), None).unwrap();
    symlink(&roots, theirs.join("link")).unwrap();
    lchown(theirs.join("link"), Some(NOBODY_ID), None).unwrap();
    let data = Some(theirs.join("link/data"));
    let (code, told) = Node::refused(&Arguments { data, log: None, ..arguments(&folder) });
    assert!(code == Some(2) && told.contains("since others may change"), "{told}");
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 0);
    // Nor by a link of root's own that leads through it.
    symlink(theirs.join("link"), folder.path().join("by")).unwrap();
    let data = Some(folder.path().join("by/data"));
    let (code, told) = Node::refused(&Arguments { data, log: None, ..arguments(&folder) });
    assert!(code == Some(2) && told.contains("since others may change"), "{told}");
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 0);
    // A link of root's own leads where root wants it.
    symlink(&roots, folder.path().join("ours")).unwrap();
    let data = Some(folder.path().join("ours/data"));
    drop(Node::start(&Arguments { data, log: None, ..arguments(&folder) }));
    assert_eq!(fs::metadata(roots.join("data")).unwrap().uid(), NOBODY_ID);
}

#[test]
fn row_a_user_that_can_not_be_had_is_refused_before_anything_is_made() {
    let folder = open_folder();
    let unknown = Arguments { user: Some("nobody-of-this-name"), ..arguments(&folder) };
    let told = (Some(2), "there is no user \"nobody-of-this-name\" on this machine\n".to_owned());
    assert_eq!(Node::refused(&unknown), told);
    assert!(!folder.path().join("data").exists());
    if !is_root() {
        return;
    }
    // Somebody who isn't root, and isn't that user either.
    let as_somebody = |uid: u32, user| {
        let folder = open_folder();
        chown(folder.path(), Some(uid), Some(uid)).unwrap();
        let file = folder.path().join("fixture.json");
        Arguments { user: Some(user), ..arguments(&folder) }.write(&file, &folder.path().join("data"));
        // Where others may execute it, wherever this repository is.
        let program = folder.path().join("fixture");
        fs::copy(FIXTURE, &program).unwrap();
        let mut command = Command::new(program);
        command.arg(&file).uid(uid).gid(uid).stdin(Stdio::null()).stderr(Stdio::piped());
        (command.spawn().unwrap(), folder)
    };
    let (process, _folder) = as_somebody(54321, NOBODY);
    let output = process.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("only root can become somebody else (this is uid 54321)"), "{told}");
    // Who is that user already needs no root.
    let (mut process, folder) = as_somebody(NOBODY_ID, NOBODY);
    until("it is announced", || folder.path().join("data/run/fixture-1.json").exists());
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn who_works_as_root_for_want_of_a_user_says_so_in_the_log() {
    if !is_root() {
        return;
    }
    let folder = open_folder();
    let arguments = Arguments { user: None, ..arguments(&folder) };
    let node = Node::start(&arguments);
    let log = fs::read_to_string(arguments.log.unwrap()).unwrap();
    assert!(log.contains("\"level\":\"WARN\"") && log.contains("this node works as root"), "{log}");
    assert_eq!(Node::of_process(node.pid(), "Uid:"), "0 0 0 0");
}

/// What another user of this machine gets.
fn asked_by_nobody(node: &Node, path: &str, more: &[&str]) -> String {
    let url = format!("http://{}{path}", node.meta());
    let mut curl = Command::new("curl");
    curl.args(["-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", &url]).args(more);
    String::from_utf8(curl.uid(NOBODY_ID).gid(NOBODY_ID).output().unwrap().stdout).unwrap()
}

#[test]
fn another_user_of_the_machine_may_look_and_not_command() {
    if !is_root() {
        return;
    }
    let node = Node::start(&Arguments::default());
    let order = ["-X", "POST", "-H", "Protoplex-Operator: nobody"];
    let token = [&order[..], &["-H", "Authorization: Bearer do-as-i-say"]].concat();
    let before = node.child(0).pid;
    for (path, more, status) in [
        ("/readyz", &[][..], "200"),
        ("/status", &[], "200"),
        ("/metrics", &[], "200"),
        ("/rpc/ping", &["-d", "{}"], "200"),
        ("/config", &[], "403"),
        ("/logs", &[], "403"),
        ("/rpc/config", &["-d", "{}"], "403"),
        ("/rpc/restart", &order, "403"),
    ] {
        assert_eq!(asked_by_nobody(&node, path, more), status, "{path}");
    }
    assert_eq!(node.child(0).pid, before);
    assert_eq!(asked_by_nobody(&node, "/rpc/restart", &token), "200");
    assert_ne!(node.child(0).pid, before);
}

#[test]
fn whose_node_it_is_may_command_it() {
    if !is_root() {
        return;
    }
    let folder = open_folder();
    let node = Node::start_own(&arguments(&folder));
    let order = ["-X", "POST", "-H", "Protoplex-Operator: nobody"];
    assert_eq!(asked_by_nobody(&node, "/rpc/restart", &order), "200");
}
