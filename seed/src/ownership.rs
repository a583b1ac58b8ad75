//! Exactly one owner for every key: leases, epochs, terms and recovery, pure. Inputs carry the time, actions come out.
//!
//! A key is given to another member only when the one that had it can't serve it any more: its lease has ended here
//! (which is later than at the member, see [`protoplex_wire::holder`]), it has left, it has released the key, asked to or
//! not, or it has said hello without it. What a new term can't know yet, it waits for: for one lease at most, every key that no
//! member reports is held back as long as a member of an earlier term, found in the datastore, has not come back.
//!
//! ```text
//!                   hello ▶ (row written) ▶ Live ── lease over, leave ──▶ Gone ── last record ──▶ forgotten
//!  new term: Expected ──────── hello ───────▲  └──── window over ────────▲
//! ```
//!
//! A lease is its member's by id *and instance*: names are given by people, and may be given twice.
//!
//! `now` must be read after the input was received, and a lead's `until` counted from before its request was sent.

mod assigning;
mod balance;
mod idle;
mod joining;
mod keys;
mod members;
mod releasing;
mod term;
mod view;

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{Member, OwnedKey, Position, follow_reply::Message};

pub use idle::Idle;
use joining::Pending;
pub use keys::PARTS;
use keys::{KeyHasher, Keys};
use members::Members;
use releasing::Yields;
pub use view::{Hint, MemberView};

/// Names one follower's link for as long as the process lives.
pub type LinkId = u64;

/// The term takes the upper 24 bits of an epoch, so that epochs never repeat over terms.
const EPOCH_COUNTER_BITS: u32 = 40;
/// What an asker is told to wait where nothing better is known.
const RETRY: Duration = Duration::from_secs(1);

/// What a seed counts with.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A member's lease, counted here from the receipt of its renewal. Must be the one that members are told, and
    /// not less than that of any earlier seed of this cluster.
    pub lease: Duration,
    /// How often members renew.
    pub heartbeat: Duration,
    /// How long a member has to stay before keys are moved to it: who comes and goes at once moves nothing.
    pub settling: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(5),
            heartbeat: Duration::from_secs(1),
            settling: Duration::from_secs(10),
        }
    }
}

/// How much a seed takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Keys known, owned or remembered.
    pub max_keys: usize,
    /// Members of all pools.
    pub max_members: usize,
    /// Questions held while a new term waits for its members.
    pub max_held_questions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_keys: 4_000_000, max_members: 10_000, max_held_questions: 100_000 }
    }
}

/// A member's hello, complete with the keys that it reports.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The node that runs it, for [`Ownership::set_draining`].
    pub node: String,
    /// Who joins.
    pub member: Member,
    /// See [`protoplex_wire::holder::Holder::incarnation`].
    pub incarnation: u64,
    /// See [`protoplex_wire::holder::Holder::attempt`].
    pub attempt: u64,
    /// What it owns, by its own account.
    pub keys: Vec<OwnedKey>,
    /// Its share of the pool's keys, beside the others'; 0 is 1.
    pub capacity: u32,
    /// It gives up keys that are in use when it is asked to.
    pub yields: bool,
}

/// Who owns this key?
#[derive(Clone, Debug)]
pub struct Question {
    /// Where the answer goes.
    pub link: LinkId,
    /// Echoed in the answer.
    pub id: u64,
    /// The asker's zone.
    pub zone: String,
    /// The key's pool.
    pub pool: String,
    /// The key.
    pub key: String,
    /// The epoch that the owner refused; 0 where none.
    pub refuted_epoch: u64,
}

