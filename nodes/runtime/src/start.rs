//! Why a node refuses to start. Everything that is wrong is told at once, before anything runs.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// The exit code of a process that refused to start: its configuration or its surroundings must change first.
pub const REFUSED: u8 = 2;

/// All the causes for which a node refuses to start; displayed one a line.
#[derive(Debug)]
pub struct StartError {
    /// At least one.
    pub causes: Vec<StartCause>,
}

impl StartError {
    pub(crate) fn unless_empty(causes: Vec<StartCause>) -> Result<(), Self> {
        if causes.is_empty() { Ok(()) } else { Err(Self { causes }) }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cause) in self.causes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        StartCause::from(error).into()
    }
}

impl From<StartCause> for StartError {
    fn from(cause: StartCause) -> Self {
        Self { causes: vec![cause] }
    }
}

/// One cause for which a node refuses to start.
#[derive(Debug, Error)]
pub enum StartCause {
    /// A node of this name runs on this data directory.
    #[error("{node} is already running on {} (pid {pid}): stop it first, or give this one another --data", data.display())]
    Running {
        /// The name that is taken.
        node: String,
        /// The data directory.
        data: PathBuf,
        /// The process that has it; "unknown" where it has not written that yet.
        pid: String,
    },
    /// The data directory can't be used.
    #[error("{}: {source}{}", path.display(), whose(source))]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another socket listens on this address.
    #[error("{address} is in use{by}: {name} can't listen there; stop what listens, or choose another port")]
    InUse {
        /// What the socket is for.
        name: String,
        /// Where.
        address: SocketAddr,
        /// " by NAME (pid N)" where that could be found out.
        by: String,
    },
    /// The system refuses the address.
    #[error("{name} can't listen on {address}: {source}{}", privileged(source, *address))]
    Bind {
        /// What the socket is for.
        name: String,
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The meta port would be reachable from other machines.
    #[error(
        "the meta port on {0} could be reached from outside: use a loopback address, or meta.exposed = true"
    )]
    MetaExposed(SocketAddr),
    /// The service manager gave something that isn't a listening socket.
    #[error("a socket that systemd gave can't be used: {source}")]
    Activated {
        /// What the system says.
        source: io::Error,
    },
    /// The node that is handed over is another one than the configuration says.
    #[error("{0} can't be another one in a new program: stop the node first")]
    Succession(&'static str),
    /// What this process was given can't be used.
    #[error("what the process was started with can't be used: {0}")]
    Given(#[from] io::Error),
    /// What was to be changed is about to end.
    #[error("the node is about to end")]
    Ending,
    /// The user that the node is to work as can't be had.
    #[error("{0}")]
    Account(#[from] crate::account::AccountError),
    /// The meta port can't speak TLS.
    #[error("{0}")]
    MetaTls(#[from] crate::meta::MetaTlsError),
    /// The log can't be written.
    #[error("{0}")]
    Telemetry(#[from] crate::telemetry::TelemetryError),
}

/// What to do about a file that belongs to somebody else.
fn whose(source: &io::Error) -> &'static str {
    let denied = source.kind() == io::ErrorKind::PermissionDenied;
    if denied { ": the data directory must belong to the user that the node works as (chown -R)" } else { "" }
}

/// What to do about a port that only root may bind.
fn privileged(source: &io::Error, address: SocketAddr) -> &'static str {
    let denied = source.kind() == io::ErrorKind::PermissionDenied && address.port() < 1024;
    if denied {
        ": only root binds ports below 1024: start the node anew as root (`user` says who it works as then), or give it \
         the capability CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=)"
    } else {
        ""
    }
}
