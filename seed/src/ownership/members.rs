//! Who is, was or is expected back in the pools: ids are kept once, keys refer to them by a small number.

use std::collections::{BTreeSet, HashMap};
use std::ops::AddAssign;

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
    /// Its share of the pool's keys, beside the others'; at least 1.
    pub(super) capacity: u32,
    /// It gives up keys that are in use when it is asked to.
    pub(super) yields: bool,
    /// It is about to leave, and gets no new keys.
    pub(super) draining: bool,
    /// Its machine has more to do than it can: others get the new keys, where there are any.
    pub(super) overloaded: bool,
    /// Keys that are still to be moved to it, since it joined with less than its share; from when on.
    pub(super) wanted: usize,
    pub(super) wanted_from: BootTime,
    pub(super) joined: BootTime,
}

impl Slot {
    pub(super) fn lease_ends(&self) -> Option<BootTime> {
        if let Presence::Live { lease_ends } = self.presence { Some(lease_ends) } else { None }
    }

    pub(super) fn is_live(&self) -> bool {
        self.lease_ends().is_some()
    }

    /// What it counts for, where keys may be given to it.
    fn standing(&self) -> Option<Standing> {
        let may_get = self.is_live() && self.link.is_some() && !self.draining;
        may_get.then(|| Standing {
            rank: Rank { overloaded: self.overloaded, load: self.load() },
            owned: self.owned as u64,
            capacity: self.capacity.into(),
        })
    }

    /// Keys for each unit of its capacity, in fractions of a key.
    fn load(&self) -> u64 {
        self.owned as u64 * LOAD_UNIT / u64::from(self.capacity)
    }
}

/// One key for a capacity of 1: fine enough to put capacities of up to some hundreds in order by single keys.
const LOAD_UNIT: u64 = 1 << 16;
/// A member of the asker's zone gets a new key unless it has more than three halves of its share of the whole pool, and so
/// many keys beyond: what is near is worth some inequality, but not any.
const ZONE_SLACK: u64 = 16;

/// Who comes first when there is a key to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    overloaded: bool,
    load: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    rank: Rank,
    owned: u64,
    capacity: u64,
}

/// What several members have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    owned: u64,
    capacity: u64,
}

impl Totals {
    /// How many of these keys a member of this capacity would have if all had their share, rounded down.
    pub(super) fn share(self, capacity: u32) -> u64 {
        (self.owned * u64::from(capacity)).checked_div(self.capacity).unwrap_or(0)
    }

    pub(super) fn owned(self) -> u64 {
        self.owned
    }

    fn swap(&mut self, before: Option<Standing>, after: Option<Standing>) {
        let part = |standing: Option<Standing>| standing.map_or((0, 0), |it| (it.owned, it.capacity));
        let ((owned_before, capacity_before), (owned, capacity)) = (part(before), part(after));
        self.owned = self.owned + owned - owned_before;
        self.capacity = self.capacity + capacity - capacity_before;
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.owned += more.owned;
        self.capacity += more.capacity;
    }
}

/// The members of one pool and zone to whom keys may be given, by load: a new key finds its owner at once, however many
/// there are.
#[derive(Debug, Default)]
struct Ranked {
    order: BTreeSet<(Rank, MemberIndex)>,
    totals: Totals,
}

/// By zone.
type Ranks = HashMap<String, Ranked>;

#[derive(Debug, Default)]
pub(super) struct Members {
    slots: Vec<Option<Slot>>,
    free: Vec<MemberIndex>,
    /// By pool, then id.
    by_id: HashMap<String, HashMap<String, MemberIndex>>,
    by_link: HashMap<LinkId, MemberIndex>,
    /// By the node in their id, those that are children.
    children: HashMap<String, BTreeSet<MemberIndex>>,
    /// By pool.
    ranks: HashMap<String, Ranks>,
    /// How many hold a lease.
    live: usize,
    /// How many are expected, by pool; none is 0.
    expected: HashMap<String, usize>,
    tenures: u32,
}

