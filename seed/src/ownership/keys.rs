//! Who has which key, at which epoch: 32 bytes a key besides its text.
//!
//! The keys of a pool are in [`PARTS`] tables, by their hash: none is so large that to let it grow, or to write it down,
//! would keep anybody waiting.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

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
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    pools: HashMap<Box<str>, Pool>,
    /// Of texts that strangers choose, so that it can't be foreseen.
    hasher: RandomState,
    count: usize,
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
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, pool: &str, key: &str) -> Option<Record> {
        let hash = self.hasher.hash_one(key);
        let found = self.pools.get(pool)?.part(hash).find(hash, |entry| *entry.key == *key);
        found.map(|entry| entry.record)
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

    /// Keeps the records for which `keep` is true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Record) -> bool) {
        self.pools.retain(|_, pool| {
            pool.parts.iter_mut().for_each(|part| part.retain(|entry| keep(&entry.record)));
            pool.count = pool.parts.iter().map(HashTable::len).sum();
            pool.count > 0
        });
        self.count = self.pools.values().map(|pool| pool.count).sum();
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
            let record = |epoch| Record { epoch, member, tenure: 0 };
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
                        keys.retain(|record| record.epoch != epoch);
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
