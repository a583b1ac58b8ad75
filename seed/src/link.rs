//! The service that nodes join and follow: reads each link, checks what comes, and hands it to the cluster.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protoplex_runtime::network::Networks;
use protoplex_wire::follow::MAX_KEY_BYTES;
use protoplex_wire::gate::{Origin, Peer, caller};
use protoplex_wire::identity::Kind;
use protoplex_wire::pattern::check_name;
use protoplex_wire::proto::seed_server::Seed;
use protoplex_wire::proto::{
    Asset, FetchBuildRequest, FollowHello, FollowReply, FollowRequest, HeartbeatSeen, JoinHello, JoinReply,
    JoinRequest, JoinWelcome, Member, Owned, OwnedKey, follow_request, join_reply, join_request,
};
use tokio::sync::mpsc::WeakSender;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::claims::{
    MAX_TEXT_BYTES, check_address, check_member, check_node, check_state, check_text, invalid,
};
use crate::cluster::{Cluster, Directory, Handle};
use crate::datastores::Datastores;
use crate::followers::{MAX_WAITING_MESSAGES, Outgoing};
use crate::ownership::{Joining, LinkId, Question, Timing};
use crate::places::{Place, Places};
use crate::role::Role;

/// Links of children and side-cars.
const MAX_FOLLOWERS: usize = 10_000;
/// Those of one name: a node has at most 256 children, and for some seconds the links of those before them, too.
pub(crate) const MAX_FOLLOWERS_OF_ONE: usize = 512;
/// Links of parents.
const MAX_NODES: usize = 5_000;
/// Those of one name: one, and those that end, or are of namesakes, who are refused.
pub(crate) const MAX_NODES_OF_ONE: usize = 16;
/// How long a link may take for its hello, and between two chunks of its report.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A parent that says nothing for this long is gone.
const NODE_SILENCE: Duration = Duration::from_secs(10);
/// Keys that one member may report.
const MAX_REPORTED_KEYS: usize = 4_000_000;
/// Within so long from its hello on.
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);
/// Memory that the reports of one name may take while they are read, and those of all: the core bounds what it makes of them.
const MAX_REPORT_BYTES_OF_ONE: usize = 512 << 20;
const MAX_REPORT_BYTES: usize = 1 << 30;
/// Answers that may wait for a follower: past that nothing more of what it asks is read until it reads. What it is told unasked
/// counts, but waits for nobody.
const MAX_UNREAD: usize = 4_096;
/// Until it is looked for again whether it reads.
const READING_PAUSE: Duration = Duration::from_millis(5);
/// Keys in one report of hot ones.
const MAX_HOT_KEYS: usize = 64;
/// A member's share of its pool beside the others' is at most so many times theirs.
pub(crate) const MAX_CAPACITY: u32 = 1_000;
/// Answers that wait for a parent.
const MAX_WAITING_SEEN: usize = 8;

pub(crate) struct Links {
    cluster: Handle,
    datastores: Arc<Datastores>,
    timing: Timing,
    role: watch::Receiver<Role>,
    directory: watch::Receiver<Directory>,
    next: AtomicU64,
    followers: Places,
    nodes: Places,
    /// Bytes of reports that are being read.
    reports: Places,
    ending: watch::Receiver<bool>,
    /// Where members may be.
    member_networks: Arc<Networks>,
}

impl Links {
    /// Links of nodes end when `ending` becomes true, or another seed leads; those of followers are closed by the cluster.
    pub(crate) fn new(
        cluster: Handle,
        datastores: Arc<Datastores>,
        timing: Timing,
        role: watch::Receiver<Role>,
        directory: watch::Receiver<Directory>,
        ending: watch::Receiver<bool>,
        member_networks: Networks,
    ) -> Self {
        Self {
            ending,
            member_networks: Arc::new(member_networks),
            cluster,
            datastores,
            timing,
            role,
            directory,
            next: AtomicU64::new(1),
            followers: Places::new("followers", MAX_FOLLOWERS, MAX_FOLLOWERS_OF_ONE),
            nodes: Places::new("nodes", MAX_NODES, MAX_NODES_OF_ONE),
            reports: Places::new("bytes of reports", MAX_REPORT_BYTES, MAX_REPORT_BYTES_OF_ONE),
        }
    }

    /// Refuses at once what only a seed that leads can do.
    pub(crate) fn leading(&self) -> Result<(), Status> {
        self.role.borrow().refusal().map_or(Ok(()), Err)
    }

