//! True time, the queue of what happens next, machines with clocks of their own, and the claims.

use std::collections::{BTreeMap, VecDeque};
use std::ops::AddAssign;
use std::time::Duration;

use protoplex_seed::ownership::{Hint, LinkId};
use protoplex_wire::clock::BootTime;
use protoplex_wire::holder::Fence;
use protoplex_wire::owners::Age;
use protoplex_wire::proto::OwnedKey;

use crate::askers::Asker;
use crate::datastore::{Datastore, Reply, Request};
use crate::handlers::Operators;
use crate::member::MemberProcess;
use crate::network::{Connection, Direction, Machine, Packet, Time};
use crate::random::Random;
use crate::seed::SeedProcess;
use crate::{DRIFT_PERCENT, Faults, LEASE, Plant};

pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000 * MS;
/// Machines: the datastore, then seeds, members, askers.
pub(crate) const DATASTORE: Machine = 0;
const SEEDS: usize = 2;
const MEMBERS: usize = 4;
const ASKERS: usize = 3;
pub(crate) const KEYS: usize = 10;
pub(crate) const POOL: &str = "rooms";
/// When the cluster is settled, and faults begin; when they end.
pub(crate) const FAULTS_FROM: Time = 3 * SECOND;
pub(crate) const QUIET_FROM: Time = 33 * SECOND;

/// Why the run failed.
pub(crate) struct Verdict(pub String);

/// What the datastore's answer is for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Lead {
        attempt: u64,
        sent_at: BootTime,
        ttl: Duration,
        fresh: bool,
    },
    Load {
        attempt: u64,
        term: u64,
        until: BootTime,
    },
    Record(LinkId),
    Erase,
    /// A change of handlers is stored, or read back since nobody knows.
    Change(u64),
    ReadBack(u64),
    Unseeded {
        asked_at: BootTime,
    },
}

#[derive(Debug)]
pub(crate) enum Event {
    /// Look at the front of this direction.
    Wake {
        link: LinkId,
        up: bool,
    },
    Ask {
        from: (Machine, u64),
        purpose: Purpose,
        request: Request,
    },
    Answer {
        to: (Machine, u64),
        purpose: Purpose,
        reply: Reply,
    },
    Timer {
        machine: Machine,
        generation: u64,
    },
    /// A keyed request arrives at a member; it may wait there until the deadline.
    Probe {
        asker: Machine,
        member: Machine,
        key: usize,
        epoch: u64,
        deadline: Time,
    },
    Probed {
        asker: Machine,
        key: usize,
        epoch: u64,
        served: bool,
    },
    Fault,
    /// The clock that people set is set.
    SetClock,
    /// A member that was asked for these keys, or drains, gives them up.
    GiveUp {
        machine: Machine,
        generation: u64,
        link: LinkId,
        keys: Vec<OwnedKey>,
    },
    /// It has drained.
    Depart {
        machine: Machine,
        generation: u64,
        down: Time,
    },
    /// A seed has handed over, and ends.
    Stop {
        machine: Machine,
        generation: u64,
        down: Time,
    },
    Start(Machine),
    /// The process is started again, with this machine's name.
    Rename {
        machine: Machine,
        name: Machine,
    },
}

/// What happened beside requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Keys given up since they were idle, and since they moved.
    pub(crate) idle: u64,
    pub(crate) moved: u64,
    /// Members that drained to their end.
    pub(crate) drained: u64,
    /// Handlers whose operators were told that they are there.
    pub(crate) handlers: u64,
    /// Seeds that led, and gave their lead up.
    pub(crate) handed_over: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.idle += more.idle;
        self.moved += more.moved;
        self.drained += more.drained;
        self.handlers += more.handlers;
        self.handed_over += more.handed_over;
    }
}

