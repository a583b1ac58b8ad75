//! One supervised process: started, listened to, restarted and ended as its [`Life`] says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout};
use tracing::{error, info, warn};

use super::life::{Event, Life, Order, Policy, State};
use super::program::{Happening, Incarnation, Program};
use crate::control::{self, Word};
use crate::exposition::Family;

/// For the answer to a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
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
    /// As it reports them.
    pub details: BTreeMap<String, serde_json::Value>,
}

/// A process that is kept alive. Dropping this closes its control socket, whereupon it drains by itself.
#[derive(Debug)]
pub struct Process {
    status: watch::Receiver<Status>,
    wish: watch::Sender<Option<Event>>,
    questions: mpsc::Sender<oneshot::Sender<Vec<Family>>>,
    keeper: AbortHandle,
}

impl Process {
    /// Starts it, and starts it again whenever it dies. Must be called within a tokio runtime.
    pub fn start(program: Program, policy: Policy) -> Self {
        let (status, status_receiver) = watch::channel(Status {
            state: State::Starting,
            pid: None,
            started: None,
            restarts: 0,
            ready: false,
            details: BTreeMap::new(),
        });
        let (wish, wish_receiver) = watch::channel(None);
        let (questions, question_receiver) = mpsc::channel(QUESTIONS);
        let keeper = Keeper {
            program,
            life: Life::new(policy),
            incarnation: None,
            status,
            wish: wish_receiver,
            questions: question_receiver,
            asking: Vec::new(),
        };
        let keeper = tokio::spawn(keeper.keep()).abort_handle();
        Self { status: status_receiver, wish, questions, keeper }
    }

    /// Its status, now and whenever it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Tells it to drain.
    pub fn drain(&self) {
        self.wish.send_if_modified(|wish| wish.replace(wish.unwrap_or(Event::Drain)).is_none());
    }

    /// Ends it at once.
    pub fn end(&self) {
        self.wish.send_replace(Some(Event::End));
    }

    /// Returns when it is [`State::Exited`] or [`State::Fatal`]. Cancel-safe.
    pub async fn ended(&self) {
        // An error means that its keeper is gone, which ends only after that.
        let _ = self.status().wait_for(|status| status.state.is_final()).await;
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
    wish: watch::Receiver<Option<Event>>,
    questions: mpsc::Receiver<oneshot::Sender<Vec<Family>>>,
    /// Who waits for the next [`Word::Metrics`]. While anybody does the question isn't asked again.
    asking: Vec<oneshot::Sender<Vec<Family>>>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut event = self.carry_out(Some(Order::Spawn)).await;
        while !self.life.state().is_final() {
            let happened = match event.take() {
                Some(event) => event,
                None => self.next_event().await,
            };
            let order = self.life.take(happened, Instant::now());
            event = self.carry_out(order).await;
            self.publish();
        }
        if self.life.state() == State::Fatal {
            error!(process = self.program.name(), "died too often; it is not started again");
        }
    }

    /// Waits until something happens that may concern the process's life.
    async fn next_event(&mut self) -> Event {
        loop {
            let deadline = self.life.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm is cancel-safe.
            tokio::select! {
                happening = next_happening(&mut self.incarnation) => match happening {
                    Happening::Said(word) => if let Some(event) = self.hear(word) { return event },
                    Happening::Ended(how) => {
                        self.bury(&how);
                        return Event::Died;
                    }
                },
                Ok(()) = self.wish.changed() => if let Some(event) = *self.wish.borrow_and_update() { return event },
                Some(question) = self.questions.recv() => self.ask(question).await,
                () = due => return Event::Deadline,
            }
        }
    }

    fn hear(&mut self, word: Word) -> Option<Event> {
        match word {
            Word::Report(report) => {
                let (ready, takes_traffic) = (report.ready, report.takes_traffic());
                self.status.send_modify(|status| {
                    status.ready = takes_traffic;
                    status.details = report.details;
                });
                ready.then_some(Event::Ready)
            }
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
            incarnation.tell(&control::Order::Metrics).await;
        }
        self.asking.push(question);
    }

    /// Does as the life orders. What happens by that is returned.
    async fn carry_out(&mut self, order: Option<Order>) -> Option<Event> {
        match order? {
            Order::Spawn => match self.program.spawn() {
                Ok(incarnation) => {
                    info!(process = self.program.name(), pid = incarnation.pid(), "started");
                    self.incarnation = Some(incarnation);
                    self.publish();
                }
                Err(error) => {
                    error!(process = self.program.name(), %error, "can't be started");
                    return Some(Event::Died);
                }
            },
            Order::Drain => {
                // No successor will need them, and the process should be the last to hold them.
                self.program.close_sockets();
                self.tell(&control::Order::Drain).await;
            }
            Order::End => self.tell(&control::Order::End).await,
            Order::Kill => {
                if let Some(incarnation) = &mut self.incarnation {
                    warn!(process = self.program.name(), "does not end; it is killed");
                    incarnation.kill();
                }
            }
        }
        None
    }

    async fn tell(&mut self, order: &control::Order) {
        if let Some(incarnation) = &mut self.incarnation {
            incarnation.tell(order).await;
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
