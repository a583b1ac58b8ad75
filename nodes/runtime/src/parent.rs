//! A node's parent: takes its place and its sockets, then keeps its children alive until it has drained.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use protoplex_wire::proto::NodeState;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::Common;
use crate::control::{Hello, Report};
use crate::meta;
use crate::node::{Body, Node};
use crate::orders::Orders;
use crate::running::{self, Address, Claim, Instance, Running};
use crate::sockets;
use crate::start::{StartCause, StartError};
use crate::supervisor::{Policy, Process, Program};
use crate::telemetry;

/// Between a child's own end of its drain and being killed for not ending.
const STOP_MARGIN: Duration = Duration::from_secs(2);
/// How old load and uptimes may be that the seed is told.
const STATE_AGE: Duration = Duration::from_secs(5);

/// What a node is: a kind, its sockets and its children.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `proxy`.
    pub kind: &'static str,
    /// What every node is told.
    pub common: Common,
    /// How many; 0 for a node of a single process, see [`crate::solo`].
    pub children: u32,
    /// Public addresses by name ("http"; a name may have several): one `SO_REUSEPORT` socket each per child.
    /// Port 0 takes a free one, the same for all children.
    pub shared: Vec<(String, SocketAddr)>,
    /// Sockets of each child's own, by name, on a free port of this address.
    pub own: Vec<(String, IpAddr)>,
    /// What [`crate::context::Context::config`] gives the child; its own type, as JSON, at most 64 KiB.
    pub child_config: serde_json::Value,
}

/// Whether all of these nodes could start now. For whoever starts several and wants to tell everything that is wrong
/// with any of them before the first one runs. Takes nothing.
///
/// # Errors
/// Everything that stands in the way.
pub fn probe(specs: &[Spec]) -> Result<(), StartError> {
    let mut causes: Vec<_> =
        specs.iter().filter_map(|spec| running::probe(&spec.common.data, &spec.common.node)).collect();
    if causes.is_empty() {
        causes.extend(specs.iter().filter_map(Spec::exposure));
        causes.extend(sockets::probe(&specs.iter().flat_map(Spec::wanted).collect::<Vec<_>>(), false));
    }
    StartError::unless_empty(causes)
}

impl Spec {
    /// Takes the node's name in the data directory, its ports and its meta port, and opens its log.
    ///
    /// # Errors
    /// Everything that stands in the way. Nothing is kept then.
    pub fn bind(self) -> Result<Bound, StartError> {
        raise_file_limit();
        let common = &self.common;
        // Where the same node runs already, its own ports are no news.
        let claim = running::claim(&common.data, &common.node)?;
        let mut causes: Vec<_> = self.exposure().into_iter().collect();
        causes.extend(sockets::probe(&self.wanted(), claim.is_orphaned()));
        causes.extend(telemetry::start(&common.telemetry, &common.node, None).err().map(StartCause::from));
        StartError::unless_empty(causes)?;

        let (meta, address) = sockets::listen("meta", common.meta, false)?;
        let mut addresses = vec![Address { name: "meta".to_owned(), child: None, address }];
        let sockets = self.listen(&mut addresses)?;
        let running = Running {
            node: common.node.clone(),
            kind: self.kind.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            addresses,
        };
        // Late, so that orphans have had the time to go.
        let instance = claim.instance()?;
        claim.announce(&running)?;
        let state = watch::Sender::new(NodeState::default());
        Ok(Bound { spec: self, started: Instant::now(), running, claim, instance, meta, sockets, state })
    }

    /// All addresses with a port of the configuration's choice, and what for.
    fn wanted(&self) -> Vec<(String, SocketAddr)> {
        let meta = [("meta".to_owned(), self.common.meta)];
        let wanted = meta.iter().chain(&self.shared);
        wanted.map(|(name, address)| (format!("{name} of {}", self.common.node), *address)).collect()
    }

    fn exposure(&self) -> Option<StartCause> {
        let meta = self.common.meta;
        (!meta.ip().is_loopback() && !self.common.meta_forced).then_some(StartCause::MetaExposed(meta))
    }

    /// The sockets of each child, and notes of where they are.
    fn listen(&self, addresses: &mut Vec<Address>) -> Result<Vec<Sockets>, StartCause> {
        let processes = self.children.max(1);
        let mut all: Vec<_> = (0..processes).map(|_| Sockets::default()).collect();
        for (name, address) in &self.shared {
            let mut address = *address;
            for sockets in &mut all {
                let (socket, real) = sockets::listen(name, address, true)?;
                address = real;
                sockets.push(name, socket);
            }
            addresses.push(Address { name: name.clone(), child: None, address });
        }
        for (name, ip) in &self.own {
            for (child, sockets) in (0..).zip(&mut all) {
                let (socket, address) = sockets::listen(name, SocketAddr::new(*ip, 0), false)?;
                sockets.push(name, socket);
                addresses.push(Address { name: name.clone(), child: Some(child), address });
            }
        }
        Ok(all)
    }
}

