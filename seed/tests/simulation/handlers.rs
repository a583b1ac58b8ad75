//! Operators who add handlers, seeds that store them, and the claim that none is lost whose operator was told of it.

use std::collections::{BTreeMap, BTreeSet};

use protoplex_seed::handlers::plan;
use protoplex_seed::ownership::LinkId;
use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{Handler, HandlerChanges, Placement};

use crate::datastore::{Reply, Request};
use crate::network::{Machine, Packet};
use crate::seed::PATIENCE;
use crate::world::{POOL, Purpose, QUIET_FROM, World};
use crate::{Faults, Plant};

/// What operators have asked for and been told.
#[derive(Default)]
pub(crate) struct Operators {
    last: u64,
    asked: BTreeMap<u64, String>,
    told: BTreeSet<String>,
}

/// What a seed knows of the handlers, and changes that are being stored.
#[derive(Default)]
pub(crate) struct Routes {
    version: u64,
    handlers: Vec<Handler>,
    last: u64,
    changing: BTreeMap<u64, Changing>,
}

struct Changing {
    link: LinkId,
    id: u64,
    base: u64,
    name: String,
    since: BootTime,
}

impl Routes {
    /// What the datastore holds; answers may overtake each other.
    pub(crate) fn learn(&mut self, version: u64, handlers: Vec<Handler>) {
        if version >= self.version {
            (self.version, self.handlers) = (version, handlers);
        }
    }
}

impl World {
    /// Now and then one asks for another handler.
    pub(crate) fn operate(&mut self, machine: Machine, link: LinkId) {
        if self.faults != Faults::All || self.now >= QUIET_FROM || !self.random.chance(2) {
            return;
        }
        // A call of its own, which is answered also by a seed that has ended its followers' links.
        let seed = self.connections[link as usize].server.0;
        let Some(call) = self.open(machine, seed) else { return };
        self.operators.last += 1;
        let (id, name) = (self.operators.last, format!("h{}-{machine}", self.operators.last));
        self.operators.asked.insert(id, name.clone());
        let handler = Handler {
            path: format!("/{name}"),
            name,
            host: "*".to_owned(),
            pool: POOL.to_owned(),
            placement: Placement::Spread.into(),
            ..Handler::default()
        };
        let changes =
            HandlerChanges { add: vec![handler], operator: "o".to_owned(), ..HandlerChanges::default() };
        self.send(call, true, Packet::Change(id, changes));
    }

    pub(crate) fn change_answered(&mut self, machine: Machine, id: u64, made: bool) {
        if let Some(name) = self.operators.asked.remove(&id).filter(|_| made) {
            self.trace(|| format!("operator of {machine} is told that {name} is there"));
            self.operators.told.insert(name);
            self.tally.handlers += 1;
            self.check_handlers();
            self.check_tables();
        }
    }

    /// A seed is asked for a change.
    pub(crate) fn change_handlers(
        &mut self,
        machine: Machine,
        link: LinkId,
        id: u64,
        changes: HandlerChanges,
    ) {
        let mut ask = None;
        let mut refused = false;
        self.with_seed(machine, |seed, now| {
            let name = changes.add[0].name.clone();
            let planned = plan(&seed.routes.handlers, seed.routes.version, changes);
            match planned.ok().filter(|_| seed.core.leads().is_some()) {
                Some(plan) => {
                    let (base, term) = (seed.routes.version, seed.core.position().term);
                    seed.routes.last += 1;
                    seed.routes
                        .changing
                        .insert(seed.routes.last, Changing { link, id, base, name, since: now });
                    ask = Some((seed.routes.last, Request::Change { base, after: plan.after, term }));
                }
                None => refused = true,
            }
        });
        if refused || self.plant == Plant::EarlyWord {
            self.send(link, false, Packet::Changed(id, !refused));
        }
        if let Some((change, request)) = ask {
            self.ask_datastore(machine, Purpose::Change(change), request);
        }
    }

    /// Nobody knows whether these were made: the datastore is asked.
    pub(crate) fn read_back_late_changes(&mut self, machine: Machine) {
        let mut late = Vec::new();
        self.with_seed(machine, |seed, now| {
            for (change, changing) in &mut seed.routes.changing {
                if now >= changing.since + PATIENCE {
                    changing.since = now;
                    late.push(*change);
                }
            }
        });
        for change in late {
            self.ask_datastore(machine, Purpose::ReadBack(change), Request::Handlers);
        }
    }

    pub(crate) fn handlers_answered(&mut self, machine: Machine, change: u64, reply: Reply) {
        let (mut told, mut read_back) = (None, false);
        if let Reply::Superseded(newer) = reply {
            self.overtaken(machine, newer);
        }
        self.with_seed(machine, |seed, _| match reply {
            Reply::Superseded(_) => {
                told = seed.routes.changing.remove(&change).map(|it| (it.link, it.id, false));
            }
            Reply::Changed(false) => {
                told = seed.routes.changing.remove(&change).map(|it| (it.link, it.id, false));
                read_back = true;
            }
            // What is stored is told once it is in force here, too.
            Reply::Changed(true) => read_back = true,
            Reply::Handlers(version, handlers) => {
                seed.routes.learn(version, handlers);
                if let Some(it) = seed.routes.changing.remove(&change) {
                    let there = seed.routes.handlers.iter().any(|handler| handler.name == it.name);
                    told = Some((it.link, it.id, there && seed.routes.version > it.base));
                }
            }
            _ => {}
        });
        if read_back {
            self.ask_datastore(machine, Purpose::ReadBack(change), Request::Handlers);
        }
        if let Some((link, id, made)) = told {
            self.send(link, false, Packet::Changed(id, made));
        }
    }

    /// Every handler whose operator was told of it is stored.
    pub(crate) fn check_handlers(&mut self) {
        let stored = |name: &String| self.datastore.handlers.iter().any(|handler| handler.name == *name);
        if let Some(lost) = self.operators.told.iter().find(|name| !stored(name)).cloned() {
            self.fail(format!("lost handler {lost}: its operator was told that it is there"));
        }
    }

    /// Whoever leads routes by all of them: the seed whose term nobody has come after.
    pub(crate) fn check_tables(&mut self) {
        let term = self.datastore.term;
        let newest = self.seeds.iter().flatten().find(|seed| seed.core.leads() == Some(term));
        let Some(seed) = newest else { return };
        let known = |name: &String| seed.routes.handlers.iter().any(|handler| handler.name == *name);
        if let Some(lost) = self.operators.told.iter().find(|name| !known(name)).cloned() {
            self.fail(format!("lost handler {lost}: the seed that leads does not route by it"));
        }
    }
}
