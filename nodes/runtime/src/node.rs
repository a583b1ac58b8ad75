//! A node as one thing, whatever its processes: its state for the seed, its status page, its metrics.

mod measures;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use protoplex_wire::join::Standing;
use protoplex_wire::proto::{ChildState, NodeState};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use crate::children::Children;
use crate::commands::Reloader;
use crate::control::Report;
use crate::drain::{Drained, Trigger};
use crate::meta::{Access, PassingLevel};
use crate::running::{Address, META, Running};
use crate::seeds::{self, SeedPage};
use crate::solo::Solo;
use crate::supervisor::{State, Status};
use crate::upgrade::{ANSWER_TIME, Estate, UpgradeStatus, Upgrades};
use crate::{descriptors, mask, procfs, telemetry};

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    estate: Estate,
    about: watch::Sender<Running>,
    access: Access,
    seeds: Option<watch::Receiver<Standing>>,
    body: Body,
    draining: watch::Sender<bool>,
    /// All of its work has ended, and so will this process.
    finished: watch::Sender<bool>,
    /// Has the node drain.
    leave: Trigger,
    left_by_command: AtomicBool,
    was_ready: AtomicBool,
    reloader: Reloader,
    reload: Mutex<Option<ReloadStatus>>,
    passing_level: Mutex<Option<PassingLevel>>,
    upgrades: Upgrades,
}

/// Who does the node's work.
#[derive(Debug)]
pub(crate) enum Body {
    Children(Box<Children>),
    /// This process itself.
    Solo(Box<Solo>),
}

/// How the last reload went.
#[derive(Clone, Debug, Serialize)]
struct ReloadStatus {
    at_ms: u64,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The JSON of `/status`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusPage {
    node: String,
    kind: String,
    version: String,
    pid: u32,
    uptime_ms: u64,
    ready: bool,
    draining: bool,
    /// Why it isn't ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// A child is not started again any more.
    degraded: bool,
    addresses: Vec<Address>,
    /// How many files each process of the node may have open, and how many this one has.
    file_limit: u64,
    open_files: u64,
    /// What is logged: a level, and others for modules.
    log_level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reload: Option<ReloadStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upgrade: Option<UpgradeStatus>,
    /// Of this process: in a node with children only of its log.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    details: BTreeMap<String, serde_json::Value>,
    /// What became of the work of its children, each time that any of them was ended.
    #[serde(skip_serializing_if = "Drained::is_empty")]
    drained: Drained,
    /// Its parent's link to the seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<SeedPage>,
    children: Vec<ChildStatus>,
}

/// What the seed is told of why a node isn't ready, at most.
const MAX_REASON_CHARS: usize = 300;

#[derive(Debug, Serialize)]
struct ChildStatus {
    index: u32,
    state: State,
    pid: Option<u32>,
    uptime_ms: u64,
    restarts: u32,
    open_files: u64,
    ready: bool,
    details: BTreeMap<String, serde_json::Value>,
    /// What became of its work, likewise.
    #[serde(skip_serializing_if = "Drained::is_empty")]
    drained: Drained,
}

impl Node {
    pub(crate) fn new(
        estate: Estate,
        about: watch::Sender<Running>,
        access: Access,
        seeds: Option<watch::Receiver<Standing>>,
        body: Body,
        leave: Trigger,
        reloader: Reloader,
    ) -> Self {
        // The code of a node of a single process has to become ready again.
        let was_ready =
            estate.came.as_ref().is_some_and(|came| came.was_ready) && matches!(body, Body::Children(_));
        if let (Body::Children(children), Some(seeds)) = (&body, &seeds) {
            children.follow(seeds.clone());
        }
        Self {
            upgrades: Upgrades::new(estate.came.as_ref().map(|came| came.status.clone())),
            estate,
            about,
            access,
            seeds,
            body,
            draining: watch::Sender::new(false),
            finished: watch::Sender::new(false),
            leave,
            left_by_command: AtomicBool::new(false),
            was_ready: AtomicBool::new(was_ready),
            reloader,
            reload: Mutex::new(None),
            passing_level: Mutex::new(None),
        }
    }

    /// The log's level that is for a while only, where it has one.
    pub(crate) fn passing_level(&self) -> MutexGuard<'_, Option<PassingLevel>> {
        self.passing_level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    pub(crate) fn name(&self) -> String {
        self.about.borrow().node.clone()
    }

    pub(crate) fn estate(&self) -> &Estate {
        &self.estate
    }

    /// To its meta port.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn upgrades(&self) -> &Upgrades {
        &self.upgrades
    }

    /// As it is announced.
    pub(crate) fn running(&self) -> Running {
        self.about.borrow().clone()
    }

