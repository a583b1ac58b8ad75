//! The control socket between a supervisor and its process: one JSON message a line, sockets along with the first.
//!
//! It is the process's standard input, as it was with inetd: nothing else has to be inherited, and it stays open until
//! the process has really ended. Either end takes the other's end for its death.

mod hello;
mod lines;

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error};

use crate::context::Context;
use crate::drain::{Drain, Drained, Trigger};
use crate::exposition::Family;
use crate::sockets::Handed;
use crate::telemetry;

pub(crate) use hello::{Configuration, Hello, Parcel, receive};
pub(crate) use lines::{LineError, Lines, Receiver, line, send};

/// Tells a process that its standard input is a control socket, and as what it is run.
pub(crate) const VARIABLE: &str = "PROTOPLEX_CONTROL";
/// The value of [`VARIABLE`] for a child of a node.
pub(crate) const CHILD: &str = "child";
/// The value of [`VARIABLE`] for a node.
pub(crate) const NODE: &str = "node";

/// What a supervisor tells its process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Finish, then end.
    Drain,
    /// End now.
    End,
    /// Answer with [`Word::Metrics`].
    Metrics,
    /// Accept on the socket that comes along; a child's alone, as the next ones.
    Take(Handed),
    /// Accept no more on the socket of this id, and let it go.
    Release(u64),
    /// Go by this from here on.
    Adopt(Box<Configuration>),
}

impl Order {
    /// For the log: what comes along may be secret.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::End => "end",
            Self::Metrics => "metrics",
            Self::Take(_) => "take",
            Self::Release(_) => "release",
            Self::Adopt(_) => "adopt",
        }
    }
}

/// How often a process says at least something.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);

/// What a process tells its supervisor.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// How it is; sent whenever that changes.
    Report(Report),
    /// All its metrics, once for each time it was asked.
    Metrics(Vec<Family>),
    /// Nothing but that its event loop turns.
    Beat,
}

/// How a process is, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) ready: bool,
    /// Why not, where there is more to say; of a node of a single process.
    #[serde(default)]
    pub(crate) hindrance: String,
    /// It drains by a wish that it was told of directly.
    #[serde(default)]
    pub(crate) leaves: bool,
    /// It has given up whatever a successor needs, such as its place in a pool.
    #[serde(default)]
    pub(crate) left: bool,
    /// It refuses requests for a while, so that it outlives them.
    #[serde(default)]
    pub(crate) shedding: bool,
    pub(crate) details: BTreeMap<String, serde_json::Value>,
    /// What became of its work in its drain, so far.
    #[serde(default)]
    pub(crate) drained: Drained,
}

impl Report {
    /// Whether traffic should come.
    pub(crate) fn takes_traffic(&self) -> bool {
        self.ready && !self.shedding
    }
}

/// This process's control socket, where it is supervised as `role`.
///
/// # Errors
/// It is said to be, but standard input is no socket.
pub(crate) fn inherited(role: &str) -> io::Result<Option<std::os::unix::net::UnixStream>> {
    if std::env::var_os(VARIABLE).is_none_or(|value| value != role) {
        return Ok(None);
    }
    stdin().map(Some)
}

/// Standard input as the socket that it is.
pub(crate) fn stdin() -> io::Result<std::os::unix::net::UnixStream> {
    let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(socket.into())
}

/// The process's end: reports each change, answers questions, and does as the supervisor orders; its death is the order to
/// drain. Returns when the supervisor is gone, or once `over` has started and all is reported. `context` is that of a child.
pub(crate) async fn obey(
    socket: UnixStream,
    mut report: watch::Receiver<Report>,
    drain: Trigger,
    end: Trigger,
    over: Drain,
    context: Option<Context>,
) {
    let (reader, writer) = socket.into_split();
    let mut lines = Lines::new(Receiver::new(reader));
    let mut beat = interval(BEAT_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    report.mark_changed();
    loop {
        // All arms are cancel-safe.
        let word = tokio::select! {
            biased;
            order = lines.next() => match order {
                Ok(Some(Order::Drain)) => { drain.pull(); continue }
                Ok(Some(Order::End)) => { end.pull(); drain.pull(); continue }
                Ok(Some(Order::Metrics)) => Word::Metrics(telemetry::gather()),
                Ok(Some(change)) => match adapt(change, &mut lines, context.as_ref()) {
                    Ok(()) => continue,
                    Err(error) => break error!(%error, "the supervisor can't be understood"),
                },
                Ok(None) => break debug!("the supervisor has ended"),
                Err(error) => break error!(%error, "the supervisor can't be understood"),
            },
            // Before the end, which it is the last word of.
            Ok(()) = report.changed() => Word::Report(report.borrow_and_update().clone()),
            () = over.started() => break,
            _ = beat.tick() => Word::Beat,
        };
        if let Err(error) = send(&writer, &word, None).await {
            break debug!(%error, "the supervisor no longer listens");
        }
    }
    drain.pull();
}

/// What changes for a child while it runs.
fn adapt(change: Order, lines: &mut Lines<Receiver>, context: Option<&Context>) -> Result<(), LineError> {
    match (change, context) {
        (Order::Take(handed), context) => {
            let socket = TcpListener::from(lines.descriptor()?);
            if let Some(context) = context {
                context.take(handed, socket);
            }
        }
        (Order::Release(id), Some(context)) => context.release(id),
        (Order::Adopt(configuration), Some(context)) => context.adopt(*configuration),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
