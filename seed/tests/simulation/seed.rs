//! A seed's process: the core, its leader lease, and what a restart leaves of it on its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protoplex_seed::ownership::{Action, Hint, Idle, Limits, LinkId, Ownership, PARTS, Timing};
use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{Located, follow_reply::Message, located};

use crate::datastore::{Reply, Request};
use crate::handlers::Routes;
use crate::network::{Machine, Packet};
use crate::world::{Event, MS, Purpose, World};
use crate::{Faults, HEARTBEAT, IDLE, LEASE, Plant, RECOVERY_TTL, SETTLING, TTL};

/// Parts of the keys that are looked through at once.
const SWEEPS: usize = 8;
/// How long the datastore's answer is awaited.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct SeedProcess {
    pub(crate) core: Ownership,
    followers: BTreeSet<LinkId>,
    recording: BTreeMap<LinkId, BootTime>,
    attempt: u64,
    attempting_since: Option<BootTime>,
    next_attempt: BootTime,
    next_snapshot: BootTime,
    pub(crate) routes: Routes,
}

impl SeedProcess {
    pub(crate) fn new(faults: Faults, plant: Plant, hints: Vec<Hint>) -> Self {
        let settling = if faults == Faults::SeedOnly { LEASE * 1000 } else { SETTLING };
        let lease = if plant == Plant::ShortLease { LEASE / 2 } else { LEASE };
        let timing = Timing { lease, heartbeat: HEARTBEAT, settling };
        // Whom nobody can reach to ask, nobody asks.
        let idle = (faults == Faults::All).then_some(IDLE);
        let idle = Idle { default: idle, ..Idle::default() };
        let mut core = Ownership::new(timing, Limits::default()).with_hash_seed(1).with_idle(idle);
        core.restore(hints);
        Self {
            core,
            followers: BTreeSet::new(),
            recording: BTreeMap::new(),
            attempt: 0,
            attempting_since: None,
            next_attempt: BootTime::ZERO,
            next_snapshot: BootTime::ZERO,
            routes: Routes::default(),
        }
    }
}

impl World {
    /// Runs this on the seed's core, then does what the core asks for.
    pub(crate) fn with_seed(&mut self, machine: Machine, input: impl FnOnce(&mut SeedProcess, BootTime)) {
        let now = self.clock(machine);
        let Some(mut seed) = self.seeds[machine - 1].take() else {
            return;
        };
        input(&mut seed, now);
        while let Some(action) = seed.core.next_action() {
            self.seed_does(machine, &mut seed, action, now);
        }
        if seed.core.leads().is_none() {
            // They look for the one that does.
            for link in std::mem::take(&mut seed.followers) {
                self.close(link, false);
            }
        }
        self.seeds[machine - 1] = Some(seed);
    }

    fn seed_does(&mut self, machine: Machine, seed: &mut SeedProcess, action: Action, now: BootTime) {
        match action {
            Action::Send(link, mut message) => {
                // What is planted is told as if nothing were.
                if self.plant == Plant::HastyIdle
                    && let Message::Located(Located { result: Some(located::Result::Owner(owner)), .. }) =
                        &mut message
                {
                    owner.fresh_ms *= 5;
                }
                self.send(link, false, Packet::Reply(message));
            }
            // It saves questions, and what it tells is fenced by its epoch as every answer is.
            Action::Share(..) => {}
            Action::Broadcast(_, message) => {
                for link in seed.followers.clone() {
                    self.send(link, false, Packet::Reply(message.clone()));
                }
            }
            Action::Welcome(link) => {
                seed.followers.insert(link);
                self.send(link, false, Packet::Welcome);
            }
            Action::Close(link, why) => {
                self.trace(|| format!("seed {machine} closes link {link}: {why}"));
                seed.followers.remove(&link);
                self.close(link, false);
            }
            Action::Record(link, member, revision) => {
                seed.recording.insert(link, now);
                let term = seed.core.position().term;
                self.ask_datastore(machine, Purpose::Record(link), Request::Put { member, revision, term });
            }
            Action::Erase(pool, id, revision) => {
                let term = seed.core.position().term;
                self.ask_datastore(machine, Purpose::Erase, Request::Erase { pool, id, revision, term });
            }
            Action::TableChanged => {}
        }
    }

    pub(crate) fn seed_receives(&mut self, machine: Machine, link: LinkId, packet: Packet) {
        if let Packet::Change(id, changes) = packet {
            return self.change_handlers(machine, link, id, changes);
        }
        self.with_seed(machine, |seed, now| match packet {
            Packet::Follow => {
                seed.core.advance(now);
                seed.followers.insert(link);
            }
            Packet::Hello(joining) => seed.core.hello(link, joining, now),
            Packet::Renew(sequence) => seed.core.renew(link, sequence, now),
            Packet::Locate(question) => seed.core.locate(question, now),
            Packet::Released(keys, kept) => seed.core.release(link, &keys, &kept, now),
            Packet::Draining => seed.core.drain(link),
            Packet::Leave => seed.core.leave(link, now),
            Packet::Closed => {
                seed.followers.remove(&link);
                seed.core.closed(link);
            }
            Packet::Change(..) => unreachable!("taken above"),
            Packet::Reply(_) | Packet::Welcome | Packet::Changed(..) => unreachable!("seeds send these"),
        });
    }

