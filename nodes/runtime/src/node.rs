//! A node as one thing, whatever its processes: its state for the seed, its status page, its metrics.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use protoplex_wire::proto::{ChildState, NodeState};
use serde::Serialize;
use tokio::sync::watch;

use crate::control::Report;
use crate::exposition::{Exposition, Family, Kind};
use crate::running::{Address, Running};
use crate::supervisor::{Process, State, Status};
use crate::{procfs, telemetry};

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    about: Running,
    started: Instant,
    body: Body,
    draining: watch::Sender<bool>,
}

/// Who does the node's work.
#[derive(Debug)]
pub(crate) enum Body {
    Children(Vec<Process>),
    /// This process itself, and what it says of itself.
    Solo(watch::Receiver<Report>),
}

/// The JSON of `/status`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusPage<'a> {
    node: &'a str,
    kind: &'a str,
    version: &'a str,
    pid: u32,
    uptime_ms: u64,
    ready: bool,
    draining: bool,
    /// A child is not started again any more.
    degraded: bool,
    addresses: &'a [Address],
    /// Only of a node of a single process.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    details: BTreeMap<String, serde_json::Value>,
    children: Vec<ChildStatus>,
}

#[derive(Debug, Serialize)]
struct ChildStatus {
    index: u32,
    state: State,
    pid: Option<u32>,
    uptime_ms: u64,
    restarts: u32,
    ready: bool,
    details: BTreeMap<String, serde_json::Value>,
}

impl Node {
    pub(crate) fn new(about: Running, started: Instant, body: Body) -> Self {
        Self { about, started, body, draining: watch::Sender::new(false) }
    }

    pub(crate) fn children(&self) -> &[Process] {
        match &self.body {
            Body::Children(children) => children,
            Body::Solo(_) => &[],
        }
    }

    /// From here on the node is not ready.
    pub(crate) fn start_draining(&self) {
        self.draining.send_replace(true);
    }

    /// Whether traffic should come: the children have been ready once, or are given up, and one of them is ready now.
    /// One that dies is replaced within an instant and is no reason to send everybody away.
    pub(crate) fn is_ready(&self) -> bool {
        !*self.draining.borrow()
            && match &self.body {
                Body::Solo(report) => report.borrow().takes_traffic(),
                Body::Children(_) => {
                    let statuses = self.statuses();
                    let settled = |status: &Status| status.restarts > 0 || status.state != State::Starting;
                    statuses.iter().all(settled) && statuses.iter().any(|status| status.ready)
                }
            }
    }

    fn statuses(&self) -> Vec<Status> {
        self.children().iter().map(|child| child.status().borrow().clone()).collect()
    }

    /// As the seed is told it.
    pub(crate) fn state(&self) -> NodeState {
        let child = |(index, status): (usize, Status)| ChildState {
            index: index as u32,
            state: status.state.to_string(),
            pid: status.pid.unwrap_or_default(),
            started_at_ms: started_at_ms(&status),
            restarts: status.restarts,
        };
        NodeState {
            ready: self.is_ready(),
            draining: *self.draining.borrow(),
            children: self.statuses().into_iter().enumerate().map(child).collect(),
            load: procfs::load_average(),
        }
    }

