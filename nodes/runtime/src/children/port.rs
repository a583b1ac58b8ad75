//! The addresses that the children of a node share, and the sockets that are theirs alone.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use crate::parent::Spec;
use crate::running::Address;
use crate::sockets::{self, Socket};
use crate::start::StartCause;

/// A public address, with a socket for each child.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: String,
    /// As it was asked for: port 0 is any.
    pub(super) wanted: SocketAddr,
    pub(super) address: SocketAddr,
    pub(super) sockets: Vec<Arc<Socket>>,
    /// There is one socket only, which somebody else has bound: all children accept on it.
    pub(super) common: bool,
}

impl Port {
    pub(super) fn listen(name: &str, wanted: SocketAddr, count: usize) -> Result<Self, StartCause> {
        Self { name: name.to_owned(), wanted, address: wanted, sockets: Vec::new(), common: false }
            .grown(count)
    }

    /// One whose socket was given.
    pub(super) fn activated(name: &str, address: SocketAddr, socket: TcpListener) -> Self {
        let sockets = vec![Socket::new(name, socket)];
        Self { name: name.to_owned(), wanted: address, address, sockets, common: true }
    }

    /// With a socket for each of so many children. There may be more: none is closed.
    pub(super) fn grown(&self, count: usize) -> Result<Self, StartCause> {
        let mut port = self.clone();
        while port.sockets.len() < count && !port.common {
            let (socket, address) = sockets::listen(&port.name, port.address, true)?;
            port.address = address;
            port.sockets.push(Socket::new(&port.name, socket));
        }
        Ok(port)
    }

    pub(super) fn key(&self) -> (&str, SocketAddr) {
        (&self.name, self.wanted)
    }
}

/// The sockets of one child alone.
pub(super) fn own_sockets(spec: &Spec) -> Result<Vec<Arc<Socket>>, StartCause> {
    let own = |(name, ip): &(String, _)| {
        let (socket, _) = sockets::listen(name, SocketAddr::new(*ip, 0), false)?;
        Ok(Socket::new(name, socket))
    };
    spec.own.iter().map(own).collect()
}

/// Where all of these are.
pub(super) fn addresses<'a>(
    shared: &[Port],
    own: impl Iterator<Item = &'a Vec<Arc<Socket>>>,
) -> Vec<Address> {
    let shared =
        shared.iter().map(|port| Address { name: port.name.clone(), child: None, address: port.address });
    let own = (0..).zip(own).flat_map(|(child, sockets)| {
        let address = move |socket: &Arc<Socket>| {
            let address = socket.listener.local_addr().ok()?;
            Some(Address { name: socket.handed.name.clone(), child: Some(child), address })
        };
        sockets.iter().filter_map(address)
    });
    shared.chain(own).collect()
}
