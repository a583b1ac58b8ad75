//! What goes wrong: processes stop, die and come back, links break, machines can't reach each other, members let go.

use protoplex_wire::proto::OwnedKey;

use crate::member::MemberProcess;
use crate::network::{Machine, Packet, Time};
use crate::seed::SeedProcess;
use crate::world::{DATASTORE, Event, KEYS, MS, QUIET_FROM, SECOND, World};
use crate::{Faults, Plant};

impl World {
    /// A process begins to run.
    pub(crate) fn start(&mut self, machine: Machine) {
        let now = self.clock(machine);
        self.machines[machine].generation += 1;
        self.machines[machine].alive = true;
        self.trace(|| format!("{machine} starts"));
        if self.is_seed(machine) {
            let hints = self.disks[machine - 1].clone();
            self.seeds[machine - 1] = Some(SeedProcess::new(self.faults, self.plant, hints));
        } else if self.member_machines().contains(&machine) {
            let slot = Self::member_slot(machine);
            let name = self.names[slot];
            let told_apart = self.plant != Plant::NameOnly;
            let instance = if told_apart { self.instances[slot].clone() } else { format!("live-{name}") };
            self.members[slot] = Some(MemberProcess::new(name, instance, now));
        }
        let generation = self.machines[machine].generation;
        self.at(self.now, Event::Timer { machine, generation });
    }

    pub(crate) fn kill(&mut self, machine: Machine, down: Time) {
        if !self.machines[machine].alive {
            return;
        }
        self.trace(|| format!("{machine} is killed"));
        // A process that dies closes its sockets, unless its machine dies with it.
        let notice = if self.faults == Faults::All && self.random.chance(30) { 8 * SECOND } else { 100 * MS };
        let life = (machine, self.machines[machine].generation);
        self.machines[machine].alive = false;
        self.machines[machine].paused_until = 0;
        if self.is_seed(machine) {
            self.seeds[machine - 1] = None;
        } else {
            self.members[Self::member_slot(machine)] = None;
        }
        for link in 0..self.connections.len() {
            let connection = &self.connections[link];
            if connection.client == life || connection.server == life {
                self.tear(link as u64, notice);
            }
        }
        let time = (self.now + down).min(QUIET_FROM);
        self.at(time, Event::Start(machine));
    }

    /// One fault now, the next one later, until the quiet begins.
    pub(crate) fn fault(&mut self) {
        if self.now >= QUIET_FROM {
            return;
        }
        let length = [200 * MS, SECOND, 4 * SECOND, 9 * SECOND][self.random.below(4) as usize];
        let length = self.random.below(length) + 10 * MS;
        match self.faults {
            Faults::All => self.any_fault(length),
            Faults::SeedOnly => self.seed_fault(length),
        }
        // Against a seed that never lives for long no lease helps, so the claim that no key moves grants it a few seconds.
        let peace = if self.faults == Faults::SeedOnly { length + 4 * SECOND } else { MS };
        let next = self.now + peace + self.random.below(2 * self.fault_pause);
        self.at(next, Event::Fault);
    }

    fn any_fault(&mut self, length: Time) {
        let seed = 1 + self.random.below(self.seeds_in_use as u64) as usize;
        let members = self.member_machines();
        let member = members.start + self.random.below(members.len() as u64) as usize;
        let anyone = self.random.below(members.end as u64) as usize;
        match self.random.below(20) {
            0 | 1 => self.pause(anyone, length),
            2 => self.kill(seed, length),
            3 => self.kill(member, length),
            4 | 5 => self.part(seed, member, length),
            6 => self.part(member, DATASTORE, length),
            7 => self.part(seed, DATASTORE, length),
            8 => self.break_links(),
            9 => members.for_each(|member| self.part(member, seed, length)),
            10 => self.give_up_a_key(member),
            11 => self.lose_data(member, length),
            12 | 13 => {
                let other = members.start + self.random.below(members.len() as u64) as usize;
                self.take_name(member, other, length);
            }
            14 => self.leave(member, length),
            15 | 16 => self.end_in_order(seed, length),
            _ => self.drain(member, length),
        }
    }

    fn seed_fault(&mut self, length: Time) {
        let seed = 1 + self.random.below(self.seeds_in_use as u64) as usize;
        match self.random.below(4) {
            // Where there is another one it takes over, and whoever is linked to the one that is stopped may find out too late.
            0 if self.seeds_in_use == 1 => self.pause(seed, length),
            0 | 1 => self.kill(seed, length),
            2 => self.end_in_order(seed, length),
            _ => self.break_links(),
        }
    }

