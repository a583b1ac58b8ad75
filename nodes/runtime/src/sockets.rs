//! Listening sockets: whether they can be had, and having them.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Type};

use crate::procfs;
use crate::start::StartCause;

/// Connections that may wait to be accepted, for each socket; the kernel bounds it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// For how long the orphans of a parent that was killed may take to let go of its ports.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(2);
const ORPHANS_RETRY: Duration = Duration::from_millis(20);

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A listening socket of a node. The parent keeps it open for as long as the node serves its address: connections wait in
/// it while no child accepts them, and whichever child is told to accepts them.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) handed: Handed,
    pub(crate) listener: TcpListener,
}

/// What a socket is called between parent and children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handed {
    /// Unique in the node.
    pub(crate) id: u64,
    /// What it is for.
    pub(crate) name: String,
}

impl Socket {
    pub(crate) fn new(name: &str, listener: TcpListener) -> Arc<Self> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { handed: Handed { id, name: name.to_owned() }, listener })
    }

    /// One that an earlier image of this program has named.
    pub(crate) fn resumed(handed: Handed, listener: TcpListener) -> Arc<Self> {
        NEXT_ID.fetch_max(handed.id + 1, Ordering::Relaxed);
        Arc::new(Self { handed, listener })
    }

    /// Refuses connections from here on, without giving the address up: nobody is there to accept them.
    pub(crate) fn refuse(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both)?)
    }

    /// Takes connections again.
    pub(crate) fn listen(&self) -> io::Result<()> {
        Ok(rustix::net::listen(&self.listener, BACKLOG)?)
    }
}

/// Whether nothing listens on any of the addresses, and none is there twice. `SO_REUSEPORT` would let us share a port
/// with any other process of this user, and each would get a part of the other's connections.
///
/// Where this node's predecessor was killed (`orphaned`) its children are given the time to notice.
pub(crate) fn probe(wanted: &[(String, SocketAddr)], orphaned: bool) -> Vec<StartCause> {
    let patience = if orphaned { ORPHANS_TIMEOUT } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    let mut seen = BTreeSet::new();
    let mut causes = Vec::new();
    for (name, address) in wanted {
        if address.port() != 0 && !seen.insert(address) {
            let by = " by this configuration itself".to_owned();
            causes.push(StartCause::InUse { name: name.clone(), address: *address, by });
            continue;
        }
        while let Err(error) = bind(*address, false) {
            if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline {
                thread::sleep(ORPHANS_RETRY);
                continue;
            }
            causes.push(cause(name, *address, error));
            break;
        }
    }
    causes
}

/// Whether nothing listens on an address that a running node is to serve from now on.
pub(crate) fn free(name: &str, address: SocketAddr) -> Result<(), StartCause> {
    bind(address, false).map(drop).map_err(|error| cause(name, address, error))
}

/// A non-blocking listening socket. Those that are `shared` may have the same address.
pub(crate) fn listen(
    name: &str,
    address: SocketAddr,
    shared: bool,
) -> Result<(TcpListener, SocketAddr), StartCause> {
    let listen = || {
        let socket = bind(address, shared)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    listen().map_err(|error| cause(name, address, error))
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a predecessor that linger in TIME_WAIT are no hindrance; one that listens still is.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn cause(name: &str, address: SocketAddr, error: io::Error) -> StartCause {
    let name = name.to_owned();
    if error.kind() == io::ErrorKind::AddrInUse {
        let by = procfs::listener(address).map(|listener| format!(" by {listener}")).unwrap_or_default();
        StartCause::InUse { name, address, by }
    } else {
        StartCause::Bind { name, address, source: error }
    }
}
