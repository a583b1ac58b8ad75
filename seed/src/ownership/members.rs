//! Who is, was or is expected back in the pools: ids are kept once, keys refer to them by a small number.

use std::collections::{BTreeSet, HashMap};

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::Member;

use super::LinkId;

/// A member's place in [`Members`]; 4 bytes, so that a key's record stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct MemberIndex(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Only remembered by keys that it had.
    Gone,
    /// Was a member under an earlier term, and may still serve its keys.
    Expected,
    /// Holds a lease until then.
    Live { lease_ends: BootTime },
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) member: Member,
    pub(super) node: Box<str>,
    pub(super) presence: Presence,
    pub(super) link: Option<LinkId>,
    pub(super) incarnation: u64,
    pub(super) attempt: u64,
    /// Grows with each accepted hello: a record of an earlier tenure is not owned any more, without being visited.
    pub(super) tenure: u32,
    /// Keys owned in this tenure.
    pub(super) owned: usize,
    /// Records that name this member, owned or not; the slot is freed with the last one.
    pub(super) records: usize,
    /// Its row in the datastore was written in this term.
    pub(super) recorded: bool,
}

impl Slot {
    pub(super) fn lease_ends(&self) -> Option<BootTime> {
        if let Presence::Live { lease_ends } = self.presence { Some(lease_ends) } else { None }
    }

    pub(super) fn is_live(&self) -> bool {
        self.lease_ends().is_some()
    }

    /// Its load, where keys may be given to it.
    fn load(&self) -> Option<usize> {
        (self.is_live() && self.link.is_some()).then_some(self.owned)
    }
}

/// The members of one pool to whom keys may be given: by zone, there by load. A new key finds its owner at once, however
/// many there are.
type Ranks = HashMap<String, BTreeSet<(usize, MemberIndex)>>;

#[derive(Debug, Default)]
pub(super) struct Members {
    slots: Vec<Option<Slot>>,
    free: Vec<MemberIndex>,
    /// By pool, then id.
    by_id: HashMap<String, HashMap<String, MemberIndex>>,
    by_link: HashMap<LinkId, MemberIndex>,
    /// By pool.
    ranks: HashMap<String, Ranks>,
    tenures: u32,
}

impl Members {
    pub(super) fn find(&self, pool: &str, id: &str) -> Option<MemberIndex> {
        self.by_id.get(pool)?.get(id).copied()
    }

    pub(super) fn by_link(&self, link: LinkId) -> Option<MemberIndex> {
        self.by_link.get(&link).copied()
    }

