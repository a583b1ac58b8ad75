//! One supervised process: started, listened to, restarted and ended as its [`Life`] says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout};
use tracing::{error, info, warn};

use super::life::{Event, Life, Order, Policy, State};
use super::program::{Happening, Incarnation, Program};
use crate::control::{self, Configuration, Word};
use crate::exposition::Family;
use crate::procfs;
use crate::sockets::Socket;

/// For the answer to a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A timer that is later than that tells of this process, not of the one that it watches.
const LATE: Duration = Duration::from_secs(1);
/// Questions that may wait for the same answer.
const QUESTIONS: usize = 8;

/// A supervised process as it is now.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Of the present process.
    pub pid: Option<u32>,
    /// When the present process was started.
    pub started: Option<Instant>,
    /// How often it was started again.
    pub restarts: u32,
    /// As it reports itself; false when it doesn't run.
    pub ready: bool,
    /// It has given up whatever a successor needs.
    pub left: bool,
    /// As it reports them.
    pub details: BTreeMap<String, serde_json::Value>,
}

/// A process that is kept alive. Dropping this closes its control socket, whereupon it drains by itself.
#[derive(Debug)]
pub struct Process {
    status: watch::Receiver<Status>,
    wish: watch::Sender<Wish>,
    shared: watch::Sender<Vec<Arc<Socket>>>,
    configuration: watch::Sender<Option<Configuration>>,
    questions: mpsc::Sender<oneshot::Sender<Vec<Family>>>,
    keeper: AbortHandle,
}

/// What should become of a process. A later wish counts, but an end can't be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Stop,
    Cut,
    Drain,
    /// As to drain, but for good: another one has its place.
    Retire,
    End,
}

impl Wish {
    fn event(self) -> Event {
        match self {
            Self::Run => Event::Start,
            Self::Stop => Event::Stop,
            Self::Cut => Event::Cut,
            Self::Drain | Self::Retire => Event::Drain,
            Self::End => Event::End,
        }
    }
}

impl Process {
    /// Starts it, and starts it again whenever it dies. Must be called within a tokio runtime.
    pub fn start(program: Program, policy: Policy) -> Self {
        Self::start_with(program, policy, Vec::new())
    }

    /// The same of a child that is to accept on these sockets.
    pub(crate) fn start_with(program: Program, policy: Policy, shared: Vec<Arc<Socket>>) -> Self {
        let (status, status_receiver) = watch::channel(Status {
            state: State::Starting,
            pid: None,
            started: None,
            restarts: 0,
            ready: false,
            left: false,
            details: BTreeMap::new(),
        });
        let (wish, wish_receiver) = watch::channel(Wish::Run);
        let (shared, shared_receiver) = watch::channel(shared);
        let (configuration, configuration_receiver) = watch::channel(None);
        let (questions, question_receiver) = mpsc::channel(QUESTIONS);
        let keeper = Keeper {
            program,
            life: Life::new(policy, Instant::now()),
            incarnation: None,
            status,
            wish: wish_receiver,
            shared: shared_receiver,
            configuration: configuration_receiver,
            questions: question_receiver,
            spawned: Instant::now(),
            asking: Vec::new(),
        };
        let keeper = tokio::spawn(keeper.keep()).abort_handle();
        Self { status: status_receiver, wish, shared, configuration, questions, keeper }
    }