    /// A seed is ended as an operator does it: whatever it leads is another's first. It is started again later.
    fn end_in_order(&mut self, seed: Machine, down: Time) {
        if self.machines[seed].paused_until > self.now || !self.machines[seed].alive {
            return;
        }
        self.trace(|| format!("{seed} hands over"));
        if self.hand_over(seed) {
            self.tally.handed_over += 1;
        }
        let (time, generation) = (self.now + self.random.below(SECOND), self.machines[seed].generation);
        self.at(time, Event::Stop { machine: seed, generation, down });
    }

    /// The process comes back on an empty data directory.
    fn lose_data(&mut self, machine: Machine, down: Time) {
        let instance = &mut self.instances[Self::member_slot(machine)];
        instance.push('+');
        self.kill(machine, down);
    }

    /// For a while this machine's process runs with the name of another one, which goes on with it too.
    fn take_name(&mut self, machine: Machine, other: Machine, length: Time) {
        self.trace(|| format!("{machine} takes the name of {other} for {length} us"));
        self.rename(machine, other);
        let time = (self.now + length).min(QUIET_FROM);
        self.at(time, Event::Rename { machine, name: machine });
    }

    pub(crate) fn rename(&mut self, machine: Machine, name: Machine) {
        self.names[Self::member_slot(machine)] = name;
        self.kill(machine, MS);
    }

    fn pause(&mut self, machine: Machine, length: Time) {
        self.trace(|| format!("{machine} stops for {length} us"));
        self.machines[machine].paused_until = (self.now + length).min(QUIET_FROM);
    }

    fn part(&mut self, a: Machine, b: Machine, length: Time) {
        self.trace(|| format!("{a} and {b} are parted for {length} us"));
        self.partitions.insert((a.min(b), a.max(b)), (self.now + length).min(QUIET_FROM));
    }

    fn break_links(&mut self) {
        for _ in 0..3 {
            let recent = (self.connections.len() as u64).min(12);
            if recent > 0 {
                let link = self.connections.len() as u64 - 1 - self.random.below(recent);
                self.trace(|| format!("link {link} breaks"));
                self.tear(link, 8 * SECOND);
            }
        }
    }

    /// Its keys go one half after the other, then it leaves.
    fn drain(&mut self, machine: Machine, down: Time) {
        let generation = self.machines[machine].generation;
        if self.machines[machine].paused_until > self.now || !self.machines[machine].alive {
            return;
        }
        self.trace(|| format!("{machine} drains"));
        let (mut link, mut keys) = (None, Vec::new());
        self.with_member(machine, |member, _| {
            member.draining = true;
            link = member.link;
            keys = member
                .holder
                .keys()
                .map(|(key, epoch)| OwnedKey { key: key.to_owned(), epoch })
                .collect::<Vec<_>>();
        });
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(link) = link {
            self.send(link, true, Packet::Draining);
            let rest = keys.split_off(keys.len() / 2);
            for (half, keys) in [keys, rest].into_iter().enumerate() {
                let time = self.now + half as Time * SECOND + self.random.below(SECOND);
                self.at(time, Event::GiveUp { machine, generation, link, keys });
            }
        }
        self.at(self.now + 3 * SECOND, Event::Depart { machine, generation, down });
    }

    fn give_up_a_key(&mut self, machine: Machine) {
        let key = self.random.below(KEYS as u64).to_string();
        if self.machines[machine].paused_until > self.now {
            return;
        }
        let mut release = None;
        self.with_member(machine, |member, _| {
            let epoch = member.holder.keys().find(|(owned, _)| *owned == key).map(|(_, epoch)| epoch);
            if let Some(epoch) = epoch.filter(|epoch| member.holder.release(&key, *epoch)) {
                release = member.link.map(|link| (link, epoch));
            }
        });
        if let Some((link, epoch)) = release {
            self.send(link, true, Packet::Released(vec![OwnedKey { key, epoch }], Vec::new()));
        }
    }

    pub(crate) fn leave(&mut self, machine: Machine, down: Time) {
        if self.machines[machine].paused_until > self.now {
            return;
        }
        let mut link = None;
        self.with_member(machine, |member, now| {
            member.holder.leave(now);
            link = member.link;
        });
        if let Some(link) = link {
            self.send(link, true, Packet::Leave);
        }
        self.kill(machine, down);
    }
}
