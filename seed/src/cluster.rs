//! The one task that knows the cluster: what links say goes in, one call after the other; what comes of it goes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{
    ClusterStatus, FollowWelcome, HandlerList, JoinHello, LoadRoutesReply, Member, MemberStatus, NodeState,
    Pool, PoolStatus, Table, follow_reply::Message,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::followers::Followers;
use crate::nodes::{JoinId, Nodes};
use crate::ownership::{Action, Ending, LinkId, Ownership, Timing};
use crate::routes::Routes;

/// Calls that wait for the task; whoever brings more waits.
const MAX_WAITING_CALLS: usize = 4096;
/// Calls taken in one go, before what came of them is sent.
const BATCH: usize = 256;
/// How often leases are looked at, and at most how often a change of members makes a new table.
const TICK: Duration = Duration::from_millis(50);
/// Rows to be written to the datastore.
pub(crate) const MAX_ERRANDS: usize = 16_384;

type Call = Box<dyn FnOnce(&mut Cluster, BootTime) + Send>;

/// A row that the core wants written or removed.
#[derive(Debug)]
pub(crate) enum Errand {
    Record { link: LinkId, member: Member, revision: u64 },
    Erase { pool: String, id: String, revision: u64 },
}

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
    nodes: Nodes,
    table: Table,
    table_due: bool,
    timing: Timing,
    datastore: String,
    errands: mpsc::Sender<Errand>,
}

impl Cluster {
    pub(crate) fn new(
        core: Ownership,
        timing: Timing,
        datastore: String,
        errands: mpsc::Sender<Errand>,
    ) -> Self {
        Self {
            core,
            followers: Followers::default(),
            routes: Routes::default(),
            nodes: Nodes::default(),
            table: Table::default(),
            table_due: false,
            timing,
            datastore,
            errands,
        }
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
                            // Read after the call was received: see `ownership`.
                            call(&mut self, BootTime::now());
                            self.act();
                        }
                    }
                    _ = ticks.tick() => self.tick(BootTime::now()),
                }
            }
        };
        (Handle(sender), run)
    }

    fn tick(&mut self, now: BootTime) {
        self.core.tick(now);
        self.act();
        if self.table_due && self.core.leads().is_some() {
            self.push_table(now);
        }
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
                return;
            }
            cut.into_iter().for_each(|link| self.core.closed(link));
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send(link, message) => self.followers.send(link, message),
            Action::Share(link, message) => self.followers.share(link, &message),
            Action::Broadcast(position, message) => self.followers.broadcast(position, &message),
            Action::Welcome(link) => self.welcome(link),
            Action::Close(link, why) => {
                tracing::debug!(link, %why, "a follower's link is closed");
                self.followers.close(link, &why);
            }
            Action::Record(link, member, revision) => {
                if self.errands.try_send(Errand::Record { link, member, revision }).is_err() {
                    self.core.recorded(link, false, BootTime::now());
                }
            }
            Action::Erase(pool, id, revision) => {
                // A row that stays makes the next term wait for its member, and no more.
                let _ = self.errands.try_send(Errand::Erase { pool, id, revision });
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
            datastore: self.datastore.clone(),
        })];
        // The table comes last: who has it has been told of every build.
        greeting.extend(self.routes.builds.iter().cloned().map(Message::Build));
        if self.table.version > 0 {
            greeting.push(Message::Table(self.table.clone()));
        }
        self.followers.welcome(link, greeting, position, self.core.recovering());
    }

    pub(crate) fn unfollow(&mut self, link: LinkId) {
        self.followers.close(link, &Ending::Away("closed"));
        self.core.closed(link);
    }

    // ---- routes ----

    /// This seed leads now, and this is what the datastore holds.
    pub(crate) fn lead(&mut self, term: u64, until: BootTime, mut loaded: LoadRoutesReply, now: BootTime) {
        let members = std::mem::take(&mut loaded.members);
        tracing::info!(term, members = members.len(), handlers = loaded.handlers.len(), "this seed leads");
        self.core.lead(term, until, members, now);
        self.set_routes(loaded, now);
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
        self.followers.send_all(&Message::Table(self.table.clone()));
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
        let (who, kind) = (hello.node.clone(), hello.kind.clone());
        self.nodes.join(link, hello, now)?;
        tracing::info!(who, kind, "a node joined");
        Ok(self.core.position().term)
    }

    /// A node's parent says anew who it is; answers why that can't be.
    pub(crate) fn rejoin(&mut self, link: JoinId, hello: JoinHello) -> Result<(), String> {
        self.nodes.renew(link, hello)
    }

    pub(crate) fn node_state(&mut self, link: JoinId, state: NodeState, now: BootTime) {
        if let Some((node, draining)) = self.nodes.told(link, state, now) {
            self.core.set_draining(node, draining);
        }
    }

    pub(crate) fn part(&mut self, link: JoinId) {
        if let Some(node) = self.nodes.left(link) {
            tracing::info!(who = node, "a node parted");
            self.core.set_draining(&node, false);
        }
    }

    pub(crate) fn status(&self, now: BootTime) -> ClusterStatus {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let names: BTreeSet<_> = self.core.members(now).map(|view| view.member.pool.clone()).collect();
        let pools = names.into_iter().map(|name| {
            let views = self.core.members(now).filter(|view| view.member.pool == name);
            let mut members: Vec<_> = views
                .map(|view| MemberStatus {
                    member: Some(view.member.clone()),
                    keys: view.keys as u64,
                    lease_left_ms: millis(view.lease_left),
                })
                .collect();
            members
                .sort_by(|a, b| a.member.as_ref().map(|it| &it.id).cmp(&b.member.as_ref().map(|it| &it.id)));
            PoolStatus { name, members }
        });
        ClusterStatus {
            term: self.core.position().term,
            leading: self.core.leads().is_some(),
            recovering: self.core.recovering(),
            table_version: self.table.version,
            keys: self.core.keys() as u64,
            nodes: self.nodes.status(now),
            pools: pools.collect(),
            builds: self.routes.builds.clone(),
            datastore: self.datastore.clone(),
        }
    }
}
