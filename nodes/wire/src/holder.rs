//! The lease and the owned keys of one member of a pool: pure, told the time and what its link brings.
//!
//! ```text
//!  Away ── hello ──▶ Joining ── welcomed ──▶ Joined          keys and lease outlive the link;
//!   ▲                   │                      │             the lease's end takes the keys with it
//!   └── disconnected, silence, lease over, leave ┘
//! ```
//!
//! A lease counts from the moment at which its request was *sent*, and only nine tenths of it: the seed counts the
//! whole from the receipt, so it never gives a key away that is still served here, clocks drifting 5 % apart included.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::BootTime;

/// Unanswered renewals whose times of sending are remembered.
const MAX_RENEWALS_IN_FLIGHT: usize = 16;
/// How long a first welcome may take; later ones are awaited for two fifths of a lease.
const FIRST_WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Parts of a lease between two questions to the datastore at most, and at least.
///
/// A seed that dies right before it grants a renewal leaves a member with 4.5 s from the renewal a second earlier, and
/// its row ends 3 s after its death. With clocks 5 % apart in the worst way that is less than 0.1 s before the lease's
/// end, so questions a quarter of a second apart could miss it, and every key of the member would move.
const QUESTION: u32 = 20;
const QUICKEST_QUESTION: u32 = 200;

/// What a request for a key meets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Serve it.
    Owned,
    /// The assignment may be on its way: ask again shortly.
    Wait,
    /// Not here, or not at this epoch: 421.
    Misdirected,
}

/// What this member owns no more: drop what it serves. Whoever hears of it late may own it anew, at a later epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// This key, at this epoch and those before.
    Key {
        /// The key.
        key: String,
        /// The last epoch at which it was owned.
        epoch: u64,
    },
    /// Every key, at this epoch and those before.
    All {
        /// The newest at which any was assigned.
        epoch: u64,
    },
}

/// What [`Holder::poll`] asks of whoever drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Tell whoever serves the keys.
    Lost(Lost),
    /// Close the link, if it is open, and join anew.
    Rejoin,
    /// Send this renewal now.
    Renew {
        /// Comes back in [`Holder::renewed`].
        sequence: u64,
    },
    /// Ask the datastore whether any seed holds the row `seed`; call [`Holder::unseeded`] or [`Holder::seeded`].
    AskDatastore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Away,
    Joining { sent_at: BootTime },
    Joined,
}

/// One member's view of what it owns. Call [`Holder::poll`] until `None` after each input, and at [`Holder::next_poll`].
#[derive(Debug)]
pub struct Holder {
    incarnation: u64,
    attempt: u64,
    link: Link,
    lease: Duration,
    heartbeat: Duration,
    /// The lease's end, already shortened; `None` where there is no lease, and then there is no key.
    ends: Option<BootTime>,
    keys: HashMap<Box<str>, u64>,
    newest_epoch: u64,
    renewals: VecDeque<(u64, BootTime)>,
    sequence: u64,
    heard_at: BootTime,
    next_renewal: BootTime,
    next_question: BootTime,
    steps: VecDeque<Step>,
}

impl Holder {
    /// A member with no lease and no key.
    #[must_use]
    pub fn new(now: BootTime) -> Self {
        Self {
            incarnation: now.nanos(),
            attempt: 0,
            link: Link::Away,
            lease: Duration::ZERO,
            heartbeat: Duration::ZERO,
            ends: None,
            keys: HashMap::new(),
            newest_epoch: 0,
            renewals: VecDeque::new(),
            sequence: 0,
            heard_at: now,
            next_renewal: now,
            next_question: now,
            steps: VecDeque::new(),
        }
    }

    /// Call right before the hello is sent on a new link; then send [`Self::incarnation`], [`Self::attempt`] and
    /// [`Self::keys`]. Whatever an earlier link still brings is not for this holder any more.
    pub fn hello(&mut self, now: BootTime) {
        self.expire(now);
        self.attempt += 1;
        self.renewals.clear();
        self.heard_at = now;
        self.link = Link::Joining { sent_at: now };
    }

    /// Grows each time this member starts over with no keys, over restarts of its process too.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Grows with each hello.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The owned keys with their epochs.
    pub fn keys(&self) -> impl Iterator<Item = (&str, u64)> {
        self.keys.iter().map(|(key, epoch)| (&**key, *epoch))
    }

    /// The seed has accepted the hello: a lease, counted from its sending.
    pub fn welcomed(&mut self, lease: Duration, heartbeat: Duration, now: BootTime) {
        self.expire(now);
        let Link::Joining { sent_at } = self.link else {
            return;
        };
        self.link = Link::Joined;
        self.lease = lease;
        self.heartbeat = heartbeat;
        // The welcome may have taken long, and the lease counts from the hello.
        self.next_renewal = now;
        self.heard_at = now;
        self.extend(sent_at);
    }

    /// The seed has granted the renewal of this sequence.
    pub fn renewed(&mut self, sequence: u64, now: BootTime) {
        self.expire(now);
        if self.link != Link::Joined {
            return;
        }
        while let Some(&(sent, sent_at)) = self.renewals.front().filter(|(sent, _)| *sent <= sequence) {
            self.renewals.pop_front();
            if sent == sequence {
                self.heard_at = now;
                self.extend(sent_at);
            }
        }
    }

