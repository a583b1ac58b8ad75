//! Keys that their owners give up: of their own accord, or since they were asked to.
//!
//! | asked because | caches | questions meanwhile | no answer |
//! | --- | --- | --- | --- |
//! | it is idle | use it no more by themselves | the owner gets it at a new epoch | it is awaited |
//! | it moves | are told at once | wait, [`PATIENCE`] at most | then the owner gets it at a new epoch |
//!
//! A release counts only for the epoch that it names. So one that comes late frees nothing that was answered meanwhile, and
//! no answer is ever given for an epoch of which a release may be on the way. A new tenure has said what it owns, and was
//! asked for nothing yet.

use std::collections::HashMap;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{OwnedKey, Yield, follow_reply::Message};

use super::keys::Record;
use super::members::MemberIndex;
use super::{LinkId, Ownership, Question, RETRY};

/// How long an owner may take to give up what it is asked for: less than askers wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// So often those are looked at whose owners have not answered and whom nobody has asked for.
const LOOK_PAUSE: Duration = Duration::from_secs(30);
/// Keys that owners are asked for at once.
const MAX_YIELDS: usize = 8192;
/// Questions that wait for one key on its way.
const MAX_WAITING: usize = 256;

/// Keys that were asked for and are not released yet, by pool.
#[derive(Debug, Default)]
pub(super) struct Yields {
    pools: HashMap<Box<str>, HashMap<Box<str>, Asked>>,
    count: usize,
}

#[derive(Debug)]
struct Asked {
    epoch: u64,
    until: BootTime,
    /// The member that it moves to; none where it is idle.
    to: Option<Box<str>>,
    waiting: Vec<Question>,
}

impl Yields {
    /// For so many more there is room.
    pub(super) fn room(&self) -> usize {
        MAX_YIELDS.saturating_sub(self.count)
    }

    pub(super) fn contains(&self, pool: &str, key: &str) -> bool {
        self.count > 0 && self.pools.get(pool).is_some_and(|keys| keys.contains_key(key))
    }

    fn insert(&mut self, pool: &str, key: &str, asked: Asked) {
        let before = self.pools.entry(pool.into()).or_default().insert(key.into(), asked);
        self.count += usize::from(before.is_none());
    }

    fn get(&mut self, pool: &str, key: &str) -> Option<&mut Asked> {
        if self.count == 0 { None } else { self.pools.get_mut(pool)?.get_mut(key) }
    }

    pub(super) fn end(&mut self, pool: &str, key: &str) -> Vec<Question> {
        self.take(pool, key).map_or(Vec::new(), |asked| asked.waiting)
    }

    fn take(&mut self, pool: &str, key: &str) -> Option<Asked> {
        if self.count == 0 {
            return None;
        }
        let keys = self.pools.get_mut(pool)?;
        let asked = keys.remove(key)?;
        self.count -= 1;
        if keys.is_empty() {
            self.pools.remove(pool);
        }
        Some(asked)
    }

    /// Takes out what is late.
    fn take_late(&mut self, now: BootTime) -> Vec<(Box<str>, Box<str>, Asked)> {
        let mut late = Vec::new();
        for (pool, keys) in &mut self.pools {
            let over = keys.extract_if(|_, asked| now >= asked.until);
            late.extend(over.map(|(key, asked)| (pool.clone(), key, asked)));
        }
        self.pools.retain(|_, keys| !keys.is_empty());
        self.count -= late.len();
        late.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        late
    }

    /// Forgets all, and who waits.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Ownership {
    /// Asks the owner for these keys of its own: since they are idle, or to move to the member of this id.
    pub(super) fn ask_to_yield(
        &mut self,
        owner: MemberIndex,
        keys: Vec<OwnedKey>,
        to: Option<&str>,
        now: BootTime,
    ) {
        let slot = &self.members[owner];
        let (Some(link), pool) = (slot.link, slot.member.pool.clone()) else { return };
        for OwnedKey { key, epoch } in &keys {
            let until = now + if to.is_some() { PATIENCE } else { LOOK_PAUSE };
            let to = to.map(Into::into);
            self.yields.insert(&pool, key, Asked { epoch: *epoch, until, to, waiting: Vec::new() });
        }
        if to.is_some() {
            let names = keys.iter().map(|owned| owned.key.clone()).collect();
            self.broadcast_invalid(pool, names);
        }
        self.send(link, Message::Yield(Yield { keys, idle: to.is_none() }));
    }

