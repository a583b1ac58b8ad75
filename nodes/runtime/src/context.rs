//! What the code of a child, or of a node of a single process, is told by whoever runs it, and what it tells back.

use std::fmt;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::config::Common;
use crate::control::{Hello, Report};
use crate::drain::Drain;

/// The process's place in its node. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Place>);

struct Place {
    hello: Hello,
    /// Those of `hello` that were not handed out yet. Touched only while the process starts.
    sockets: Mutex<Vec<(String, TcpListener)>>,
    report: watch::Sender<Report>,
    drain: Drain,
}

impl Context {
    pub(crate) fn new(hello: Hello, sockets: Vec<TcpListener>, drain: Drain) -> Self {
        let sockets = hello.sockets.iter().cloned().zip(sockets).collect();
        let report = watch::Sender::new(Report::default());
        Self(Arc::new(Place { hello, sockets: Mutex::new(sockets), report, drain }))
    }

    pub(crate) fn report(&self) -> watch::Receiver<Report> {
        self.0.report.subscribe()
    }

    /// `proxy-1`.
    pub fn node(&self) -> &str {
        &self.0.hello.common.node
    }

    /// `proxy`.
    pub fn kind(&self) -> &str {
        &self.0.hello.kind
    }

    /// Of this child among the [`Context::children`], from 0; 0 in a node of a single process.
    pub fn index(&self) -> u32 {
        self.0.hello.index
    }

    /// How many children the node has; 0 in a node of a single process.
    pub fn children(&self) -> u32 {
        self.0.hello.children
    }

    /// What every node is told.
    pub fn common(&self) -> &Common {
        &self.0.hello.common
    }

    /// Which node of its name this is: the same for all its children, and after a restart on its data directory.
    pub fn instance(&self) -> &str {
        &self.0.hello.instance
    }

    /// The [`crate::parent::Spec::child_config`].
    ///
    /// # Errors
    /// It has another shape: a mistake of ours.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde::Deserialize::deserialize(&self.0.hello.config)
    }

    /// The listening sockets of this name, non-blocking, in the order of the [`crate::parent::Spec`]. Each is handed
    /// out once.
    pub fn listeners(&self, name: &str) -> Vec<TcpListener> {
        // No code panics while it holds this lock.
        let mut sockets = self.0.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.extract_if(.., |(of, _)| of == name).map(|(_, socket)| socket).collect()
    }

    /// When to stop accepting and finish.
    pub fn drain(&self) -> Drain {
        self.0.drain.clone()
    }

    /// Whether this process can serve now. It starts as `false`.
    pub fn ready(&self, ready: bool) {
        self.0.report.send_if_modified(|report| std::mem::replace(&mut report.ready, ready) != ready);
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

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node(), self.index())
    }
}
