//! The link that each child holds to the seed: one ordered stream of questions, answers, assignments and invalidations.
//!
//! What it learns (routing table, builds, owners) stays when the link is lost, so a node goes on with what it knows.

mod conversation;
mod lease;
mod parting;
mod questions;
#[cfg(test)]
mod tests;
mod uses;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use crate::clock::BootTime;
use crate::follow::questions::{Opened, Questions};
use crate::holder::{Fence, Holder, Lost};
use crate::identity::{Identity, TrustedChannel};
use crate::owners::{Age, Owner, Owners};
pub use crate::pattern::MAX_KEY_BYTES;
use crate::pattern::MAX_NAME_BYTES;
use crate::proto::datastore_client::DatastoreClient;
use crate::proto::seed_client::SeedClient;
use crate::proto::{
    Asset, Build, Draining, FetchBuildRequest, FollowRequest, HotKeys, Leave, Member, OwnedKey, Position,
    Released, Table, follow_request,
};
use crate::seeds::{Search, Seeds};
pub use uses::InUse;

pub(crate) use conversation::is_refusal;

/// How long a question for an owner may take, and how long it is worth asking after the seed was lost.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the seed may take to note that a member leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest message that the seed may send: a routing table of some 100,000 handlers, or one asset.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// How long a request waits for the assignment that its owner was told of on another connection.
const ADMIT_TIMEOUT: Duration = Duration::from_millis(500);
/// Keys in one message, which the longest of them must not make too large.
const MAX_RELEASED: usize = 1000;
/// The lease in the datastore that a leading seed holds.
pub const SEED_LEASE: &str = "seed";

/// Who follows.
#[derive(Clone)]
pub struct Follower {
    /// Its node, "live-1".
    pub node: String,
    /// "proxy", "fileserver", "live", "backend".
    pub kind: String,
    /// Its zone; owners in the same zone are preferred. May be empty.
    pub zone: String,
    /// Where it is a member of a pool.
    pub membership: Option<Membership>,
}

/// A place in a pool.
#[derive(Clone)]
pub struct Membership {
    /// Who has it.
    pub member: Member,
    /// Its share of the pool's keys, beside the other members'; 0 is 1.
    pub capacity: u32,
    /// Without one idle keys are given up, and the seed asks for no others.
    pub judge: Option<Judge>,
}

/// Judges whether a key that the seed asks for is given up: then nothing of it may be served any more when it answers. A
/// key that it keeps may be [released](Link::release) later.
pub type Judge = Rc<dyn Fn(Wanted<'_>) -> bool>;

impl From<Member> for Membership {
    /// One like all others, without a judge.
    fn from(member: Member) -> Self {
        Self { member, capacity: 0, judge: None }
    }
}

impl Follower {
    /// A user's own server, or whoever speaks for it. It counts as a node of its own, which no other is taken for:
    /// "rooms/127.0.0.1:3000" → "join-0f3a9c24-rooms-127-0-0-1-3000".
    #[must_use]
    pub fn of_backend(membership: Membership) -> Self {
        let member = &membership.member;
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name = format!("{:.8}-{}", member.instance, member.id);
        let name = name.chars().map(plain);
        let node = "join-".chars().chain(name).take(MAX_NAME_BYTES).collect();
        Self { node, kind: "backend".to_owned(), zone: member.zone.clone(), membership: Some(membership) }
    }
}

/// Why there is no owner for a key at the moment.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct LocateError {
    /// For the operator and the client.
    pub reason: String,
    /// When it may be worth asking again.
    pub retry_after: Duration,
}

/// The current builds.
#[derive(Clone, Debug, Default)]
pub struct Builds {
    /// Grows at each change; 0 before the seed has told any.
    pub generation: u64,
    /// One for each host pattern.
    pub current: Vec<Build>,
}

/// The link; clones share it. It ends when the last task that serves it is dropped with its runtime.
#[derive(Clone)]
pub struct Link {
    shared: Rc<Shared>,
}

