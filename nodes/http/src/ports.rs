//! What is served, and how: sockets that come and go, and what can change about serving while every connection lives on.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::TcpListener;
use std::rc::Rc;

use protoplex_runtime::context::{Context, PortChange};

use crate::fronts::Fronts;
use crate::limits::Limits;
use crate::tls::TlsConfig;

/// A listening socket and how it is spoken to.
#[derive(Debug)]
pub struct Listener {
    /// Bound and listening.
    pub socket: TcpListener,
    /// With it the port speaks TLS only (HTTP/2 and HTTP/1.1 by ALPN), without it HTTP/1.1 and HTTP/2 by
    /// prior knowledge.
    pub tls: Option<TlsConfig>,
    /// The balancers and proxies in front of it.
    pub fronts: Fronts,
}

/// Where connections come from: sockets that stay, and those that the parent gives and takes.
#[derive(Debug, Default)]
pub struct Ports {
    pub(crate) fixed: Vec<Listener>,
    pub(crate) given: Option<Given>,
}

/// The sockets that a child shares with its siblings.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) context: Context,
    /// Which of them speak TLS.
    pub(crate) encrypted: &'static str,
}

impl From<Vec<Listener>> for Ports {
    fn from(fixed: Vec<Listener>) -> Self {
        Self { fixed, given: None }
    }
}

impl Ports {
    /// With these, too.
    pub fn and(mut self, fixed: impl IntoIterator<Item = Listener>) -> Self {
        self.fixed.extend(fixed);
        self
    }

    /// The next changes. Cancel-safe.
    pub(crate) async fn changes(&self) -> Vec<PortChange> {
        match &self.given {
            Some(given) => given.context.port_changes().await,
            None => std::future::pending().await,
        }
    }

    /// Whether a given socket of this name speaks TLS.
    pub(crate) fn is_encrypted(&self, name: &str) -> bool {
        self.given.as_ref().is_some_and(|given| given.encrypted == name)
    }
}

/// What the connections of a port share.
#[derive(Debug, Default)]
pub(crate) struct Port {
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) fronts: Fronts,
}

/// What of serving can change at any time. It counts for connections that are accepted from then on; those that there are
/// keep what they began with. Cheap to clone.
#[derive(Clone)]
pub struct Tuning(Rc<Tuned>);

struct Tuned {
    limits: RefCell<Limits>,
    plain: RefCell<Rc<Port>>,
    encrypted: RefCell<Rc<Port>>,
    /// Grows with each change.
    version: Cell<u64>,
}

impl Tuning {
    /// With the certificate of the ports that the parent gives, and with whoever is believed in front of them.
    pub fn new(limits: Limits, tls: Option<TlsConfig>, fronts: Fronts) -> Self {
        let tuning = Self(Rc::new(Tuned {
            limits: RefCell::default(),
            plain: RefCell::default(),
            encrypted: RefCell::default(),
            version: Cell::new(0),
        }));
        tuning.change(limits, tls, fronts);
        tuning
    }

    /// From now on these count.
    pub fn change(&self, limits: Limits, tls: Option<TlsConfig>, fronts: Fronts) {
        self.0.limits.replace(limits);
        self.0.plain.replace(Rc::new(Port { tls: None, fronts: fronts.clone() }));
        self.0.encrypted.replace(Rc::new(Port { tls, fronts }));
        self.0.version.set(self.0.version.get() + 1);
    }

    pub(crate) fn limits(&self) -> Limits {
        self.0.limits.borrow().clone()
    }

    pub(crate) fn plain(&self) -> Rc<Port> {
        Rc::clone(&self.0.plain.borrow())
    }

    pub(crate) fn encrypted(&self) -> Rc<Port> {
        Rc::clone(&self.0.encrypted.borrow())
    }

    pub(crate) fn version(&self) -> u64 {
        self.0.version.get()
    }
}

impl From<Limits> for Tuning {
    fn from(limits: Limits) -> Self {
        Self::new(limits, None, Fronts::default())
    }
}

impl fmt::Debug for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tuning")
    }
}
