//! The one task that knows the cluster: what links say goes in, one call after the other; what comes of it goes out.

mod lead;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) use lead::{Lead, Renewal};
use prost::Message as _;
use prost::bytes::Bytes;
use protoplex_wire::clock::BootTime;
pub(crate) use protoplex_wire::proto::Directory;
use protoplex_wire::proto::{
    FollowWelcome, HandlerList, JoinHello, LoadRoutesReply, Member, NodeState, Pool, Table,
    follow_reply::Message,
};
use protoplex_wire::seeds::{MAX_SEEDS, Redirect};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

use crate::errands::Errand;
use crate::events::Announcements;
use crate::followers::Followers;
use crate::hot_keys::HotKeys;
use crate::nodes::{JoinId, Nodes};
use crate::ownership::{Action, Ending, LinkId, Ownership, Timing};
use crate::role::Role;
use crate::routes::Routes;

/// Calls that wait for the task; whoever brings more waits.
const MAX_WAITING_CALLS: usize = 4096;
/// Calls taken in one go, before what came of them is sent.
const BATCH: usize = 256;
/// How often leases are looked at, and at most how often a change of members makes a new table.
const TICK: Duration = Duration::from_millis(50);

type Call = Box<dyn FnOnce(&mut Cluster, BootTime) + Send>;

/// The task as others see it. Clones share it.
#[derive(Clone)]
pub(crate) struct Handle(mpsc::Sender<Call>);

impl Handle {
    /// Runs this in the task, after all that was told before. In a seed that is ending, nothing happens.
    pub(crate) async fn tell(&self, call: impl FnOnce(&mut Cluster, BootTime) + Send + 'static) {
        let _ = self.0.send(Box::new(call)).await;
    }

    /// Runs this in the task and waits for its answer; `None` in a seed that is ending.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Cluster, BootTime) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let call = |cluster: &mut Cluster, now: BootTime| drop(answer.send(call(cluster, now)));
        self.tell(call).await;
        answered.await.ok()
    }
}

/// What the task knows.
pub(crate) struct Cluster {
    pub(crate) core: Ownership,
    pub(crate) followers: Followers,
    pub(crate) routes: Routes,
    pub(crate) hot_keys: HotKeys,
    pub(crate) nodes: Nodes,
    table: Table,
    /// As it is sent: all followers share these bytes.
    encoded_table: Bytes,
    table_due: bool,
    timing: Timing,
    myself: Myself,
    /// Where seeds are, or were, besides this one.
    others: Vec<String>,
    datastores: Vec<String>,
    /// Another seed that leads, for as long as that holds.
    led_by: Option<(Role, BootTime)>,
    /// It leads no more, and its links are kept until there is somebody to send them to.
    handing_over: bool,
    role: watch::Sender<Role>,
    leading: watch::Sender<Lead>,
    /// Beside the calls, so that no row of them is waited for.
    renewals: (watch::Sender<Renewal>, watch::Receiver<Renewal>),
    directory: watch::Sender<Directory>,
    errands: mpsc::Sender<Errand>,
    announcements: Announcements,
}

/// This seed, as others know it.
#[derive(Clone, Debug)]
pub(crate) struct Myself {
    pub(crate) node: String,
    /// Where it is reached; may be empty.
    pub(crate) address: String,
}

impl Cluster {
    pub(crate) fn new(
        core: Ownership,
        timing: Timing,
        myself: Myself,
        datastores: Vec<String>,
        errands: mpsc::Sender<Errand>,
        announcements: Announcements,
    ) -> Self {
        Self {
            myself,
            others: Vec::new(),
            led_by: None,
            handing_over: false,
            role: watch::Sender::new(Role::Waiting),
            leading: watch::Sender::default(),
            renewals: watch::channel(Renewal::default()),
            directory: watch::Sender::new(Directory::default()),
            core,
            followers: Followers::default(),
            routes: Routes::default(),
            hot_keys: HotKeys::default(),
            nodes: Nodes::default(),
            table: Table::default(),
            encoded_table: Bytes::new(),
            table_due: false,
            timing,
            datastores,
            errands,
            announcements,
        }
    }

    /// Where seeds and datastores are, as it changes.
    pub(crate) fn directory(&self) -> watch::Receiver<Directory> {
        self.directory.subscribe()
    }