/// "live-1" of "live-1:0", the id of a node's child.
pub(super) fn node_of(id: &str) -> Option<&str> {
    id.rsplit_once(':').map(|(node, _)| node)
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
            capacity: 1,
            yields: false,
            draining: false,
            overloaded: false,
            wanted: 0,
            wanted_from: BootTime::ZERO,
            joined: BootTime::ZERO,
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
        if let Some(node) = node_of(id) {
            self.children.entry(node.to_owned()).or_default().insert(index);
        }
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
        if let Some(node) = node_of(&id)
            && let Some(children) = self.children.get_mut(node)
        {
            children.remove(&index);
            if children.is_empty() {
                self.children.remove(node);
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
            (slot.draining, slot.wanted) = (false, 0);
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
        let (before, presence) = (slot.standing(), slot.presence);
        let changed = change(slot);
        let after = slot.standing();
        if presence != slot.presence {
            let is_live = |presence| usize::from(matches!(presence, Presence::Live { .. }));
            self.live = self.live + is_live(slot.presence) - is_live(presence);
            if slot.presence == Presence::Expected {
                *self.expected.entry(slot.member.pool.clone()).or_default() += 1;
            } else if presence == Presence::Expected
                && let Some(expected) = self.expected.get_mut(&slot.member.pool)
            {
                *expected -= 1;
                if *expected == 0 {
                    self.expected.remove(&slot.member.pool);
                }
            }
        }
        if before != after {
            let Member { pool, zone, .. } = &slot.member;
            if !self.ranks.contains_key(pool) {
                self.ranks.insert(pool.clone(), Ranks::new());
            }
            let ranks = self.ranks.get_mut(pool).expect("it was just made");
            if !ranks.contains_key(zone) {
                ranks.insert(zone.clone(), Ranked::default());
            }
            let ranked = ranks.get_mut(zone).expect("it was just made");
            ranked.totals.swap(before, after);
            if let Some(standing) = before {
                ranked.order.remove(&(standing.rank, index));
            }
            if let Some(standing) = after {
                ranked.order.insert((standing.rank, index));
            } else if ranked.order.is_empty() {
                ranks.remove(zone);
                if ranks.is_empty() {
                    self.ranks.remove(pool);
                }
            }
        }
        changed
    }

    /// Who gets a new key, of those that are `fit`: the least loaded of the asker's zone, unless that has far more than
    /// its share ([`ZONE_SLACK`]) or its machine is overloaded; else, or for an asker of no zone, the least of the pool.
    pub(super) fn least_loaded(
        &self,
        pool: &str,
        zone: &str,
        fit: impl Fn(&Slot) -> bool,
    ) -> Option<MemberIndex> {
        let ranks = self.ranks.get(pool)?;
        let first = |ranked: &Ranked| ranked.order.iter().copied().find(|(_, index)| fit(&self[*index]));
        // To be in no zone is not to be near to others in none.
        let near = ranks.get(zone).filter(|_| !zone.is_empty()).and_then(first);
        if let Some((rank, index)) = near
            && (ranks.len() == 1 || !(rank.overloaded || self.is_overfull(index)))
        {
            return Some(index);
        }
        ranks.values().filter_map(first).min().map(|(_, index)| index)
    }

    /// Has it far more keys than its share of the whole pool?
    pub(super) fn is_overfull(&self, index: MemberIndex) -> bool {
        self.excess(index) > 0
    }

    /// How many keys it has beyond what its zone is worth.
    pub(super) fn excess(&self, index: MemberIndex) -> u64 {
        let slot = &self[index];
        let share = self.totals(&slot.member.pool, None).share(slot.capacity);
        (slot.owned as u64).saturating_sub(share + share / 2 + ZONE_SLACK)
    }

    /// What those have to whom keys may be given: of a pool, or of one zone of it.
    pub(super) fn totals(&self, pool: &str, zone: Option<&str>) -> Totals {
        let mut totals = Totals::default();
        for (name, ranked) in self.ranks.get(pool).into_iter().flatten() {
            if zone.is_none_or(|zone| zone == name) {
                totals += ranked.totals;
            }
        }
        totals
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (MemberIndex, &Slot)> {
        (0..).map(MemberIndex).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
    }

    pub(super) fn of_pool(&self, pool: &str) -> impl Iterator<Item = (MemberIndex, &Slot)> {
        self.by_id.get(pool).into_iter().flat_map(HashMap::values).map(|&index| (index, &self[index]))
    }

    /// How many hold a lease.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Is any expected?
    pub(super) fn any_expected(&self) -> bool {
        !self.expected.is_empty()
    }

    /// Is any of this pool expected?
    pub(super) fn expects(&self, pool: &str) -> bool {
        self.expected.contains_key(pool)
    }

    /// Those whose id says that they are children of this node, of whatever pool.
    pub(super) fn children(&self, node: &str) -> impl Iterator<Item = &Slot> {
        self.children.get(node).into_iter().flatten().map(|&index| &self[index])
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

    const ZONES: [&str; 3] = ["a", "b", ""];

    /// Children of three nodes.
    fn id(number: u32) -> String {
        format!("live-{}:{number}", number % 3)
    }

    fn one_of(members: &mut Members, number: u32, zone: &str, owned: usize) -> MemberIndex {
        let index = members.intern("rooms", &id(number));
        members.unlink(index);
        members.change(index, |slot| slot.member.zone = zone.to_owned());
        members.seat(index, number.into(), BootTime::ZERO + Duration::from_secs(1));
        members.change(index, |slot| slot.owned = owned);
        index
    }

    #[test]
    fn what_is_near_comes_first_until_it_has_far_more_than_its_share_or_too_much_to_do() {
        let mut members = Members::default();
        let near = one_of(&mut members, 1, "a", 40);
        let far = one_of(&mut members, 2, "b", 0);
        let chosen = |members: &Members| members.least_loaded("rooms", "a", |_| true);
        assert_eq!(chosen(&members), Some(near), "40 of 40 where 20 would be its share");
        members.change(near, |slot| slot.owned = 67);
        assert_eq!(chosen(&members), Some(far), "67 where 33 would be, and 49 + 16 is the most");
        members.change(near, |slot| (slot.owned, slot.overloaded) = (1, true));
        assert_eq!(chosen(&members), Some(far));
        members.change(far, |slot| slot.overloaded = true);
        assert_eq!(chosen(&members), Some(far), "then load alone counts");
        members.change(near, |slot| (slot.overloaded, slot.owned, slot.capacity) = (false, 67, 8));
        assert_eq!(chosen(&members), Some(near), "a large one may have more");
    }

    #[test]
    fn no_zone_is_none() {
        let mut members = Members::default();
        one_of(&mut members, 1, "", 10);
        let idle = one_of(&mut members, 2, "a", 0);
        assert_eq!(members.least_loaded("rooms", "", |_| true), Some(idle));
    }

    proptest! {
        #[test]
        fn what_is_kept_of_the_members_is_what_a_look_at_all_finds(
            changes in vec((0..8_u8, 0..8_u32, 0..200_usize), 0..60),
            unfit in 0..8_u32,
        ) {
            let mut members = Members::default();
            for (what, number, load) in changes {
                let index = members.intern("rooms", &id(number));
                match what {
                    0 => drop(one_of(&mut members, number, ZONES[load % ZONES.len()], 0)),
                    1 => drop(members.unlink(index)),
                    2 => members.change(index, |slot| slot.presence = Presence::Gone),
                    3 => {
                        members.unlink(index);
                        members.change(index, |slot| slot.presence = Presence::Gone);
                        members.tidy(index);
                    }
                    4 => members.change(index, |slot| slot.capacity = 1 + load as u32 % 4),
                    7 => {
                        members.unlink(index);
                        members.change(index, |slot| slot.presence = Presence::Expected);
                    }
                    5 => members.change(index, |slot| slot.overloaded = !slot.overloaded),
                    _ => members.change(index, |slot| slot.owned = load),
                }
                let count = |is: &dyn Fn(&Slot) -> bool| members.iter().filter(|(_, slot)| is(slot)).count();
                prop_assert_eq!(members.live(), count(&Slot::is_live));
                let expected = count(&|slot| slot.presence == Presence::Expected) > 0;
                prop_assert_eq!((members.any_expected(), members.expects("rooms")), (expected, expected));
                for node in ["live-0", "live-1", "live-2"] {
                    let children = count(&|slot| node_of(&slot.member.id) == Some(node));
                    prop_assert_eq!(members.children(node).count(), children);
                }
                let fit = |slot: &Slot| slot.member.id != id(unfit);
                let ranked: Vec<_> =
                    members.of_pool("rooms").filter(|(_, slot)| slot.standing().is_some()).collect();
                let sum = |of: fn(&Slot) -> u64| ranked.iter().map(|(_, slot)| of(slot)).sum::<u64>();
                let (owned, capacity) = (sum(|slot| slot.owned as u64), sum(|slot| slot.capacity.into()));
                for zone in ZONES.into_iter().chain(["elsewhere", ""]) {
                    let one_zone = ranked.iter().all(|(_, slot)| slot.member.zone == zone);
                    let order = |(index, slot): &(MemberIndex, &Slot)| (slot.overloaded, slot.load(), *index);
                    let all = || ranked.iter().filter(|(_, slot)| fit(slot)).copied();
                    let is_near = |slot: &Slot| !zone.is_empty() && slot.member.zone == zone;
                    let near = all().filter(|(_, slot)| is_near(slot)).min_by_key(order);
                    let near = near.filter(|(_, slot)| {
                        let share = owned * u64::from(slot.capacity) / capacity;
                        one_zone || !slot.overloaded && slot.owned as u64 <= share + share / 2 + ZONE_SLACK
                    });
                    let least = near.or_else(|| all().min_by_key(order));
                    let found = members.least_loaded("rooms", zone, fit);
                    prop_assert_eq!(found, least.map(|(index, _)| index));
                }
            }
        }
    }
}
