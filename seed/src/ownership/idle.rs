//! Keys that nobody asks for any more: the wait, and the look through all of them, one part after the other.
//!
//! An answer says for how long it may be used without asking again. Who uses one asks again in time, so a key that nobody
//! asked for during the whole of it, and some more, is used by nobody who can reach the seed, and no cached answer has to be
//! taken back. Its owner is asked whether it needs the key all the same; what it releases then is free.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::OwnedKey;

use super::Ownership;
use super::keys::{Moment, PARTS};
use super::members::MemberIndex;

/// Keys that owners are asked to give up in one step.
pub(super) const MAX_STEP: usize = 1024;
/// At most so often does a seed that is full look for room.
const SEARCH_PAUSE: Duration = Duration::from_millis(2);

/// For how long keys stay owned that nobody asks for, and remembered that nobody owns.
#[derive(Clone, Debug, Default)]
pub struct Idle {
    /// Of pools that are not named; `None`: for ever.
    pub default: Option<Duration>,
    /// Of these pools.
    pub pools: HashMap<String, Option<Duration>>,
}

impl Idle {
    /// For how long an answer of this pool may be used without asking again.
    pub(super) fn of(&self, pool: &str) -> Option<Duration> {
        self.pools.get(pool).copied().unwrap_or(self.default)
    }

    /// When a key that nobody asked for is idle here. An eighth more than askers count, since clocks drift apart, and one
    /// lease, since what an asker was sent takes its time.
    fn limit(&self, pool: &str, lease: Duration) -> Option<Duration> {
        self.of(pool).map(|idle| idle + idle / 8 + lease)
    }
}

/// What one step found, by owner.
type Found = BTreeMap<MemberIndex, Vec<OwnedKey>>;

impl Ownership {
    /// Looks through the next part of the keys.
    pub(super) fn sweep(&mut self, now: BootTime) {
        let full = self.keys.len() >= self.limits.max_keys;
        self.look_through(full, now);
    }

    /// Room for one more key; where there is none, what is only remembered makes it, part by part.
    pub(super) fn has_room(&mut self, now: BootTime) -> bool {
        if self.keys.len() >= self.limits.max_keys && now >= self.next_search {
            self.next_search = now + SEARCH_PAUSE;
            self.look_through(true, now);
        }
        self.keys.len() < self.limits.max_keys
    }

    /// Forgets what is remembered for too long, or at all where the seed is full; asks owners of idle keys to give them
    /// up, and owners of too many to let a newcomer have some.
    fn look_through(&mut self, full: bool, now: BootTime) {
        let part = self.next_part;
        self.next_part = (part + 1) % PARTS;
        let mut moves = self.planned_moves(now);
        let (idle, members, yields, lease) = (&self.idle, &self.members, &self.yields, self.timing.lease);
        let mut room = yields.room().min(MAX_STEP);
        let (mut idle_keys, mut moving_keys) = (Found::new(), Found::new());
        let mut forgotten = Vec::new();
        let mut pool_now = (String::new(), idle.limit("", lease));
        self.keys.sweep(part, |pool, key, record| {
            if pool_now.0 != pool {
                pool_now = (pool.to_owned(), idle.limit(pool, lease));
            }
            let Some(passed) = record.asked.passed(now) else {
                record.asked = Moment::of(now);
                return true;
            };
            let is_idle = pool_now.1.is_some_and(|limit| passed > limit);
            let slot = &members[record.member];
            if !Self::owns(slot, record) {
                if is_idle || full {
                    forgotten.push(record.member);
                }
                return !(is_idle || full);
            }
            if room == 0 || slot.link.is_none() || yields.contains(pool, key) {
                return true;
            }
            let found = if is_idle {
                &mut idle_keys
            } else if moves.take(pool, record.member, passed) {
                &mut moving_keys
            } else {
                return true;
            };
            room -= 1;
            // Who keeps it all the same is asked again as late.
            record.asked = Moment::of(now);
            let owned = OwnedKey { key: key.to_owned(), epoch: record.epoch };
            found.entry(record.member).or_default().push(owned);
            true
        });
        for member in forgotten {
            self.changes += 1;
            self.members.change(member, |slot| slot.records -= 1);
            self.members.tidy(member);
        }
        for (member, keys) in idle_keys {
            self.ask_to_yield(member, keys, None, now);
        }
        for (member, keys) in moving_keys {
            let pool = self.members[member].member.pool.clone();
            self.ask_to_yield(member, keys, moves.newcomer(&pool), now);
        }
        self.moved(moves, now);
    }
}
