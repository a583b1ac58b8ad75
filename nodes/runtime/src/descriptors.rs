//! The limit of open files: every connection is one, and one more where it is passed on.
//!
//! A child whose connections have used it up could receive no socket from its parent: the kernel would drop it, and with it
//! whoever waits there. So a child works below its limit, and goes up to it for an instant when its parent speaks.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::parent::Spec;

/// What a process has open besides its connections, roughly: logs, databases, bodies on disk, links to other nodes.
const BESIDES: u64 = 256;

/// Lets this process, and those that it starts, have as many files open as the system allows.
pub(crate) fn raise() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused the lower limit stays, and connections are bounded by it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// How many files each process of the node may have open; the largest number where any number is allowed.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of them this process may have open for clients: the rest is for what those ask for, an upstream's connection
/// each where none is idle, and for itself.
pub fn for_connections() -> u64 {
    let limit = limit();
    limit.saturating_sub(BESIDES.max(limit / 8)).max(1)
}

/// Says so where that is less than the connections need that a process may have.
pub(crate) fn check(spec: &Spec) {
    let (limit, needed) = (limit(), spec.connections.saturating_mul(2) + BESIDES);
    if spec.connections > 0 && limit < needed {
        warn!(
            limit,
            needed,
            max_connections = spec.connections,
            "each process may have fewer files open than its connections may need, of which each takes two: raise the \
             limit (LimitNOFILE= in its unit, or ulimit -n), or lower max_connections"
        );
    }
}

/// Files that a child keeps free: more than the sockets that a sibling may leave behind at once.
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
