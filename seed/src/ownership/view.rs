//! What others may see of the core: for operators, for the routing table, for the snapshot on disk.

use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{Explanation, Member, Owner};

use super::Ownership;
use super::keys::{Moment, Record};
use super::members::{MemberIndex, Presence};

/// Who has, or last had, a key: after a restart of everything, it goes there again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The key's pool.
    pub pool: String,
    /// The key.
    pub key: String,
    /// The member's id.
    pub member: String,
    /// The epoch at which it had the key.
    pub epoch: u64,
}

/// A member that counts: it holds a lease, or is expected back from an earlier term.
#[derive(Clone, Debug)]
pub struct MemberView<'a> {
    /// Who.
    pub member: &'a Member,
    /// How many keys it owns.
    pub keys: usize,
    /// What is left of its lease.
    pub lease_left: Duration,
    /// Its share of the pool's keys, beside the others'.
    pub capacity: u32,
    /// It gets no new keys, since it is about to leave.
    pub draining: bool,
    /// Its machine has more to do than it can.
    pub overloaded: bool,
    /// Keys that are still to be moved to it.
    pub moving_in: usize,
}

impl Ownership {
    /// The term that this seed leads in, if it leads.
    #[must_use]
    pub fn leads(&self) -> Option<u64> {
        self.lead_until.map(|_| self.term)
    }

    /// Until when, by the last renewal that it was told of.
    #[must_use]
    pub fn lead_until(&self) -> Option<BootTime> {
        self.lead_until
    }

    /// Does any pool wait for members of an earlier term?
    #[must_use]
    pub fn recovering(&self) -> bool {
        self.recovery_ends.is_some()
    }

    /// Keys owned or remembered.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Grows with each change of a key's record.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The members that count, in no order.
    pub fn members(&self, now: BootTime) -> impl Iterator<Item = MemberView<'_>> {
        self.members.iter().filter_map(move |(_, slot)| {
            let (keys, lease_left) = match slot.presence {
                Presence::Gone => return None,
                Presence::Expected => (0, Duration::ZERO),
                Presence::Live { lease_ends } => (slot.owned, lease_ends.since(now)),
            };
            Some(MemberView {
                member: &slot.member,
                keys,
                lease_left,
                capacity: slot.capacity,
                draining: !self.takes_keys(slot),
                overloaded: slot.overloaded,
                moving_in: slot.wanted,
            })
        })
    }

    /// Who owns this key, or had it last and who would get it if a proxy of this zone asked; assigns nothing.
    #[must_use]
    pub fn explain(&self, pool: &str, key: &str, zone: &str) -> Explanation {
        let mut explanation = Explanation { recovering: self.is_recovering(pool), ..Explanation::default() };
        let record = self.keys.get(pool, key);
        if let Some(record) = record {
            let slot = &self.members[record.member];
            if Self::owns(slot, &record) {
                explanation.owner = Some(Owner { epoch: record.epoch, ..self.named(record.member) });
                return explanation;
            }
            explanation.last_member = slot.member.id.clone();
        }
        if !explanation.recovering && self.lead_until.is_some() {
            explanation.next = self.choose(pool, zone, record).map(|member| self.named(member));
        }
        explanation
    }

    fn named(&self, index: MemberIndex) -> Owner {
        let Member { id, address, .. } = self.members[index].member.clone();
        Owner { member: id, address, ..Owner::default() }
    }

    /// What is known of the keys of one of [`super::PARTS`] parts, in no order. Parts may be taken at different times.
    pub fn hints(&self, part: usize) -> impl Iterator<Item = Hint> {
        self.keys.part(part).map(|(pool, key, record)| Hint {
            pool: pool.to_owned(),
            key: key.to_owned(),
            member: self.members[record.member].member.id.clone(),
            epoch: record.epoch,
        })
    }

    /// Remembers what an earlier process knew; call before the first lead. Beyond `max_keys` the rest is forgotten.
    pub fn restore(&mut self, hints: impl IntoIterator<Item = Hint>) {
        for hint in hints.into_iter().take(self.limits.max_keys) {
            let index = self.members.intern(&hint.pool, &hint.member);
            let (epoch, asked) = (hint.epoch, Moment::default());
            let record = Record { epoch, member: index, tenure: 0, asked };
            self.members.change(index, |slot| slot.records += 1);
            if let Some(before) = self.keys.set(&hint.pool, &hint.key, record) {
                self.members.change(before.member, |slot| slot.records -= 1);
                self.members.tidy(before.member);
            }
        }
    }
}
