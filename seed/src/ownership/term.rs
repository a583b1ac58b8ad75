//! Terms: taking the lead, losing it, and the wait for what an earlier term may have left behind.

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{LeaseLost, Member, ResetOwners, follow_reply::Message};

use super::joining::Pending;
use super::members::Presence;
use super::{Action, Ending, Ownership};

impl Ownership {
    /// This seed has taken the leader's row anew: a new term begins. `durable` are the members found in the datastore
    /// after that; `until` is when the row may be another's.
    pub fn lead(&mut self, term: u64, until: BootTime, durable: Vec<Member>, now: BootTime) {
        self.step_down("a new term begins");
        if now >= until {
            return;
        }
        self.term = term;
        self.counter = 0;
        self.sequence = 0;
        self.lead_until = Some(until);
        self.recovery_ends = Some(now + self.timing.lease);
        for member in durable {
            let index = self.members.intern(&member.pool, &member.id);
            self.members.change(index, |slot| (slot.member, slot.presence) = (member, Presence::Expected));
        }
        self.actions.push_back(Action::TableChanged);
        self.advance(now);
    }

    /// The row was renewed, and so was nobody else's since this term began: that counts although the time before it has
    /// run out, as long as nothing was told of that. False if this term is over all the same: then only a new term helps.
    pub fn lead_renewed(&mut self, term: u64, until: BootTime, now: BootTime) -> bool {
        if self.lead_until.is_none() || term != self.term {
            return false;
        }
        self.lead_until = self.lead_until.max(Some(until));
        self.advance(now);
        self.lead_until.is_some()
    }

    /// The row is not this seed's any more: members have to join the new leader. Nothing is forgotten, since nobody
    /// else has been given anything yet; but nothing is counted on either.
    pub fn step_down(&mut self, why: &'static str) {
        self.lead_until = None;
        self.recovery_ends = None;
        for link in self.pending.open_links() {
            self.actions.push_back(Action::Close(link, Ending::Away(why)));
        }
        self.pending = Pending::default();
        for index in self.members.indices(|_| true) {
            if let Some(link) = self.members.unlink(index) {
                self.actions.push_back(Action::Close(link, Ending::Away(why)));
            }
            self.members.change(index, |slot| {
                (slot.presence, slot.recorded, slot.wanted) = (Presence::Gone, false, 0);
            });
            self.members.tidy(index);
        }
        // Whoever asked asks the seed that leads next: their links end with the lead.
        self.held.clear();
        self.yields.clear();
        self.parked.clear();
    }

    /// Does what time brings: as [`Self::advance`], ends the patience with owners that were asked for keys, and looks
    /// through a part of the keys, so that at twenty calls a second all have been looked at after 13 s.
    pub fn tick(&mut self, now: BootTime) {
        self.advance(now);
        if self.lead_until.is_some() && self.recovery_ends.is_none() {
            self.end_patience(now);
            self.sweep(now);
        }
    }

    /// Ends what is over: the lead, leases, the recovery. Cheap, so that each input begins with it.
    pub fn advance(&mut self, now: BootTime) {
        let Some(until) = self.lead_until else { return };
        if now >= until {
            return self.step_down("the seed's own lease has ended");
        }
        if now >= self.next_expiry {
            self.expire(now);
        }
        if self.recovery_ends.is_some_and(|ends| now >= ends || !self.members.any_expected()) {
            self.recovery_ends = None;
            for index in self.members.indices(|slot| slot.presence == Presence::Expected) {
                self.retire(index);
            }
            self.broadcast(|position| Message::ResetOwners(ResetOwners { position: Some(position) }));
            self.answer_held(|_| true, now);
        }
    }

    fn expire(&mut self, now: BootTime) {
        for index in self.members.indices(|slot| slot.lease_ends().is_some_and(|ends| now >= ends)) {
            if let Some(link) = self.members[index].link {
                self.send(link, Message::LeaseLost(LeaseLost {}));
                self.actions.push_back(Action::Close(link, Ending::refused("the lease has ended")));
            }
            self.retire(index);
        }
        let ends = self.members.iter().filter_map(|(_, slot)| slot.lease_ends()).min();
        self.next_expiry = ends.unwrap_or(now + self.timing.lease);
    }

    /// May a member of an earlier term still serve keys of this pool that it has not reported?
    pub(super) fn is_recovering(&self, pool: &str) -> bool {
        self.recovery_ends.is_some() && self.members.expects(pool)
    }
}
