//! A cluster of real processes, as `protoplex up` starts it.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::ports::Port;
use crate::until;

/// How a cluster is started.
#[derive(Debug)]
pub struct Plan {
    binary: PathBuf,
    settings: Vec<String>,
    file: Option<String>,
}

impl Plan {
    /// A cluster of this binary, with two children a node.
    pub fn new(binary: &str) -> Self {
        Self { binary: binary.into(), settings: Vec::new(), file: None }
    }

    /// Overrides a setting, `proxy.children=1`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// Has it start with a configuration file.
    #[must_use]
    pub fn file(mut self, text: &str) -> Self {
        self.file = Some(text.to_owned());
        self
    }

    /// Starts it in a new data directory, and returns when it tells that it is up.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn start(self) -> Cluster {
        // The nodes may be another user's.
        let open = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().permissions(open).tempdir().expect("a temporary folder");
        if let Some(text) = &self.file {
            std::fs::write(folder.path().join("protoplex.toml"), text).expect("a configuration file");
        }
        let ports = [Port::take(), Port::take(), Port::take(), Port::take()];
        let mut cluster = Cluster { plan: self, folder, ports, process: None, facts: Value::Null };
        cluster.start();
        cluster
    }
}

/// A running cluster; it is ended, and its data is removed, when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    folder: TempDir,
    /// Seed, datastore, HTTP, HTTPS: the same at each start, as an operator's are.
    ports: [Port; 4],
    process: Option<Child>,
    facts: Value,
}

impl Cluster {
    /// Starts it again after [`Self::stop`] or [`Self::kill`], on the same data and ports.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub fn start(&mut self) {
        let [seed, datastore, http, https] = &self.ports;
        let settings = [
            format!("seed.listen={}", seed.address()),
            format!("datastore.listen={}", datastore.address()),
            format!("proxy.http=[\"{}\"]", http.address()),
            format!("proxy.https=[\"{}\"]", https.address()),
            "fileserver.http=[\"127.0.0.1:0\"]".to_owned(),
            "fileserver.https=[]".to_owned(),
        ];
        let metas = ["seed", "datastore", "proxy", "fileserver", "live"]
            .map(|kind| format!("meta.{kind}=127.0.0.1:0"));
        let mut command = self.command(&["--json", "up"]);
        for setting in settings.iter().chain(&metas).chain(&self.plan.settings) {
            command.args(["--set", setting]);
        }
        let mut process = command.stdout(Stdio::piped()).spawn().expect("the binary can be run");
        let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        self.process = Some(process);
        self.facts =
            read_facts(stdout).unwrap_or_else(|| panic!("the cluster did not come up:\n{}", self.logs()));
    }

    /// A command of this cluster's operator.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.plan.binary);
        command.arg("--data").arg(self.data()).args(arguments).current_dir(self.folder.path());
        command
    }

    /// Runs a command of this cluster's operator to its end.
    ///
    /// # Panics
    /// When it can't be run.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary can be run")
    }

    /// As [`Self::run`] with `--json`, and its answer.
    ///
    /// # Panics
    /// When it fails, or its answer is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[&["--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// `http://localhost:PORT` of the proxy.
    ///
    /// # Panics
    /// When `up` told none.
    pub fn http(&self) -> &str {
        self.facts["http"].as_str().expect("up tells it")
    }

    /// `https://localhost:PORT` of the proxy.
    ///
    /// # Panics
    /// When `up` told none.
    pub fn https(&self) -> &str {
        self.facts["https"].as_str().expect("up tells it")
    }

    /// A token that uploads below `/files/`.
    ///
    /// # Panics
    /// When `up` told none.
    pub fn token(&self) -> &str {
        self.facts["token"].as_str().expect("up tells it")
    }

    /// What `up --json` told.
    pub fn facts(&self) -> &Value {
        &self.facts
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `protoplex status` tells of a node.
    ///
    /// # Panics
    /// When there is no such node within half a minute.
    pub fn node(&self, name: &str) -> Value {
        until(&format!("{name} in the status"), || {
            let output = self.run(&["--json", "status"]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            status["nodes"].as_array()?.iter().find(|node| node["node"] == name).cloned()
        })
    }

    /// The present pid of a node's child.
    ///
    /// # Panics
    /// When it doesn't run within half a minute.
    pub fn child_pid(&self, node: &str, child: usize) -> u64 {
        until(&format!("{node}:{child} runs"), || {
            let child = self.node(node)["children"][child].clone();
            (child["state"] == "RUNNING").then(|| child["pid"].as_u64()).flatten()
        })
    }

    /// Everything that its nodes have logged.
    pub fn logs(&self) -> String {
        let files = std::fs::read_dir(self.data().join("log")).into_iter().flatten().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect()
    }

    /// Of `up` itself.
    ///
    /// # Panics
    /// When it isn't running.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Waits until it ends by itself. Returns the exit code.
    ///
    /// # Panics
    /// When it isn't running, or goes on.
    pub fn ended(&mut self) -> Option<i32> {
        let process = self.process.as_mut().expect("it runs");
        let status = until("the cluster has ended", || process.try_wait().expect("it is our child"));
        self.process = None;
        status.code()
    }

    /// Ctrl-C, and waits for the end. Returns the exit code.
    ///
    /// # Panics
    /// When it isn't running.
    pub fn stop(&mut self) -> Option<i32> {
        self.end(Signal::INT)
    }

    /// SIGKILL to `up` itself; its nodes notice and end.
    ///
    /// # Panics
    /// When it isn't running.
    pub fn kill(&mut self) {
        let pids: Vec<_> =
            self.facts["nodes"].as_array().into_iter().flatten().map(|node| node["pid"].clone()).collect();
        self.end(Signal::KILL);
        for pid in pids.iter().filter_map(Value::as_u64) {
            until("a node has noticed that up is gone", || {
                (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
            });
        }
    }

    fn end(&mut self, with: Signal) -> Option<i32> {
        let mut process = self.process.take().expect("it runs");
        signal(process.id(), with);
        process.wait().expect("it is our child").code()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.stop();
        }
    }
}

/// Sends a signal to a process.
///
/// # Panics
/// When there is no such process.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("the process is there");
}

/// The one JSON object that `up --json` prints once it is up.
fn read_facts(stdout: impl BufRead) -> Option<Value> {
    let mut text = String::new();
    for line in stdout.lines() {
        text.push_str(&line.ok()?);
        text.push('\n');
        if let Ok(facts) = serde_json::from_str(&text) {
            return Some(facts);
        }
    }
    None
}