pub(crate) struct MachineState {
    /// By how much the wall clock is wrong.
    wall_offset: Time,
    clock_offset: Time,
    clock_percent: u64,
    pub(crate) generation: u64,
    pub(crate) alive: bool,
    pub(crate) paused_until: Time,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) plant: Plant,
    queue: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    pub(crate) machines: Vec<MachineState>,
    pub(crate) datastore: Datastore,
    pub(crate) seeds: Vec<Option<SeedProcess>>,
    pub(crate) disks: Vec<Vec<Hint>>,
    pub(crate) members: Vec<Option<MemberProcess>>,
    /// Whose name each member's process is started with.
    pub(crate) names: Vec<Machine>,
    /// What each member's data directory makes it.
    pub(crate) instances: Vec<String>,
    pub(crate) askers: Vec<Asker>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) partitions: BTreeMap<(Machine, Machine), Time>,
    pub(crate) seeds_in_use: usize,
    pub(crate) fault_pause: Time,
    served_at: Vec<Time>,
    settled: Option<Vec<Option<(Machine, u64)>>>,
    pub(crate) operators: Operators,
    pub(crate) steps: u64,
    pub(crate) served: u64,
    pub(crate) tally: Tally,
    pub(crate) verdict: Option<Verdict>,
    tracing: bool,
    trace: VecDeque<String>,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults, plant: Plant, tracing: bool) -> Self {
        let mut random = Random::new(seed);
        let machines = (0..1 + SEEDS + MEMBERS + ASKERS).map(|_| MachineState {
            wall_offset: 50 * SECOND,
            clock_offset: random.between(100 * SECOND, 10_000 * SECOND),
            clock_percent: random.between(100 - DRIFT_PERCENT, 100 + DRIFT_PERCENT),
            generation: 0,
            alive: true,
            paused_until: 0,
        });
        let machines = machines.collect();
        let seeds_in_use = if random.chance(50) { 1 } else { SEEDS };
        let fault_pause = [300 * MS, 1000 * MS, 3000 * MS][random.below(3) as usize];
        let mut world = Self {
            now: 0,
            random,
            faults,
            plant,
            queue: BTreeMap::new(),
            sequence: 0,
            machines,
            datastore: Datastore::new(plant),
            seeds: (0..SEEDS).map(|_| None).collect(),
            disks: vec![Vec::new(); SEEDS],
            members: (0..MEMBERS).map(|_| None).collect(),
            names: (1 + SEEDS..1 + SEEDS + MEMBERS).collect(),
            instances: (1 + SEEDS..1 + SEEDS + MEMBERS).map(|machine| format!("data-{machine}")).collect(),
            askers: (0..ASKERS).map(|_| Asker::default()).collect(),
            connections: Vec::new(),
            partitions: BTreeMap::new(),
            seeds_in_use,
            fault_pause,
            served_at: vec![0; KEYS],
            settled: None,
            operators: Operators::default(),
            steps: 0,
            served: 0,
            tally: Tally::default(),
            verdict: None,
            tracing,
            trace: VecDeque::new(),
        };
        for machine in 1..world.machines.len() {
            if !world.is_seed(machine) || machine <= seeds_in_use {
                world.at(0, Event::Start(machine));
            }
        }
        world.at(FAULTS_FROM, Event::Fault);
        world.at(FAULTS_FROM, Event::SetClock);
        world
    }

    // ---- who is who ----

    pub(crate) fn is_seed(&self, machine: Machine) -> bool {
        (1..=SEEDS).contains(&machine)
    }

    pub(crate) fn member_machines(&self) -> std::ops::Range<Machine> {
        1 + SEEDS..1 + SEEDS + MEMBERS
    }

    pub(crate) fn member_slot(machine: Machine) -> usize {
        machine - 1 - SEEDS
    }

    pub(crate) fn asker_slot(machine: Machine) -> usize {
        machine - 1 - SEEDS - MEMBERS
    }

    /// What this machine's clock shows.
    pub(crate) fn clock(&self, machine: Machine) -> BootTime {
        let state = &self.machines[machine];
        let boot = state.clock_offset + self.now * state.clock_percent / 100;
        let wall = if self.plant == Plant::WallClock { state.wall_offset } else { 0 };
        BootTime::ZERO + Duration::from_micros(boot + wall)
    }

    /// Wall clocks step, forth and back, which nobody here may notice.
    fn set_clock(&mut self) {
        if self.now < QUIET_FROM {
            let machine = self.random.below(self.machines.len() as u64) as usize;
            self.machines[machine].wall_offset = self.random.below(100 * SECOND);
            let next = self.now + self.random.below(4 * SECOND);
            self.at(next, Event::SetClock);
        }
    }

    /// The true time at which this machine's clock shows `at`, or a little later.
    pub(crate) fn true_time(&self, machine: Machine, at: BootTime) -> Time {
        let wait = at.since(self.clock(machine)).as_micros() as Time;
        self.now + wait * 100 / self.machines[machine].clock_percent + 2
    }

    // ---- time and network ----

    pub(crate) fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), event);
    }

    /// How long a packet takes; now and then long, as long as there are faults.
    pub(crate) fn arrival(&mut self) -> Time {
        let quick = self.now + self.random.between(200, 20 * MS);
        if self.faults == Faults::All && self.random.chance(3) {
            return (self.now + self.random.below(5 * SECOND)).min(QUIET_FROM).max(quick);
        }
        quick
    }

    pub(crate) fn connected(&self, a: Machine, b: Machine) -> Time {
        self.partitions.get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
    }

    pub(crate) fn open(&mut self, client: Machine, server: Machine) -> Option<LinkId> {
        if !self.machines[server].alive || self.connected(client, server) > self.now {
            return None;
        }
        self.connections.push(Connection {
            client: (client, self.machines[client].generation),
            server: (server, self.machines[server].generation),
            up: Direction::default(),
            down: Direction::default(),
            client_open: true,
            server_open: true,
        });
        Some(self.connections.len() as LinkId - 1)
    }

    pub(crate) fn send(&mut self, link: LinkId, up: bool, packet: Packet) {
        let ready = self.arrival();
        if let Some(ready) = self.connections[link as usize].direction(up).push(ready, packet) {
            self.at(ready, Event::Wake { link, up });
        }
    }

    /// This end hears no more; the other end gets what was sent, and then the end of the stream.
    pub(crate) fn close(&mut self, link: LinkId, by_client: bool) {
        let ready = self.arrival();
        let connection = &mut self.connections[link as usize];
        *(if by_client { &mut connection.client_open } else { &mut connection.server_open }) = false;
        if let Some(ready) = connection.direction(by_client).shut(usize::MAX, ready) {
            self.at(ready, Event::Wake { link, up: by_client });
        }
    }

    /// Both directions lose a tail; each end that is there learns of it some time later.
    pub(crate) fn tear(&mut self, link: LinkId, within: Time) {
        for up in [true, false] {
            let ready = (self.now + self.random.below(within)).min(QUIET_FROM);
            let keep = self.random.below(4) as usize;
            if let Some(ready) = self.connections[link as usize].direction(up).shut(keep, ready) {
                self.at(ready, Event::Wake { link, up });
            }
        }
    }

    pub(crate) fn ask_datastore(&mut self, from: Machine, purpose: Purpose, request: Request) {
        let from = (from, self.machines[from].generation);
        let time = self.arrival();
        self.at(time, Event::Ask { from, purpose, request });
    }

    // ---- the run ----

    pub(crate) fn run(&mut self) {
        let end = QUIET_FROM + 2 * LEASE.as_micros() as Time;
        while let Some(((time, _), event)) = self.queue.pop_first() {
            if time > end || self.verdict.is_some() {
                break;
            }
            self.now = time;
            self.steps += 1;
            self.step(event);
        }
        let late: Vec<_> = (0..KEYS).filter(|key| self.served_at[*key] <= QUIET_FROM).collect();
        if self.verdict.is_none() && !late.is_empty() {
            self.fail(format!("keys {late:?} are not served two lease times after the last fault"));
        }
        self.check_handlers();
        self.check_tables();
    }

    /// A stopped process gets nothing until it goes on.
    fn stopped_until(&self, machine: Machine) -> Option<Time> {
        Some(self.machines[machine].paused_until).filter(|until| *until > self.now)
    }

    fn step(&mut self, event: Event) {
        let (machine, partition) = match &event {
            Event::Wake { link, up } => {
                let connection = &self.connections[*link as usize];
                let (client, server) = (connection.client.0, connection.server.0);
                (if *up { server } else { client }, self.connected(client, server))
            }
            Event::Ask { from, .. } => (DATASTORE, self.connected(from.0, DATASTORE)),
            Event::Answer { to, .. } => (to.0, self.connected(to.0, DATASTORE)),
            Event::Timer { machine, .. } => (*machine, 0),
            Event::Probe { member, .. } => (*member, 0),
            Event::Probed { asker, .. } => (*asker, 0),
            Event::Fault => return self.fault(),
            Event::SetClock => return self.set_clock(),
            Event::GiveUp { machine, .. } | Event::Depart { machine, .. } | Event::Stop { machine, .. } => {
                (*machine, 0)
            }
            Event::Start(machine) => return self.start(*machine),
            Event::Rename { machine, name } => return self.rename(*machine, *name),
        };
        if let Some(until) =
            self.stopped_until(machine).max(Some(partition).filter(|until| *until > self.now))
        {
            return self.at(until, event);
        }
        match event {
            Event::Wake { link, up } => self.deliver(link, up),
            Event::Ask { from, purpose, request } => {
                let now = self.clock(DATASTORE);
                let reply = self.datastore.execute(request.clone(), now);
                self.check_handlers();
                // What was sent over a connection that broke is sent again, though it may have arrived.
                if self.faults == Faults::All && self.now < QUIET_FROM && self.random.chance(2) {
                    let (time, from) = (self.now + self.random.below(5 * SECOND), from);
                    let again = Event::Ask { from, purpose: Purpose::Erase, request: request.clone() };
                    self.at(time.min(QUIET_FROM), again);
                }
                self.trace(|| format!("datastore: {request:?} of {from:?} -> {reply:?}"));
                if self.faults == Faults::SeedOnly || self.now >= QUIET_FROM || !self.random.chance(3) {
                    let time = self.arrival();
                    self.at(time, Event::Answer { to: from, purpose, reply });
                }
            }
            Event::Answer { to, purpose, reply } if self.lives(to) => self.answered(to.0, purpose, reply),
            Event::Timer { machine, generation } if self.lives((machine, generation)) => self.timer(machine),
            Event::GiveUp { machine, generation, link, keys } if self.lives((machine, generation)) => {
                self.give_up(machine, link, keys);
            }
            Event::Depart { machine, generation, down } if self.lives((machine, generation)) => {
                self.tally.drained += 1;
                self.leave(machine, down);
            }
            Event::Stop { machine, generation, down } if self.lives((machine, generation)) => {
                self.kill(machine, down);
            }
            Event::Probe { asker, member, key, epoch, deadline } => {
                self.probe(asker, member, key, epoch, deadline)
            }
            Event::Probed { asker, key, epoch, served } => self.probed(asker, key, epoch, served),
            _ => {}
        }
    }

    pub(crate) fn lives(&self, (machine, generation): (Machine, u64)) -> bool {
        let state = &self.machines[machine];
        state.alive && state.generation == generation
    }

    fn deliver(&mut self, link: LinkId, up: bool) {
        let now = self.now;
        let connection = &mut self.connections[link as usize];
        let (receiver, open) = if up {
            (connection.server, connection.server_open)
        } else {
            (connection.client, connection.client_open)
        };
        let direction = connection.direction(up);
        match direction.queue.front() {
            Some((ready, _)) if *ready > now => {
                let ready = *ready;
                return self.at(ready, Event::Wake { link, up });
            }
            None => return,
            Some(_) => {}
        }
        let Some((_, packet)) = direction.queue.pop_front() else {
            return;
        };
        if matches!(packet, Packet::Closed) {
            *(if up { &mut connection.server_open } else { &mut connection.client_open }) = false;
        }
        if !open || !self.lives(receiver) {
            return;
        }
        self.trace(|| format!("link {link} at {receiver:?}: {packet:?}"));
        if up {
            self.seed_receives(receiver.0, link, packet);
        } else if self.member_machines().contains(&receiver.0) {
            self.member_receives(receiver.0, link, packet);
        } else {
            self.asker_receives(receiver.0, link, packet);
        }
    }

    fn answered(&mut self, machine: Machine, purpose: Purpose, reply: Reply) {
        if self.is_seed(machine) {
            self.seed_answered(machine, purpose, reply)
        } else {
            self.member_answered(machine, purpose, reply)
        }
    }

    fn timer(&mut self, machine: Machine) {
        if self.is_seed(machine) {
            self.seed_timer(machine);
        } else if self.member_machines().contains(&machine) {
            self.member_timer(machine);
        } else {
            self.asker_timer(machine);
        }
    }

    // ---- the claims ----

    /// Call after each input of this member's holder: what it owns, no other may own.
    pub(crate) fn check(&mut self, machine: Machine) {
        let Some(gained) = &self.members[Self::member_slot(machine)] else {
            return;
        };
        let mut clash = None;
        for (key, epoch) in gained.holder.keys().filter(|(key, epoch)| self.owned(machine, key, *epoch)) {
            for other in self.member_machines().filter(|other| *other != machine) {
                let Some(process) = &self.members[Self::member_slot(other)] else {
                    continue;
                };
                let theirs = process
                    .holder
                    .keys()
                    .find(|(theirs, epoch)| *theirs == key && self.owned(other, theirs, *epoch));
                if let Some((_, their_epoch)) = theirs {
                    clash = Some(format!(
                        "two holders of {key}: {machine} at epoch {epoch:#x}, {other} at {their_epoch:#x}"
                    ));
                }
            }
        }
        if let Some(clash) = clash {
            self.fail(clash);
        }
    }

    /// A key was taken from its owner since nobody asks for it: then nobody may use the answer that names that epoch.
    pub(crate) fn check_unused(&mut self, key: &str, epoch: u64) {
        for machine in self.member_machines().end..self.machines.len() {
            let now = self.clock(machine);
            let known = self.askers[Self::asker_slot(machine)].owners.known(POOL, key, now);
            if known
                .is_some_and(|(owner, age)| owner.epoch == epoch && matches!(age, Age::Fresh | Age::Ageing))
            {
                self.fail(format!("still used by {machine}: {key} at epoch {epoch:#x}, which was idle"));
            }
        }
    }

    fn owned(&self, machine: Machine, key: &str, epoch: u64) -> bool {
        let process = &self.members[Self::member_slot(machine)];
        process
            .as_ref()
            .is_some_and(|process| process.holder.check(key, epoch, self.clock(machine)) == Fence::Owned)
    }

    pub(crate) fn note_served(&mut self, key: usize, member: Machine) {
        self.served += 1;
        self.served_at[key] = self.now;
        if self.faults != Faults::SeedOnly || self.now < FAULTS_FROM {
            return;
        }
        let incarnation = self.members[Self::member_slot(member)]
            .as_ref()
            .map_or(0, |process| process.holder.incarnation());
        let owners = self.settled.get_or_insert_with(|| vec![None; KEYS]);
        let owner = *owners[key].get_or_insert((member, incarnation));
        if owner != (member, incarnation) {
            self.fail(format!("key {key} moved from {owner:?} to {:?}", (member, incarnation)));
        }
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.trace(|| why.clone());
        self.verdict.get_or_insert(Verdict(why));
    }

    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            self.trace.push_back(format!("{:>10} us  {}", self.now, line()));
        }
    }

    pub(crate) fn last_events(&self, lines: usize) -> String {
        let skip = self.trace.len().saturating_sub(lines);
        self.trace.iter().skip(skip).map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
