//! A process that this one, or an earlier image of its program, has started.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, waitid};
use tokio::signal::unix::{self, SignalKind, signal};

/// Until it is waited for its pid is nobody else's.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// SIGCHLD: one of this process's children has ended.
    deaths: unix::Signal,
    ended: bool,
}

impl Child {
    /// # Errors
    /// There is no such child.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let pid = pid.try_into().ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)?;
        let deaths = signal(SignalKind::child())?;
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)?;
        Ok(Self { pid, deaths, ended: false })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until it has ended. Cancel-safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            let ended = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
            if let Some(status) = ended {
                self.ended = true;
                return Ok(exit_status(&status));
            }
            // The stream does not end while the runtime lives, and forgets no signal.
            self.deaths.recv().await;
        }
    }

    /// # Errors
    /// It has ended.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        // Its pid may be somebody else's by now.
        if self.ended { Err(Errno::SRCH.into()) } else { Ok(kill_process(self.pid, signal)?) }
    }
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    // As wait(2) gives them: the code above, the signal below.
    let raw = match status.exit_status() {
        Some(code) => (code & 0xff) << 8,
        None => status.terminating_signal().unwrap_or_default(),
    };
    ExitStatus::from_raw(raw)
}
