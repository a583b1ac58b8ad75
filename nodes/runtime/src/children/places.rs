//! The places of a node's children: who has each of them, and who accepts on which socket.

use std::sync::Arc;

use tracing::warn;

use super::port::{Port, own_sockets};
use super::sharing::bearer_of_each;
use super::{Children, policy};
use crate::control::Parcel;
use crate::drain::Drained;
use crate::parent::Spec;
use crate::sockets::{self, Socket};
use crate::start::StartCause;
use crate::supervisor::{Process, Program, Status};

/// What each place of a node has, and how it is to be.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) spec: Spec,
    pub(super) children: Vec<Place>,
    /// Processes whose place another one has, or that have none any more.
    pub(super) leaving: Vec<Arc<Process>>,
    /// What became of the work of those that have left.
    pub(super) drained: Drained,
    pub(super) shared: Vec<Port>,
    /// No child is left, and none will come by itself: clients are refused.
    pub(super) refusing: bool,
    /// The node is about to end: nobody comes any more.
    pub(super) closing: bool,
}

/// One child, whatever process it is just now.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) process: Arc<Process>,
    pub(super) own: Vec<Arc<Socket>>,
    /// The process goes by an older configuration, which it can't change by itself.
    pub(super) outdated: bool,
}

/// What has come of another configuration.
pub(super) struct Adopted {
    /// Whether anything has.
    pub(super) changed: bool,
    /// Those whose places there are no more; they leave.
    pub(super) surplus: Vec<Arc<Process>>,
    /// The children that have to be replaced for it.
    pub(super) restarts: Vec<u32>,
}

impl Places {
    /// Starts a process in one more place.
    pub(super) fn add(&mut self, children: &Children, own: Vec<Arc<Socket>>) {
        let index = self.children.len();
        let parcel = children.parcel(&self.spec, index, own.clone());
        let shared = self.shared.iter().filter_map(|port| port.sockets.get(index).cloned()).collect();
        let process =
            Arc::new(Process::start_with(Program::child(parcel), policy(&self.spec.common), shared));
        children.watch(&process);
        self.children.push(Place { process, own, outdated: false });
    }

