//! Askers: what a proxy's child does. Ask the seed, keep the answer, send the request, and ask anew after a 421.

use std::collections::BTreeMap;

use protoplex_seed::ownership::{LinkId, Question};
use protoplex_wire::proto::{Owner, follow_reply::Message, located};

use crate::network::{Machine, Packet};
use crate::world::{Event, KEYS, MS, POOL, World};

#[derive(Default)]
pub(crate) struct Asker {
    link: Option<LinkId>,
    tries: usize,
    key: usize,
    question: u64,
    cache: BTreeMap<usize, Owner>,
    refuted: BTreeMap<usize, u64>,
    waiting: BTreeMap<u64, usize>,
}

impl World {
    pub(crate) fn asker_timer(&mut self, machine: Machine) {
        let slot = Self::asker_slot(machine);
        let mut asker = std::mem::take(&mut self.askers[slot]);
        if asker.link.is_none() {
            asker.tries += 1;
            asker.link = self.open(machine, 1 + asker.tries % self.seeds_in_use);
            asker.waiting.clear();
            asker.cache.clear();
            if let Some(link) = asker.link {
                self.send(link, true, Packet::Follow);
            }
        }
        asker.key = (asker.key + 1) % KEYS;
        let key = asker.key;
        if let Some(owner) = asker.cache.get(&key) {
            let member = owner.address.parse().expect("members' addresses are their machines");
            let epoch = owner.epoch;
            let (time, deadline) = (self.arrival(), self.now + 500 * MS);
            self.at(time, Event::Probe { asker: machine, member, key, epoch, deadline });
        } else if let Some(link) = asker.link {
            asker.question += 1;
            asker.waiting.insert(asker.question, key);
            let question = Question {
                link,
                id: asker.question,
                zone: String::new(),
                pool: POOL.into(),
                key: key.to_string(),
                refuted_epoch: asker.refuted.get(&key).copied().unwrap_or(0),
            };
            self.send(link, true, Packet::Locate(question));
        }
        self.askers[slot] = asker;
        let (time, generation) = (self.now + 40 * MS, self.machines[machine].generation);
        self.at(time, Event::Timer { machine, generation });
    }

    pub(crate) fn asker_receives(&mut self, machine: Machine, link: LinkId, packet: Packet) {
        let mut leave = false;
        let asker = &mut self.askers[Self::asker_slot(machine)];
        if asker.link != Some(link) {
            return;
        }
        match packet {
            Packet::Closed => leave = true,
            Packet::Reply(Message::Located(answer)) => {
                match (asker.waiting.remove(&answer.id), answer.result) {
                    (Some(key), Some(located::Result::Owner(owner))) => {
                        asker.cache.insert(key, owner);
                    }
                    (_, Some(located::Result::Unavailable(away))) => {
                        leave = away.reason == "the seed does not lead"
                    }
                    _ => {}
                }
            }
            Packet::Reply(Message::Invalidate(gone)) => {
                asker.cache.retain(|key, _| key.to_string() != gone.key);
            }
            Packet::Reply(Message::MemberGone(gone)) => {
                asker.cache.retain(|_, owner| owner.member != gone.member);
            }
            Packet::Reply(Message::ResetOwners(_)) => asker.cache.clear(),
            _ => {}
        }
        if leave {
            asker.link = None;
            self.close(link, true);
        }
    }

    pub(crate) fn probed(&mut self, machine: Machine, key: usize, epoch: u64, served: bool) {
        let asker = &mut self.askers[Self::asker_slot(machine)];
        if !served && asker.cache.get(&key).is_some_and(|owner| owner.epoch == epoch) {
            asker.cache.remove(&key);
            asker.refuted.insert(key, epoch);
        }
    }
}