    /// As operators see it.
    pub(crate) fn page(&self) -> StatusPage<'_> {
        let child = |(index, status): (usize, Status)| ChildStatus {
            index: index as u32,
            state: status.state,
            pid: status.pid,
            uptime_ms: uptime_ms(&status),
            restarts: status.restarts,
            ready: status.ready,
            details: status.details,
        };
        let statuses = self.statuses();
        StatusPage {
            node: &self.about.node,
            kind: &self.about.kind,
            version: &self.about.version,
            pid: self.about.pid,
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ready: self.is_ready(),
            draining: *self.draining.borrow(),
            degraded: statuses.iter().any(|status| status.state == State::Fatal),
            addresses: &self.about.addresses,
            details: match &self.body {
                Body::Solo(report) => report.borrow().details.clone(),
                Body::Children(_) => BTreeMap::new(),
            },
            children: statuses.into_iter().enumerate().map(child).collect(),
        }
    }

    /// Returns at the next change of anything that [`Node::state`] tells of. Cancel-safe.
    pub(crate) async fn changed(&self, seen: &mut Seen) {
        let Seen { draining, children, report } = seen;
        let children = children.iter_mut().map(|status| Box::pin(status.changed()));
        let report = async {
            match report {
                Some(report) => report.changed().await,
                None => std::future::pending().await,
            }
        };
        let any_child = async {
            match children.len() {
                0 => std::future::pending().await,
                _ => futures_util::future::select_all(children).await.0,
            }
        };
        // Errors mean that whoever would change it has ended; then the node is about to end too.
        tokio::select! {
            Ok(()) = draining.changed() => {}
            Ok(()) = report => {}
            Ok(()) = any_child => {}
            else => std::future::pending().await,
        }
    }

    /// For [`Node::changed`]: what happens from here on is new.
    pub(crate) fn seen(&self) -> Seen {
        let report = match &self.body {
            Body::Solo(report) => Some(report.clone()),
            Body::Children(_) => None,
        };
        let children = self.children().iter().map(Process::status).collect();
        Seen { draining: self.draining.subscribe(), children, report }
    }

    /// The text of `/metrics`: what every process recorded, and what the kernel says of it.
    pub(crate) async fn metrics(&self) -> String {
        let mut exposition = Exposition::default();
        exposition.add(telemetry::gather(), None);
        exposition.add(process_families(std::process::id()), None);
        let mut ready = Family::new("protoplex_node_ready", Kind::Gauge, "Whether the node takes traffic.");
        ready.push("", String::new(), u8::from(self.is_ready()));
        exposition.add(vec![ready], None);
        let answers = futures_util::future::join_all(self.children().iter().map(Process::metrics)).await;
        for (index, (answer, status)) in answers.into_iter().zip(self.statuses()).enumerate() {
            let child = Some(index as u32);
            exposition.add(answer, child);
            exposition.add(status.pid.map(process_families).unwrap_or_default(), child);
            exposition.add(life_families(&status), child);
        }
        exposition.render()
    }
}

/// How far a watcher of a [`Node`] has looked.
#[derive(Debug)]
pub(crate) struct Seen {
    draining: watch::Receiver<bool>,
    children: Vec<watch::Receiver<Status>>,
    report: Option<watch::Receiver<Report>>,
}

fn uptime_ms(status: &Status) -> u64 {
    status.started.map(|started| started.elapsed().as_millis() as u64).unwrap_or_default()
}

fn started_at_ms(status: &Status) -> i64 {
    let started = status.started.and_then(|started| SystemTime::now().checked_sub(started.elapsed()));
    started.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_millis() as i64)
}

fn process_families(pid: u32) -> Vec<Family> {
    let Some(usage) = procfs::usage(pid) else {
        return Vec::new();
    };
    let memory =
        ("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", usage.resident_bytes.to_string());
    let files = ("process_open_fds", Kind::Gauge, "Open file descriptors.", usage.open_files.to_string());
    let cpu =
        ("process_cpu_seconds_total", Kind::Counter, "Processor time used.", usage.cpu_seconds.to_string());
    families([memory, files, cpu])
}

fn life_families(status: &Status) -> Vec<Family> {
    let restarts = (
        "protoplex_child_restarts_total",
        Kind::Counter,
        "Times a child was started again.",
        status.restarts.to_string(),
    );
    let ready = (
        "protoplex_child_ready",
        Kind::Gauge,
        "Whether a child can serve.",
        u8::from(status.ready).to_string(),
    );
    families([restarts, ready])
}

fn families<const N: usize>(numbers: [(&str, Kind, &str, String); N]) -> Vec<Family> {
    let family = |(name, kind, help, value): (&str, Kind, &str, String)| {
        let mut family = Family::new(name, kind, help);
        family.push("", String::new(), value);
        family
    };
    numbers.into_iter().map(family).collect()
}