struct Shared {
    identity: Identity,
    seeds: Seeds,
    search: RefCell<Search>,
    /// Whom the datastore has named, to be tried next.
    elected: RefCell<Option<String>>,
    /// The one that welcomed last.
    seed: RefCell<Option<SeedClient<TrustedChannel>>>,
    /// The newest term that was heard of; nothing counts that a seed of an older one says.
    term: Cell<u64>,
    /// That of the present link, or of the last one.
    link_term: Cell<u64>,
    who: Follower,
    position: Cell<Position>,
    table: watch::Sender<Rc<Table>>,
    builds: watch::Sender<Rc<Builds>>,
    /// By address, the one that the seed uses first.
    datastores: RefCell<Vec<(String, DatastoreClient<TrustedChannel>)>>,
    owners: RefCell<Owners>,
    questions: RefCell<Questions>,
    outgoing: RefCell<Option<mpsc::Sender<FollowRequest>>>,
    lost_since: Cell<Option<Instant>>,
    connected: watch::Sender<bool>,
    refusal: watch::Sender<Option<String>>,
    holder: RefCell<Option<Holder>>,
    holder_changed: watch::Sender<()>,
    /// Asks the conversation to end this link and open another.
    close: Notify,
    /// A seed is known to lead: the next attempt to connect need not wait.
    retry: Notify,
    lost_keys: RefCell<Option<mpsc::UnboundedReceiver<Lost>>>,
    tell_lost: mpsc::UnboundedSender<Lost>,
    left: Cell<bool>,
    uses: Rc<RefCell<uses::Uses>>,
    /// Some may have another owner than what was known.
    keys_moved: Rc<Notify>,
    /// Of all answers so far, the shortest time for which one is fresh.
    shortest_fresh: Cell<Option<Duration>>,
    draining: Cell<bool>,
}

/// A key that the seed asks its owner to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The key.
    pub key: &'a str,
    /// The epoch at which it is owned.
    pub epoch: u64,
    /// Nobody has asked for it for long: keep it where it is in use all the same. Else it moves to another member.
    pub idle: bool,
}

impl Link {
    /// Opens the link and keeps it open, on this thread's `LocalSet`: reconnects for ever, with jittered back-off.
    ///
    /// Any of the seeds will do: who doesn't lead says who does.
    ///
    /// Errors where one of the configured `seeds` ("host:port") is no address.
    pub fn open(
        identity: &Identity,
        seeds: impl Into<Seeds>,
        who: Follower,
    ) -> Result<Self, tonic::transport::Error> {
        let seeds = seeds.into();
        seeds.configured().iter().try_for_each(|seed| identity.channel(seed).map(drop))?;
        let (tell_lost, lost_keys) = mpsc::unbounded_channel();
        let holder = who.membership.is_some().then(|| Holder::new(BootTime::now()));
        let shared = Rc::new(Shared {
            identity: identity.clone(),
            search: RefCell::new(Search::new(seeds.remembered())),
            seeds,
            elected: RefCell::default(),
            seed: RefCell::default(),
            term: Cell::default(),
            link_term: Cell::default(),
            who,
            position: Cell::default(),
            table: watch::Sender::new(Rc::default()),
            builds: watch::Sender::new(Rc::default()),
            datastores: RefCell::default(),
            owners: RefCell::default(),
            questions: RefCell::default(),
            outgoing: RefCell::default(),
            lost_since: Cell::new(Some(Instant::now())),
            connected: watch::Sender::new(false),
            refusal: watch::Sender::new(None),
            holder: RefCell::new(holder),
            holder_changed: watch::Sender::new(()),
            close: Notify::new(),
            retry: Notify::new(),
            lost_keys: RefCell::new(Some(lost_keys)),
            tell_lost,
            left: Cell::new(false),
            uses: Rc::default(),
            keys_moved: Rc::default(),
            shortest_fresh: Cell::new(None),
            draining: Cell::new(false),
        });
        tokio::task::spawn_local(conversation::keep_open(Rc::clone(&shared)));
        tokio::task::spawn_local(uses::keep_asking(Rc::downgrade(&shared)));
        if shared.who.membership.is_some() {
            tokio::task::spawn_local(lease::keep(Rc::clone(&shared)));
        }
        Ok(Self { shared })
    }

    /// The newest routing table; version 0 before the seed has sent one.
    pub fn table(&self) -> Rc<Table> {
        Rc::clone(&self.shared.table.borrow())
    }

    /// Waits for a table of another version than `seen`.
    pub async fn table_changed(&self, seen: u64) -> Rc<Table> {
        changed(&self.shared.table, |table| table.version != seen).await
    }

    /// The current app builds.
    pub fn builds(&self) -> Rc<Builds> {
        Rc::clone(&self.shared.builds.borrow())
    }

    /// Waits for another generation of builds than `seen`.
    pub async fn builds_changed(&self, seen: u64) -> Rc<Builds> {
        changed(&self.shared.builds, |builds| builds.generation != seen).await
    }

