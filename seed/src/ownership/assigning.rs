//! Keys: who owns one, who gets it, and how it is given up.

use std::time::Duration;

use prost::Message as _;
use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{
    Assigned, Invalidate, Known, Located, Owner, Unavailable, follow_reply::Message, located,
};

use super::keys::{Moment, Record};
use super::members::{MemberIndex, Slot};
use super::{Action, Ownership, Question, RETRY};

impl Ownership {
    /// Answers with [`Message::Located`], after the owner's [`Message::Assigned`] where the key had none. A seed that leads
    /// no more says nothing: whoever leads next is asked again.
    pub fn locate(&mut self, question: Question, now: BootTime) {
        self.advance(now);
        if self.lead_until.is_some() {
            self.find(question, now);
        }
    }

    /// One question's way: its owner, a new epoch for an owner that refused the present one, patience, or a new owner.
    pub(super) fn find(&mut self, question: Question, now: BootTime) {
        let mut question = question;
        let record = self.keys.ask(&question.pool, &question.key, Moment::of(now));
        if let Some(record) = record
            && Self::owns(&self.members[record.member], &record)
        {
            let Some(answerable) = self.wait_for_release(question, &record, now) else { return };
            question = answerable;
            let slot = &self.members[record.member];
            if record.epoch != question.refuted_epoch {
                return self.answer_owner(&question, record.member, record.epoch);
            }
            if slot.link.is_some() {
                return self.assign(&question, record.member, now);
            }
            let wait = slot.lease_ends().map_or(RETRY, |ends| ends.since(now));
            return self.answer_unavailable(&question, "the key's owner is out of reach", wait);
        }
        if self.is_recovering(&question.pool) {
            if self.held.len() < self.limits.max_held_questions {
                self.held.push(question);
            } else {
                self.answer_unavailable(&question, "the seed is recovering", RETRY);
            }
            return;
        }
        if record.is_none() && !self.has_room(now) {
            return self.answer_unavailable(
                &question,
                "the seed knows as many keys as max_keys allows",
                RETRY,
            );
        }
        match self.choose(&question.pool, &question.zone, record) {
            Some(member) => self.assign(&question, member, now),
            None => {
                let why = format!("pool {:?} has no member now that could take the key", question.pool);
                self.answer_unavailable(&question, &why, RETRY);
            }
        }
    }

    /// Who had it last, else the least loaded, those of the asker's zone first.
    pub(super) fn choose(&self, pool: &str, zone: &str, record: Option<Record>) -> Option<MemberIndex> {
        let fit = |slot: &Slot| slot.is_live() && slot.link.is_some() && self.takes_keys(slot);
        let last = record.map(|record| record.member).filter(|last| fit(&self.members[*last]));
        last.or_else(|| self.members.least_loaded(pool, zone, |slot| self.takes_keys(slot)))
    }

    /// Is it to stay, so that it may be given keys?
    pub(super) fn takes_keys(&self, slot: &Slot) -> bool {
        !slot.draining && !self.draining.contains(&*slot.node)
    }

    pub(super) fn assign(&mut self, question: &Question, index: MemberIndex, now: BootTime) {
        let epoch = self.give(&question.pool, &question.key, index, now);
        self.answer_owner(question, index, epoch);
    }

    /// Makes this member the key's owner, at a new epoch, and tells it.
    pub(super) fn give(&mut self, pool: &str, key: &str, index: MemberIndex, now: BootTime) -> u64 {
        let epoch = self.next_epoch();
        // A cached answer can name a member that lives; those of the gone were forgotten with them.
        let before = self.keys.get(pool, key);
        if before.is_some_and(|record| self.members[record.member].is_live()) {
            self.broadcast_invalid(pool.to_owned(), vec![key.to_owned()]);
        }
        self.set(pool, key, index, epoch, now);
        if let Some(link) = self.members[index].link {
            self.send(link, Message::Assigned(Assigned { key: key.to_owned(), epoch }));
        }
        epoch
    }

    /// Makes this member the key's owner.
    pub(super) fn set(&mut self, pool: &str, key: &str, index: MemberIndex, epoch: u64, now: BootTime) {
        self.changes += 1;
        self.parked.append(&mut self.yields.end(pool, key));
        self.members.change(index, |slot| {
            slot.owned += 1;
            slot.records += 1;
        });
        let tenure = self.members[index].tenure;
        let record = Record { epoch, member: index, tenure, asked: Moment::of(now) };
        if let Some(before) = self.keys.set(pool, key, record) {
            self.members.change(before.member, |slot| {
                slot.records -= 1;
                slot.owned -= usize::from(Self::owns(slot, &before));
            });
            self.members.tidy(before.member);
        }
    }

    /// Asks the held questions anew of which `which` is true.
    pub(super) fn answer_held(&mut self, which: impl Fn(&Question) -> bool, now: BootTime) {
        let held = std::mem::take(&mut self.held);
        for question in held {
            if which(&question) { self.find(question, now) } else { self.held.push(question) }
        }
    }

    /// Is the key of this record its member's now?
    pub(super) fn owns(slot: &Slot, record: &Record) -> bool {
        slot.is_live() && slot.tenure == record.tenure
    }

    fn answer_owner(&mut self, question: &Question, index: MemberIndex, epoch: u64) {
        let member = &self.members[index].member;
        let Question { link, pool, key, .. } = question;
        let fresh = self.idle.of(pool).map_or(0, |idle| u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
        let (member, address) = (member.id.clone(), member.address.clone());
        let owner = Owner { member, address, epoch, fresh_ms: fresh };
        let known = Known { pool: pool.clone(), key: key.clone(), owner: Some(owner.clone()) };
        self.answer(question, located::Result::Owner(owner));
        self.actions.push_back(Action::Share(*link, Message::Known(known)));
    }

    pub(super) fn answer_unavailable(&mut self, question: &Question, reason: &str, retry_after: Duration) {
        let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
        self.answer(
            question,
            located::Result::Unavailable(Unavailable { reason: reason.to_owned(), retry_after_ms }),
        );
    }

    fn answer(&mut self, question: &Question, result: located::Result) {
        self.send(question.link, Message::Located(Located { id: question.id, result: Some(result) }));
    }

    pub(super) fn broadcast_invalid(&mut self, pool: String, keys: Vec<String>) {
        self.broadcast(|position| {
            let invalid = Invalidate { sequence: position.sequence, pool, keys };
            Message::Invalidate(invalid.encode_to_vec().into())
        });
    }
}
