//! A node's parent: takes its place and its sockets, then keeps its children alive until it has drained.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protoplex_wire::identity::Identity;
use protoplex_wire::join::Standing;
use protoplex_wire::proto::NodeState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::account::{self, as_root, can_be_root, is_root};
use crate::children::{Children, Unstarted};
use crate::commands::{Reload, Reloader};
use crate::config::Common;
use crate::context::Reconfigured;
use crate::control::{self, Configuration, Report};
use crate::descriptors;
use crate::meta::{self, Access};
use crate::node::{Body, Node, unix_ms};
use crate::orders::Orders;
use crate::running::{self, Address, Claim, Instance, META, Running};
use crate::signals::{self, ReloadSignals, UpgradeSignals};
use crate::sockets;
use crate::start::{StartCause, StartError};
use crate::systemd::{self, Activated};
use crate::telemetry;
use crate::upgrade::{self, Came, Estate, Handover, Succession};

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
    /// Client connections that one process may have at a time; 0 where that has no limit of its own.
    pub connections: u64,
    /// What [`crate::context::Context::config`] gives the child; its own type, as JSON, at most 64 KiB.
    pub child_config: serde_json::Value,
    /// The keys of `child_config` that a child goes by as soon as it is told another value. For a change of any other one
    /// it is replaced.
    pub adopted: &'static [&'static str],
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
        let wanted: Vec<_> = specs.iter().flat_map(Spec::wanted).collect();
        causes.extend(as_root(|| sockets::probe(&wanted, false)));
    }
    StartError::unless_empty(causes)
}

impl Spec {
    /// Takes the node's name in the data directory, its ports and its meta port, and opens its log.
    ///
    /// # Errors
    /// Everything that stands in the way. Nothing is kept then.
    pub fn bind(self) -> Result<Bound, StartError> {
        as_root(descriptors::raise);
        signals::hold_all()?;
        let common = &self.common;
        // Where the same node runs already, its own ports are no news.
        let claim = running::claim(&common.data, &common.node)?;
        let mut causes: Vec<_> = self.exposure().into_iter().collect();
        let mut activated = Activated::take().map_err(|source| StartCause::Activated { source })?;
        let mut wanted = self.wanted();
        wanted.retain(|(_, address)| !activated.has(*address));
        causes.extend(as_root(|| sockets::probe(&wanted, claim.is_orphaned())));
        causes.extend(telemetry::start(&common.telemetry, &common.node, None).err().map(StartCause::from));
        StartError::unless_empty(causes)?;

        let meta = match activated.claim(common.meta) {
            Some(meta) => meta,
            None => as_root(|| sockets::listen(META, common.meta, false))?.0,
        };
        // Late, so that orphans have had the time to go.
        let instance = claim.instance()?;
        let children = as_root(|| Children::bind(self.clone(), &instance, &mut activated))?;
        activated.finish();
        descriptors::check(&self);
        match &common.account {
            Some(account) => account.settle().map_err(StartCause::from)?,
            None if is_root() => {
                warn!("this node works as root: name a user for it in the configuration, `user`")
            }
            None => account::stay().map_err(StartCause::from)?,
        }
        let estate = Estate {
            claim,
            instance,
            meta,
            meta_address: common.meta,
            data: common.data.clone(),
            executable: upgrade::executable(),
            supervisor: control::inherited(control::NODE)?,
            started: Instant::now(),
            came: None,
        };
        let bound = self.bound(children, estate, unix_ms())?;
        bound.station.estate.claim.announce(&bound.station.running.borrow())?;
        Ok(bound)
    }

    /// Takes what another program hands over, and opens its log.
    ///
    /// # Errors
    /// Everything that stands in the way.
    pub fn succeed(self, succession: &Succession) -> Result<Bound, StartError> {
        as_root(descriptors::raise);
        signals::hold_all()?;
        let (common, handover) = (&self.common, &succession.handover);
        let causes: Vec<_> = self.strange_to(handover).into_iter().chain(self.exposure()).collect();
        StartError::unless_empty(causes)?;
        telemetry::start(&common.telemetry, &common.node, None).map_err(StartCause::from)?;
        let mut descriptors = succession.descriptors()?;
        let mut take = |descriptor| descriptors.take(descriptor).map_err(StartCause::from);
        let claim = Claim::resumed(&common.data, &common.node, take(handover.lock)?);
        let instance = Instance::resumed(handover.instance.clone(), take(handover.hold)?);
        let meta = TcpListener::from(take(handover.meta)?);
        let came = Came::by(succession, take(handover.image)?);
        let children = Unstarted::resumed(self.clone(), &instance, succession, &mut descriptors)?;
        let known: Vec<_> = children.wanted();
        let mut fresh = self.shared.clone();
        fresh.retain(|port| !known.contains(port));
        if self.children == 0 && !fresh.is_empty() {
            return Err(StartCause::Succession("the address of a node of one process").into());
        }
        StartError::unless_empty(sockets::probe(&fresh, false))?;
        descriptors::check(&self);

        let uptime = Duration::from_millis(handover.uptime_ms);
        let estate = Estate {
            claim,
            instance,
            meta,
            meta_address: common.meta,
            data: common.data.clone(),
            executable: handover.executable.clone(),
            supervisor: handover.supervised.then(control::stdin).transpose()?,
            started: Instant::now().checked_sub(uptime).unwrap_or_else(Instant::now),
            came: Some(came),
        };
        // It is announced anew once this program has shown that it can go on with it.
        Ok(self.bound(children, estate, handover.started_at_ms)?)
    }

