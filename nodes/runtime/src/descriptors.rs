//! The limit of open files: every connection is one, and one more where it is passed on.

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