    /// The slot of this member, made if there is none.
    pub(super) fn intern(&mut self, pool: &str, id: &str) -> MemberIndex {
        if let Some(index) = self.find(pool, id) {
            return index;
        }
        let slot = Slot {
            member: Member { id: id.to_owned(), pool: pool.to_owned(), ..Member::default() },
            node: Box::default(),
            presence: Presence::Gone,
            link: None,
            incarnation: 0,
            attempt: 0,
            tenure: 0,
            owned: 0,
            records: 0,
            recorded: false,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            MemberIndex(
                u32::try_from(self.slots.len() - 1)
                    .expect("slots are bounded by the limits of keys and members"),
            )
        });
        self.slots[index.0 as usize] = Some(slot);
        self.by_id.entry(pool.to_owned()).or_default().insert(id.to_owned(), index);
        index
    }

    /// Frees the slot if nothing refers to it.
    pub(super) fn tidy(&mut self, index: MemberIndex) {
        let slot = &self[index];
        if slot.presence != Presence::Gone || slot.records > 0 {
            return;
        }
        let (pool, id) = (slot.member.pool.clone(), slot.member.id.clone());
        if let Some(pool_ids) = self.by_id.get_mut(&pool) {
            pool_ids.remove(&id);
            if pool_ids.is_empty() {
                self.by_id.remove(&pool);
            }
        }
        self.slots[index.0 as usize] = None;
        self.free.push(index);
    }

    /// A new tenure on this link, with a lease; no record belongs to it yet.
    pub(super) fn seat(&mut self, index: MemberIndex, link: LinkId, lease_ends: BootTime) {
        self.unlink(index);
        self.tenures += 1;
        let tenure = self.tenures;
        self.by_link.insert(link, index);
        self.change(index, |slot| {
            slot.link = Some(link);
            slot.tenure = tenure;
            slot.owned = 0;
            slot.presence = Presence::Live { lease_ends };
        });
    }

    /// Takes the member's link away; answers which it was.
    pub(super) fn unlink(&mut self, index: MemberIndex) -> Option<LinkId> {
        let link = self.change(index, |slot| slot.link.take())?;
        self.by_link.remove(&link);
        Some(link)
    }

    /// Changes anything of a member. Who it is changes only while it has no link.
    pub(super) fn change<T>(&mut self, index: MemberIndex, change: impl FnOnce(&mut Slot) -> T) -> T {
        let slot = self.slots[index.0 as usize].as_mut().expect(HELD);
        let before = slot.load();
        let changed = change(slot);
        let after = slot.load();
        if before != after {
            let Member { pool, zone, .. } = &slot.member;
            if !self.ranks.contains_key(pool) {
                self.ranks.insert(pool.clone(), Ranks::new());
            }
            let ranks = self.ranks.get_mut(pool).expect("it was just made");
            if !ranks.contains_key(zone) {
                ranks.insert(zone.clone(), BTreeSet::new());
            }
            let ranked = ranks.get_mut(zone).expect("it was just made");
            if let Some(load) = before {
                ranked.remove(&(load, index));
            }
            if let Some(load) = after {
                ranked.insert((load, index));
            } else if ranked.is_empty() {
                ranks.remove(zone);
                if ranks.is_empty() {
                    self.ranks.remove(pool);
                }
            }
        }
        changed
    }

    /// The least loaded of a pool of those that are `fit`, of this zone if there is one there.
    pub(super) fn least_loaded(
        &self,
        pool: &str,
        zone: &str,
        fit: impl Fn(&Slot) -> bool,
    ) -> Option<MemberIndex> {
        let ranks = self.ranks.get(pool)?;
        let first = |ranked: &BTreeSet<(usize, MemberIndex)>| {
            ranked.iter().copied().find(|(_, index)| fit(&self[*index]))
        };
        let here = ranks.get(zone).and_then(first);
        here.or_else(|| ranks.values().filter_map(first).min()).map(|(_, index)| index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (MemberIndex, &Slot)> {
        (0..).map(MemberIndex).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
    }

    pub(super) fn of_pool(&self, pool: &str) -> impl Iterator<Item = (MemberIndex, &Slot)> {
        self.by_id.get(pool).into_iter().flat_map(HashMap::values).map(|&index| (index, &self[index]))
    }

    pub(super) fn indices(&self, is: impl Fn(&Slot) -> bool) -> Vec<MemberIndex> {
        self.iter().filter(|(_, slot)| is(slot)).map(|(index, _)| index).collect()
    }
}

/// Of an index that is used.
const HELD: &str = "an index lives as long as something refers to its slot";

impl std::ops::Index<MemberIndex> for Members {
    type Output = Slot;

    fn index(&self, index: MemberIndex) -> &Slot {
        self.slots[index.0 as usize].as_ref().expect(HELD)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const ZONES: [&str; 3] = ["a", "b", "c"];

    proptest! {
        #[test]
        fn the_least_loaded_is_the_one_that_a_look_at_all_finds(
            changes in vec((0..5_u8, 0..8_u32, 0..20_usize), 0..60),
            unfit in 0..8_u32,
        ) {
            let mut members = Members::default();
            for (what, number, load) in changes {
                let index = members.intern("rooms", &number.to_string());
                match what {
                    0 => {
                        members.unlink(index);
                        let zone = ZONES[load % ZONES.len()].to_owned();
                        members.change(index, |slot| slot.member.zone = zone);
                        members.seat(index, number.into(), BootTime::ZERO + Duration::from_secs(1));
                    }
                    1 => drop(members.unlink(index)),
                    2 => members.change(index, |slot| slot.presence = Presence::Gone),
                    3 => {
                        members.unlink(index);
                        members.change(index, |slot| slot.presence = Presence::Gone);
                        members.tidy(index);
                    }
                    _ => members.change(index, |slot| slot.owned = load),
                }
                let fit = |slot: &Slot| slot.member.id != unfit.to_string();
                for zone in ZONES.into_iter().chain(["elsewhere"]) {
                    let all = members.of_pool("rooms").filter(|(_, slot)| slot.load().is_some() && fit(slot));
                    let least = all.min_by_key(|(index, slot)| (slot.member.zone != zone, slot.owned, *index));
                    let found = members.least_loaded("rooms", zone, fit);
                    prop_assert_eq!(found, least.map(|(index, _)| index));
                }
            }
        }
    }
}
