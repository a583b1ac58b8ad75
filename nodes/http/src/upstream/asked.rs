//! What is known of how an upstream was asked: for the access log, the metrics and the trace.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

/// The last question of an exchange to an upstream. All of it is empty where none was asked.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) origin: Cell<Option<SocketAddr>>,
    /// When a connection was sought, or the request written where one was at hand.
    pub(crate) began: Cell<Option<Instant>>,
    /// For a new connection.
    pub(crate) connect: Cell<Option<Duration>>,
    /// From then on to the head of the answer.
    pub(crate) first_byte: Cell<Option<Duration>>,
    /// The upstream's, which is not always what the client is told.
    pub(crate) status: Cell<Option<StatusCode>>,
    /// When it failed, or its answer had come whole with its head. Else it is over with the exchange.
    pub(crate) over: Cell<Option<Instant>>,
}

impl Asked {
    pub(super) fn begin(&self, origin: SocketAddr, now: Instant) {
        self.origin.set(Some(origin));
        self.began.set(Some(now));
        self.connect.take();
        self.first_byte.take();
        self.status.take();
        self.over.take();
    }
}
