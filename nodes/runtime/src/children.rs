//! The children of a node: which there are, what they go by, and who of them accepts on which socket.
//!
//! Each child has a place (its index), and a place has one process at a time that is given work. A restart puts another
//! process in the place: where the node's children have nothing of their own the successor is ready before its
//! predecessor drains; where they have, as the members of a pool, the predecessor gives that up first, and its siblings
//! accept for it meanwhile. Either way no socket is closed.

mod places;
mod port;
mod sharing;
mod succession;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use protoplex_wire::join::Standing;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{Common, Timing};
use crate::context::Reconfigured;
use crate::control::{Configuration, Hello, Parcel};
use crate::drain::Drained;
use crate::parent::Spec;
use crate::running::{Address, Instance};
use crate::sockets::Socket;
use crate::start::StartCause;
use crate::supervisor::{Policy, Process, Program, State, Status};
use crate::systemd::Activated;

use places::{Adopted, Places};
use port::{Port, addresses, own_sockets};
use succession::Former;

pub(crate) use succession::Held;

/// Between a child's own end of its drain and being killed for not ending.
const STOP_MARGIN: Duration = Duration::from_secs(2);
/// A child that isn't ready by then has a problem that its log tells.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Another seed leads within so long where one has died.
const SEED_PATIENCE: Duration = Duration::from_secs(5);

/// All children of one node.
#[derive(Debug)]
pub(crate) struct Children {
    instance: Instance,
    places: Mutex<Places>,
    /// Wakes whoever watches any of them.
    stirred: watch::Sender<()>,
    /// What they go by, for who works beside them.
    configured: watch::Sender<Configuration>,
    /// One change of many children at a time.
    changing: tokio::sync::Mutex<()>,
    /// Of a node that has a link to the seeds.
    seeds: OnceLock<watch::Receiver<Standing>>,
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
    #[error("no seed leads, and without one the successor of child {0} could not begin: it stays as it is")]
    Seedless(u32),
    #[error("child {0} was started again meanwhile")]
    StartedAgain(u32),
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
    pub(crate) fn bind(
        spec: Spec,
        instance: &Instance,
        activated: &mut Activated,
    ) -> Result<Unstarted, StartCause> {
        let count = spec.children.max(1) as usize;
        let shared: Vec<_> = spec
            .shared
            .iter()
            .map(|(name, address)| match activated.claim(*address) {
                Some(socket) => Ok(Port::activated(name, *address, socket)),
                None => Port::listen(name, *address, count),
            })
            .collect::<Result<_, _>>()?;
        let own = (0..count).map(|_| own_sockets(&spec)).collect::<Result<_, _>>()?;
        Ok(Unstarted::new(spec, instance, shared, own, None))
    }

    /// How they drain.
    pub(crate) fn timing(&self) -> Timing {
        self.places().spec.common.timing.clone()
    }

