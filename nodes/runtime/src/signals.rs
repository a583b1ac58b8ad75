//! The signals that ask a process to end, to read its configuration anew, or to go on as another program.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// From here on SIGHUP and SIGUSR2 don't end this process: those that come before the node can act on them are kept for
/// then. To be called before anything else, outside of a tokio runtime.
///
/// # Errors
/// The system refuses.
pub fn hold() -> io::Result<()> {
    // Whatever runtime a handler is made in, it is the process's own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async { ReloadSignals::take().and(UpgradeSignals::take()).map(drop) })
}

impl UpgradeSignals {
    /// # Errors
    /// The system refuses, or there is no tokio runtime with its input and output enabled.
    pub fn take() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::user_defined2())?))
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
        Ok(Self(signal(SignalKind::hangup())?))
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
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
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
