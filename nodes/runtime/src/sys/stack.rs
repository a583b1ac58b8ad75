//! Where a process is stuck: its stack, as its last word.

use std::backtrace::Backtrace;
use std::io;
use std::process::abort;

use rustix::process::Signal;
use signal_hook_registry::register;
use tracing::error;

use crate::telemetry;

/// What has a process that is stuck tell where, and end.
pub(crate) const SIGNAL: Signal = Signal::QUIT;

/// From here on the signal has the thread that it meets (the first one of the process, unless that blocks it) log its stack;
/// then the process ends.
pub(crate) fn log_at_quit() -> io::Result<()> {
    let last_word = || {
        error!(stack = %Backtrace::force_capture(), "stuck");
        telemetry::flush();
        abort();
    };
    // SAFETY: a handler must not do what it may have interrupted, such as to allocate or to take a lock. This one does. It
    // may wait for ever then, which is why whoever sends the signal kills the process soon after; and whatever it may leave
    // in disorder nobody sees, since it never returns.
    unsafe { register(SIGNAL.as_raw(), last_word) }?;
    Ok(())
}
