//! Who has which key, at which epoch: 40 bytes a key besides its text.
//!
//! The keys of a pool are in [`PARTS`] tables, by their hash: none is so large that to let it grow, or to write it down,
//! would keep anybody waiting.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::time::Duration;

use hashbrown::HashTable;
use protoplex_wire::clock::BootTime;

use super::members::MemberIndex;

/// How many parts the keys have.
pub const PARTS: usize = 256;
/// The bits of a hash that say which part it is: not the lowest, nor the highest, which its table looks at.
const PART_SHIFT: u32 = 40;

/// Names the member that has, or last had, a key. Owned only while that member lives in the same tenure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) epoch: u64,
    pub(super) member: MemberIndex,
    pub(super) tenure: u32,
    /// When somebody asked for it last.
    pub(super) asked: Moment,
}

/// A time in tenths of a second since the machine's start, rounded down; 0 where it isn't known. 4 bytes: 13 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment(u32);

impl Moment {
    pub(super) fn of(now: BootTime) -> Self {
        Self(u32::try_from(now.nanos() / 100_000_000).unwrap_or(u32::MAX))
    }

    /// The time from then to `now`, up to a tenth of a second less; nothing where it isn't known.
    pub(super) fn passed(self, now: BootTime) -> Option<Duration> {
        let tenths = Self::of(now).0.saturating_sub(self.0).saturating_sub(1);
        (self != Self::default()).then(|| Duration::from_millis(u64::from(tenths) * 100))
    }
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    pools: HashMap<Box<str>, Pool>,
    hasher: KeyHasher,
    count: usize,
}

/// Hashes texts that strangers choose, so it has a seed that can't be foreseen; a simulation gives it one.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyHasher(u64);

impl KeyHasher {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(seed)
    }
}

impl Default for KeyHasher {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for KeyHasher {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

#[derive(Debug)]
struct Pool {
    parts: Box<[HashTable<Entry>]>,
    count: usize,
}

#[derive(Debug)]
struct Entry {
    key: Box<str>,
    record: Record,
}

impl Default for Pool {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| HashTable::new()).collect(), count: 0 }
    }
}

impl Pool {
    fn part(&self, hash: u64) -> &HashTable<Entry> {
        &self.parts[part_of(hash)]
    }
}

fn part_of(hash: u64) -> usize {
    (hash >> PART_SHIFT) as usize % PARTS
}

impl Keys {
    pub(super) fn hashed_by(hasher: KeyHasher) -> Self {
        Self { hasher, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, pool: &str, key: &str) -> Option<Record> {
        let hash = self.hasher.hash_one(key);
        let found = self.pools.get(pool)?.part(hash).find(hash, |entry| *entry.key == *key);
        found.map(|entry| entry.record)
    }

    /// As [`Self::get`], and notes that it was asked for.
    pub(super) fn ask(&mut self, pool: &str, key: &str, asked: Moment) -> Option<Record> {
        let hash = self.hasher.hash_one(key);
        let part = &mut self.pools.get_mut(pool)?.parts[part_of(hash)];
        let entry = part.find_mut(hash, |entry| *entry.key == *key)?;
        entry.record.asked = asked;
        Some(entry.record)
    }

    /// Sets the record; answers the one that was there.
    pub(super) fn set(&mut self, pool: &str, key: &str, record: Record) -> Option<Record> {
        if !self.pools.contains_key(pool) {
            self.pools.insert(pool.into(), Pool::default());
        }
        let (hasher, pool) = (&self.hasher, self.pools.get_mut(pool)?);
        let hash = hasher.hash_one(key);
        let part = &mut pool.parts[part_of(hash)];
        if let Some(known) = part.find_mut(hash, |entry| *entry.key == *key) {
            return Some(std::mem::replace(&mut known.record, record));
        }
        part.insert_unique(hash, Entry { key: key.into(), record }, |entry| hasher.hash_one(&*entry.key));
        pool.count += 1;
        self.count += 1;
        None
    }

    pub(super) fn remove(&mut self, pool: &str, key: &str) -> Option<Record> {
        let hash = self.hasher.hash_one(key);
        let keys = self.pools.get_mut(pool)?;
        let found = keys.parts[part_of(hash)].find_entry(hash, |entry| *entry.key == *key).ok()?;
        let (Entry { record, .. }, _) = found.remove();
        keys.count -= 1;
        self.count -= 1;
        if keys.count == 0 {
            self.pools.remove(pool);
        }
        Some(record)
    }

    /// Visits those of one part, of all pools, and keeps the ones for which `keep` is true.
    pub(super) fn sweep(&mut self, part: usize, mut keep: impl FnMut(&str, &str, &mut Record) -> bool) {
        let mut gone = 0;
        self.pools.retain(|name, pool| {
            let Some(part) = pool.parts.get_mut(part) else { return true };
            let had = part.len();
            part.retain(|entry| keep(name, &entry.key, &mut entry.record));
            pool.count -= had - part.len();
            gone += had - part.len();
            pool.count > 0
        });
        self.count -= gone;
    }

    /// Those of one part, of all pools.
    pub(super) fn part(&self, part: usize) -> impl Iterator<Item = (&str, &str, Record)> {
        self.pools.iter().flat_map(move |(name, pool)| {
            let entries = pool.parts.get(part).into_iter().flatten();
            entries.map(move |entry| (&**name, &*entry.key, entry.record))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::members::Members;
    use super::*;

    proptest! {
        #[test]
        fn the_parts_together_are_one_map(changes in vec((0..3_u8, 0..2_u8, 0..40_u16, 0..6_u64), 0..200)) {
            let member = Members::default().intern("p", "m");
            let record = |epoch| Record { epoch, member, tenure: 0, asked: Moment::default() };
            let (mut keys, mut known) = (Keys::default(), BTreeMap::new());
            for (what, pool, key, epoch) in changes {
                let name = (format!("pool-{pool}"), format!("key-{key}"));
                match what {
                    0 => {
                        let before = keys.set(&name.0, &name.1, record(epoch));
                        prop_assert_eq!(before, known.insert(name, record(epoch)));
                    }
                    1 => {
                        let before = keys.remove(&name.0, &name.1);
                        prop_assert_eq!(before, known.remove(&name));
                    }
                    _ => {
                        (0..PARTS).for_each(|part| keys.sweep(part, |_, _, record| record.epoch != epoch));
                        known.retain(|_, record| record.epoch != epoch);
                    }
                }
                prop_assert_eq!(keys.len(), known.len());
            }
            for ((pool, key), record) in &known {
                prop_assert_eq!(keys.get(pool, key), Some(*record));
            }
            let all = (0..PARTS).flat_map(|part| keys.part(part));
            let all: BTreeMap<_, _> =
                all.map(|(pool, key, record)| ((pool.to_owned(), key.to_owned()), record)).collect();
            prop_assert_eq!(all, known);
        }
    }
}