    /// The node is about to end.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.shared.clear();
    }

    /// Gives a process its place; not while the node is about to end.
    pub(super) fn put(&mut self, index: u32, process: Arc<Process>) -> bool {
        if self.closing {
            return false;
        }
        match self.children.get_mut(index as usize) {
            Some(place) => {
                place.outdated = false;
                self.leaving.push(std::mem::replace(&mut place.process, process));
                true
            }
            None => false,
        }
    }

    /// Who has a place, and what its successor is sent.
    pub(super) fn successor(&mut self, children: &Children, index: u32) -> Option<(Arc<Process>, Parcel)> {
        let place = self.children.get(index as usize).filter(|_| !self.closing)?;
        let parcel = children.parcel(&self.spec, index as usize, place.own.clone());
        Some((Arc::clone(&place.process), parcel))
    }

    /// Goes by another configuration.
    pub(super) fn adopt(&mut self, children: &Children, spec: Spec) -> Result<Adopted, StartCause> {
        if self.closing {
            return Err(StartCause::Ending);
        }
        let count = spec.children as usize;
        let (shared, own) = self.bound_for(&spec, count)?;
        let moved = shared.iter().map(Port::key).ne(self.shared.iter().map(Port::key));
        let before = std::mem::replace(&mut self.spec, spec);
        self.shared = shared;
        let counted = count != self.children.len();
        let surplus = self.children.drain(count.min(self.children.len())..);
        let surplus: Vec<_> = surplus.map(|place| place.process).collect();
        surplus.iter().for_each(|process| process.retire());
        self.leaving.extend(surplus.iter().cloned());
        let configured = before.differs(&self.spec);
        let kept = self.children.len();
        if configured {
            self.configure();
        }
        for own in own {
            self.add(children, own);
        }
        if before.asks_restart(&self.spec) {
            self.children[..kept].iter_mut().for_each(|place| place.outdated = true);
        }
        // Also those that an earlier attempt could not replace, and those that died too often, perhaps of what is changed.
        // Who is stopped, or about to be, goes by it when it is started.
        let outdated = |(_, place): &(u32, &Place)| place.outdated && !place.process.now().is_to_rest;
        let restarts = (0..).zip(&self.children).filter(outdated).map(|(index, _)| index).collect();
        Ok(Adopted { changed: moved || counted || configured, surplus, restarts })
    }

    /// Tells all what they go by.
    pub(super) fn configure(&self) {
        for place in &self.children {
            place.process.configure(self.spec.configuration());
        }
    }

    /// The sockets for another configuration: those that there are, as far as they serve, and new ones.
    #[expect(clippy::type_complexity, reason = "the two kinds of sockets, once")]
    fn bound_for(&self, spec: &Spec, count: usize) -> Result<(Vec<Port>, Vec<Vec<Arc<Socket>>>), StartCause> {
        // What can fail comes first. Sockets beside those that serve come last: each takes connections from its first moment.
        let own = (self.children.len()..count).map(|_| own_sockets(spec)).collect::<Result<_, _>>()?;
        let known = |name: &String, wanted| {
            self.shared.iter().find(|port| port.name == *name && port.wanted == wanted)
        };
        let mut fresh = Vec::new();
        for (name, wanted) in spec.shared.iter().filter(|(name, wanted)| known(name, *wanted).is_none()) {
            sockets::free(name, *wanted)?;
            fresh.push(Port::listen(name, *wanted, count)?);
        }
        let mut shared = Vec::new();
        for (name, wanted) in &spec.shared {
            shared.push(match known(name, *wanted) {
                Some(port) => port.grown(count)?,
                None => fresh.remove(0),
            });
        }
        Ok((shared, own))
    }

    /// Lets go of those that have left.
    pub(super) fn part(&mut self) {
        for gone in self.leaving.extract_if(.., |process| process.now().state.is_final()) {
            self.drained.add(&gone.now().drained);
        }
    }

    /// What became of the work of all that there have been.
    pub(super) fn drained(&self) -> Drained {
        let mut drained = self.drained.clone();
        let processes = self.children.iter().map(|place| &place.process).chain(&self.leaving);
        processes.for_each(|process| drained.add(&process.now().drained));
        drained
    }

    /// Gives every socket to a child that can accept: one that is ready, or else one that is at least alive.
    pub(super) fn share(&mut self) {
        self.part();
        let statuses: Vec<_> = self.children.iter().map(|place| place.process.now()).collect();
        let of = |can: &dyn Fn(&Status) -> bool| -> Vec<usize> {
            (0..statuses.len()).filter(|&child| can(&statuses[child])).collect()
        };
        let mut bearers = of(&|status| status.state.is_up() && status.ready);
        if bearers.is_empty() {
            bearers = of(&|status| status.state.is_up());
        }
        let mut given: Vec<Vec<Arc<Socket>>> = vec![Vec::new(); self.children.len()];
        for port in &self.shared {
            if port.common {
                for (_, given) in given.iter_mut().enumerate().filter(|(child, _)| bearers.contains(child)) {
                    given.extend(port.sockets.iter().cloned());
                }
                continue;
            }
            for (socket, bearer) in port.sockets.iter().zip(bearer_of_each(port.sockets.len(), &bearers)) {
                if let Some(sockets) = bearer.and_then(|bearer| given.get_mut(bearer)) {
                    sockets.push(Arc::clone(socket));
                }
            }
        }
        for (place, sockets) in self.children.iter().zip(given) {
            place.process.share(sockets);
        }
        let hopeless = statuses.iter().all(|status| status.state.is_final());
        if hopeless != std::mem::replace(&mut self.refusing, hopeless) {
            self.refuse(hopeless);
        }
    }

    /// Nobody should wait for children that nobody will start.
    fn refuse(&self, refuse: bool) {
        // A socket of the service manager's is not ours to change.
        for socket in self.shared.iter().filter(|port| !port.common).flat_map(|port| &port.sockets) {
            let done = if refuse { socket.refuse() } else { socket.listen() };
            if let Err(error) = done {
                warn!(%error, refuse, socket = socket.handed.name, "can't change what a socket does");
            }
        }
    }
}