    /// Does it follow the seed that leads now?
    pub fn connected(&self) -> bool {
        *self.shared.connected.borrow()
    }

    /// Follows whether it follows the seed that leads.
    pub fn connection(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// Follows why the seed refuses this follower, or has closed its link: a text for the operator. `None` once the
    /// seed has welcomed it.
    pub fn refusal(&self) -> watch::Receiver<Option<String>> {
        self.shared.refusal.subscribe()
    }

    /// The datastore that the seed uses itself; `None` before it has told of one. It may be another one later.
    pub fn datastore(&self) -> Option<DatastoreClient<TrustedChannel>> {
        self.shared.datastores.borrow().first().map(|(_, client)| client.clone())
    }

    /// The assets of a build.
    pub async fn fetch_build(&self, version: u64) -> Result<Vec<Asset>, tonic::Status> {
        let seed = self.shared.seed.borrow().clone();
        let mut seed = seed.ok_or_else(|| tonic::Status::unavailable("no seed was reached yet"))?;
        let mut stream = seed.fetch_build(FetchBuildRequest { version }).await?.into_inner();
        let mut assets = Vec::new();
        while let Some(asset) = stream.next().await {
            assets.push(asset?);
        }
        Ok(assets)
    }

    /// The owner of `key`: from the cache, or asked of the seed, which assigns one where there is none.
    ///
    /// Known owners are told while no seed can be asked, however old the answers are, and whatever has changed since; for other
    /// keys the error comes within two seconds. An answer of which half its time is over is asked for anew meanwhile.
    pub async fn locate(&self, pool: &str, key: &str) -> Result<Owner, LocateError> {
        let known = self.shared.owners.borrow_mut().known(pool, key, BootTime::now());
        match known {
            Some((owner, Age::Fresh)) => return Ok(owner),
            Some((owner, Age::Ageing)) => {
                // Its answer is learnt whoever waits for it.
                drop(self.shared.ask(pool, key));
                return Ok(owner);
            }
            Some((owner, Age::Stale)) if self.shared.lost_since.get().is_some() => return Ok(owner),
            // A doubted one waits for the next link, as a new key does.
            _ => {}
        }
        let deadline = Instant::now() + LOCATE_TIMEOUT;
        let answer = match self.shared.ask(pool, key) {
            // Boxed: nearly all owners are known, and the futures of requests are to be small.
            Ok(answer) => match Box::pin(timeout_at(deadline, answer)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(unavailable("the seed does not answer")),
            },
            Err(error) => Err(error),
        };
        answer.or_else(|error| match self.shared.owners.borrow().look(pool, key, BootTime::now()) {
            Some((_, Age::Doubted)) if self.shared.lost_since.get().is_none() => Err(error),
            // A seed that can't say, since it does not lead, takes no key from anybody.
            known => known.map(|(owner, _)| owner).ok_or(error),
        })
    }

    /// The owner of this epoch answered 421: the answer is forgotten, and the next question says so.
    pub fn refute(&self, pool: &str, key: &str, epoch: u64) {
        self.shared.owners.borrow_mut().refute(pool, key, epoch);
    }

    /// The key is in use here, at this owner, until the result is dropped, so that the seed does not take it for idle.
    /// `moved` is told once another server has it.
    pub fn employ(&self, pool: &str, key: &str, owner: &Owner, moved: impl FnOnce() + 'static) -> InUse {
        uses::begin(&self.shared.uses, pool, key, owner, moved)
    }

    /// Tells the seed which keys had the most requests here.
    pub fn report_hot_keys(&self, hot: HotKeys) {
        if self.connected() {
            self.shared.say(follow_request::Message::HotKeys(hot));
        }
    }

    /// The member is about to leave: it is given no new keys. It may give up what it has bit by bit meanwhile.
    pub fn drain(&self) {
        self.shared.draining.set(true);
        if self.connected() {
            self.shared.say(follow_request::Message::Draining(Draining {}));
        }
    }

    /// The keys that this member owns, with their epochs.
    pub fn owned(&self) -> Vec<(String, u64)> {
        let owned = self
            .shared
            .with_holder(|holder, _| holder.keys().map(|(key, epoch)| (key.to_owned(), epoch)).collect());
        owned.unwrap_or_default()
    }

    /// May this member serve a request for `key` at `epoch` now?
    pub fn check(&self, key: &str, epoch: u64) -> Fence {
        match &*self.shared.holder.borrow() {
            Some(holder) => holder.check(key, epoch, BootTime::now()),
            None => Fence::Misdirected,
        }
    }

    /// As [`Self::check`], but waits up to 500 ms for an assignment that is still on its way.
    pub async fn admit(&self, key: &str, epoch: u64) -> bool {
        let deadline = Instant::now() + ADMIT_TIMEOUT;
        let mut changes = self.shared.holder_changed.subscribe();
        loop {
            match self.check(key, epoch) {
                Fence::Owned => return true,
                Fence::Misdirected => return false,
                Fence::Wait => {
                    if timeout_at(deadline, changes.changed()).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    /// What this member owns no more, as it happens. The first caller gets it.
    pub fn lost_keys(&self) -> Option<mpsc::UnboundedReceiver<Lost>> {
        self.shared.lost_keys.borrow_mut().take()
    }

    /// Gives up keys of these epochs. Call it when nothing of them is served any more.
    pub fn release<K: Into<String> + AsRef<str>>(&self, keys: impl IntoIterator<Item = (K, u64)>) {
        let released = |(key, epoch): (K, u64)| {
            let owned = self.shared.with_holder(|holder, _| holder.release(key.as_ref(), epoch));
            owned.unwrap_or_default().then(|| OwnedKey { key: key.into(), epoch })
        };
        let keys: Vec<_> = keys.into_iter().filter_map(released).collect();
        self.shared.say_released(keys, Vec::new());
    }

    /// Gives up the membership and every key, and ends the link. Call it when nothing is served any more.
    pub async fn leave(&self) {
        self.shared.left.set(true);
        if let Some(holder) = self.shared.holder.borrow_mut().as_mut() {
            holder.leave(BootTime::now());
        }
        self.shared.holder_changed.send_replace(());
        let mut connected = self.shared.connected.subscribe();
        if self.shared.say(follow_request::Message::Leave(Leave {})) {
            // The seed closes the link when it has taken note.
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, connected.wait_for(|connected| !connected)).await;
        }
    }
}

impl Shared {
    /// Puts a message on the link; false where there is no link, or it is too slow and was closed for it.
    fn say(&self, message: follow_request::Message) -> bool {
        let outgoing = self.outgoing.borrow();
        let Some(outgoing) = outgoing.as_ref() else {
            return false;
        };
        let said = outgoing.try_send(FollowRequest { message: Some(message) }).is_ok();
        if !said {
            self.close.notify_one();
        }
        said
    }

    fn say_released(&self, mut keys: Vec<OwnedKey>, mut kept: Vec<OwnedKey>) {
        while !keys.is_empty() || !kept.is_empty() {
            let rest = keys.split_off(keys.len().min(MAX_RELEASED));
            let rest_kept = kept.split_off(kept.len().min(MAX_RELEASED - keys.len()));
            self.say(follow_request::Message::Released(Released { keys, kept }));
            (keys, kept) = (rest, rest_kept);
        }
    }

    /// Opens a question, or joins the one that is open for this key.
    fn ask(
        &self,
        pool: &str,
        key: &str,
    ) -> Result<oneshot::Receiver<Result<Owner, LocateError>>, LocateError> {
        if key.len() > MAX_KEY_BYTES {
            return Err(unavailable(&format!("the key is longer than {MAX_KEY_BYTES} bytes")));
        }
        if self.lost_since.get().is_some_and(|since| since.elapsed() > LOCATE_TIMEOUT) {
            return Err(unavailable("the seed is away, and this key's owner is not known yet"));
        }
        let refuted = self.owners.borrow().refuted(pool, key);
        let (answer, receiver) = oneshot::channel();
        match self.questions.borrow_mut().open(pool, key, refuted, answer) {
            Opened::New(locate) => drop(self.say(follow_request::Message::Locate(locate))),
            Opened::Joined => {}
            Opened::Full => return Err(unavailable("too many keys are being asked for")),
        }
        Ok(receiver)
    }
}

fn unavailable(reason: &str) -> LocateError {
    LocateError { reason: reason.to_owned(), retry_after: Duration::from_secs(1) }
}

async fn changed<T>(value: &watch::Sender<Rc<T>>, is_news: impl Fn(&T) -> bool) -> Rc<T> {
    let mut receiver = value.subscribe();
    loop {
        let now = Rc::clone(&receiver.borrow_and_update());
        if is_news(&now) {
            return now;
        }
        // The sender outlives the call that borrows it.
        let _ = receiver.changed().await;
    }
}
