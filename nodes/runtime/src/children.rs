//! The children of a node: which there are, what they go by, and who of them accepts on which socket.
//!
//! Each child has a place (its index), and a place has one process at a time that is given work. A restart puts another
//! process in the place: where the node's children have nothing of their own the successor is ready before its
//! predecessor drains; where they have, as the members of a pool, the predecessor gives that up first, and its siblings
//! accept for it meanwhile. Either way no socket is closed.

mod sharing;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{Common, Timing};
use crate::control::{Hello, Parcel};
use crate::parent::Spec;
use crate::running::{Address, Instance};
use crate::sockets::{self, Socket};
use crate::start::StartCause;
use crate::supervisor::{Policy, Process, Program, State, Status};

use sharing::bearer_of_each;

/// Between a child's own end of its drain and being killed for not ending.
const STOP_MARGIN: Duration = Duration::from_secs(2);
/// A child that isn't ready by then has a problem that its log tells.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// All children of one node.
#[derive(Debug)]
pub(crate) struct Children {
    instance: Instance,
    places: Mutex<Places>,
    /// Wakes whoever watches any of them.
    stirred: watch::Sender<()>,
    /// One change of many children at a time.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Places {
    spec: Spec,
    children: Vec<Place>,
    /// Processes whose place another one has, or that have none any more.
    leaving: Vec<Arc<Process>>,
    shared: Vec<Port>,
    /// No child is left, and none will come by itself: clients are refused.
    refusing: bool,
}

#[derive(Clone, Debug)]
struct Place {
    process: Arc<Process>,
    own: Vec<Arc<Socket>>,
}

/// A public address, with a socket for each child.
#[derive(Clone, Debug)]
struct Port {
    name: String,
    /// As it was asked for: port 0 is any.
    wanted: SocketAddr,
    address: SocketAddr,
    sockets: Vec<Arc<Socket>>,
}

/// Which children are meant: all, or one.
pub(crate) type Which = Option<u32>;

/// Why a command to children was not carried out, or not to its end. The operator's, unless it says otherwise.
#[derive(Debug, Error)]
pub(crate) enum ChildError {
    #[error("there is no child {index}: the node has {}", children(*.count))]
    Unknown { index: u32, count: usize },
    #[error("child {index} is {state} and did not become ready; its log says why")]
    NotReady { index: u32, state: State },
    #[error("the node is about to end")]
    Draining,
    /// What has to be bound for a change can't be; nothing was changed.
    #[error("{0}")]
    Sockets(#[from] StartCause),
}

fn children(count: usize) -> String {
    match count {
        1 => "only child 0".to_owned(),
        count => format!("children 0 to {}", count.saturating_sub(1)),
    }
}

impl Children {
    /// Binds the sockets of all children, which [`Unstarted::start`] starts.
    pub(crate) fn bind(spec: Spec, instance: &Instance) -> Result<Unstarted, StartCause> {
        let count = spec.children.max(1) as usize;
        let shared: Vec<_> = spec
            .shared
            .iter()
            .map(|(name, address)| Port::listen(name, *address, count))
            .collect::<Result<_, _>>()?;
        let own = (0..count).map(|_| own_sockets(&spec)).collect::<Result<_, _>>()?;
        Ok(Unstarted { spec, instance: instance.clone(), shared, own })
    }

    /// How they drain.
    pub(crate) fn timing(&self) -> Timing {
        self.places().spec.common.timing.clone()
    }

    /// See [`Spec::fixed`].
    pub(crate) fn fixed(&self, spec: &Spec) -> Option<&'static str> {
        self.places().spec.fixed(spec)
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let places = self.places();
        addresses(&places.shared, places.children.iter().map(|place| &place.own))
    }

