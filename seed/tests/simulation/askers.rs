//! Askers: what a proxy's child does. Ask the seed, keep the answer, send the request, and ask anew after a 421 and once the
//! answer has aged. Now and then their operator adds a handler.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use protoplex_seed::ownership::{LinkId, Question};
use protoplex_wire::clock::BootTime;
use protoplex_wire::owners::{Age, Owner, Owners};
use protoplex_wire::proto::{Invalidate, follow_reply::Message, located};

use crate::network::{Machine, Packet, Time};
use crate::world::{Event, KEYS, MS, POOL, QUIET_FROM, SECOND, World};
use crate::{Faults, Plant};

/// Each asker cares for other keys in each of these.
const SEASON: Time = 11 * SECOND;

#[derive(Default)]
pub(crate) struct Asker {
    pub(crate) link: Option<LinkId>,
    tries: usize,
    key: usize,
    question: u64,
    pub(crate) owners: Owners,
    /// Keys that are asked for, and since when.
    waiting: BTreeMap<u64, (usize, BootTime)>,
}

impl World {
    /// Whether this asker uses the key now. In the end all do.
    fn cares(&self, machine: Machine, key: usize) -> bool {
        let season = (self.now + key as Time * SECOND) / SEASON;
        let draw = (season * 31 + machine as u64 * 17 + key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60;
        self.faults == Faults::SeedOnly || self.now >= QUIET_FROM || draw < 5
    }

    pub(crate) fn asker_timer(&mut self, machine: Machine) {
        let now = self.clock(machine);
        let slot = Self::asker_slot(machine);
        let mut asker = std::mem::take(&mut self.askers[slot]);
        if asker.link.is_none() {
            asker.tries += 1;
            asker.link = self.open(machine, 1 + asker.tries % self.seeds_in_use);
            asker.waiting.clear();
            asker.owners.doubt_all();
            if let Some(link) = asker.link {
                self.send(link, true, Packet::Follow);
            }
        }
        asker.key = (asker.key + 1) % KEYS;
        if self.cares(machine, asker.key) {
            self.use_key(machine, &mut asker, now);
        }
        let link = asker.link;
        self.askers[slot] = asker;
        if let Some(link) = link {
            self.operate(machine, link);
        }
        let (time, generation) = (self.now + 40 * MS, self.machines[machine].generation);
        self.at(time, Event::Timer { machine, generation });
    }

    fn use_key(&mut self, machine: Machine, asker: &mut Asker, now: BootTime) {
        let key = asker.key;
        let known = asker.owners.known(POOL, &key.to_string(), now);
        let (owner, ask) = match known {
            Some((owner, Age::Fresh)) => (Some(owner), false),
            Some((owner, Age::Ageing)) => (Some(owner), true),
            Some((owner, Age::Stale | Age::Doubted)) if asker.link.is_none() => (Some(owner), false),
            Some((_, Age::Stale | Age::Doubted)) | None => (None, true),
        };
        if let Some(Owner { address, epoch, .. }) = owner {
            let member = address.port().into();
            let (time, deadline) = (self.arrival(), self.now + 500 * MS);
            self.at(time, Event::Probe { asker: machine, member, key, epoch, deadline });
        }
        if let Some(link) = asker.link.filter(|_| ask) {
            asker.question += 1;
            asker.waiting.insert(asker.question, (key, now));
            let question = Question {
                link,
                id: asker.question,
                zone: String::new(),
                pool: POOL.into(),
                key: key.to_string(),
                refuted_epoch: asker.owners.refuted(POOL, &key.to_string()),
            };
            self.send(link, true, Packet::Locate(question));
        }
    }

    pub(crate) fn asker_receives(&mut self, machine: Machine, link: LinkId, packet: Packet) {
        let now = self.clock(machine);
        let asks_once = self.plant == Plant::AsksOnce;
        if let Packet::Changed(id, made) = packet {
            self.close(link, true);
            return self.change_answered(machine, id, made);
        }
        let asker = &mut self.askers[Self::asker_slot(machine)];
        if asker.link != Some(link) {
            return;
        }
        match packet {
            Packet::Closed => {
                asker.link = None;
                self.close(link, true);
            }
            Packet::Reply(Message::Located(answer)) => {
                if let Some((key, asked)) = asker.waiting.remove(&answer.id)
                    && let Some(located::Result::Owner(owner)) = answer.result
                {
                    let address = owner.address.parse().expect("members' addresses are their machines'");
                    let told = Duration::from_millis(owner.fresh_ms.into());
                    let fresh = if asks_once { told * 100 } else { told };
                    let owner = Owner { member: owner.member.into(), address, epoch: owner.epoch };
                    asker.owners.learn(POOL, &key.to_string(), &owner, asked.min(now), fresh);
                }
            }
            Packet::Reply(Message::Invalidate(gone)) => {
                let gone = Invalidate::decode(gone).expect("the seed encoded it");
                asker.owners.forget(POOL, &gone.keys)
            }
            Packet::Reply(Message::MemberGone(gone)) => asker.owners.forget_member(POOL, &gone.member),
            Packet::Reply(Message::ResetOwners(_)) => asker.owners.doubt_all(),
            _ => {}
        }
    }

    pub(crate) fn probed(&mut self, machine: Machine, key: usize, epoch: u64, served: bool) {
        if !served {
            self.askers[Self::asker_slot(machine)].owners.refute(POOL, &key.to_string(), epoch);
        }
    }
}
