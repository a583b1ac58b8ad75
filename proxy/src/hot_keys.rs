//! The keys that have the most requests here: the Space-Saving sketch (Metwally, Agrawal and El Abbadi, 2005) over a part of
//! the requests, in fixed memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use protoplex_wire::proto;
use tokio::time::Instant;

/// Keys that are counted at once.
const COUNTERS: usize = 64;
/// On average one request of so many is looked at.
const SAMPLE: u64 = 8;
/// Reports come this often.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);
/// A hot key has at least one in so many of the requests that were looked at, and so many of them.
const SHARE: u64 = 50;
const MIN_SEEN: u64 = 16;
/// Of one report.
const MAX_REPORTED: usize = 32;

#[derive(Debug)]
struct Counter {
    pool: Box<str>,
    key: Box<str>,
    hash: u64,
    seen: u64,
    /// So many of them may be another key's, which had the counter before.
    inherited: u64,
}

/// What was seen since the last report.
#[derive(Debug)]
pub(crate) struct HotKeys {
    counters: Vec<Counter>,
    by_hash: HashMap<u64, usize>,
    hasher: RandomState,
    seen: u64,
    /// Requests until the next one that is looked at.
    skip: u64,
    begun: Instant,
}

impl HotKeys {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            counters: Vec::with_capacity(COUNTERS),
            by_hash: HashMap::with_capacity(COUNTERS),
            hasher: RandomState::new(),
            seen: 0,
            skip: 0,
            begun: now,
        }
    }

    /// A request for this key.
    pub(crate) fn note(&mut self, pool: &str, key: &str) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let hash = self.hasher.hash_one((pool, key));
        // Any number below twice the part, so that no rhythm of the requests is followed: on average one less than it.
        self.skip = (hash ^ self.seen.wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 32;
        self.skip %= 2 * SAMPLE - 1;
        self.seen += 1;
        if let Some(&place) = self.by_hash.get(&hash) {
            self.counters[place].seen += 1;
            return;
        }
        let counter =
            |inherited| Counter { pool: pool.into(), key: key.into(), hash, seen: inherited + 1, inherited };
        if self.counters.len() < COUNTERS {
            self.by_hash.insert(hash, self.counters.len());
            self.counters.push(counter(0));
            return;
        }
        let least = (0..COUNTERS).min_by_key(|place| self.counters[*place].seen).unwrap_or_default();
        let inherits = counter(self.counters[least].seen);
        let before = std::mem::replace(&mut self.counters[least], inherits);
        self.by_hash.remove(&before.hash);
        self.by_hash.insert(hash, least);
    }

    /// The hot keys since the last report, and begins anew.
    pub(crate) fn report(&mut self, now: Instant) -> proto::HotKeys {
        let least = (self.seen / SHARE).max(MIN_SEEN);
        let sure = |counter: &Counter| counter.seen - counter.inherited;
        let mut hot: Vec<_> = self.counters.drain(..).filter(|counter| sure(counter) >= least).collect();
        hot.sort_by_key(|counter| std::cmp::Reverse(sure(counter)));
        hot.truncate(MAX_REPORTED);
        let period = now.duration_since(self.begun);
        self.by_hash.clear();
        (self.seen, self.begun) = (0, now);
        let key = |counter: Counter| proto::HotKey {
            requests: sure(&counter) * SAMPLE,
            pool: counter.pool.into(),
            key: counter.key.into(),
        };
        proto::HotKeys {
            period_ms: u32::try_from(period.as_millis()).unwrap_or(u32::MAX),
            keys: hot.into_iter().map(key).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_hot_keys_are_found_among_very_many_and_counted_nearly() {
        let begun = Instant::now();
        let mut hot = HotKeys::new(begun);
        let mut draw = 1_u64;
        for request in 0..200_000_u64 {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match draw >> 33 & 0b1111 {
                0..4 => hot.note("rooms", "hottest"),
                4..6 => hot.note("rooms", "hot"),
                _ => hot.note("rooms", &request.to_string()),
            }
        }
        let report = hot.report(begun + PERIOD);
        assert_eq!(report.period_ms, 10_000);
        let told: Vec<_> = report.keys.iter().map(|hot| (hot.key.as_str(), hot.requests)).collect();
        assert_eq!(told.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["hottest", "hot"]);
        assert!((40_000..60_000).contains(&told[0].1) && (18_000..32_000).contains(&told[1].1), "{told:?}");
        assert!(hot.report(begun + PERIOD * 2).keys.is_empty(), "it begins anew");
    }

    #[test]
    fn where_all_are_alike_or_there_is_little_to_do_nothing_is_hot() {
        let mut hot = HotKeys::new(Instant::now());
        (0..100_000).for_each(|request| hot.note("rooms", &(request % 1000).to_string()));
        assert!(hot.report(Instant::now()).keys.is_empty());
        // Of these a few are looked at, and never as many as it takes.
        (0..40).for_each(|_| hot.note("rooms", "only"));
        assert!(hot.report(Instant::now()).keys.is_empty());
    }
}
