//! A cluster that root starts, and that works as somebody else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use protoplex_testkit::cluster::Plan;
use protoplex_testkit::until;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{get, put};

const NOBODY: &str = "nobody";
const NOBODY_ID: u32 = 65534;

/// Who a process is: real, effective, saved.
fn ids(pid: u64) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    ids.split_whitespace().take(3).map(str::to_owned).collect()
}

fn belongs_to_nobody(path: &Path) {
    let about = fs::symlink_metadata(path).unwrap();
    assert_eq!(about.uid(), NOBODY_ID, "{}", path.display());
    if about.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| belongs_to_nobody(&entry.unwrap().path()));
    }
}

/// A folder that everybody may look into.
fn open_folder() -> TempDir {
    let open = Permissions::from_mode(0o755);
    tempfile::Builder::new().permissions(open).tempdir().unwrap()
}

/// A cluster of a copy of the binary that everybody may execute: this repository may be in a folder of root's alone.
fn open_plan(folder: &TempDir) -> Plan {
    let binary = folder.path().join("protoplex");
    fs::copy(env!("CARGO_BIN_EXE_protoplex"), &binary).unwrap();
    Plan::new(binary.to_str().unwrap())
}

#[test]
fn a_cluster_that_root_starts_works_as_its_user() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become somebody else");
        return;
    }
    let folder = open_folder();
    let mut cluster = open_plan(&folder).set(&format!("user={NOBODY}")).start();
    assert_eq!(put(&cluster, "/files/x", b"x", &[]).status, 201);
    assert_eq!(get(&format!("{}/files/x", cluster.http()), &[]).body, b"x");
    for node in ["seed-1", "datastore-1", "proxy-1", "fileserver-1", "live-1"] {
        let node = cluster.node(node);
        let children = node["children"].as_array().unwrap().clone();
        for process in [node].iter().chain(&children) {
            let nobody = NOBODY_ID.to_string();
            assert!(ids(process["pid"].as_u64().unwrap()).iter().all(|id| *id == nobody), "{process}");
        }
    }
    belongs_to_nobody(&cluster.data());
    assert!(cluster.json(&["restart", "--reload"]).as_array().unwrap().iter().all(|row| row["ok"] == true));
    assert_eq!(cluster.stop(), Some(0));
    // What is there is found again.
    cluster.start();
    assert_eq!(get(&format!("{}/files/x", cluster.http()), &[]).body, b"x");
}

/// What `up` starts has root for its real user until it gives that up.
#[test]
fn a_node_that_is_started_again_without_a_user_can_not_become_root() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become somebody else");
        return;
    }
    let folder = open_folder();
    let cluster = open_plan(&folder).file(&format!("user = \"{NOBODY}\"\n")).start();
    let before = cluster.node("proxy-1")["pid"].as_u64().unwrap();
    fs::write(cluster.folder().join("protoplex.toml"), "").unwrap();
    let pid = Pid::from_raw(before.try_into().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let node = until("it is started again", || {
        let node = cluster.node("proxy-1");
        let ready = node["children"][0]["state"] == "RUNNING" && node["pid"] != before;
        ready.then_some(node)
    });
    for process in [&node, &node["children"][0]] {
        let nobody = NOBODY_ID.to_string();
        assert!(ids(process["pid"].as_u64().unwrap()).iter().all(|id| *id == nobody), "{process}");
    }
}
