//! The signals that ask a process to end, to read its configuration anew, or to go on as another program.

use std::io;

use nix::sys::signal::{self, SigSet};
use tokio::signal::unix::{Signal, SignalKind, signal as listen};

/// Which of them came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: a supervisor's wish.
    Terminate,
    /// SIGINT: Ctrl-C, which a terminal sends to the whole group of processes.
    Interrupt,
}

/// Both signals, each time that they come. From when this is made on they don't end the process by themselves any more,
/// even when it is dropped.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// SIGHUP, each time that it comes. From when this is made on it doesn't end the process any more, even when it is
/// dropped.
#[derive(Debug)]
pub struct ReloadSignals(Signal);

/// SIGUSR2, each time that it comes. From when this is made on it doesn't end the process any more, even when it is
/// dropped.
#[derive(Debug)]
pub struct UpgradeSignals(Signal);

/// From here on SIGHUP and SIGUSR2 wait until the node can act on them, see [`admit`]. To be called before anything else.
///
/// # Errors
/// The system refuses.
pub fn hold() -> io::Result<()> {
    Ok([signal::SIGHUP, signal::SIGUSR2].into_iter().collect::<SigSet>().thread_block()?)
}

/// From here on all of a node's signals wait, in this thread and in those that it starts. They are the first thread's alone:
/// what another one has heard would be lost where the process goes on as another program.
///
/// # Errors
/// The system refuses.
pub fn hold_all() -> io::Result<()> {
    Ok(all().thread_block()?)
}

/// From here on this thread hears them again, also those that came meanwhile.
pub(crate) fn admit() -> io::Result<()> {
    Ok(all().thread_unblock()?)
}

fn all() -> SigSet {
    [signal::SIGTERM, signal::SIGINT, signal::SIGHUP, signal::SIGUSR2].into_iter().collect()
}

impl UpgradeSignals {
    /// # Errors
    /// The system refuses, or there is no tokio runtime with its input and output enabled.
    pub fn take() -> io::Result<Self> {
        Ok(Self(listen(SignalKind::user_defined2())?))
    }

    /// Returns at the next one. Cancel-safe.
    pub async fn next(&mut self) {
        // The stream does not end while the runtime lives.
        self.0.recv().await;
    }
}

impl ReloadSignals {
    /// # Errors
    /// The system refuses, or there is no tokio runtime with its input and output enabled.
    pub fn take() -> io::Result<Self> {
        Ok(Self(listen(SignalKind::hangup())?))
    }

    /// Returns at the next one. Cancel-safe.
    pub async fn next(&mut self) {
        // The stream does not end while the runtime lives.
        self.0.recv().await;
    }
}

impl StopSignals {
    /// # Errors
    /// The system refuses, or there is no tokio runtime with its input and output enabled.
    pub fn take() -> io::Result<Self> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Stop {
        // Neither stream ends while the runtime lives.
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}

/// Whether whoever started this process has it ignore the end of its terminal (`nohup`). To be asked before any signal is
/// taken.
pub fn outlives_terminal() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored & 1 << (rustix::process::Signal::HUP.as_raw() - 1) != 0
}
