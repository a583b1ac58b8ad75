//! Listening sockets: whether they can be had, and having them.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::procfs;
use crate::start::StartCause;

/// Connections that may wait to be accepted, for each socket; the kernel bounds it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// For how long the orphans of a parent that was killed may take to let go of its ports.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(2);
const ORPHANS_RETRY: Duration = Duration::from_millis(20);

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

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
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