    /// The process in each place.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        self.places().children.iter().map(|place| Arc::clone(&place.process)).collect()
    }

    /// The statuses of those, in their order.
    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.places().children.iter().map(|place| place.process.now()).collect()
    }

    /// Changes with each status, and with each process that comes or goes.
    pub(crate) fn stirred(&self) -> watch::Receiver<()> {
        self.stirred.subscribe()
    }

    /// Has every socket accepted on by a child that can. Never ends.
    pub(crate) async fn keep_sharing(&self) {
        let mut stirred = self.stirred();
        loop {
            self.places().share();
            // An error can't be: the sender is ours.
            let _ = stirred.changed().await;
        }
    }

    /// Starts those that don't run, and waits until they are ready. Says whether there was anything to do.
    pub(crate) async fn start_again(&self, which: Which) -> Result<bool, ChildError> {
        let chosen = self.chosen(which)?;
        let was_up = chosen.iter().all(|(_, process)| process.now().state.is_up());
        for (_, process) in &chosen {
            process.begin().await;
        }
        for (index, process) in &chosen {
            ready(*index, process).await?;
        }
        Ok(!was_up)
    }

    /// Ends them in good order, or at once; they can be started again. Says whether there was anything to do.
    pub(crate) async fn stop(&self, which: Which, at_once: bool) -> Result<bool, ChildError> {
        let chosen = self.chosen(which)?;
        let was_down = chosen.iter().all(|(_, process)| process.now().state == State::Stopped);
        for (_, process) in &chosen {
            process.stop();
            if at_once {
                process.cut();
            }
        }
        join_all(chosen.iter().map(|(_, process)| process.ended())).await;
        Ok(!was_down)
    }

    /// Ends them in good order. Says whether there was anything to do.
    pub(crate) async fn drain(&self, which: Which) -> Result<bool, ChildError> {
        let chosen = self.chosen(which)?;
        let was_down = chosen.iter().all(|(_, process)| process.now().state == State::Exited);
        chosen.iter().for_each(|(_, process)| process.drain());
        join_all(chosen.iter().map(|(_, process)| process.ended())).await;
        Ok(!was_down)
    }

    /// Puts a new process in each place, one place after the other. The first that doesn't become ready ends it: its
    /// predecessor and all further ones stay.
    pub(crate) async fn restart(&self, which: Which) -> Result<(), ChildError> {
        let chosen = self.chosen(which)?;
        let _turn = self.changing.lock().await;
        for (index, _) in chosen {
            self.replace(index).await?;
        }
        Ok(())
    }

    /// Goes by another configuration: its sockets, the number of children, and what each of them is told. What can't be
    /// bound is told, and nothing is changed then. Says whether anything was.
    pub(crate) async fn adopt(&self, spec: Spec) -> Result<bool, ChildError> {
        let _turn = self.changing.lock().await;
        let (changed, restarts) = self.places().adopt(self, spec)?;
        self.stir();
        for index in restarts {
            self.replace(index).await?;
        }
        Ok(changed)
    }

    /// The whole node drains, whose end it is.
    pub(crate) async fn drain_all(&self) {
        let processes = self.all();
        // Nobody will accept any more: the processes are the last to hold the sockets.
        self.places().shared.clear();
        for process in &processes {
            process.drain();
            process.share(Vec::new());
        }
        join_all(processes.iter().map(|process| process.ended())).await;
    }

    /// Ends every process at once.
    pub(crate) async fn end_all(&self) {
        let processes = self.all();
        processes.iter().for_each(|process| process.end());
        join_all(processes.iter().map(|process| process.ended())).await;
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // No code panics while it holds this lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Process>> {
        let places = self.places();
        let processes = places.children.iter().map(|place| &place.process).chain(&places.leaving);
        processes.cloned().collect()
    }

    fn stir(&self) {
        self.stirred.send_replace(());
    }

    fn chosen(&self, which: Which) -> Result<Vec<(u32, Arc<Process>)>, ChildError> {
        let all = (0..).zip(self.processes());
        match which {
            None => Ok(all.collect()),
            Some(index) => {
                let count = self.places().children.len();
                let one: Vec<_> = all.filter(|(place, _)| *place == index).collect();
                if one.is_empty() { Err(ChildError::Unknown { index, count }) } else { Ok(one) }
            }
        }
    }

    /// Puts a new process in a place, and drains the one that has it.
    async fn replace(&self, index: u32) -> Result<(), ChildError> {
        let Some((old, fresh)) = self.places().successor(self, index) else { return Ok(()) };
        let keeps_own = !self.places().spec.own.is_empty();
        if !old.now().state.is_up() {
            old.end();
        } else if keeps_own {
            old.drain();
            old.gone().await;
        }
        let successor = Arc::new(self.start_process(fresh, index));
        if keeps_own {
            self.places().put(index, Arc::clone(&successor));
            self.stir();
            return ready(index, &successor).await;
        }
        if let Err(error) = ready(index, &successor).await {
            warn!(child = index, "the successor is not ready: its predecessor stays");
            successor.end();
            return Err(error);
        }
        self.places().put(index, successor);
        self.stir();
        old.drain();
        info!(child = index, "replaced");
        Ok(())
    }

    fn start_process(&self, parcel: Parcel, index: u32) -> Process {
        let (policy, count) = {
            let places = self.places();
            (policy(&places.spec.common), places.children.len())
        };
        let process = Process::start_with(Program::child(parcel), policy, Vec::new());
        info!(child = index, of = count, "another process");
        self.watch(&process);
        process
    }

    /// Passes every change of a process's status on.
    fn watch(&self, process: &Process) {
        let (mut status, stirred) = (process.status(), self.stirred.clone());
        tokio::spawn(async move {
            while status.changed().await.is_ok() {
                stirred.send_replace(());
            }
        });
    }

    fn parcel(&self, spec: &Spec, index: usize, own: Vec<Arc<Socket>>) -> Parcel {
        Parcel::new(hello(spec, index, &self.instance), own, Arc::clone(&self.instance.hold))
    }
}