/// Why a link is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// This seed can't serve it now; later, it or another seed may.
    Away(&'static str),
    /// The member is none, or is one no more: its operator should know.
    Refused(Cow<'static, str>),
}

impl Ending {
    fn refused(why: &'static str) -> Self {
        Self::Refused(Cow::Borrowed(why))
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) => f.write_str(why),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

/// What the shell has to do, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send it on this link.
    Send(LinkId, Message),
    /// Send it to the other followers of this link's node.
    Share(LinkId, Message),
    /// Send it to all followers, and keep it for those that come back.
    Broadcast(Position, Message),
    /// The hello on this link is accepted: welcome it.
    Welcome(LinkId),
    /// Close this link, once what was sent before is out, for this reason.
    Close(LinkId, Ending),
    /// Write the member's row, then call [`Ownership::recorded`] with this link.
    Record(LinkId, Member, u64),
    /// Remove the member's row (pool, id), unless it is of a higher revision.
    Erase(String, String, u64),
    /// The members of the routing table are others now.
    TableChanged,
}

/// The seed's core.
pub struct Ownership {
    timing: Timing,
    limits: Limits,
    term: u64,
    counter: u64,
    sequence: u64,
    lead_until: Option<BootTime>,
    recovery_ends: Option<BootTime>,
    members: Members,
    keys: Keys,
    pending: Pending,
    held: Vec<Question>,
    idle: Idle,
    yields: Yields,
    /// Questions to be asked anew.
    parked: Vec<Question>,
    draining: HashSet<String>,
    overloaded: HashSet<String>,
    changes: u64,
    /// No lease ends before.
    next_expiry: BootTime,
    /// The part of the keys that is looked through next.
    next_part: usize,
    /// When a seed that is full looks for room again, at the earliest.
    next_search: BootTime,
    /// Some member may still have less than its share.
    unbalanced: bool,
    actions: VecDeque<Action>,
}

impl Ownership {
    /// A seed that knows nothing and leads nothing.
    #[must_use]
    pub fn new(timing: Timing, limits: Limits) -> Self {
        Self {
            timing,
            limits,
            term: 0,
            counter: 0,
            sequence: 0,
            lead_until: None,
            recovery_ends: None,
            members: Members::default(),
            keys: Keys::default(),
            pending: Pending::default(),
            held: Vec::new(),
            idle: Idle::default(),
            yields: Yields::default(),
            parked: Vec::new(),
            draining: HashSet::new(),
            overloaded: HashSet::new(),
            changes: 0,
            next_expiry: BootTime::ZERO,
            next_part: 0,
            next_search: BootTime::ZERO,
            unbalanced: false,
            actions: VecDeque::new(),
        }
    }

    /// When the ownership of keys that nobody asks for ends; without this, never.
    #[must_use]
    pub fn with_idle(self, idle: Idle) -> Self {
        Self { idle, ..self }
    }

    /// Hashes keys by this seed: then the same inputs have the same outputs, in the same order. For simulations; call it
    /// first.
    #[must_use]
    pub fn with_hash_seed(self, seed: u64) -> Self {
        Self { keys: Keys::hashed_by(KeyHasher::seeded(seed)), ..self }
    }

    /// The next thing to do; take them all after each input.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What was last broadcast.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { term: self.term, sequence: self.sequence }
    }

    /// Grows, and never repeats over terms: for epochs of keys and for revisions of rows.
    fn next_epoch(&mut self) -> u64 {
        self.counter += 1;
        self.last_epoch()
    }

    fn last_epoch(&self) -> u64 {
        self.first_epoch() + self.counter
    }

    /// Of this term; all epochs of earlier ones are less, and none is this.
    fn first_epoch(&self) -> u64 {
        self.term << EPOCH_COUNTER_BITS
    }

    fn send(&mut self, link: LinkId, message: Message) {
        self.actions.push_back(Action::Send(link, message));
    }

    /// Sends what this makes of its position to all followers.
    fn broadcast(&mut self, message: impl FnOnce(Position) -> Message) {
        self.sequence += 1;
        let position = self.position();
        self.actions.push_back(Action::Broadcast(position, message(position)));
    }
}

#[cfg(test)]
mod tests;
