//! A member's process: the holder and its link to one of the seeds.

use protoplex_seed::ownership::{Joining, LinkId};
use protoplex_wire::clock::BootTime;
use protoplex_wire::holder::{Fence, Holder, Step};
use protoplex_wire::proto::{Member, OwnedKey, Yield, follow_reply::Message};

use crate::datastore::{Reply, Request};
use crate::network::{Machine, Packet, Time};
use crate::world::{Event, MS, POOL, Purpose, World};
use crate::{HEARTBEAT, LEASE, Plant};

pub(crate) struct MemberProcess {
    /// Whose name it was started with: its own machine's, or by mistake another one's.
    name: Machine,
    /// Of its data directory.
    instance: String,
    pub(crate) holder: Holder,
    pub(crate) link: Option<LinkId>,
    /// True time of the next attempt to connect.
    next_connect: Time,
    tries: usize,
    /// Whom the datastore has named since the last attempt.
    leader: Option<Machine>,
    timer: Time,
    /// It has been told to end.
    pub(crate) draining: bool,
}

impl MemberProcess {
    pub(crate) fn new(name: Machine, instance: String, now: BootTime) -> Self {
        let holder = Holder::new(now);
        Self {
            name,
            instance,
            holder,
            link: None,
            next_connect: 0,
            tries: 0,
            leader: None,
            timer: 0,
            draining: false,
        }
    }
}

impl World {
    /// Runs this on the member's holder, then does what the holder asks for, and checks the claim.
    pub(crate) fn with_member(&mut self, machine: Machine, input: impl FnOnce(&mut MemberProcess, BootTime)) {
        let now = self.clock(machine);
        let slot = Self::member_slot(machine);
        let Some(mut member) = self.members[slot].take() else {
            return;
        };
        input(&mut member, now);
        while let Some(step) = member.holder.poll(now) {
            self.member_does(machine, &mut member, step, now);
        }
        if member.link.is_none() && self.now >= member.next_connect {
            self.join(machine, &mut member, now);
        }
        let mut next = member.holder.next_poll().map(|at| self.true_time(machine, at));
        if member.link.is_none() {
            next = Some(next.map_or(member.next_connect, |at| at.min(member.next_connect)));
        }
        let earlier = next.filter(|time| *time < member.timer || member.timer <= self.now);
        member.timer = earlier.unwrap_or(member.timer);
        self.members[slot] = Some(member);
        if let Some(time) = earlier {
            let generation = self.machines[machine].generation;
            self.at(time, Event::Timer { machine, generation });
        }
        self.check(machine);
    }

    fn member_does(&mut self, machine: Machine, member: &mut MemberProcess, step: Step, now: BootTime) {
        match step {
            Step::Lost(lost) => self.trace(|| format!("member {machine} loses {lost:?}")),
            Step::Rejoin => {
                if let Some(link) = member.link.take() {
                    self.close(link, true);
                }
                member.next_connect = self.now + self.random.between(10, 300) * MS;
            }
            Step::Renew { sequence } => {
                if let Some(link) = member.link {
                    self.send(link, true, Packet::Renew(sequence));
                }
            }
            Step::AskDatastore => {
                self.ask_datastore(machine, Purpose::Unseeded { asked_at: now }, Request::Peek);
            }
        }
    }

    fn join(&mut self, machine: Machine, member: &mut MemberProcess, now: BootTime) {
        member.next_connect = self.now + self.random.between(50, 500) * MS;
        member.tries += 1;
        let seed = member.leader.take().unwrap_or(1 + member.tries % self.seeds_in_use);
        let Some(link) = self.open(machine, seed) else {
            return;
        };
        member.link = Some(link);
        member.holder.hello(now);
        let mut keys: Vec<_> =
            member.holder.keys().map(|(key, epoch)| OwnedKey { key: key.to_owned(), epoch }).collect();
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        let joining = Joining {
            node: format!("live-{}", member.name),
            member: Member {
                id: format!("live-{}:0", member.name),
                pool: POOL.into(),
                address: format!("127.0.0.1:{machine}"),
                zone: String::new(),
                instance: member.instance.clone(),
            },
            incarnation: member.holder.incarnation(),
            attempt: member.holder.attempt(),
            keys,
            capacity: 1 + machine as u32 % 2,
            yields: true,
        };
        self.send(link, true, Packet::Hello(joining));
        if member.draining {
            self.send(link, true, Packet::Draining);
        }
    }

