//! What the code of a child, or of a node of a single process, is told by whoever runs it, and what it tells back.

use std::fmt;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tracing::error;

use crate::config::Common;
use crate::control::{Configuration, Hello, Report};
use crate::drain::{Drain, Drained};
use crate::sockets::Handed;
use crate::telemetry;

/// The process's place in its node. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Place>);

struct Place {
    hello: Hello,
    own: Mutex<Vec<(String, TcpListener)>>,
    ports: Mutex<Vec<PortChange>>,
    ports_changed: Notify,
    configuration: watch::Sender<Configuration>,
    report: watch::Sender<Report>,
    drain: Drain,
}

/// A change of the sockets that this process is to accept on.
#[derive(Debug)]
pub enum PortChange {
    /// One more, non-blocking.
    Open {
        /// By which it is closed.
        id: u64,
        /// As in the [`crate::parent::Spec`]: "http".
        name: String,
        /// Siblings may accept on it, too.
        socket: TcpListener,
    },
    /// No more on this one: somebody else accepts what comes.
    Close {
        /// As it was opened.
        id: u64,
    },
}

impl Context {
    pub(crate) fn new(hello: Hello, sockets: Vec<TcpListener>, drain: Drain) -> Self {
        let mut sockets = hello.sockets.iter().cloned().zip(sockets);
        let own =
            sockets.by_ref().take(hello.own).map(|(Handed { name, .. }, socket)| (name, socket)).collect();
        let ports =
            sockets.map(|(Handed { id, name }, socket)| PortChange::Open { id, name, socket }).collect();
        let report = watch::Sender::new(Report::default());
        Self(Arc::new(Place {
            own: Mutex::new(own),
            ports: Mutex::new(ports),
            ports_changed: Notify::new(),
            configuration: watch::Sender::new(hello.configuration.clone()),
            hello,
            report,
            drain,
        }))
    }

    pub(crate) fn report(&self) -> watch::Receiver<Report> {
        self.0.report.subscribe()
    }

    pub(crate) fn take(&self, Handed { id, name }: Handed, socket: TcpListener) {
        self.ports().push(PortChange::Open { id, name, socket });
        self.0.ports_changed.notify_one();
    }

    pub(crate) fn release(&self, released: u64) {
        let mut ports = self.ports();
        let before = ports.len();
        // One that nobody has seen yet need not be told of.
        ports.retain(|change| !matches!(change, PortChange::Open { id, .. } if *id == released));
        if ports.len() == before {
            ports.push(PortChange::Close { id: released });
        }
        self.0.ports_changed.notify_one();
    }

    pub(crate) fn adopt(&self, configuration: Configuration) {
        if let Err(error) = telemetry::set_level(&configuration.common.telemetry.level) {
            error!(%error, "the old log level goes on");
        }
        self.0.configuration.send_replace(configuration);
    }

    fn ports(&self) -> MutexGuard<'_, Vec<PortChange>> {
        // No code panics while it holds this lock.
        self.0.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `proxy-1`.
    pub fn node(&self) -> &str {
        &self.0.hello.configuration.common.node
    }

    /// `proxy`.
    pub fn kind(&self) -> &str {
        &self.0.hello.kind
    }

    /// Of this child among the node's, from 0; 0 in a node of a single process.
    pub fn index(&self) -> u32 {
        self.0.hello.index
    }

    /// What every node is told, as it was when the process started. What may change while it runs is looked after by
    /// the runtime itself.
    pub fn common(&self) -> &Common {
        &self.0.hello.configuration.common
    }

    /// Which node of its name this is: the same for all its children, and after a restart on its data directory.
    pub fn instance(&self) -> &str {
        &self.0.hello.instance
    }

    /// The present [`crate::parent::Spec::child_config`].
    ///
    /// # Errors
    /// It has another shape: a mistake of ours.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde::Deserialize::deserialize(&self.0.configuration.borrow().config)
    }

    /// Wakes at each change of [`Context::config`] from here on.
    pub fn reconfigured(&self) -> Reconfigured {
        Reconfigured::of(self.0.configuration.subscribe())
    }

    /// This process's own listening sockets of this name, non-blocking. Each is handed out once.
    pub fn listeners(&self, name: &str) -> Vec<TcpListener> {
        // No code panics while it holds this lock.
        let mut sockets = self.0.own.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.extract_if(.., |(of, _)| of == name).map(|(_, socket)| socket).collect()
    }

    /// The next changes of the sockets that the node's children share: those to begin with come at once. For one reader.
    /// Cancel-safe.
    pub async fn port_changes(&self) -> Vec<PortChange> {
        loop {
            let changes = std::mem::take(&mut *self.ports());
            if !changes.is_empty() {
                return changes;
            }
            self.0.ports_changed.notified().await;
        }
    }

    /// When to stop accepting and finish.
    pub fn drain(&self) -> Drain {
        self.0.drain.clone()
    }

    /// Whether this process can serve now. It starts as `false`.
    pub fn ready(&self, ready: bool) {
        self.0.report.send_if_modified(|report| std::mem::replace(&mut report.ready, ready) != ready);
    }

    /// Says what keeps this process from being ready, for people; nothing where it is empty.
    pub fn hindrance(&self, what: impl Into<String>) {
        let what = what.into();
        self.0.report.send_if_modified(|report| {
            let changed = report.hindrance != what;
            report.hindrance = what;
            changed
        });
    }

    /// Says that this process, which drains, has given up what a successor in its place needs: its name in a pool, say. A
    /// successor may be started from here on, while this process finishes.
    pub fn left(&self) {
        self.0.report.send_if_modified(|report| !std::mem::replace(&mut report.left, true));
    }

    /// Tells what has become of this process's work in its drain so far, all of it each time.
    pub fn drained(&self, drained: Drained) {
        self.0.report.send_if_modified(|report| {
            let changed = report.drained != drained;
            report.drained = drained;
            changed
        });
    }

    /// Whether this process refuses requests for a while: then it takes no traffic, ready or not.
    pub fn shedding(&self, shedding: bool) {
        self.0
            .report
            .send_if_modified(|report| std::mem::replace(&mut report.shedding, shedding) != shedding);
    }

    /// Shows a value on the status page, in place of the last one of this name. For states and totals, not for rates:
    /// each change is a message to the parent.
    pub fn detail(&self, name: &str, value: impl Into<serde_json::Value>) {
        let value = value.into();
        self.0.report.send_if_modified(|report| match report.details.get_mut(name) {
            Some(old) if *old == value => false,
            Some(old) => {
                *old = value;
                true
            }
            None => report.details.insert(name.to_owned(), value).is_none(),
        });
    }
}

/// See [`Context::reconfigured`].
#[derive(Debug)]
pub struct Reconfigured(watch::Receiver<Configuration>);

impl Reconfigured {
    pub(crate) fn of(configuration: watch::Receiver<Configuration>) -> Self {
        Self(configuration)
    }

    /// The next configuration. Where one comes quickly behind another only the last is seen. Cancel-safe.
    ///
    /// # Errors
    /// It has another shape: a mistake of ours.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<T, serde_json::Error> {
        if self.0.changed().await.is_err() {
            // Nobody is left who would change it.
            std::future::pending::<()>().await;
        }
        serde::Deserialize::deserialize(&self.0.borrow_and_update().config)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node(), self.index())
    }
}