    /// What makes it another node than the one that is handed over.
    fn strange_to(&self, handover: &Handover) -> Option<StartCause> {
        let common = &self.common;
        let strange = [
            (self.kind != handover.kind || common.node != handover.node, "the node's name"),
            (common.data != handover.data, "data"),
            (common.meta != handover.meta_address, "the address of the meta port"),
            // Whose the node's files are it can't change.
            (common.account.is_some() && can_be_root(), "user"),
        ];
        strange.into_iter().find_map(|(differs, what)| differs.then_some(StartCause::Succession(what)))
    }

    fn bound(self, children: Unstarted, estate: Estate, started_at_ms: u64) -> io::Result<Bound> {
        let meta = estate.meta.local_addr()?;
        let mut addresses = vec![Address { name: META.to_owned(), child: None, address: meta }];
        addresses.extend(children.addresses());
        let running = Running {
            node: self.common.node.clone(),
            kind: self.kind.to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_ms,
            children: self.children,
            addresses,
        };
        let station = Station {
            running: watch::Sender::new(running),
            estate,
            access: Access::new(meta, self.common.meta_tokens.clone()),
            state: watch::Sender::new(NodeState::default()),
            seeds: None,
        };
        Ok(Bound { children, spec: self, station })
    }

    /// What a child is told of it.
    pub(crate) fn configuration(&self) -> Configuration {
        Configuration { common: self.common.clone(), config: self.child_config.clone() }
    }

    /// What of it can't be another one while the node runs, as it is called in a configuration; nothing where all is well.
    pub(crate) fn fixed(&self, other: &Self) -> Option<&'static str> {
        let (ours, theirs) = (&self.common, &other.common);
        [
            (self.kind != other.kind || ours.node != theirs.node, "the node's name"),
            (ours.account != theirs.account, "user or group"),
            (ours.data != theirs.data, "data"),
            (ours.meta != theirs.meta, "the address of the meta port"),
            (ours.telemetry.differs_in_place(&theirs.telemetry), "what [log] says but its level"),
            (self.own != other.own, "the address of children's own ports"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }

    /// What of it one process that runs can't change for itself: all that it is told but its log level and its drain.
    pub(crate) fn fixed_in_process(&self, other: &Self) -> Option<String> {
        if let Some(fixed) = self.fixed(other) {
            return Some(fixed.to_owned());
        }
        let (ours, theirs) = (&self.common, &other.common);
        let named = [
            (ours.seeds != theirs.seeds, "seed_address"),
            (ours.region != theirs.region, "region"),
            (ours.zone != theirs.zone, "zone"),
        ];
        if let Some((_, name)) = named.into_iter().find(|(differs, _)| *differs) {
            return Some(name.to_owned());
        }
        let value = |spec: &Self, key: &str| spec.child_config.get(key).cloned();
        let keys =
            |spec: &Self| spec.child_config.as_object().map(|keys| keys.keys().cloned().collect::<Vec<_>>());
        let mut keys = [keys(self), keys(other)].into_iter().flatten().flatten();
        let key = keys.find(|key| value(self, key) != value(other, key));
        key.map(|key| format!("{}.{key}", self.kind))
            .or_else(|| (self.shared != other.shared).then(|| format!("the address of {}", self.kind)))
    }

    /// Whether its children have to be told anything.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        self.child_config != other.child_config || self.common != other.common
    }

    /// Whether its children have to be replaced for another one.
    pub(crate) fn asks_restart(&self, other: &Self) -> bool {
        // Of logs only the level can change, which can do so in a process that runs. The meta port is the parent's.
        let common = Common {
            telemetry: other.common.telemetry.clone(),
            meta_tokens: other.common.meta_tokens.clone(),
            meta_tls: other.common.meta_tls.clone(),
            ..self.common.clone()
        } != other.common;
        let told = |spec: &Self| {
            let mut config = spec.child_config.clone();
            if let Some(config) = config.as_object_mut() {
                config.retain(|key, _| !spec.adopted.contains(&key.as_str()));
            }
            config
        };
        common || told(self) != told(other)
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
}

/// A node that has all it needs, and serves nothing yet.
#[derive(Debug)]
pub struct Bound {
    pub(crate) children: Unstarted,
    spec: Spec,
    pub(crate) station: Station,
}

/// Everything of a node but who does its work.
pub(crate) struct Station {
    running: watch::Sender<Running>,
    estate: Estate,
    access: Access,
    state: watch::Sender<NodeState>,
    seeds: Option<watch::Receiver<Standing>>,
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.running.borrow())
    }
}

