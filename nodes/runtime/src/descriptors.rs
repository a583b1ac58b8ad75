//! Open files that a child keeps free: for the sockets that its parent hands over.
//!
//! A child whose connections have used up the limit of open files could receive no socket: the kernel would drop it, and
//! with it whoever waits there. So a child works below its limit, and goes up to it for an instant when its parent speaks.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than the sockets that a sibling may leave behind at once.
const RESERVED: u64 = 64;
/// Of a limit that is not even so many times as high nothing is kept.
const SHARE: u64 = 4;

static KEPT: AtomicBool = AtomicBool::new(false);

/// Keeps them, from here on.
///
/// # Errors
/// The system refuses.
pub(crate) fn reserve() -> io::Result<()> {
    let Rlimit { current, .. } = getrlimit(Resource::Nofile);
    let Some(limit) = current.filter(|limit| *limit >= SHARE * RESERVED) else { return Ok(()) };
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit - RESERVED), maximum: Some(limit) })?;
    KEPT.store(true, Ordering::Relaxed);
    Ok(())
}

/// Does something that may need them.
pub(crate) fn with_reserve<T>(receive: impl FnOnce() -> T) -> T {
    if !KEPT.load(Ordering::Relaxed) {
        return receive();
    }
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, which can't be, there is as much room as before.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let received = receive();
    let _ = setrlimit(Resource::Nofile, limit);
    received
}
