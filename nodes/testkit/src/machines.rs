//! A cluster on several machines: three with a seed and a datastore each, on one PostgreSQL, with events
//! on one NATS, and one that serves the public.
//!
//! Each machine is a data directory of its own with a copy of the cluster's identity, and each node a real process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::signal;
use crate::curl::curl;
use crate::nats;
use crate::ports::Port;
use crate::postgres::Server;
use crate::until;

/// Machines with a seed and a datastore.
pub const SEEDS: usize = 3;
/// The machine with the nodes that serve the public.
const EDGE: &str = "edge";

/// The cluster; its processes are killed, and its data is removed, when this is dropped.
#[derive(Debug)]
pub struct Machines {
    binary: PathBuf,
    folder: TempDir,
    /// Gone after the nodes that use it.
    nodes: BTreeMap<String, Node>,
    ports: BTreeMap<String, Port>,
    url: String,
    /// The database of all of them.
    pub server: Server,
    /// What carries their events.
    pub nats: nats::Server,
}

#[derive(Debug)]
struct Node {
    process: Child,
    arguments: Vec<String>,
}

impl Machines {
    /// Starts all of it: seed-1 leads, the others have joined it, and the proxy has a routing table.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub fn start(binary: &str) -> Self {
        let server = Server::start();
        let url = server.database();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut machines = Self {
            binary: binary.into(),
            folder,
            nodes: BTreeMap::new(),
            ports: BTreeMap::new(),
            url,
            server,
            nats: nats::Server::start(),
        };
        for index in 1..=SEEDS {
            machines.start_machine(index);
        }
        machines.add(EDGE, "live", "live-1", &["--set", "live.children=2"]);
        let http = format!("proxy.http=[\"{}\"]", machines.port("http"));
        machines.add(
            EDGE,
            "proxy",
            "proxy-1",
            &["--children", "2", "--set", &http, "--set", "proxy.https=[]"],
        );
        machines.add(
            EDGE,
            "fileserver",
            "fileserver-1",
            &[
                "--children",
                "1",
                "--set",
                "fileserver.http=[\"127.0.0.1:0\"]",
                "--set",
                "fileserver.https=[]",
            ],
        );
        for node in ["live-1", "proxy-1", "fileserver-1"] {
            until(&format!("{node} has joined"), || {
                machines.status()["nodes"].as_array()?.iter().find(|it| it["node"] == node).cloned()
            });
        }
        machines
    }

    /// Starts the datastore and the seed of one of the machines, 1 to [`SEEDS`], and waits until it could lead, or does.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub fn start_machine(&mut self, index: usize) {
        self.start_datastore(index);
        self.start_seed(index);
    }

    /// The datastore alone.
    ///
    /// # Panics
    /// As [`Self::start_machine`].
    pub fn start_datastore(&mut self, index: usize) {
        let node = format!("datastore-{index}");
        let listen = format!("datastore.listen={}", self.port(&node));
        let url = format!("datastore.url={}", self.url);
        self.add(&format!("m{index}"), "datastore", &node, &["--set", &listen, "--set", &url]);
        self.ready(&node);
    }

    /// The seed alone.
    ///
    /// # Panics
    /// As [`Self::start_machine`].
    pub fn start_seed(&mut self, index: usize) {
        let node = format!("seed-{index}");
        let listen = format!("seed.listen={}", self.port(&node));
        // Its own comes first.
        let own = format!("datastore-{index}");
        let others = (1..=SEEDS).map(|it| format!("datastore-{it}")).filter(|it| *it != own);
        let all: Vec<_> = std::iter::once(own.clone()).chain(others).map(|it| self.port(&it)).collect();
        let datastore = format!("seed.datastore={}", all.join(","));
        let events = format!("events.nats={}", self.nats.url());
        let settings = ["--set", &listen, "--set", &datastore, "--set", &events];
        self.add(&format!("m{index}"), "seed", &node, &settings);
        self.ready(&node);
    }

    /// Where something listens, the same for as long as this lives.
    pub fn port(&mut self, name: &str) -> String {
        self.ports.entry(name.to_owned()).or_insert_with(Port::take).address()
    }

    /// Where the proxy serves the public.
    ///
    /// # Panics
    /// When it was never started.
    pub fn http(&self) -> String {
        self.ports["http"].address()
    }

    /// The folder with the cluster's identity, for what is no node.
    pub fn identity(&self) -> PathBuf {
        self.data(EDGE).join("cluster")
    }

    fn data(&self, machine: &str) -> PathBuf {
        self.folder.path().join(machine)
    }

    /// Where every seed is.
    fn seeds(&mut self) -> String {
        (1..=SEEDS).map(|index| self.port(&format!("seed-{index}"))).collect::<Vec<_>>().join(",")
    }

    fn add(&mut self, machine: &str, kind: &str, node: &str, more: &[&str]) {
        let meta = format!("meta.{kind}={}", self.port(&format!("meta of {node}")));
        let log = format!("log.file={}", self.folder.path().join(format!("{node}.log")).display());
        let data = self.data(machine);
        // As an operator does: the first machine makes the identity, the others get a copy of it.
        let identity = data.join("cluster");
        if machine != "m1" && !identity.exists() {
            copy(&self.data("m1").join("cluster"), &identity);
        }
        let seeds = self.seeds();
        let data = data.display().to_string();
        let own = ["--data", &data, "--seed", &seeds, kind, "--node", node, "--set", &meta, "--set", &log];
        let arguments: Vec<_> = own.iter().chain(more).map(|&argument| argument.to_owned()).collect();
        let process = self.spawn(node, &arguments);
        self.nodes.insert(node.to_owned(), Node { process, arguments });
    }

    fn spawn(&self, node: &str, arguments: &[String]) -> Child {
        let output =
            File::options().create(true).append(true).open(self.folder.path().join(format!("{node}.out")));
        let output = output.expect("a file for what it says");
        let both = (output.try_clone().expect("one more"), output);
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(both.0)
            .stderr(both.1);
        command.spawn().expect("the binary can be run")
    }

    /// Starts a node again that has ended.
    ///
    /// # Panics
    /// When it was never started.
    pub fn restart(&mut self, node: &str) {
        let arguments = self.nodes[node].arguments.clone();
        let process = self.spawn(node, &arguments);
        self.nodes.insert(node.to_owned(), Node { process, arguments });
    }

    /// Waits until a node is ready.
    ///
    /// # Panics
    /// When it isn't within half a minute.
    pub fn ready(&self, node: &str) {
        until(&format!("{node} is ready; {}", self.folder.path().display()), || {
            (self.meta(node, "readyz")?.0 == 200).then_some(())
        });
    }

    /// Status and text of a page of a node's meta port; nothing where it doesn't answer.
    ///
    /// # Panics
    /// When curl can't be run.
    pub fn meta(&self, node: &str, page: &str) -> Option<(u16, String)> {
        let port = self.ports.get(&format!("meta of {node}"))?;
        let answer = curl(["--max-time", "5", &format!("http://{}/{page}", port.address())]);
        (answer.status != 0).then(|| (answer.status, answer.text()))
    }

    /// Sends a signal to a node.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn signal(&self, node: &str, with: Signal) {
        signal(self.nodes[node].process.id(), with);
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn kill(&mut self, node: &str) {
        let process = &mut self.nodes.get_mut(node).expect("it was started").process;
        process.kill().expect("it runs");
        process.wait().expect("it is our child");
    }

    /// SIGTERM, and waits for the end. Its exit code.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn stop(&mut self, node: &str) -> Option<i32> {
        self.signal(node, Signal::TERM);
        let process = &mut self.nodes.get_mut(node).expect("it was started").process;
        until("it has ended", || process.try_wait().expect("it is our child")).code()
    }

    /// An operator's command, on the machine of the edge, which knows every seed.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        let seeds: Vec<_> = (1..=SEEDS).map(|index| self.ports[&format!("seed-{index}")].address()).collect();
        command.arg("--data").arg(self.data(EDGE)).args(["--seed", &seeds.join(",")]).args(arguments);
        command.current_dir(self.folder.path());
        command
    }

    /// Runs a command to its end.
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

    /// What `protoplex status` tells; null where no seed answers.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["--json", "status"]).stdout).unwrap_or_default()
    }

    /// The seed that leads, "seed-2".
    ///
    /// # Panics
    /// When none does within half a minute.
    pub fn leader(&self) -> String {
        until("a seed leads", || {
            let status = self.status();
            let leading = status["seeds"].as_array()?.iter().find(|seed| seed["leading"] == true)?.clone();
            Some(leading["node"].as_str()?.to_owned())
        })
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything that a node has logged.
    pub fn log(&self, node: &str) -> String {
        let read = |ending| {
            fs::read_to_string(self.folder.path().join(format!("{node}.{ending}"))).unwrap_or_default()
        };
        read("log") + &read("out")
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            // It may have ended by itself. Children of a node notice that their parent is gone.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for file in fs::read_dir(from).expect("the identity is there").flatten() {
        // With its mode.
        fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
    }
}