/// The listening sockets of one child.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    names: Vec<String>,
    sockets: Vec<TcpListener>,
}

impl Sockets {
    fn push(&mut self, name: &str, socket: TcpListener) {
        self.names.push(name.to_owned());
        self.sockets.push(socket);
    }
}

/// A node that has all it needs, and serves nothing yet.
#[derive(Debug)]
pub struct Bound {
    spec: Spec,
    started: Instant,
    running: Running,
    claim: Claim,
    instance: Instance,
    meta: TcpListener,
    sockets: Vec<Sockets>,
    state: watch::Sender<NodeState>,
}

impl Bound {
    /// Where the node listens, its meta port included.
    pub fn addresses(&self) -> &[Address] {
        &self.running.addresses
    }

    /// Which node of its name this is: the same after a restart on its data directory.
    pub fn instance(&self) -> &str {
        &self.instance.id
    }

    /// The node's state as the seed is told it, see `protoplex_wire::join`. Changes of state wake receivers;
    /// load and uptimes are kept fresh without waking them.
    pub fn state(&self) -> watch::Receiver<NodeState> {
        self.state.subscribe()
    }

    /// Keeps the children alive until the node has drained: SIGTERM, SIGINT, or the wish of whoever supervises it.
    pub async fn run(mut self) -> ExitCode {
        let timing = self.spec.common.timing.clone();
        let policy = Policy::new(timing.drain_timeout() + STOP_MARGIN);
        let instance = Arc::clone(&self.instance.hold);
        let programs =
            self.hellos().map(|(hello, sockets)| Program::child(&hello, sockets, Arc::clone(&instance)));
        let children = programs.map(|program| Process::start(program, policy.clone())).collect();
        let service = match self.serve(Body::Children(children)) {
            Ok(service) => service,
            Err(error) => return failed(&error),
        };
        let Service { node, orders, .. } = &service;
        orders.drain.started().await;
        info!(grace_ms = timing.drain_grace_ms, "draining");
        node.start_draining();
        // Each arm is cancel-safe.
        tokio::select! {
            () = sleep(timing.drain_grace()) => {}
            () = orders.end.started() => {}
        }
        node.children().iter().for_each(Process::drain);
        let ended = join_all(node.children().iter().map(Process::ended));
        tokio::select! {
            _ = ended => ExitCode::SUCCESS,
            () = orders.end.started() => {
                warn!("ending at once");
                node.children().iter().for_each(Process::end);
                join_all(node.children().iter().map(Process::ended)).await;
                ExitCode::FAILURE
            }
        }
    }

    /// What each child is told, with its sockets.
    pub(crate) fn hellos(&mut self) -> impl Iterator<Item = (Hello, Vec<TcpListener>)> {
        let (spec, instance) = (&self.spec, &self.instance.id);
        (0..).zip(self.sockets.drain(..)).map(|(index, Sockets { names, sockets })| {
            let hello = Hello {
                kind: spec.kind.to_owned(),
                index,
                children: spec.children,
                common: spec.common.clone(),
                instance: instance.clone(),
                config: spec.child_config.clone(),
                sockets: names,
            };
            (hello, sockets)
        })
    }

    /// Everything around the node's work: orders, meta port, its state for the seed and its supervisor.
    pub(crate) fn serve(self, body: Body) -> io::Result<Service> {
        let node = Arc::new(Node::new(self.running, self.started, body));
        let report = watch::Sender::new(Report::default());
        let orders = Orders::of_node(report.subscribe())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(meta::serve(tokio::net::TcpListener::from_std(self.meta)?, Arc::clone(&node)));
        tasks.spawn(publish(Arc::clone(&node), self.state, report));
        Ok(Service { node, orders, _tasks: tasks, _claim: self.claim })
    }
}

/// A node that runs. Dropping it gives its name back.
pub(crate) struct Service {
    pub(crate) node: Arc<Node>,
    pub(crate) orders: Orders,
    _tasks: JoinSet<()>,
    _claim: Claim,
}

/// What a node does that can't even begin.
pub(crate) fn failed(error: &io::Error) -> ExitCode {
    error!(%error, "can't run");
    ExitCode::FAILURE
}

/// Tells the seed link and the supervisor of each change, and keeps fresh what changes all the time.
async fn publish(node: Arc<Node>, state: watch::Sender<NodeState>, report: watch::Sender<Report>) {
    let mut seen = node.seen();
    loop {
        state.send_replace(node.state());
        let ready = node.is_ready();
        report.send_if_modified(|report| std::mem::replace(&mut report.ready, ready) != ready);
        // Both arms are cancel-safe.
        while tokio::select! {
            () = node.changed(&mut seen) => false,
            () = sleep(STATE_AGE), if !state.is_closed() => true,
        } {
            state.send_if_modified(|state| {
                *state = node.state();
                false
            });
        }
    }
}

/// Lets this process and its children have as many connections as the system allows.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused the lower limit stays, and connections are bounded by it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
