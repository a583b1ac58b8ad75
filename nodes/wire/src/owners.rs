//! What a follower knows of who owns which key: a bounded cache of the seed's answers, each with its age.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use lru::LruCache;

use crate::clock::BootTime;

/// Answers kept, of all pools; the least recently used one of the pool that has most goes first. Some 110 bytes each.
const MAX_OWNERS: usize = 1 << 18;

/// A question that has no answer by then is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The member that owns a key, and since which epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its id, "live-1:0".
    pub member: Rc<str>,
    /// Where it serves plain HTTP/1.1.
    pub address: SocketAddr,
    /// Goes into `Protoplex-Epoch`.
    pub epoch: u64,
}

/// How an answer may be used. The seed takes a key that nobody asks for any more from its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// As it is.
    Fresh,
    /// As it is, but half of its time is over: ask again meanwhile.
    Ageing,
    /// Only where nobody can be asked, or who is asked can't say.
    Stale,
    /// Only where nobody can be asked: the key may have had another owner since.
    Doubted,
}

/// The cache itself. Keys are looked up without an allocation, and a member is forgotten without a look at them.
#[derive(Default)]
pub struct Owners {
    pools: HashMap<Box<str>, OfPool>,
}

struct OfPool {
    answers: LruCache<Box<str>, Answer>,
    members: HashMap<Rc<str>, Rc<Seat>>,
}

/// One member, as long as it is one; all its answers share it.
struct Seat {
    id: Rc<str>,
    address: SocketAddr,
    gone: Cell<bool>,
}

enum Answer {
    Known(Known),
    /// The owner of this epoch answered 421; the next question says so.
    Refuted(u64),
}

struct Known {
    seat: Rc<Seat>,
    epoch: u64,
    /// In tenths of a second since the machine's start, rounded down; `u32::MAX`: never.
    ageing_at: u32,
    /// Zero once it is doubted.
    stale_at: u32,
}

fn tenths(time: BootTime) -> u32 {
    u32::try_from(time.nanos() / 100_000_000).unwrap_or(u32::MAX)
}

impl Owners {
    /// The owner of `key`, where an answer is known and stands, and how old that is.
    ///
    /// Who is told that it is [`Age::Ageing`] asks for it anew; others are told so once nothing came of that for 2 s.
    pub fn known(&mut self, pool: &str, key: &str, now: BootTime) -> Option<(Owner, Age)> {
        let Answer::Known(known) = self.pools.get_mut(pool)?.answers.get_mut(key)? else { return None };
        let told = known.tell(now)?;
        if told.1 == Age::Ageing {
            known.ageing_at = tenths(now + ASK_AGAIN).min(known.stale_at);
        }
        Some(told)
    }

    /// As [`Self::known`], for whoever only looks: nothing is taken for asked by it, and nothing for used.
    pub fn look(&self, pool: &str, key: &str, now: BootTime) -> Option<(Owner, Age)> {
        let Answer::Known(known) = self.pools.get(pool)?.answers.peek(key)? else { return None };
        known.tell(now)
    }

    /// The epoch that was refuted since the last answer for `key`, or 0.
    pub fn refuted(&self, pool: &str, key: &str) -> u64 {
        match self.pools.get(pool).and_then(|of_pool| of_pool.answers.peek(key)) {
            Some(Answer::Refuted(epoch)) => *epoch,
            _ => 0,
        }
    }

    /// Keeps the seed's answer to a question that was sent at `asked`. It is fresh for so long, for ever if that is zero.
    pub fn learn(&mut self, pool: &str, key: &str, owner: &Owner, asked: BootTime, fresh: Duration) {
        let of_pool = self.pool(pool);
        let (ageing_at, stale_at) = match fresh {
            Duration::ZERO => (u32::MAX, u32::MAX),
            fresh => (tenths(asked + fresh / 2), tenths(asked + fresh)),
        };
        let known = Known { seat: of_pool.seat(owner), epoch: owner.epoch, ageing_at, stale_at };
        of_pool.answers.put(key.into(), Answer::Known(known));
        self.make_room();
    }