    /// The way to the task, and the task, which ends with the last handle.
    pub(crate) fn task(mut self) -> (Handle, impl Future<Output = Self>) {
        let (sender, mut calls) = mpsc::channel::<Call>(MAX_WAITING_CALLS);
        let run = async move {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut batch = Vec::with_capacity(BATCH);
            loop {
                tokio::select! {
                    taken = calls.recv_many(&mut batch, BATCH) => {
                        if taken == 0 {
                            return self;
                        }
                        for call in batch.drain(..) {
                            self.take_renewal();
                            // Read after the call was received: see `ownership`.
                            call(&mut self, BootTime::now());
                            self.act();
                        }
                    }
                    _ = ticks.tick() => {
                        self.take_renewal();
                        self.tick(BootTime::now());
                    }
                }
            }
        };
        (Handle(sender), run)
    }

    fn tick(&mut self, now: BootTime) {
        self.core.tick(now);
        if self.led_by.as_ref().is_some_and(|(_, until)| now >= *until) {
            self.led_by = None;
        }
        self.act();
        if self.table_due && self.core.leads().is_some() {
            self.push_table(now);
        }
        self.hot_keys.measure(now);
        metrics::gauge!("protoplex_seed_keys").set(self.core.keys() as f64);
        metrics::gauge!("protoplex_seed_followers").set(self.followers.len() as f64);
        metrics::gauge!("protoplex_seed_leading").set(f64::from(u8::from(self.core.leads().is_some())));
    }

    /// Does what the core asks for, in its order.
    fn act(&mut self) {
        loop {
            while let Some(action) = self.core.next_action() {
                self.carry_out(action);
            }
            let cut = self.followers.take_cut();
            if cut.is_empty() {
                self.tell_lead();
                return self.take_role();
            }
            cut.into_iter().for_each(|link| self.core.closed(link));
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            // They end together, once there is somebody to send them to.
            Action::Close(_, Ending::Away(_)) if self.handing_over => {}
            Action::Send(link, message) => self.followers.send(link, message),
            Action::Share(link, message) => self.followers.share(link, &message),
            Action::Broadcast(position, message) => self.followers.broadcast(position, &message),
            Action::Welcome(link) => self.welcome(link),
            Action::Close(link, why) => {
                tracing::debug!(link, %why, "a follower's link is closed");
                let why = match why {
                    Ending::Away(why) => Redirect::status(why, self.leader()),
                    Ending::Refused(why) => Status::failed_precondition(why),
                };
                self.followers.close(link, why);
            }
            Action::Record(link, member, revision) => {
                let term = self.core.position().term;
                if self.errands.try_send(Errand::Record { link, member, revision, term }).is_err() {
                    self.core.recorded(link, false, BootTime::now());
                }
            }
            Action::Erase(pool, id, revision) => {
                // A row that stays makes the next term wait for its member, and no more.
                let term = self.core.position().term;
                let _ = self.errands.try_send(Errand::Erase { pool, id, revision, term });
            }
            Action::TableChanged => self.table_due = true,
        }
    }

    /// Tells a follower where it is, and everything that it needs to begin.
    pub(crate) fn welcome(&mut self, link: LinkId) {
        let position = self.core.position();
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let mut greeting = vec![Message::Welcome(FollowWelcome {
            position: Some(position),
            lease_ms: millis(self.timing.lease),
            heartbeat_ms: millis(self.timing.heartbeat),
        })];
        greeting.push(Message::Directory(self.directory.borrow().clone()));
        // The table comes last: who has it has been told of every build.
        greeting.extend(self.routes.builds.iter().cloned().map(Message::Build));
        if self.table.version > 0 {
            greeting.push(Message::Table(self.encoded_table.clone()));
        }
        self.followers.welcome(link, greeting, position, self.core.recovering());
    }

    pub(crate) fn unfollow(&mut self, link: LinkId) {
        self.followers.close(link, Status::unavailable("closed"));
        self.core.closed(link);
        self.hot_keys.forget(link);
    }

    // ---- who is where ----

    /// Other seeds are, or were, there, and datastores, the one that is used first.
    pub(crate) fn know(&mut self, others: Vec<String>, datastores: Vec<String>) {
        self.others.extend(others);
        self.datastores = datastores;
        self.tell_directory();
    }

