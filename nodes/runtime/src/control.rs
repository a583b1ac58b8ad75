//! The control socket between a supervisor and its process: one JSON message a line, sockets along with the first.
//!
//! It is the process's standard input, as it was with inetd: nothing else has to be inherited, and it stays open until
//! the process has really ended. Either end takes the other's end for its death.

mod hello;
mod lines;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{debug, error};

use crate::drain::Trigger;
use crate::exposition::Family;
use crate::telemetry;

pub(crate) use hello::{Hello, Parcel, receive};
pub(crate) use lines::{LineError, Lines, line, send};

/// Tells a process that its standard input is a control socket, and as what it is run.
pub(crate) const VARIABLE: &str = "PROTOPLEX_CONTROL";
/// The value of [`VARIABLE`] for a child of a node.
pub(crate) const CHILD: &str = "child";
/// The value of [`VARIABLE`] for a node.
pub(crate) const NODE: &str = "node";

/// What a supervisor tells its process.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Finish, then end.
    Drain,
    /// End now.
    End,
    /// Answer with [`Word::Metrics`].
    Metrics,
}

/// What a process tells its supervisor.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// How it is; sent whenever that changes.
    Report(Report),
    /// All its metrics, once for each time it was asked.
    Metrics(Vec<Family>),
}

/// How a process is, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) ready: bool,
    /// It refuses requests for a while, so that it outlives them.
    #[serde(default)]
    pub(crate) shedding: bool,
    pub(crate) details: BTreeMap<String, serde_json::Value>,
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
    let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(Some(socket.into()))
}

/// The process's end: reports each change, answers questions, and pulls the triggers that the supervisor's orders, or
/// its death, ask for. Returns when the supervisor is gone.
pub(crate) async fn obey(
    socket: UnixStream,
    mut report: watch::Receiver<Report>,
    drain: Trigger,
    end: Trigger,
) {
    let (reader, writer) = socket.into_split();
    let mut lines = Lines::new(reader);
    report.mark_changed();
    loop {
        // Both arms are cancel-safe.
        let word = tokio::select! {
            order = lines.next() => match order {
                Ok(Some(Order::Drain)) => { drain.pull(); continue }
                Ok(Some(Order::End)) => { end.pull(); drain.pull(); continue }
                Ok(Some(Order::Metrics)) => Word::Metrics(telemetry::gather()),
                Ok(None) => break debug!("the supervisor has ended"),
                Err(error) => break error!(%error, "the supervisor can't be understood"),
            },
            Ok(()) = report.changed() => Word::Report(report.borrow_and_update().clone()),
        };
        if let Err(error) = send(&writer, &word).await {
            break debug!(%error, "the supervisor no longer listens");
        }
    }
    drain.pull();
}

#[cfg(test)]
mod tests;