impl Bound {
    /// What the node is and where it listens, its meta port included. Changes with each reload that changes any of it.
    pub fn running(&self) -> watch::Receiver<Running> {
        self.station.running.subscribe()
    }

    /// Which node of its name this is: the same after a restart on its data directory.
    pub fn instance(&self) -> &str {
        &self.station.estate.instance.id
    }

    /// For what the parent does beside its children: wakes at each change of their configuration from here on.
    pub fn reconfigured(&self) -> Reconfigured {
        self.children.reconfigured()
    }

    /// Has the meta port, where other machines reach it, speak TLS as a node of this cluster. Until then such a port tells
    /// its health alone.
    ///
    /// # Errors
    /// A certificate can't be used.
    pub fn trust(&mut self, identity: &Identity) -> Result<(), StartError> {
        let settings = &self.spec.common.meta_tls;
        Ok(self.station.access.trust(settings, identity).map_err(StartCause::from)?)
    }

    /// How its link to the seeds stands, for whoever asks the node.
    pub fn watch_seeds(&mut self, standing: watch::Receiver<Standing>) {
        self.station.seeds = Some(standing);
    }

    /// The node's state as the seed is told it, see `protoplex_wire::join`. Changes of state wake receivers;
    /// load and uptimes are kept fresh without waking them.
    pub fn state(&self) -> watch::Receiver<NodeState> {
        self.station.state.subscribe()
    }

    /// Keeps the children alive until the node has drained: SIGTERM, SIGINT, or the wish of an operator or of whoever
    /// supervises it. `reload` is what SIGHUP and operators have read anew.
    pub async fn run(self, reload: Reload) -> ExitCode {
        let spec = self.spec;
        let children = self.children.start();
        let service = match self.station.serve(Body::Children(Box::new(children)), reload) {
            Ok(service) => service,
            Err(error) => return failed(&error),
        };
        let Service { node, orders, .. } = &service;
        let Body::Children(children) = node.body() else { return ExitCode::FAILURE };
        let settling = Arc::clone(node);
        let settling = tokio::spawn(async move { settling.settle(spec).await });
        // The first arm never ends; the other is cancel-safe.
        tokio::select! {
            () = children.keep_sharing() => {}
            () = orders.drain.started() => {}
        }
        settling.abort();
        let timing = children.timing();
        info!(grace_ms = timing.drain_grace_ms, "draining");
        node.start_draining();
        // Each arm is cancel-safe.
        tokio::select! {
            () = children.keep_sharing() => {}
            () = sleep(timing.drain_grace()) => {}
            () = orders.end.started() => {}
        }
        let code = tokio::select! {
            () = children.drain_all() => ExitCode::SUCCESS,
            () = orders.end.started() => {
                warn!("ending at once");
                children.end_all().await;
                ExitCode::FAILURE
            }
        };
        node.finish().await;
        code
    }
}

impl Station {
    /// Everything around the node's work: orders, meta port, its state for the seed and its supervisor.
    pub(crate) fn serve(self, body: Body, reload: Reload) -> io::Result<Service> {
        let Self { running, estate, access, state, seeds } = self;
        let report = watch::Sender::new(Report::default());
        let supervisor = estate.supervisor.as_ref().map(UnixStream::try_clone).transpose()?;
        let orders = Orders::of_node(report.subscribe(), supervisor)?;
        let (leave, reloader) = (orders.trigger.clone(), Reloader::new(reload));
        let node = Arc::new(Node::new(estate, running, access, seeds, body, leave, reloader));
        let mut tasks = JoinSet::new();
        tasks.spawn(meta::serve(Arc::clone(&node)));
        tasks.spawn(publish(Arc::clone(&node), state, report));
        tasks.spawn(follow_reloads(Arc::clone(&node), ReloadSignals::take()?));
        tasks.spawn(follow_upgrades(Arc::clone(&node), UpgradeSignals::take()?));
        systemd::prepare();
        signals::admit()?;
        tasks.spawn(systemd::keep_told(Arc::clone(&node)));
        Ok(Service { node, orders, _tasks: tasks })
    }
}

/// A node that runs. Dropping it gives its name back.
pub(crate) struct Service {
    pub(crate) node: Arc<Node>,
    pub(crate) orders: Orders,
    _tasks: JoinSet<()>,
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
        let now = node.report();
        report.send_if_modified(|report| {
            let changed = *report != now;
            *report = now;
            changed
        });
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

/// Reads the configuration anew at each SIGHUP. How that went stands in the log and on the status page.
async fn follow_reloads(node: Arc<Node>, mut signals: ReloadSignals) {
    loop {
        signals.next().await;
        let _ = node.reload().await;
    }
}

/// Has the node go on as another program at each SIGUSR2. How that went stands in the log and on the status page.
async fn follow_upgrades(node: Arc<Node>, mut signals: UpgradeSignals) {
    loop {
        signals.next().await;
        if let Err(error) = node.upgrade().await {
            warn!(%error, "no upgrade");
        }
    }
}
