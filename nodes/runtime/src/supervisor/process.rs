//! One supervised process: started, listened to, restarted and ended as its [`Life`] says.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::keeper::Keeper;
use super::life::{Event, Life, Order, Past, Policy, State};
use super::program::{Incarnation, Inherited, Program};
use crate::control::{Configuration, Report};
use crate::drain::Drained;
use crate::exposition::Family;
use crate::sockets::Socket;

/// For the answer to a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Questions that may wait for the same answer.
const QUESTIONS: usize = 8;

/// A supervised process as it is now.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// It rests, or will once it has ended, until it is started.
    pub is_to_rest: bool,
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
    /// What became of the work of all processes that it has been, each in its drain.
    pub drained: Drained,
}

/// A process that is kept alive. Dropping this closes its control socket, whereupon it drains by itself.
#[derive(Debug)]
pub struct Process {
    status: watch::Receiver<Status>,
    wish: watch::Sender<Wish>,
    shared: watch::Sender<Vec<Arc<Socket>>>,
    configuration: watch::Sender<Option<Configuration>>,
    questions: mpsc::Sender<oneshot::Sender<Vec<Family>>>,
    pauses: mpsc::Sender<Pause>,
    keeper: AbortHandle,
}

/// A supervised process as another image of this program goes on with it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// As the log calls it.
    pub(crate) name: String,
    pub(crate) past: Past,
    /// Another one has its place.
    pub(crate) retired: bool,
    /// What it said last of itself.
    pub(crate) report: Report,
    /// The real process, where there is one.
    pub(crate) incarnation: Option<Inherited>,
}

/// Nothing is done about a process, and nothing is read of what it says, until this is dropped.
#[derive(Debug)]
pub(crate) struct Paused {
    _until_dropped: oneshot::Sender<()>,
}

/// The wish to pause.
pub(super) struct Pause {
    pub(super) answer: oneshot::Sender<io::Result<Snapshot>>,
    pub(super) until_dropped: oneshot::Receiver<()>,
}

/// What should become of a process. A later wish counts, but an end can't be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Run,
    Stop,
    Cut,
    Drain,
    /// As to drain, but for good: another one has its place.
    Retire,
    End,
}

impl Wish {
    pub(super) fn event(self) -> Event {
        match self {
            Self::Run => Event::Start,
            Self::Stop => Event::Stop,
            Self::Cut => Event::Cut,
            Self::Drain | Self::Retire => Event::Drain,
            Self::End => Event::End,
        }
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::Starting,
            is_to_rest: false,
            pid: None,
            started: None,
            restarts: 0,
            ready: false,
            left: false,
            details: BTreeMap::new(),
            drained: Drained::default(),
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
        let life = Life::new(policy, Instant::now());
        Self::keep(program, life, None, Status::default(), Wish::Run, shared, Some(Order::Spawn))
    }

    /// Goes on with one that an earlier image of this program has started.
    ///
    /// # Errors
    /// It is no child of this process.
    pub(crate) fn resumed(
        program: Program,
        policy: Policy,
        snapshot: Snapshot,
        shared: Vec<Arc<Socket>>,
    ) -> io::Result<Self> {
        let Snapshot { past, retired, report, incarnation, .. } = snapshot;
        let life = Life::resumed(policy, &past, Instant::now());
        let incarnation = incarnation.map(Incarnation::resumed).transpose()?;
        let status = Status {
            state: life.state(),
            is_to_rest: life.is_to_rest(),
            pid: incarnation.as_ref().map(Incarnation::pid),
            started: incarnation.as_ref().map(|incarnation| incarnation.started),
            restarts: life.restarts(),
            ready: report.ready,
            left: report.left,
            details: report.details,
            drained: report.drained,
        };
        let wish = if retired { Wish::Retire } else { Wish::Run };
        Ok(Self::keep(program, life, incarnation, status, wish, shared, None))
    }

    fn keep(
        program: Program,
        life: Life,
        incarnation: Option<Incarnation>,
        status: Status,
        wish: Wish,
        shared: Vec<Arc<Socket>>,
        first: Option<Order>,
    ) -> Self {
        let (status, status_receiver) = watch::channel(status);
        let (wish, wish_receiver) = watch::channel(wish);
        let (shared, shared_receiver) = watch::channel(shared);
        let (configuration, configuration_receiver) = watch::channel(None);
        let (questions, question_receiver) = mpsc::channel(QUESTIONS);
        let (pauses, pause_receiver) = mpsc::channel(1);
        let keeper = Keeper {
            program,
            life,
            incarnation,
            status,
            wish: wish_receiver,
            shared: shared_receiver,
            configuration: configuration_receiver,
            questions: question_receiver,
            pauses: pause_receiver,
            asking: Vec::new(),
            drained_before: Drained::default(),
            lacks: false,
        };
        let keeper = tokio::spawn(keeper.keep(first)).abort_handle();
        Self { status: status_receiver, wish, shared, configuration, questions, pauses, keeper }
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

    /// Has it started again, should it have been stopped or drained, or have died too often. One that is just about to end
    /// is started once it has.
    pub fn run_again(&self) {
        self.wish(Wish::Run);
    }

    /// The same, and returns when that is done. Cancel-safe.
    pub async fn begin(&self) {
        let mut status = self.status();
        let before = status.borrow_and_update().restarts;
        self.run_again();
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

    /// Returns when nothing happens to it by itself any more, or when it has been started again; says whether it is down.
    /// Cancel-safe.
    pub(crate) async fn down(&self) -> bool {
        let mut status = self.status();
        let before = status.borrow_and_update().restarts;
        let settled = status.wait_for(|status| status.state.is_final() || status.restarts > before).await;
        // An error means that its keeper is gone, and the process with it.
        settled.is_ok_and(|status| status.state.is_final())
    }

    /// Returns when it has given up whatever a successor needs, or has ended. Cancel-safe.
    pub(crate) async fn gone(&self) {
        let _ = self.status().wait_for(|status| status.left || status.state.is_final()).await;
    }

    /// Has nothing happen to it for a while, and says how it is.
    ///
    /// # Errors
    /// There are too many open files.
    pub(crate) async fn pause(&self) -> io::Result<(Snapshot, Paused)> {
        let ((answer, answered), (paused, until_dropped)) = (oneshot::channel(), oneshot::channel());
        let gone = || io::Error::other("the keeper of a process is gone");
        self.pauses.send(Pause { answer, until_dropped }).await.map_err(|_| gone())?;
        Ok((answered.await.map_err(|_| gone())??, Paused { _until_dropped: paused }))
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