    /// The seed has assigned the key to this member.
    pub fn assigned(&mut self, key: &str, epoch: u64, now: BootTime) {
        self.expire(now);
        if self.link != Link::Joined {
            return;
        }
        self.newest_epoch = self.newest_epoch.max(epoch);
        match self.keys.get_mut(key) {
            Some(known) => *known = epoch.max(*known),
            None => drop(self.keys.insert(key.into(), epoch)),
        }
    }

    /// The seed says that the key of this epoch is not this member's.
    pub fn revoked(&mut self, key: &str, epoch: u64) {
        if self.release(key, epoch) {
            self.steps.push_back(Step::Lost(Lost::Key { key: key.into(), epoch }));
        }
    }

    /// The seed no longer counts this incarnation as a member.
    pub fn lease_lost(&mut self, now: BootTime) {
        self.start_over(now);
    }

    /// The link is gone. Keys and lease go on.
    pub fn disconnected(&mut self) {
        self.link = Link::Away;
    }

    /// The datastore, asked at `asked_at`, says that no seed holds its row. Any later seed waits one whole lease
    /// before it assigns what nobody reports, so this member may go on for one lease from its question.
    pub fn unseeded(&mut self, asked_at: BootTime, now: BootTime) {
        self.expire(now);
        if self.ends.is_some() {
            self.extend(asked_at);
        }
    }

    /// The datastore, asked at `asked_at`, says that a seed holds its row, for this long if nothing renews it. Then it
    /// is asked again: a row may end just before the lease here does.
    pub fn seeded(&mut self, asked_at: BootTime, left: Duration, now: BootTime) {
        let (soonest, latest) = (now + self.lease / QUICKEST_QUESTION, now + self.lease / QUESTION);
        self.next_question = (asked_at + left).clamp(soonest, latest);
    }

    /// Gives up an idle key; true if it was owned at this epoch, and then the seed is to be told.
    pub fn release(&mut self, key: &str, epoch: u64) -> bool {
        let owned = self.keys.get(key) == Some(&epoch);
        if owned {
            self.keys.remove(key);
        }
        owned
    }

    /// Gives up membership and all keys; call before the seed is told. A later hello joins anew.
    pub fn leave(&mut self, now: BootTime) {
        self.start_over(now);
        self.steps.retain(|step| *step != Step::Rejoin);
    }

    /// May a request for this key at this epoch be served now?
    #[must_use]
    pub fn check(&self, key: &str, epoch: u64, now: BootTime) -> Fence {
        let known = self.keys.get(key).copied();
        if known == Some(epoch) {
            let held = self.ends.is_some_and(|ends| now < ends);
            return if held { Fence::Owned } else { Fence::Misdirected };
        }
        // Epochs grow along the link, so an assignment older than the newest seen is not on its way.
        if self.link == Link::Away || epoch <= self.newest_epoch { Fence::Misdirected } else { Fence::Wait }
    }

    /// What is left of the lease.
    #[must_use]
    pub fn lease_left(&self, now: BootTime) -> Duration {
        self.ends.map_or(Duration::ZERO, |ends| ends.since(now))
    }

    /// The next thing to do, if there is one now.
    pub fn poll(&mut self, now: BootTime) -> Option<Step> {
        self.expire(now);
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        if self.link != Link::Away && now >= self.heard_at + self.patience() {
            self.link = Link::Away;
            return Some(Step::Rejoin);
        }
        if self.link == Link::Joined && now >= self.next_renewal {
            return Some(self.renew(now));
        }
        if self.question_at().is_some_and(|at| now >= at) {
            self.next_question = now + self.lease / QUESTION;
            return Some(Step::AskDatastore);
        }
        None
    }

    /// When [`Self::poll`] has something to do unless told something earlier; `None`: only when told something.
    #[must_use]
    pub fn next_poll(&self) -> Option<BootTime> {
        let silence = (self.link != Link::Away).then(|| self.heard_at + self.patience());
        let renewal = (self.link == Link::Joined).then_some(self.next_renewal);
        [self.ends, self.question_at(), silence, renewal].into_iter().flatten().min()
    }

    fn renew(&mut self, now: BootTime) -> Step {
        self.sequence += 1;
        self.next_renewal = now + self.heartbeat;
        if self.renewals.len() == MAX_RENEWALS_IN_FLIGHT {
            self.renewals.pop_front();
        }
        self.renewals.push_back((self.sequence, now));
        Step::Renew { sequence: self.sequence }
    }

    /// A seed that is silent for this long is taken for dead, and its link is closed while there is lease left.
    fn patience(&self) -> Duration {
        if self.lease.is_zero() { FIRST_WELCOME_TIMEOUT } else { self.lease * 2 / 5 }
    }

    /// The datastore is asked over and over in the last 40 % of the lease.
    fn question_at(&self) -> Option<BootTime> {
        self.ends.map(|ends| (ends - self.lease * 2 / 5).max(self.next_question))
    }

    fn extend(&mut self, sent_at: BootTime) {
        let ends = sent_at + self.lease * 9 / 10;
        self.ends = self.ends.max(Some(ends));
    }

    fn expire(&mut self, now: BootTime) {
        if self.ends.is_some_and(|ends| now >= ends) {
            self.start_over(now);
        }
    }

    fn start_over(&mut self, now: BootTime) {
        self.incarnation = now.nanos().max(self.incarnation + 1);
        self.ends = None;
        self.keys = HashMap::new();
        self.renewals.clear();
        self.link = Link::Away;
        self.steps.clear();
        self.steps.extend([Step::Lost(Lost::All { epoch: self.newest_epoch }), Step::Rejoin]);
    }
}

#[cfg(test)]
mod tests;
