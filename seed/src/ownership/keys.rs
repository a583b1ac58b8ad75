//! Who has which key, at which epoch: 32 bytes a key besides its text.

use std::collections::HashMap;

use super::members::MemberIndex;

/// Names the member that has, or last had, a key. Owned only while that member lives in the same tenure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) epoch: u64,
    pub(super) member: MemberIndex,
    pub(super) tenure: u32,
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    pools: HashMap<Box<str>, HashMap<Box<str>, Record>>,
    count: usize,
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, pool: &str, key: &str) -> Option<Record> {
        self.pools.get(pool)?.get(key).copied()
    }

    /// Sets the record; answers the one that was there.
    pub(super) fn set(&mut self, pool: &str, key: &str, record: Record) -> Option<Record> {
        if !self.pools.contains_key(pool) {
            self.pools.insert(pool.into(), HashMap::new());
        }
        let keys = self.pools.get_mut(pool)?;
        if let Some(known) = keys.get_mut(key) {
            return Some(std::mem::replace(known, record));
        }
        keys.insert(key.into(), record);
        self.count += 1;
        None
    }

    pub(super) fn remove(&mut self, pool: &str, key: &str) -> Option<Record> {
        let keys = self.pools.get_mut(pool)?;
        let removed = keys.remove(key)?;
        self.count -= 1;
        if keys.is_empty() {
            self.pools.remove(pool);
        }
        Some(removed)
    }

    /// Keeps the records for which `keep` is true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Record) -> bool) {
        self.pools.retain(|_, keys| {
            keys.retain(|_, record| keep(record));
            !keys.is_empty()
        });
        self.count = self.pools.values().map(HashMap::len).sum();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str, Record)> {
        self.pools
            .iter()
            .flat_map(|(pool, keys)| keys.iter().map(move |(key, record)| (&**pool, &**key, *record)))
    }
}
