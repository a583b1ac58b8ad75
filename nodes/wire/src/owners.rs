//! What a follower knows of who owns which key: a bounded cache of the seed's answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;

use lru::LruCache;

/// Answers kept for each pool; the least recently used one goes first. Some 120 bytes each.
const MAX_OWNERS: NonZeroUsize = NonZeroUsize::new(1 << 18).expect("not zero");

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

/// The cache itself. Keys are looked up without an allocation.
#[derive(Default)]
pub struct Owners {
    pools: HashMap<Box<str>, LruCache<Box<str>, Answer>>,
}

enum Answer {
    Known(Owner),
    /// The owner of this epoch answered 421; the next question says so.
    Refuted(u64),
}

impl Owners {
    /// The owner of `key`, where an answer is known and stands.
    pub fn known(&mut self, pool: &str, key: &str) -> Option<Owner> {
        match self.pools.get_mut(pool)?.get(key)? {
            Answer::Known(owner) => Some(owner.clone()),
            Answer::Refuted(_) => None,
        }
    }

    /// The epoch that was refuted since the last answer for `key`, or 0.
    pub fn refuted(&self, pool: &str, key: &str) -> u64 {
        match self.pools.get(pool).and_then(|answers| answers.peek(key)) {
            Some(Answer::Refuted(epoch)) => *epoch,
            _ => 0,
        }
    }

    /// Keeps the seed's answer.
    pub fn learn(&mut self, pool: &str, key: &str, owner: Owner) {
        self.pool(pool).put(key.into(), Answer::Known(owner));
    }

    /// Forgets the answer for `key` if it is of `epoch` or an older one: its owner denied it.
    pub fn refute(&mut self, pool: &str, key: &str, epoch: u64) {
        let newer = matches!(self.known(pool, key), Some(owner) if owner.epoch > epoch);
        if !newer {
            self.pool(pool).put(key.into(), Answer::Refuted(epoch));
        }
    }

    /// Forgets the answer for `key`.
    pub fn forget(&mut self, pool: &str, key: &str) {
        if let Some(answers) = self.pools.get_mut(pool) {
            answers.pop(key);
        }
    }

    /// Forgets every answer that names `member`.
    pub fn forget_member(&mut self, pool: &str, member: &str) {
        let Some(answers) = self.pools.get_mut(pool) else {
            return;
        };
        let of_member = |answer: &Answer| matches!(answer, Answer::Known(owner) if *owner.member == *member);
        let keys: Vec<_> =
            answers.iter().filter(|(_, answer)| of_member(answer)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            answers.pop(&key);
        }
    }

    /// Forgets every answer.
    pub fn forget_all(&mut self) {
        self.pools.clear();
    }

    fn pool(&mut self, pool: &str) -> &mut LruCache<Box<str>, Answer> {
        // Pools come from the routing table, so they are few; `entry` would allocate each time.
        if !self.pools.contains_key(pool) {
            self.pools.insert(pool.into(), LruCache::new(MAX_OWNERS));
        }
        self.pools.get_mut(pool).expect("inserted above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(member: &str, epoch: u64) -> Owner {
        Owner { member: member.into(), address: "127.0.0.1:1".parse().unwrap(), epoch }
    }

    #[test]
    fn refuting_an_old_epoch_keeps_a_newer_answer() {
        let mut owners = Owners::default();
        owners.learn("live", "a", owner("live-1:0", 7));
        owners.refute("live", "a", 6);
        assert_eq!(owners.known("live", "a"), Some(owner("live-1:0", 7)));
        owners.refute("live", "a", 7);
        assert_eq!(owners.known("live", "a"), None);
        assert_eq!(owners.refuted("live", "a"), 7);
        owners.learn("live", "a", owner("live-1:1", 8));
        assert_eq!(owners.refuted("live", "a"), 0);
    }

    #[test]
    fn a_member_that_is_gone_takes_only_its_own_answers() {
        let mut owners = Owners::default();
        owners.learn("live", "a", owner("live-1:0", 1));
        owners.learn("live", "b", owner("live-1:1", 2));
        owners.learn("rooms", "a", owner("live-1:0", 3));
        owners.forget_member("live", "live-1:0");
        assert_eq!(owners.known("live", "a"), None);
        assert!(owners.known("live", "b").is_some());
        assert!(owners.known("rooms", "a").is_some());
    }
}
