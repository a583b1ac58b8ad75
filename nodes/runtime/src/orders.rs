//! The wishes that this process ends, from wherever they come, and how its code ends by them.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::context::Context;
use crate::control::{self, Report};
use crate::drain::{Drain, Trigger};
use crate::signals::{ReloadSignals, Stop, StopSignals, UpgradeSignals};

/// What the process is told to do. Who tells it is listened to until this is dropped.
#[derive(Debug)]
pub(crate) struct Orders {
    /// End in good order.
    pub(crate) drain: Drain,
    /// Has the process drain, as a signal would.
    pub(crate) trigger: Trigger,
    /// End now. Whoever wishes that wishes `drain` too.
    pub(crate) end: Drain,
    /// Nothing will be reported any more.
    over: Trigger,
    listeners: JoinSet<()>,
}

/// For a supervisor to take a last word.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

impl Orders {
    /// Of a node: from signals and, where it is supervised, from its supervisor.
    pub(crate) fn of_node(
        report: watch::Receiver<Report>,
        supervisor: Option<UnixStream>,
    ) -> io::Result<Self> {
        let signals = StopSignals::take()?;
        let supervised = supervisor.is_some();
        let mut orders = Listening::new();
        orders.listeners.spawn(obey(signals, supervised, orders.drain.0.clone(), orders.end.0.clone()));
        if let Some(socket) = supervisor {
            orders.obey(socket, report, None)?;
        }
        Ok(orders.into())
    }

    /// Of a child: from its parent alone. Signals go to whole groups of processes, and the parent decides what follows.
    pub(crate) fn of_child(parent: UnixStream, context: &Context) -> io::Result<Self> {
        StopSignals::take()?;
        ReloadSignals::take()?;
        UpgradeSignals::take()?;
        let mut orders = Listening::new();
        orders.obey(parent, context.report(), Some(context.clone()))?;
        Ok(orders.into())
    }
}

impl Orders {
    /// Returns once the supervisor of this process, a child, has been told all that was reported.
    pub(crate) async fn finish(mut self) {
        self.over.pull();
        let told = async { while self.listeners.join_next().await.is_some() {} };
        // Who does not listen learns it by the process's end.
        let _ = timeout(LAST_WORD_TIMEOUT, told).await;
    }
}

struct Listening {
    drain: (Trigger, Drain),
    end: (Trigger, Drain),
    over: (Trigger, Drain),
    listeners: JoinSet<()>,
}

impl Listening {
    fn new() -> Self {
        Self { drain: Drain::new(), end: Drain::new(), over: Drain::new(), listeners: JoinSet::new() }
    }

    fn obey(
        &mut self,
        socket: UnixStream,
        report: watch::Receiver<Report>,
        context: Option<Context>,
    ) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        let (drain, end, over) = (self.drain.0.clone(), self.end.0.clone(), self.over.1.clone());
        self.listeners.spawn(control::obey(socket, report, drain, end, over, context));
        Ok(())
    }
}

impl From<Listening> for Orders {
    fn from(listening: Listening) -> Self {
        let Listening { drain: (trigger, drain), end: (_, end), over: (over, _), listeners } = listening;
        Self { drain, trigger, end, over, listeners }
    }
}

/// SIGTERM and SIGINT drain; a second SIGINT ends. Where the process is supervised SIGINT means nothing: a terminal sends
/// it to the whole group, and the supervisor decides what follows.
async fn obey(mut signals: StopSignals, supervised: bool, drain: Trigger, end: Trigger) {
    let mut interrupted = false;
    loop {
        match signals.next().await {
            Stop::Interrupt if supervised => continue,
            Stop::Interrupt if std::mem::replace(&mut interrupted, true) => end.pull(),
            Stop::Interrupt | Stop::Terminate => {}
        }
        drain.pull();
    }
}

/// Runs a process's code until it returns, until its time to drain is over, or until it should end now. `noticed` is called
/// when the wish to drain comes, and says how long it is until `drain` is pulled, and from there until the code is cut.
pub(crate) async fn follow<E: Display>(
    orders: &Orders,
    code: impl Future<Output = Result<(), E>>,
    noticed: impl FnOnce() -> (Duration, Duration),
    drain: Trigger,
) -> ExitCode {
    let code = pin!(code);
    let cut = async {
        orders.drain.started().await;
        let (grace, limit) = noticed();
        sleep(grace).await;
        drain.pull();
        sleep(limit).await;
        limit
    };
    tokio::select! {
        result = code => match result {
            Ok(()) => {
                info!("ended");
                ExitCode::SUCCESS
            }
            Err(error) => {
                error!(%error, "failed");
                ExitCode::FAILURE
            }
        },
        limit = cut => {
            warn!(drain_timeout_ms = limit.as_millis(), "cut what was still in flight");
            ExitCode::FAILURE
        }
        () = orders.end.started() => ExitCode::FAILURE,
    }
}