    /// A change was refused, for another seed has led since.
    pub(crate) fn overtaken(&mut self, machine: Machine, newer: u64) {
        self.with_seed(machine, |seed, _| {
            if seed.core.leads().is_some_and(|term| term < newer) {
                seed.core.step_down("another seed leads");
            }
        });
    }

    /// It is told to end: it leads no more, and the row is free. For as long as it is there it takes it no more.
    pub(crate) fn hand_over(&mut self, machine: Machine) -> bool {
        let mut led = None;
        self.with_seed(machine, |seed, now| {
            led = seed.core.leads();
            if led.is_some() {
                seed.core.step_down("the seed hands over");
                seed.next_attempt = now + LEASE;
            }
        });
        if let Some(term) = led {
            self.ask_datastore(machine, Purpose::Erase, Request::Release { holder: machine, term });
        }
        led.is_some()
    }

    pub(crate) fn seed_timer(&mut self, machine: Machine) {
        let mut question = None;
        let mut snapshot = None;
        self.with_seed(machine, |seed, now| {
            // In a real seed all parts of the keys are looked through in 13 s, which is long here.
            (0..SWEEPS).for_each(|_| seed.core.tick(now));
            let overdue: Vec<_> = seed
                .recording
                .iter()
                .filter(|(_, since)| now >= **since + PATIENCE)
                .map(|(link, _)| *link)
                .collect();
            for link in overdue {
                seed.recording.remove(&link);
                seed.core.recorded(link, false, now);
            }
            if seed.attempting_since.is_some_and(|since| now >= since + PATIENCE) {
                seed.attempting_since = None;
            }
            if seed.attempting_since.is_none() && now >= seed.next_attempt {
                seed.attempt += 1;
                seed.attempting_since = Some(now);
                let term = seed.core.leads().unwrap_or(0);
                let settled = term != 0 && !seed.core.recovering();
                let ttl = if settled { TTL } else { RECOVERY_TTL };
                seed.next_attempt = now + ttl / 3;
                let purpose = Purpose::Lead { attempt: seed.attempt, sent_at: now, ttl, fresh: term == 0 };
                question = Some((purpose, Request::Take { holder: machine, term, ttl }));
            }
            if now >= seed.next_snapshot {
                seed.next_snapshot = now + LEASE;
                let mut hints: Vec<_> = (0..PARTS).flat_map(|part| seed.core.hints(part)).collect();
                hints.sort_by(|a, b| a.key.cmp(&b.key));
                snapshot = Some(hints);
            }
        });
        if let Some((purpose, request)) = question {
            self.ask_datastore(machine, purpose, request);
        }
        self.read_back_late_changes(machine);
        if let Some(hints) = snapshot {
            self.disks[machine - 1] = hints;
        }
        let (time, generation) = (self.now + 50 * MS, self.machines[machine].generation);
        self.at(time, Event::Timer { machine, generation });
    }

    pub(crate) fn seed_answered(&mut self, machine: Machine, purpose: Purpose, reply: Reply) {
        if let Purpose::Change(change) | Purpose::ReadBack(change) = purpose {
            return self.handlers_answered(machine, change, reply);
        }
        let plant = self.plant;
        let mut load = None;
        if let Reply::Superseded(newer) = reply {
            self.overtaken(machine, newer);
        }
        self.with_seed(machine, |seed, now| match (purpose, reply) {
            (Purpose::Lead { attempt, sent_at, ttl, fresh }, Reply::Taken { granted, term })
                if attempt == seed.attempt =>
            {
                let until = sent_at + if plant == Plant::LeadOn { ttl * 3 } else { ttl * 9 / 10 };
                if granted && fresh {
                    load = Some(Purpose::Load { attempt, term, until });
                    return;
                }
                seed.attempting_since = None;
                if !granted {
                    seed.core.step_down("another seed leads");
                } else if !seed.core.lead_renewed(term, until, now) {
                    seed.next_attempt = now;
                }
            }
            (Purpose::Load { attempt, term, until }, Reply::Loaded(members, version, handlers))
                if attempt == seed.attempt =>
            {
                seed.attempting_since = None;
                seed.routes.learn(version, handlers);
                let members = if plant == Plant::NoRecovery { Vec::new() } else { members };
                seed.core.lead(term, until, members, now);
            }
            (Purpose::Record(link), reply) if seed.recording.remove(&link).is_some() => {
                seed.core.recorded(link, matches!(reply, Reply::Done), now);
            }
            _ => {}
        });
        self.check_tables();
        if let Some(purpose) = load {
            self.ask_datastore(machine, purpose, Request::Load);
        }
    }
}