    fn last_reload(&self) -> MutexGuard<'_, Option<ReloadStatus>> {
        // No code panics while it holds this lock.
        self.reload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    pub(crate) fn note_reload(&self, error: Option<String>) {
        *self.last_reload() = Some(ReloadStatus { at_ms: unix_ms(), ok: error.is_none(), error });
    }

    /// Tells everyone where the node listens now, its meta port aside, which stays.
    pub(crate) fn announce(&self, addresses: Vec<Address>) {
        self.about.send_if_modified(|about| {
            let mut now = about.clone();
            now.children = self.child_count() as u32;
            now.addresses.retain(|address| address.name == META);
            now.addresses.extend(addresses);
            let changed = now != *about;
            *about = now;
            changed
        });
        if let Err(error) = self.estate.claim.announce(&self.about.borrow()) {
            error!(%error, "can't tell where the node listens");
        }
    }

    /// Drains by an operator's wish; whoever supervises the node should not start it again. Says whether it did not
    /// already.
    pub(crate) fn leave(&self) -> bool {
        let first = !self.left_by_command.swap(true, Ordering::Relaxed) && !self.is_draining();
        self.leave.pull();
        first
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Whether it drains, or is just about to.
    pub(crate) fn should_drain(&self) -> bool {
        self.leave.is_pulled() || self.is_draining()
    }

    /// As whoever supervises the node is told it.
    pub(crate) fn report(&self) -> Report {
        let leaves = self.left_by_command.load(Ordering::Relaxed);
        Report { ready: self.is_ready(), leaves, ..Report::default() }
    }

    /// From here on the node is not ready.
    pub(crate) fn start_draining(&self) {
        self.draining.send_replace(true);
    }

    /// Returns once it has drained.
    pub(crate) async fn finished(&self) {
        // An error can't be: the sender is ours.
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }

    /// All of its work has ended: whoever waits for that is told, and what became of it.
    pub(crate) async fn finish(&self) {
        let became = self.drained();
        let became = (!became.is_empty()).then(|| tracing::field::display(&became));
        info!(became, "drained");
        self.finished.send_replace(true);
        if self.finished.receiver_count() > 0 {
            sleep(ANSWER_TIME).await;
        }
    }

    /// What became of its children's work, each time that any of them was ended.
    pub(crate) fn drained(&self) -> Drained {
        match &self.body {
            Body::Children(children) => children.drained(),
            Body::Solo(_) => Drained::default(),
        }
    }

    /// Whether it has been ready, ever.
    pub(crate) fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// Whether traffic should come: the children have been ready once, or are given up, and one of them is ready now.
    /// One that dies is replaced within an instant and is no reason to send everybody away. A node that the seed has refused
    /// from its start on has no name to be reached by.
    pub(crate) fn is_ready(&self) -> bool {
        // Of one that goes on as another program the name was its own.
        let is_stranger = self.estate.came.is_none()
            && self.seeds.as_ref().is_some_and(|standing| standing.borrow().is_stranger());
        let ready = !*self.draining.borrow()
            && !is_stranger
            && match &self.body {
                Body::Solo(solo) => solo.report().borrow().takes_traffic(),
                Body::Children(children) => {
                    let statuses = children.statuses();
                    let settled = |status: &Status| status.restarts > 0 || status.state != State::Starting;
                    // Later, one that starts beside others is no reason to send everybody away.
                    let settled = self.was_ready() || statuses.iter().all(settled);
                    settled && statuses.iter().any(|status| status.ready)
                }
            };
        self.was_ready.fetch_or(ready, Ordering::Relaxed);
        ready
    }

    /// That no seed leads, in a line, where that is so.
    pub(crate) fn seedless(&self) -> Option<String> {
        seeds::in_words(&self.seeds.as_ref()?.borrow())
    }

    /// What keeps it from being ready, in a line, where its code says so.
    pub(crate) fn hindrance(&self) -> Option<String> {
        let Body::Solo(solo) = &self.body else { return None };
        Some(solo.report().borrow().hindrance.clone()).filter(|words| !words.is_empty())
    }

    /// Why it isn't ready, as far as that is known; empty where it is.
    fn reason(&self) -> String {
        if self.is_ready() {
            return String::new();
        }
        let words = self.hindrance().or_else(|| self.seedless()).unwrap_or_default();
        words.chars().map(|it| if it.is_control() { ' ' } else { it }).take(MAX_REASON_CHARS).collect()
    }

    fn statuses(&self) -> Vec<Status> {
        match &self.body {
            Body::Children(children) => children.statuses(),
            Body::Solo(_) => Vec::new(),
        }
    }

    /// How many children there are.
    pub(crate) fn child_count(&self) -> usize {
        self.statuses().len()
    }

    /// As the seed is told it.
    pub(crate) fn state(&self) -> NodeState {
        let child = |(index, status): (usize, Status)| ChildState {
            index: index as u32,
            state: status.state.to_string(),
            pid: status.pid.unwrap_or_default(),
            started_at_ms: started_at_ms(&status),
            restarts: status.restarts,
            open_files: status.pid.and_then(procfs::open_files).unwrap_or_default(),
        };
        NodeState {
            ready: self.is_ready(),
            draining: *self.draining.borrow(),
            children: self.statuses().into_iter().enumerate().map(child).collect(),
            load: procfs::load_average(),
            processors: std::thread::available_parallelism().map_or(0, |count| count.get() as u32),
            file_limit: descriptors::limit(),
            open_files: procfs::open_files(std::process::id()).unwrap_or_default(),
            reason: self.reason(),
        }
    }

    /// In one line, for whoever wants to know at a glance.
    pub(crate) fn in_words(&self) -> String {
        let statuses = self.statuses();
        let running = statuses.iter().filter(|status| status.ready).count();
        let state = match (self.is_draining(), self.is_ready()) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        if statuses.is_empty() {
            state.to_owned()
        } else {
            format!("{state}, {running} of {} children", statuses.len())
        }
    }

    /// What its processes are told to go by, without what is secret.
    pub(crate) fn configuration(&self) -> serde_json::Value {
        mask::masked(serde_json::json!(match &self.body {
            Body::Children(children) => children.configuration(),
            Body::Solo(solo) => solo.configuration(),
        }))
    }

    /// As operators see it.
    pub(crate) fn page(&self) -> StatusPage {
        let child = |(index, status): (usize, Status)| ChildStatus {
            index: index as u32,
            state: status.state,
            pid: status.pid,
            uptime_ms: uptime_ms(&status),
            restarts: status.restarts,
            open_files: status.pid.and_then(procfs::open_files).unwrap_or_default(),
            ready: status.ready,
            details: status.details,
            drained: status.drained,
        };
        let statuses = self.statuses();
        let about = self.running();
        StatusPage {
            node: about.node,
            kind: about.kind,
            version: about.version,
            pid: about.pid,
            uptime_ms: self.estate.started.elapsed().as_millis() as u64,
            ready: self.is_ready(),
            draining: *self.draining.borrow(),
            reason: self.reason(),
            degraded: statuses.iter().any(|status| status.state == State::Fatal),
            addresses: about.addresses,
            file_limit: descriptors::limit(),
            open_files: procfs::open_files(about.pid).unwrap_or_default(),
            log_level: telemetry::level(),
            reload: self.last_reload().clone(),
            upgrade: self.upgrades.last(),
            details: match &self.body {
                Body::Solo(solo) => solo.report().borrow().details.clone(),
                Body::Children(_) => telemetry::details(),
            },
            drained: self.drained(),
            seed: self.seeds.as_ref().map(|standing| SeedPage::new(&standing.borrow())),
            children: statuses.into_iter().enumerate().map(child).collect(),
        }
    }

    /// Returns at the next change of anything that [`Node::state`] tells of. Cancel-safe.
    pub(crate) async fn changed(&self, seen: &mut Seen) {
        let Seen { draining, children, report, seeds } = seen;
        // Errors mean that whoever would change it has ended; then the node is about to end too.
        tokio::select! {
            Ok(()) = draining.changed() => {}
            Ok(()) = change_of(children) => {}
            Ok(()) = change_of(report) => {}
            Ok(()) = change_of(seeds) => {}
            else => std::future::pending().await,
        }
    }

    /// For [`Node::changed`]: what happens from here on is new.
    pub(crate) fn seen(&self) -> Seen {
        let (children, report) = match &self.body {
            Body::Children(children) => (Some(children.stirred()), None),
            Body::Solo(solo) => (None, Some(solo.report())),
        };
        Seen { draining: self.draining.subscribe(), children, report, seeds: self.seeds.clone() }
    }
}

/// How far a watcher of a [`Node`] has looked.
#[derive(Debug)]
pub(crate) struct Seen {
    draining: watch::Receiver<bool>,
    children: Option<watch::Receiver<()>>,
    report: Option<watch::Receiver<Report>>,
    seeds: Option<watch::Receiver<Standing>>,
}

/// Returns at the next change, if there is anything to change.
async fn change_of<T>(watched: &mut Option<watch::Receiver<T>>) -> Result<(), watch::error::RecvError> {
    match watched {
        Some(watched) => watched.changed().await,
        None => std::future::pending().await,
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn uptime_ms(status: &Status) -> u64 {
    status.started.map(|started| started.elapsed().as_millis() as u64).unwrap_or_default()
}

fn started_at_ms(status: &Status) -> i64 {
    let started = status.started.and_then(|started| SystemTime::now().checked_sub(started.elapsed()));
    started.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_millis() as i64)
}