    /// What each of them goes by.
    pub(crate) fn configuration(&self) -> Configuration {
        self.places().spec.configuration()
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

    /// What became of the work of all processes that there have been, each in its drain.
    pub(crate) fn drained(&self) -> Drained {
        self.places().drained()
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
        if self.places().closing {
            return Err(ChildError::Draining);
        }
        let was_up = chosen.iter().all(|(_, process)| process.now().state.is_up());
        for (_, process) in &chosen {
            process.begin().await;
        }
        for (index, process) in &chosen {
            ready(*index, process).await?;
        }
        Ok(!was_up)
    }

    /// Ends them in good order, or at once; they can be started again. Says whether there was anything to do, and what
    /// became of their work.
    pub(crate) async fn stop(&self, which: Which, at_once: bool) -> Result<(bool, Drained), ChildError> {
        let end = if at_once { Process::cut } else { Process::stop };
        self.end_as(State::Stopped, which, end).await
    }

    /// Ends them in good order. Says the same.
    pub(crate) async fn drain(&self, which: Which) -> Result<(bool, Drained), ChildError> {
        self.end_as(State::Exited, which, Process::drain).await
    }

    async fn end_as(
        &self,
        state: State,
        which: Which,
        end: impl Fn(&Process),
    ) -> Result<(bool, Drained), ChildError> {
        let chosen = self.chosen(which)?;
        let before: Vec<_> = chosen.iter().map(|(_, process)| process.now()).collect();
        chosen.iter().for_each(|(_, process)| end(process));
        all_down(&chosen).await?;
        let mut drained = Drained::default();
        for ((_, process), before) in chosen.iter().zip(&before) {
            drained.add(&process.now().drained.since(&before.drained));
        }
        Ok((before.iter().any(|before| before.state != state), drained))
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
        let Adopted { changed, surplus, restarts } = self.places().adopt(self, spec)?;
        let changed = changed || !restarts.is_empty();
        self.configured.send_replace(self.configuration());
        self.stir();
        if !self.places().spec.own.is_empty() {
            // Else the next to have such a place would find its name taken.
            join_all(surplus.iter().map(|process| process.gone())).await;
        }
        for index in restarts {
            self.replace(index).await?;
        }
        Ok(changed)
    }

    /// They log by another level from here on, and so do their successors.
    pub(crate) fn set_log_level(&self, level: &str) {
        let mut places = self.places();
        places.spec.common.telemetry.level = level.to_owned();
        places.configure();
    }

    /// The whole node drains, whose end it is.
    pub(crate) async fn drain_all(&self) {
        // Nobody will accept any more: the processes are the last to hold the sockets.
        self.places().close();
        let processes = self.all();
        for process in &processes {
            process.drain();
            process.share(Vec::new());
        }
        join_all(processes.iter().map(|process| process.ended())).await;
    }

    /// Ends every process at once.
    pub(crate) async fn end_all(&self) {
        self.places().close();
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
        let Some((old, fresh)) = self.places().successor(self, index) else {
            return Err(ChildError::Draining);
        };
        let keeps_own = !self.places().spec.own.is_empty();
        if old.now().state == State::Running && !self.is_led().await {
            return Err(ChildError::Seedless(index));
        }
        match old.now().state {
            // Whoever it still serves it serves to the end.
            State::Stopping => old.gone().await,
            // It never had any work.
            State::Starting if keeps_own => {
                old.end();
                old.ended().await;
            }
            state if state.is_up() && keeps_own => {
                old.retire();
                old.gone().await;
            }
            state if state.is_up() => {}
            _ => old.end(),
        }
        let successor = Arc::new(self.start_process(fresh));
        if keeps_own {
            self.put(index, &successor)?;
            return ready(index, &successor).await;
        }
        if let Err(error) = ready(index, &successor).await {
            warn!(index, "the successor of a child is not ready: its predecessor stays");
            successor.end();
            // Else nobody would see to its end.
            successor.ended().await;
            return Err(error);
        }
        self.put(index, &successor)?;
        old.retire();
        info!(index, "a child was replaced");
        Ok(())
    }

    /// Replaces nobody from here on while no seed leads by this.
    pub(crate) fn follow(&self, seeds: watch::Receiver<Standing>) {
        let _ = self.seeds.set(seeds);
    }

    /// Whether a seed leads, or does so in a moment.
    async fn is_led(&self) -> bool {
        let Some(seeds) = self.seeds.get() else { return true };
        let mut seeds = seeds.clone();
        // An error means that the link has ended with the node.
        let led = timeout(SEED_PATIENCE, seeds.wait_for(|standing| standing.lost_since.is_none()));
        led.await.is_ok()
    }

    fn start_process(&self, parcel: Parcel) -> Process {
        let policy = policy(&self.places().spec.common);
        let process = Process::start_with(Program::child(parcel), policy, Vec::new());
        self.watch(&process);
        process
    }

    /// Gives a process its place, unless the node is about to end.
    fn put(&self, index: u32, successor: &Arc<Process>) -> Result<(), ChildError> {
        if !self.places().put(index, Arc::clone(successor)) {
            successor.end();
            return Err(ChildError::Draining);
        }
        self.stir();
        Ok(())
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
    /// Those that there are already.
    former: Option<Former>,
    configured: watch::Sender<Configuration>,
}

impl Unstarted {
    fn new(
        spec: Spec,
        instance: &Instance,
        shared: Vec<Port>,
        own: Vec<Vec<Arc<Socket>>>,
        former: Option<Former>,
    ) -> Self {
        let configured = watch::Sender::new(spec.configuration());
        Self { spec, instance: instance.clone(), shared, own, former, configured }
    }

    /// Wakes at each change of what they go by.
    pub(crate) fn reconfigured(&self) -> Reconfigured {
        Reconfigured::of(self.configured.subscribe())
    }

    /// Where they will listen.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        addresses(&self.shared, self.own.iter())
    }

    /// The public addresses, as they were asked for.
    pub(crate) fn wanted(&self) -> Vec<(String, SocketAddr)> {
        self.shared.iter().map(|port| (port.name.clone(), port.wanted)).collect()
    }

    /// Starts them. Must be called within a tokio runtime.
    pub(crate) fn start(self) -> Children {
        let Self { spec, instance, shared, own, former, configured } = self;
        let places = Places {
            spec,
            children: Vec::new(),
            leaving: Vec::new(),
            drained: Drained::default(),
            shared,
            refusing: false,
            closing: false,
        };
        let children = Children {
            instance,
            places: Mutex::new(places),
            stirred: watch::Sender::new(()),
            configured,
            changing: tokio::sync::Mutex::new(()),
            seeds: OnceLock::new(),
        };
        match former {
            Some(former) => children.resume(former, own),
            None => {
                let mut places = children.places();
                own.into_iter().for_each(|own| places.add(&children, own));
            }
        }
        children
    }

    /// What a node of a single process is, and is told, with its sockets: all are its own.
    pub(crate) fn solo(&self) -> io::Result<(Spec, Hello, Vec<TcpListener>)> {
        let sockets: Vec<_> =
            self.shared.iter().flat_map(|port| &port.sockets).chain(self.own.iter().flatten()).collect();
        let hello = Hello {
            sockets: sockets.iter().map(|socket| socket.handed.clone()).collect(),
            own: sockets.len(),
            ..hello(&self.spec, 0, &self.instance)
        };
        let sockets = sockets.iter().map(|socket| socket.listener.try_clone()).collect::<Result<_, _>>()?;
        Ok((self.spec.clone(), hello, sockets))
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

fn policy(common: &Common) -> Policy {
    Policy::new(common.timing.drain_timeout() + STOP_MARGIN)
}

/// Waits until all of these have ended.
async fn all_down(processes: &[(u32, Arc<Process>)]) -> Result<(), ChildError> {
    let down = processes.iter().map(async |(index, process)| (*index, process.down().await));
    match join_all(down).await.into_iter().find(|(_, is_down)| !is_down) {
        Some((index, _)) => Err(ChildError::StartedAgain(index)),
        None => Ok(()),
    }
}

/// Waits until a process has been ready, or has come to nothing.
async fn ready(index: u32, process: &Process) -> Result<(), ChildError> {
    let mut status = process.status();
    let settled =
        status.wait_for(|status| status.ready && status.state == State::Running || status.state.is_final());
    let is_ready = matches!(timeout(READY_TIMEOUT, settled).await, Ok(Ok(status)) if status.ready);
    if is_ready { Ok(()) } else { Err(ChildError::NotReady { index, state: process.now().state }) }
}