    /// Its status now.
    pub(crate) fn now(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The sockets that it is to accept on, besides its own. To be told again and again; only changes are passed on.
    pub(crate) fn share(&self, sockets: Vec<Arc<Socket>>) {
        let ids = |sockets: &[Arc<Socket>]| sockets.iter().map(|socket| socket.handed.id).collect::<Vec<_>>();
        self.shared.send_if_modified(|present| {
            let changed = ids(present) != ids(&sockets);
            *present = sockets;
            changed
        });
    }

    /// What it goes by from here on, and its successors.
    pub(crate) fn configure(&self, configuration: Configuration) {
        self.configuration.send_replace(Some(configuration));
    }

    /// Starts it again, should it have been stopped or drained, or have died too often; returns when that is done. One that
    /// is just about to end is started once it has. Cancel-safe.
    pub async fn begin(&self) {
        let mut status = self.status();
        let before = status.borrow_and_update().restarts;
        self.wish(Wish::Run);
        // An error means that its keeper is gone.
        let _ = status.wait_for(|status| status.state.is_up() || status.restarts > before).await;
    }

    /// Ends it in good order; it may be started again.
    pub fn stop(&self) {
        self.wish(Wish::Stop);
    }

    /// Its status, now and whenever it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Ends it at once; it may be started again.
    pub fn cut(&self) {
        self.wish(Wish::Cut);
    }

    /// Tells it to drain.
    pub fn drain(&self) {
        self.wish(Wish::Drain);
    }

    /// Tells it to drain, and not to come back: another one has its place.
    pub(crate) fn retire(&self) {
        self.wish(Wish::Retire);
    }

    /// Ends it at once.
    pub fn end(&self) {
        self.wish(Wish::End);
    }

    fn wish(&self, new: Wish) {
        self.wish.send_if_modified(|wish| {
            let free = match *wish {
                Wish::End => false,
                Wish::Retire => new == Wish::End,
                _ => true,
            };
            if free {
                *wish = new;
            }
            free
        });
    }

    /// Returns when nothing happens to it by itself any more. Cancel-safe.
    pub async fn ended(&self) {
        // An error means that its keeper is gone, and the process with it.
        let _ = self.status().wait_for(|status| status.state.is_final()).await;
    }

    /// Returns when it has given up whatever a successor needs, or has ended. Cancel-safe.
    pub(crate) async fn gone(&self) {
        let _ = self.status().wait_for(|status| status.left || status.state.is_final()).await;
    }

    /// Its metrics, or nothing where it doesn't answer in time.
    pub(crate) async fn metrics(&self) -> Vec<Family> {
        let (answer, answered) = oneshot::channel();
        if self.questions.try_send(answer).is_err() {
            return Vec::new();
        }
        timeout(ANSWER_TIMEOUT, answered).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// The task that carries a life out.
struct Keeper {
    program: Program,
    life: Life,
    incarnation: Option<Incarnation>,
    status: watch::Sender<Status>,
    wish: watch::Receiver<Wish>,
    shared: watch::Receiver<Vec<Arc<Socket>>>,
    configuration: watch::Receiver<Option<Configuration>>,
    questions: mpsc::Receiver<oneshot::Sender<Vec<Family>>>,
    /// When the present process began to be started.
    spawned: Instant,
    /// Who waits for the next [`Word::Metrics`]. While anybody does the question isn't asked again.
    asking: Vec<oneshot::Sender<Vec<Family>>>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut event = self.carry_out(Some(Order::Spawn)).await;
        loop {
            let happened = match event.take() {
                Some(event) => event,
                None => self.next_event().await,
            };
            let before = self.life.state();
            let order = self.life.take(happened, Instant::now());
            event = self.carry_out(order).await;
            self.publish();
            match (before, self.life.state()) {
                (State::Starting, State::Running) => {
                    let after_ms = self.spawned.elapsed().as_millis() as u64;
                    info!(process = self.program.name(), after_ms, "ready");
                }
                (before, State::Fatal) if before != State::Fatal => {
                    error!(process = self.program.name(), "died too often; it is not started again");
                }
                _ => {}
            }
        }
    }

    /// Waits until something happens that may concern the process's life.
    async fn next_event(&mut self) -> Event {
        let mut forgiven = None;
        loop {
            let deadline = self.life.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm is cancel-safe. What has been said counts before what was not said in time, and a wish to end before
            // the loss of sockets, which the process is to empty.
            tokio::select! {
                biased;
                happening = next_happening(&mut self.incarnation) => match happening {
                    Happening::Said(word) => {
                        // No order ever follows from it.
                        self.life.take(Event::Heard, Instant::now());
                        if let Some(event) = self.hear(word) { return event }
                    }
                    Happening::Ended(how) => {
                        self.bury(&how);
                        return Event::Died;
                    }
                },
                Ok(()) = self.wish.changed() => return self.wish.borrow_and_update().event(),
                Ok(()) = self.shared.changed() => self.share().await,
                Ok(()) = self.configuration.changed() => self.configure().await,
                Some(question) = self.questions.recv() => self.ask(question).await,
                () = due => match deadline {
                    // This process itself was stopped, or slept: nothing was heard because nobody listened.
                    Some(at) if at.elapsed() > LATE && forgiven != deadline => {
                        forgiven = deadline;
                        self.life.take(Event::Heard, Instant::now());
                    }
                    _ => return Event::Deadline,
                },
            }
        }
    }

    fn hear(&mut self, word: Word) -> Option<Event> {
        match word {
            Word::Report(report) => {
                let (ready, takes_traffic) = (report.ready, report.takes_traffic());
                self.status.send_modify(|status| {
                    status.ready = takes_traffic;
                    status.left = report.left;
                    status.details = report.details;
                });
                match (report.leaves, ready) {
                    (true, _) => Some(Event::Leaves),
                    (false, true) => Some(Event::Ready),
                    (false, false) => None,
                }
            }
            Word::Beat => None,
            Word::Metrics(families) => {
                for question in self.asking.drain(..) {
                    // Who no longer waits needs no answer.
                    let _ = question.send(families.clone());
                }
                None
            }
        }
    }

    fn bury(&mut self, how: &str) {
        self.incarnation = None;
        self.asking.clear();
        if self.life.state() == State::Stopping {
            info!(process = self.program.name(), how, "ended");
        } else {
            warn!(process = self.program.name(), how, "died");
        }
    }

    async fn ask(&mut self, question: oneshot::Sender<Vec<Family>>) {
        let Some(incarnation) = &mut self.incarnation else {
            return;
        };
        self.asking.retain(|waiting| !waiting.is_closed());
        if self.asking.is_empty() {
            incarnation.tell(&control::Order::Metrics, None).await;
        }
        self.asking.push(question);
    }

    /// Gives the process the sockets that it is to accept on. One that ends has let go of all.
    async fn share(&mut self) {
        let shared = self.shared.borrow_and_update().clone();
        if let Some(incarnation) = &mut self.incarnation
            && self.life.state().is_up()
        {
            incarnation.share(&shared).await;
        }
    }

    async fn configure(&mut self) {
        let Some(configuration) = self.configuration.borrow_and_update().clone() else { return };
        self.program.adopt(configuration.clone());
        self.tell(&control::Order::Adopt(Box::new(configuration))).await;
    }

    /// Does as the life orders. What happens by that is returned.
    async fn carry_out(&mut self, order: Option<Order>) -> Option<Event> {
        match order? {
            Order::Spawn => {
                let shared = self.shared.borrow_and_update().clone();
                self.spawned = Instant::now();
                match self.program.spawn(&shared) {
                    Ok(incarnation) => {
                        info!(process = self.program.name(), pid = incarnation.pid(), "started");
                        self.incarnation = Some(incarnation);
                        self.share().await;
                        self.publish();
                    }
                    Err(error) => {
                        error!(process = self.program.name(), %error, "can't be started");
                        return Some(Event::Died);
                    }
                }
            }
            Order::Drain => self.tell(&control::Order::Drain).await,
            Order::End => self.tell(&control::Order::End).await,
            Order::Kill => {
                if let Some(incarnation) = &mut self.incarnation {
                    warn!(process = self.program.name(), "does not end; it is killed");
                    incarnation.kill();
                }
            }
            Order::Quit => {
                if let Some(incarnation) = &mut self.incarnation {
                    let stuck = incarnation.pid().map(procfs::doing).unwrap_or_default();
                    error!(process = self.program.name(), %stuck, "says nothing any more; it is killed");
                    incarnation.quit();
                }
            }
        }
        None
    }

    async fn tell(&mut self, order: &control::Order) {
        if let Some(incarnation) = &mut self.incarnation {
            incarnation.tell(order, None).await;
        }
    }

    fn publish(&mut self) {
        let pid = self.incarnation.as_ref().and_then(Incarnation::pid);
        self.status.send_modify(|status| {
            status.state = self.life.state();
            status.restarts = self.life.restarts();
            if status.pid != pid {
                status.started = pid.map(|_| Instant::now());
                status.ready = false;
                status.left = false;
                status.details.clear();
            }
            status.pid = pid;
        });
    }
}

async fn next_happening(incarnation: &mut Option<Incarnation>) -> Happening {
    match incarnation {
        Some(incarnation) => incarnation.next().await,
        None => std::future::pending().await,
    }
}