    /// Tells followers and nodes where seeds and datastores are, where that is news, and this seed leads: then it knows.
    fn tell_directory(&mut self) {
        if self.core.leads().is_none() {
            return;
        }
        let mut seeds: Vec<String> = vec![self.myself.address.clone()];
        seeds.extend(self.nodes.seeds().map(str::to_owned));
        // Those that are away at the moment come last, and only as far as there is room.
        seeds.append(&mut self.others);
        let mut seen = BTreeSet::new();
        seeds.retain(|seed| !seed.is_empty() && seen.insert(seed.clone()));
        seeds.truncate(MAX_SEEDS);
        self.others = seeds.iter().filter(|seed| **seed != self.myself.address).cloned().collect();
        let directory = Directory { seeds, datastores: self.datastores.clone() };
        if *self.directory.borrow() != directory {
            self.followers.send_all(&Message::Directory(directory.clone()));
            self.directory.send_replace(directory);
        }
    }

    /// Other handlers or builds; answers the version of the table that has them.
    pub(crate) fn set_routes(&mut self, loaded: LoadRoutesReply, now: BootTime) -> u64 {
        let before = std::mem::replace(&mut self.routes, Routes::new(loaded));
        let changed: Vec<_> =
            self.routes.builds.iter().filter(|build| !before.builds.contains(build)).cloned().collect();
        for build in changed {
            self.followers.send_all(&Message::Build(build));
        }
        self.push_table(now);
        self.table.version
    }

    fn push_table(&mut self, now: BootTime) {
        let mut pools: BTreeMap<&str, Vec<Member>> = BTreeMap::new();
        for view in self.core.members(now) {
            pools.entry(&view.member.pool).or_default().push(view.member.clone());
        }
        let pools = pools.into_iter().map(|(name, mut members)| {
            members.sort_by(|a, b| a.id.cmp(&b.id));
            Pool { name: name.to_owned(), members }
        });
        // The term keeps versions growing over restarts.
        let version = (self.table.version + 1).max(self.core.position().term << 32);
        self.table = Table { version, handlers: self.routes.in_force(), pools: pools.collect() };
        self.table_due = false;
        self.encoded_table = self.table.encode_to_vec().into();
        self.followers.send_all(&Message::Table(self.encoded_table.clone()));
    }

    pub(crate) fn table_version(&self) -> u64 {
        self.table.version
    }

    pub(crate) fn handlers(&self) -> HandlerList {
        let Routes { version, handlers, .. } = self.routes.clone();
        HandlerList { table_version: self.table.version, handlers, version }
    }

    // ---- nodes ----

    /// A node's parent joins; answers the term, or why it can't.
    pub(crate) fn join(&mut self, link: JoinId, hello: JoinHello, now: BootTime) -> Result<u64, String> {
        let told = hello.clone();
        self.nodes.join(link, hello, now)?;
        self.announcements.joined(&told);
        tracing::info!(who = told.node, kind = told.kind, "a node joined");
        self.tell_directory();
        Ok(self.core.position().term)
    }

    /// A node's parent says anew who it is; answers why that can't be.
    pub(crate) fn rejoin(&mut self, link: JoinId, hello: JoinHello) -> Result<(), String> {
        self.nodes.renew(link, hello)?;
        self.tell_directory();
        Ok(())
    }

    pub(crate) fn has_node(&self, node: &str) -> bool {
        self.nodes.has(node) || self.followers.has(node)
    }

    pub(crate) fn node_state(&mut self, link: JoinId, state: NodeState, now: BootTime) {
        if let Some(turn) = self.nodes.told(link, state, now) {
            self.core.set_draining(turn.node, turn.draining);
            self.core.set_overloaded(turn.node, turn.overloaded);
        }
    }

    pub(crate) fn part(&mut self, link: JoinId, now: BootTime) {
        // Where the lead is over nodes only go to another seed.
        if self.core.leads().is_some()
            && !self.handing_over
            && let Some((hello, draining)) = self.nodes.of(link)
        {
            self.announcements.gone(hello, draining);
        }
        if let Some(node) = self.nodes.left(link, now) {
            tracing::info!(who = node, "a node parted");
            self.core.set_draining(&node, false);
            self.core.set_overloaded(&node, false);
        }
    }
}