    /// A question for a key whose owner was asked for it: gives the question back where it is to be answered as if
    /// nothing were.
    pub(super) fn wait_for_release(
        &mut self,
        question: Question,
        record: &Record,
        now: BootTime,
    ) -> Option<Question> {
        let Some(asked) = self.yields.get(&question.pool, &question.key) else {
            return Some(question);
        };
        if asked.epoch == record.epoch && asked.to.is_some() {
            if asked.waiting.len() < MAX_WAITING {
                asked.waiting.push(question);
            } else {
                self.answer_unavailable(&question, "the key is on its way to another member", RETRY);
            }
            return None;
        }
        // Its release may be on the way, and then counts no more.
        let is_current = asked.epoch == record.epoch;
        self.parked.append(&mut self.yields.end(&question.pool, &question.key));
        if is_current && self.members[record.member].link.is_some() {
            self.assign(&question, record.member, now);
            return None;
        }
        Some(question)
    }

    /// The member of this link gives up keys; those that it keeps although they were idle, it has in use.
    pub fn release(&mut self, link: LinkId, keys: &[OwnedKey], kept: &[OwnedKey], now: BootTime) {
        self.advance(now);
        let Some(index) = self.members.by_link(link) else {
            return;
        };
        let slot = &self.members[index];
        let (pool, tenure) = (slot.member.pool.clone(), slot.tenure);
        let (mut invalid, mut waiting) = (Vec::new(), Vec::new());
        for OwnedKey { key, epoch } in kept {
            if self.yields.get(&pool, key).is_some_and(|asked| asked.epoch == *epoch && asked.to.is_none()) {
                self.yields.take(&pool, key);
            }
        }
        for OwnedKey { key, epoch } in keys {
            let record = self.keys.get(&pool, key);
            let current = record.filter(|it| (it.epoch, it.member, it.tenure) == (*epoch, index, tenure));
            let Some(record) = current else { continue };
            self.changes += 1;
            self.members.change(index, |slot| slot.owned -= 1);
            if self.takes_keys(&self.members[index]) {
                self.keys.remove(&pool, key);
                self.members.change(index, |slot| slot.records -= 1);
            } else {
                // One that drains and comes back gets again what nobody has asked for meanwhile.
                self.keys.set(&pool, key, Record { tenure: 0, ..record });
            }
            match self.yields.take(&pool, key) {
                Some(asked) => {
                    if asked.epoch != *epoch {
                        invalid.push(key.clone());
                    } else if let Some(to) = &asked.to {
                        self.remember_at(&pool, key, to, record);
                    }
                    waiting.extend(asked.waiting);
                }
                None => invalid.push(key.clone()),
            }
        }
        if !invalid.is_empty() {
            self.broadcast_invalid(pool, invalid);
        }
        waiting.into_iter().for_each(|question| self.find(question, now));
    }

    /// As if this member had had the key last: then it gets it, if it may get any.
    fn remember_at(&mut self, pool: &str, key: &str, id: &str, record: Record) {
        let Some(member) = self.members.find(pool, id) else { return };
        self.members.change(member, |slot| slot.records += 1);
        if let Some(before) = self.keys.set(pool, key, Record { member, tenure: 0, ..record }) {
            self.members.change(before.member, |slot| slot.records -= 1);
            self.members.tidy(before.member);
        }
    }

    /// Owners that were asked for a key that moves, and said nothing, have it at a new epoch.
    pub(super) fn end_patience(&mut self, now: BootTime) {
        for (pool, key, asked) in self.yields.take_late(now) {
            let record = self.keys.get(&pool, &key).filter(|record| record.epoch == asked.epoch);
            let owner = record.map(|record| record.member).filter(|owner| {
                let slot = &self.members[*owner];
                slot.link.is_some() && record.is_some_and(|record| Self::owns(slot, &record))
            });
            match owner {
                Some(_) if asked.to.is_none() => {
                    self.yields.insert(&pool, &key, Asked { until: now + LOOK_PAUSE, ..asked });
                }
                Some(owner) => {
                    self.give(&pool, &key, owner, now);
                    self.parked.extend(asked.waiting);
                }
                None => self.parked.extend(asked.waiting),
            }
        }
        self.answer_parked(now);
    }

    /// Answers questions that waited for keys on which something else was decided.
    pub(super) fn answer_parked(&mut self, now: BootTime) {
        for question in std::mem::take(&mut self.parked) {
            self.find(question, now);
        }
    }
}