    pub(crate) fn member_timer(&mut self, machine: Machine) {
        self.with_member(machine, |_, _| {});
    }

    pub(crate) fn member_receives(&mut self, machine: Machine, link: LinkId, packet: Packet) {
        let again = self.now + self.random.between(10, 300) * MS;
        if let Packet::Reply(Message::Yield(asked)) = packet {
            return self.asked_to_yield(machine, link, asked);
        }
        self.with_member(machine, |member, now| {
            if member.link != Some(link) {
                return;
            }
            let holder = &mut member.holder;
            match packet {
                Packet::Welcome => holder.welcomed(LEASE, HEARTBEAT, now),
                Packet::Closed => {
                    member.link = None;
                    member.next_connect = again;
                    holder.disconnected();
                }
                Packet::Reply(Message::Assigned(assigned)) => {
                    holder.assigned(&assigned.key, assigned.epoch, now)
                }
                Packet::Reply(Message::Renewed(renewed)) => holder.renewed(renewed.sequence, now),
                Packet::Reply(Message::LeaseLost(_)) => holder.lease_lost(now),
                Packet::Reply(Message::Revoked(revoked)) => {
                    revoked.keys.iter().for_each(|owned| holder.revoked(&owned.key, owned.epoch));
                }
                _ => {}
            }
        });
    }

    /// What is idle is given up at once; what moves when all that is under way has ended, now and then too late.
    fn asked_to_yield(&mut self, machine: Machine, link: LinkId, asked: Yield) {
        if self.members[Self::member_slot(machine)].as_ref().is_none_or(|member| member.link != Some(link)) {
            return;
        }
        if asked.idle && self.random.chance(20) {
            return self.send(link, true, Packet::Released(Vec::new(), asked.keys));
        }
        if asked.idle {
            for OwnedKey { key, epoch } in &asked.keys {
                let process = self.members[Self::member_slot(machine)].as_ref();
                if process.is_some_and(|it| it.holder.keys().any(|owned| owned == (key, *epoch))) {
                    self.check_unused(key, *epoch);
                    self.tally.idle += 1;
                }
            }
            return self.give_up(machine, link, asked.keys);
        }
        self.tally.moved += asked.keys.len() as u64;
        let wait = [0, 500 * MS, 1500 * MS][self.random.below(3) as usize];
        let (time, generation) = (self.now + wait, self.machines[machine].generation);
        self.at(time, Event::GiveUp { machine, generation, link, keys: asked.keys });
    }

    pub(crate) fn give_up(&mut self, machine: Machine, link: LinkId, keys: Vec<OwnedKey>) {
        let mut released = Vec::new();
        let keeps = self.plant == Plant::KeepsServing;
        self.with_member(machine, |member, _| {
            released = keys;
            released.retain(|owned| keeps || member.holder.release(&owned.key, owned.epoch));
            if member.link != Some(link) {
                released.clear();
            }
        });
        if !released.is_empty() {
            self.send(link, true, Packet::Released(released, Vec::new()));
        }
    }

    pub(crate) fn member_answered(&mut self, machine: Machine, purpose: Purpose, reply: Reply) {
        let Purpose::Unseeded { asked_at } = purpose else {
            return;
        };
        let Reply::Held { left, holder } = reply else {
            return;
        };
        let unseeded = left.is_zero() || self.plant == Plant::AlwaysUnseeded;
        let at_once = self.now;
        self.with_member(machine, |member, now| {
            if unseeded {
                member.holder.unseeded(asked_at, now);
            } else {
                member.holder.seeded(asked_at, left, now);
                // It is told who leads, and tries that one next.
                member.next_connect = at_once;
                member.leader = holder;
            }
        });
    }

    /// A request arrives: served, refused with 421, or looked at again a little later.
    pub(crate) fn probe(&mut self, asker: Machine, machine: Machine, key: usize, epoch: u64, deadline: Time) {
        let now = self.clock(machine);
        let Some(member) = &self.members[Self::member_slot(machine)] else {
            return;
        };
        let fence = member.holder.check(&key.to_string(), epoch, now);
        if fence == Fence::Wait && self.now < deadline {
            let time = (self.now + 50 * MS).min(deadline);
            return self.at(time, Event::Probe { asker, member: machine, key, epoch, deadline });
        }
        let served = fence == Fence::Owned;
        if served {
            self.note_served(key, machine);
        }
        let time = self.arrival();
        self.at(time, Event::Probed { asker, key, epoch, served });
    }
}