    fn name_link(&self) -> LinkId {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens the link of a follower that says this, however it came, and answers what the follower is told.
    pub(crate) fn open(
        &self,
        peer: Peer,
        origin: Origin,
        requests: impl Requests<FollowRequest> + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<FollowReply, Status>>, Status> {
        self.leading()?;
        let place = self.followers.take(&peer.name())?;
        let (messages, replies) = mpsc::channel(MAX_WAITING_MESSAGES);
        let (link, cluster) = (self.name_link(), self.cluster.clone());
        let (networks, report) = (Arc::clone(&self.member_networks), self.reports.none(&peer.name()));
        tokio::spawn(async move {
            let may_be = |member: &Member| check_address(member, &peer, origin, &networks);
            read_follower(link, &peer, may_be, report, requests, &cluster, messages).await;
            drop(place);
        });
        Ok(replies)
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What comes on a link, in its order.
pub(crate) trait Requests<T>: Stream<Item = Result<T, Status>> + Unpin {}
impl<T, S: Stream<Item = Result<T, Status>> + Unpin> Requests<T> for S {}

#[tonic::async_trait]
impl Seed for Links {
    type JoinStream = Replies<JoinReply>;

    async fn join(
        &self,
        request: Request<Streaming<JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        // Where nobody leads a node may wait here as well as elsewhere, and is seen by its operator.
        if let Role::Understudy { .. } = &*self.role.borrow() {
            self.leading()?;
        }
        let peer = caller(&request)?;
        let place = self.nodes.take(&peer.name())?;
        let (replies, stream) = mpsc::channel(MAX_WAITING_SEEN);
        let (link, cluster, heartbeat) = (self.name_link(), self.cluster.clone(), self.timing.heartbeat);
        let mut ending = self.ending.clone();
        let role = self.role.clone();
        let node = JoinLink { link, cluster, replies: replies.clone(), heartbeat, role, peer };
        let directory = self.directory.clone();
        tokio::spawn(async move {
            let read = tokio::select! {
                // First, for it says where to go.
                biased;
                refusal = node.led_elsewhere() => Err(refusal),
                read = node.read(request.into_inner(), directory) => read,
                _ = ending.wait_for(|ending| *ending) => Err(Status::unavailable("the seed is ending")),
            };
            node.cluster.tell(move |cluster, now| cluster.part(link, now)).await;
            if let Err(status) = read {
                let _ = replies.try_send(Err(status));
            }
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type FollowStream = Replies<FollowReply>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = caller(&request)?;
        let origin = request.extensions().get::<Origin>().copied().unwrap_or_default();
        let replies = self.open(peer, origin, request.into_inner())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    type FetchBuildStream = Streaming<Asset>;

    async fn fetch_build(
        &self,
        request: Request<FetchBuildRequest>,
    ) -> Result<Response<Self::FetchBuildStream>, Status> {
        let assets = self.datastores.client().get_build(request.into_inner()).await?;
        Ok(Response::new(assets.into_inner()))
    }
}

// ---- Join ----

/// The link of one node's parent.
struct JoinLink {
    link: LinkId,
    cluster: Handle,
    replies: mpsc::Sender<Result<JoinReply, Status>>,
    heartbeat: Duration,
    role: watch::Receiver<Role>,
    /// Whose certificate was shown.
    peer: Peer,
}

impl JoinLink {
    async fn read(
        &self,
        mut requests: Streaming<JoinRequest>,
        mut directory: watch::Receiver<Directory>,
    ) -> Result<(), Status> {
        let (link, cluster) = (self.link, &self.cluster);
        let first = next(&mut requests, HELLO_TIMEOUT).await?.and_then(|request| request.message);
        let Some(join_request::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("a node's first message is its hello"));
        };
        self.check(&hello)?;
        let joined = cluster.ask(move |cluster, now| cluster.join(link, hello, now)).await;
        let joined = joined.ok_or_else(|| Status::unavailable("the seed is ending"))?;
        let term = joined.map_err(Status::failed_precondition)?;
        let heartbeat_ms = u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX);
        self.say(join_reply::Message::Welcome(JoinWelcome { term, heartbeat_ms, idle: self.is_idle() }))?;
        directory.mark_changed();
        loop {
            let request = tokio::select! {
                request = next(&mut requests, NODE_SILENCE) => request?,
                Ok(()) = directory.changed() => {
                    let directory = directory.borrow_and_update().clone();
                    // One that has led nothing yet knows nothing.
                    if !directory.seeds.is_empty() {
                        self.say(join_reply::Message::Directory(directory))?;
                    }
                    continue;
                }
            };
            let Some(request) = request else { return Ok(()) };
            match request.message {
                Some(join_request::Message::State(state)) => {
                    check_state(&state)?;
                    cluster.tell(move |cluster, now| cluster.node_state(link, state, now)).await;
                    let (idle, term) = (self.is_idle(), self.term());
                    self.say(join_reply::Message::Seen(HeartbeatSeen { idle, term }))?;
                }
                Some(join_request::Message::Hello(hello)) => {
                    self.check(&hello)?;
                    let anew = cluster.ask(move |cluster, _| cluster.rejoin(link, hello)).await;
                    if let Some(Err(why)) = anew {
                        return Err(Status::failed_precondition(why));
                    }
                }
                None => return Err(Status::invalid_argument("after its hello a node sends its state")),
            }
        }
    }

    /// Returns when another seed leads, with the answer that says so. Cancel-safe.
    async fn led_elsewhere(&self) -> Status {
        let mut role = self.role.clone();
        let elsewhere = role.wait_for(|role| matches!(role, Role::Understudy { .. })).await;
        let refusal = elsewhere.ok().and_then(|role| role.refusal());
        refusal.unwrap_or_else(|| Status::unavailable("the seed is ending"))
    }

    /// A parent that takes no answers is as good as gone.
    fn say(&self, message: join_reply::Message) -> Result<(), Status> {
        let said = self.replies.try_send(Ok(JoinReply { message: Some(message) }));
        said.map_err(|_| Status::resource_exhausted("the node reads no answers"))
    }

    fn check(&self, hello: &JoinHello) -> Result<(), Status> {
        check_node(hello)?;
        self.peer.check_node(&hello.node, &hello.kind).map_err(Status::permission_denied)
    }

    fn is_idle(&self) -> bool {
        *self.role.borrow() == Role::Waiting
    }

    fn term(&self) -> u64 {
        if let Role::Leading(term) = *self.role.borrow() { term } else { 0 }
    }
}

// ---- Follow ----

async fn read_follower(
    link: LinkId,
    peer: &Peer,
    may_be: impl Fn(&Member) -> Result<(), Status>,
    mut report: Place,
    mut requests: impl Requests<FollowRequest>,
    cluster: &Handle,
    messages: mpsc::Sender<Result<FollowReply, Status>>,
) {
    let (hello, keys) = match greet(peer, &may_be, &mut report, &mut requests).await {
        Ok(greeting) => greeting,
        Err(status) => return drop(messages.try_send(Err(status))),
    };
    let (_reader, mut ended) = oneshot::channel();
    // The core's is the only one that keeps it open.
    let unread = messages.downgrade();
    let outgoing = Outgoing { messages, _reader };
    let pools = (peer.kind == Kind::Backend).then(|| peer.pools.clone());
    // An operator is a side-car by any name.
    let known = Some(peer.kind).filter(|kind| *kind != Kind::Operator);
    let opened = move |cluster: &mut Cluster, now| {
        let FollowHello { node, zone, since, member, incarnation, attempt, capacity, yields, .. } = hello;
        // By the time that it is now: a process that was stopped for a while must not welcome anybody.
        cluster.core.advance(now);
        // It is the core's from here on.
        drop(report);
        if let Some(status) = cluster.refusal() {
            return drop(outgoing.messages.try_send(Err(status)));
        }
        if let Some(kind) = known {
            cluster.nodes.know(&node, kind);
        }
        cluster.followers.open(link, outgoing, since.unwrap_or_default(), &node, zone, pools);
        match member {
            Some(member) => {
                let joining = Joining { node, member, incarnation, attempt, keys, capacity, yields };
                cluster.core.hello(link, joining, now)
            }
            None => cluster.welcome(link),
        }
    };
    cluster.tell(opened).await;
    loop {
        let next = async {
            until_read(&unread).await;
            requests.next().await
        };
        // Both arms are cancel-safe.
        let message = tokio::select! {
            request = next => match request {
                Some(Ok(FollowRequest { message: Some(message) })) => message,
                Some(Ok(FollowRequest { message: None })) => continue,
                None | Some(Err(_)) => break,
            },
            _ = &mut ended => break,
        };
        let handed_over = match check_pools(peer, &message) {
            Ok(()) => hand_over(link, message, cluster).await.map_err(str::to_owned),
            Err(why) => Err(why),
        };
        if let Err(why) = handed_over {
            tracing::warn!(link, why, "a follower's link is closed");
            let why = Status::failed_precondition(why);
            cluster.tell(move |cluster, _| cluster.followers.close(link, why)).await;
            break;
        }
    }
    cluster.tell(move |cluster, _| cluster.unfollow(link)).await;
}

async fn until_read<T>(messages: &WeakSender<T>) {
    let waits = |messages: mpsc::Sender<T>| messages.max_capacity() - messages.capacity() > MAX_UNREAD;
    while messages.upgrade().is_some_and(waits) {
        sleep(READING_PAUSE).await;
    }
}

/// The hello, and all that a member reports.
async fn greet(
    peer: &Peer,
    may_be: &impl Fn(&Member) -> Result<(), Status>,
    report: &mut Place,
    requests: &mut impl Requests<FollowRequest>,
) -> Result<(FollowHello, Vec<OwnedKey>), Status> {
    let first = next(requests, HELLO_TIMEOUT).await?.and_then(|request| request.message);
    let Some(follow_request::Message::Hello(hello)) = first else {
        return Err(Status::invalid_argument("a follower's first message is its hello"));
    };
    check_name("node", &hello.node).map_err(invalid)?;
    check_text("zone", &hello.zone)?;
    peer.check_node(&hello.node, &hello.kind).map_err(Status::permission_denied)?;
    let mut keys = Vec::new();
    let Some(member) = &hello.member else { return Ok((hello, keys)) };
    check_member(member)?;
    peer.check_member(member).map_err(Status::permission_denied)?;
    may_be(member)?;
    if hello.capacity > MAX_CAPACITY {
        return Err(Status::invalid_argument(format!("a member's capacity is at most {MAX_CAPACITY}")));
    }
    let end = Instant::now() + REPORT_TIMEOUT;
    loop {
        let patience = HELLO_TIMEOUT.min(end.saturating_duration_since(Instant::now()));
        let chunk = next(requests, patience).await?.and_then(|request| request.message);
        let Some(follow_request::Message::Owned(Owned { keys: more, last })) = chunk else {
            return Err(Status::invalid_argument(
                "a member's hello is followed by what it owns, the last chunk marked",
            ));
        };
        if more.iter().any(|owned| owned.key.is_empty()) {
            return Err(Status::invalid_argument("a member reports a key that is empty"));
        }
        report.add(more.iter().map(|owned| size_of::<OwnedKey>() + owned.key.len()).sum())?;
        if keys.len() + more.len() > MAX_REPORTED_KEYS || more.iter().any(|owned| !is_key(&owned.key)) {
            return Err(Status::invalid_argument("a member reports more keys, or longer ones, than it may"));
        }
        keys.extend(more);
        if last {
            return Ok((hello, keys));
        }
    }
}

/// Whether whoever sends this may speak of the pools that it is about.
fn check_pools(peer: &Peer, message: &follow_request::Message) -> Result<(), String> {
    match message {
        follow_request::Message::Locate(it) => peer.check_pool(&it.pool),
        follow_request::Message::HotKeys(it) => it.keys.iter().try_for_each(|hot| peer.check_pool(&hot.pool)),
        _ => Ok(()),
    }
}

/// Gives one message to the cluster, or says what is wrong with it.
async fn hand_over(
    link: LinkId,
    message: follow_request::Message,
    cluster: &Handle,
) -> Result<(), &'static str> {
    use follow_request::Message;
    match message {
        Message::Renew(renew) => {
            cluster.tell(move |cluster, now| cluster.core.renew(link, renew.sequence, now)).await;
        }
        Message::Locate(it) => {
            if !is_key(&it.key) || it.pool.len() > MAX_TEXT_BYTES {
                return Err("a question's key or pool is empty or too long");
            }
            let asked = move |cluster: &mut Cluster, now| {
                let zone = cluster.followers.zone(link).to_owned();
                let (id, refuted_epoch) = (it.id, it.refuted_epoch);
                cluster
                    .core
                    .locate(Question { link, id, zone, pool: it.pool, key: it.key, refuted_epoch }, now);
            };
            cluster.tell(asked).await;
        }
        Message::Released(it) => {
            cluster.tell(move |cluster, now| cluster.core.release(link, &it.keys, &it.kept, now)).await;
        }
        Message::Draining(_) => cluster.tell(move |cluster, _| cluster.core.drain(link)).await,
        Message::HotKeys(it) => {
            if it.keys.len() > MAX_HOT_KEYS
                || it.keys.iter().any(|hot| !is_key(&hot.key) || hot.pool.len() > MAX_TEXT_BYTES)
            {
                return Err("a report of hot keys has more, or longer ones, than it may");
            }
            cluster.tell(move |cluster, now| cluster.hot_keys.told(link, it, now)).await;
        }
        Message::Leave(_) => cluster.tell(move |cluster, now| cluster.core.leave(link, now)).await,
        Message::Hello(_) | Message::Owned(_) => return Err("a link has one hello"),
    }
    Ok(())
}

/// May it be a key?
pub(crate) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len())
}

async fn next<T>(requests: &mut impl Requests<T>, patience: Duration) -> Result<Option<T>, Status> {
    let silent = |_| Status::deadline_exceeded(format!("nothing came for {} s", patience.as_secs()));
    timeout(patience, requests.next()).await.map_err(silent)?.transpose()
}

#[cfg(test)]
mod tests;