    /// Forgets the answer for `key` if it is of `epoch` or an older one: its owner denied it.
    pub fn refute(&mut self, pool: &str, key: &str, epoch: u64) {
        let of_pool = self.pool(pool);
        let newer = |known: &Known| !known.seat.gone.get() && known.epoch > epoch;
        if !matches!(of_pool.answers.peek(key), Some(Answer::Known(known)) if newer(known)) {
            of_pool.answers.put(key.into(), Answer::Refuted(epoch));
            self.make_room();
        }
    }

    /// Forgets the answers for these keys.
    pub fn forget(&mut self, pool: &str, keys: &[String]) {
        if let Some(of_pool) = self.pools.get_mut(pool) {
            keys.iter().for_each(|key| drop(of_pool.answers.pop(&**key)));
        }
    }

    /// Forgets every answer that names `member`, however many there are.
    pub fn forget_member(&mut self, pool: &str, member: &str) {
        if let Some(seat) = self.pools.get_mut(pool).and_then(|of_pool| of_pool.members.remove(member)) {
            seat.gone.set(true);
        }
    }

    /// Word was missed of keys that have moved, and nobody knows of which: each answer is asked for before it is used again.
    ///
    /// They are kept for when nobody can be asked. Members serve a key at its epoch alone, and within their leases, so that
    /// an answer which is wrong by then does no harm.
    pub fn doubt_all(&mut self) {
        self.pools.retain(|_, of_pool| !of_pool.answers.is_empty());
        for OfPool { answers, members } in self.pools.values_mut() {
            for (_, answer) in answers.iter_mut() {
                if let Answer::Known(known) = answer {
                    (known.ageing_at, known.stale_at) = (0, 0);
                }
            }
            // That they are gone may have been missed, too.
            members.retain(|_, seat| Rc::strong_count(seat) > 1);
        }
    }

    fn len(&self) -> usize {
        self.pools.values().map(|of_pool| of_pool.answers.len()).sum()
    }

    /// Forgets an answer where there is one more than may be kept.
    fn make_room(&mut self) {
        if self.len() > MAX_OWNERS
            && let Some(largest) = self.pools.values_mut().max_by_key(|of_pool| of_pool.answers.len())
        {
            largest.answers.pop_lru();
        }
    }

    fn pool(&mut self, pool: &str) -> &mut OfPool {
        // Pools come from the routing table, so they are few; `entry` would allocate each time.
        if !self.pools.contains_key(pool) {
            let of_pool = OfPool { answers: LruCache::unbounded(), members: HashMap::new() };
            self.pools.insert(pool.into(), of_pool);
        }
        self.pools.get_mut(pool).expect("inserted above")
    }
}

impl Known {
    fn tell(&self, now: BootTime) -> Option<(Owner, Age)> {
        let Seat { id, address, gone } = &*self.seat;
        if gone.get() {
            return None;
        }
        let now = tenths(now);
        let age = if self.stale_at == 0 {
            Age::Doubted
        } else if now < self.ageing_at || self.stale_at == u32::MAX {
            Age::Fresh
        } else if now < self.stale_at {
            Age::Ageing
        } else {
            Age::Stale
        };
        Some((Owner { member: Rc::clone(id), address: *address, epoch: self.epoch }, age))
    }
}

impl OfPool {
    /// The member's seat. One that is at another address now has a new one.
    fn seat(&mut self, owner: &Owner) -> Rc<Seat> {
        let known = self.members.get(&owner.member).filter(|seat| seat.address == owner.address);
        if let Some(seat) = known {
            return Rc::clone(seat);
        }
        let id = Rc::clone(&owner.member);
        let seat = Rc::new(Seat { id: Rc::clone(&id), address: owner.address, gone: Cell::new(false) });
        if let Some(before) = self.members.insert(id, Rc::clone(&seat)) {
            before.gone.set(true);
        }
        seat
    }
}

#[cfg(test)]
mod tests;