/// The children of a node that has all it needs, and serves nothing yet.
#[derive(Debug)]
pub(crate) struct Unstarted {
    spec: Spec,
    instance: Instance,
    shared: Vec<Port>,
    own: Vec<Vec<Arc<Socket>>>,
}

impl Unstarted {
    /// Where they will listen.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        addresses(&self.shared, self.own.iter())
    }

    /// Starts them. Must be called within a tokio runtime.
    pub(crate) fn start(self) -> Children {
        let Self { spec, instance, shared, own } = self;
        let places = Places { spec, children: Vec::new(), leaving: Vec::new(), shared, refusing: false };
        let children = Children {
            instance,
            places: Mutex::new(places),
            stirred: watch::Sender::new(()),
            changing: tokio::sync::Mutex::new(()),
        };
        let mut places = children.places();
        for own in own {
            places.add(&children, own);
        }
        drop(places);
        children
    }

    /// What a node of a single process is told, with its sockets: all are its own.
    pub(crate) fn solo(self) -> io::Result<(Hello, Vec<TcpListener>)> {
        let sockets: Vec<_> =
            self.shared.iter().flat_map(|port| &port.sockets).chain(self.own.iter().flatten()).collect();
        let hello = Hello {
            sockets: sockets.iter().map(|socket| socket.handed.clone()).collect(),
            own: sockets.len(),
            ..hello(&self.spec, 0, &self.instance)
        };
        let sockets = sockets.iter().map(|socket| socket.listener.try_clone()).collect::<Result<_, _>>()?;
        Ok((hello, sockets))
    }
}

fn hello(spec: &Spec, index: usize, instance: &Instance) -> Hello {
    Hello {
        kind: spec.kind.to_owned(),
        index: index as u32,
        instance: instance.id.clone(),
        configuration: spec.configuration(),
        sockets: Vec::new(),
        own: 0,
    }
}

impl Places {
    /// Starts a process in one more place.
    fn add(&mut self, children: &Children, own: Vec<Arc<Socket>>) {
        let index = self.children.len();
        let parcel = children.parcel(&self.spec, index, own.clone());
        let shared = self.shared.iter().filter_map(|port| port.sockets.get(index).cloned()).collect();
        let process =
            Arc::new(Process::start_with(Program::child(parcel), policy(&self.spec.common), shared));
        children.watch(&process);
        self.children.push(Place { process, own });
    }

    fn put(&mut self, index: u32, process: Arc<Process>) {
        if let Some(place) = self.children.get_mut(index as usize) {
            self.leaving.push(std::mem::replace(&mut place.process, process));
        }
    }

    /// Who has a place, and what its successor is sent.
    fn successor(&mut self, children: &Children, index: u32) -> Option<(Arc<Process>, Parcel)> {
        let place = self.children.get(index as usize)?;
        let parcel = children.parcel(&self.spec, index as usize, place.own.clone());
        Some((Arc::clone(&place.process), parcel))
    }

