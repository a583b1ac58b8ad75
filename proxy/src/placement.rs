//! Which member of a pool gets a request where no one owns its key: pure choices over a slice of members.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use rand::{Rng, RngExt};
use tokio::time::Instant;

use crate::health::Health;

/// A server that is a member of a pool, as this child sees it.
#[derive(Debug)]
pub struct Member {
    /// Its name, unique in the pool, e.g. `live-1:0`.
    pub id: Box<str>,
    /// Where it speaks plain HTTP/1.1.
    pub address: SocketAddr,
    /// [`stable_hash`] of the id.
    seed: u64,
    /// Requests of this child that it has not answered to the end.
    outstanding: Cell<u32>,
    /// Whether it is left out for a while.
    pub health: Health,
}

impl Member {
    /// A member without requests.
    pub fn new(id: &str, address: SocketAddr) -> Self {
        let (seed, outstanding) = (stable_hash(id.as_bytes()), Cell::new(0));
        Self { id: id.into(), address, seed, outstanding, health: Health::default() }
    }

    /// Requests that this child has sent it and that have not ended.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// Rendezvous weight of the member for a key: the highest of the pool has the key.
    fn weight(&self, key_hash: u64) -> u64 {
        mix(self.seed ^ key_hash)
    }
}

/// One request on its way at a member; counted until dropped.
#[derive(Debug)]
pub struct Outstanding(Rc<Member>);

impl Outstanding {
    /// Counts a request at `member`.
    pub fn at(member: &Rc<Member>) -> Self {
        member.outstanding.set(member.outstanding.get() + 1);
        Self(Rc::clone(member))
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.set(self.0.outstanding.get() - 1);
    }
}

/// The member that has `key` by rendezvous hashing (Thaler and Ravishankar, 1998), `tried` set aside, and those that are
/// left out now unless all the others are: then the next in order has its keys.
///
/// The order of `members` is of no account, and when a member leaves, only its keys move.
pub fn hash<'a>(
    members: &'a [Rc<Member>],
    key: &str,
    tried: Option<&Rc<Member>>,
    now: Instant,
) -> Option<&'a Rc<Member>> {
    let key_hash = stable_hash(key.as_bytes());
    eligible(members, tried, now).max_by_key(|member| (member.weight(key_hash), &member.id))
}

/// The less busy of two members drawn at random (Mitzenmacher, 2001), `tried` set aside, and those that are left out now
/// unless all the others are.
pub fn spread<'a>(
    members: &'a [Rc<Member>],
    rng: &mut impl Rng,
    tried: Option<&Rc<Member>>,
    now: Instant,
) -> Option<&'a Rc<Member>> {
    let count = eligible(members, tried, now).count();
    if count < 2 {
        return eligible(members, tried, now).next();
    }
    let first = rng.random_range(0..count);
    let second = (first + rng.random_range(1..count)) % count;
    let [first, second] = [first, second].map(|nth| eligible(members, tried, now).nth(nth));
    if second?.outstanding() < first?.outstanding() { second } else { first }
}

fn eligible<'a>(
    members: &'a [Rc<Member>],
    tried: Option<&Rc<Member>>,
    now: Instant,
) -> impl Iterator<Item = &'a Rc<Member>> {
    let untried = move |member: &&Rc<Member>| tried.is_none_or(|tried| tried.id != member.id);
    let all_out = !members.iter().any(|member| untried(&member) && member.health.admits(now));
    members.iter().filter(move |member| untried(member) && (all_out || member.health.admits(now)))
}

/// FNV-1a with a finalizer: the same in every proxy of every version, since keys must not move with a release.
fn stable_hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): spreads every bit of the input over all of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