    /// Goes by another configuration. Says whether that changes anything, and which children have to be replaced for it.
    fn adopt(&mut self, children: &Children, spec: Spec) -> Result<(bool, Vec<u32>), StartCause> {
        let count = spec.children as usize;
        let (shared, own) = self.bound_for(&spec, count)?;
        let moved = shared.iter().map(Port::key).ne(self.shared.iter().map(Port::key));
        let before = std::mem::replace(&mut self.spec, spec);
        self.shared = shared;
        let counted = count != self.children.len();
        for surplus in self.children.drain(count.min(self.children.len())..) {
            surplus.process.drain();
            self.leaving.push(surplus.process);
        }
        let configured = before.differs(&self.spec);
        let kept = self.children.len() as u32;
        if configured {
            for place in &self.children {
                place.process.configure(self.spec.configuration());
            }
        }
        for own in own {
            self.add(children, own);
        }
        let restarts = if before.asks_restart(&self.spec) { (0..kept).collect() } else { Vec::new() };
        Ok((moved || counted || configured, restarts))
    }

    /// The sockets for another configuration: those that there are, as far as they serve, and new ones.
    #[expect(clippy::type_complexity, reason = "the two kinds of sockets, once")]
    fn bound_for(&self, spec: &Spec, count: usize) -> Result<(Vec<Port>, Vec<Vec<Arc<Socket>>>), StartCause> {
        let mut shared = Vec::new();
        for (name, wanted) in &spec.shared {
            let known = self.shared.iter().find(|port| port.name == *name && port.wanted == *wanted);
            shared.push(match known {
                Some(port) => port.grown(count)?,
                None => {
                    sockets::free(name, *wanted)?;
                    Port::listen(name, *wanted, count)?
                }
            });
        }
        let new = self.children.len()..count;
        Ok((shared, new.map(|_| own_sockets(spec)).collect::<Result<_, _>>()?))
    }

    /// Gives every socket to a child that can accept: one that is ready, or else one that is at least alive.
    fn share(&mut self) {
        self.leaving.retain(|process| !process.now().state.is_final());
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
        for socket in self.shared.iter().flat_map(|port| &port.sockets) {
            let done = if refuse { socket.refuse() } else { socket.listen() };
            if let Err(error) = done {
                warn!(%error, refuse, socket = socket.handed.name, "can't change what a socket does");
            }
        }
    }
}

impl Port {
    fn listen(name: &str, wanted: SocketAddr, count: usize) -> Result<Self, StartCause> {
        Self { name: name.to_owned(), wanted, address: wanted, sockets: Vec::new() }.grown(count)
    }

    /// With a socket for each of so many children. There may be more: none is closed.
    fn grown(&self, count: usize) -> Result<Self, StartCause> {
        let mut port = self.clone();
        while port.sockets.len() < count {
            let (socket, address) = sockets::listen(&port.name, port.address, true)?;
            port.address = address;
            port.sockets.push(Socket::new(&port.name, socket));
        }
        Ok(port)
    }

    fn key(&self) -> (&str, SocketAddr) {
        (&self.name, self.wanted)
    }
}

fn own_sockets(spec: &Spec) -> Result<Vec<Arc<Socket>>, StartCause> {
    let own = |(name, ip): &(String, _)| {
        let (socket, _) = sockets::listen(name, SocketAddr::new(*ip, 0), false)?;
        Ok(Socket::new(name, socket))
    };
    spec.own.iter().map(own).collect()
}

fn addresses<'a>(shared: &[Port], own: impl Iterator<Item = &'a Vec<Arc<Socket>>>) -> Vec<Address> {
    let shared =
        shared.iter().map(|port| Address { name: port.name.clone(), child: None, address: port.address });
    let own = (0..).zip(own).flat_map(|(child, sockets)| {
        let address = move |socket: &Arc<Socket>| {
            let address = socket.listener.local_addr().ok()?;
            Some(Address { name: socket.handed.name.clone(), child: Some(child), address })
        };
        sockets.iter().filter_map(address)
    });
    shared.chain(own).collect()
}

fn policy(common: &Common) -> Policy {
    Policy::new(common.timing.drain_timeout() + STOP_MARGIN)
}

/// Waits until a process has been ready, or has come to nothing.
async fn ready(index: u32, process: &Process) -> Result<(), ChildError> {
    let mut status = process.status();
    let settled =
        status.wait_for(|status| status.ready && status.state == State::Running || status.state.is_final());
    let is_ready = matches!(timeout(READY_TIMEOUT, settled).await, Ok(Ok(status)) if status.ready);
    if is_ready { Ok(()) } else { Err(ChildError::NotReady { index, state: process.now().state }) }
}
