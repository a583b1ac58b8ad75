//! Serves connections from the start of a process to the end of its drain.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::access_log::AccessLog;
use crate::door::{self, Door};
use crate::drain::{Bearer, Draining, Kind, Lasting, Report, Tally, What};
use crate::exchange::{Ledger, Service};
use crate::limits::Limits;
use crate::meter::Meter;
use crate::ports::{Ports, Tuning};
use crate::pressure::{Pressure, Turn};
use crate::surroundings::Surroundings;

/// What all connections share that came in under the same limits.
pub(crate) struct Server<S> {
    pub(crate) handler: Rc<S>,
    pub(crate) limits: Limits,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) drain: Draining,
    pressure: Rc<Pressure>,
    /// Notified whenever memory was judged.
    judged: Rc<Notify>,
}

/// How often memory is judged. At a gigabit a second it is less by 32 MB then.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// How often the status page learns how many connections there are.
const SHOW_INTERVAL: Duration = Duration::from_secs(3);
/// The same of how a drain goes on.
const DRAIN_SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// Serves the ports until the drain has started and every request in flight has ended. Must be called within a
/// `LocalSet`. The caller limits the time that a drain may take, by dropping the future: that cuts what is left.
///
/// # Errors
/// A listening socket can't be used at all. What goes wrong with single connections is counted, not returned.
pub async fn serve<S: Service + 'static>(
    ports: impl Into<Ports>,
    tuning: impl Into<Tuning>,
    log: AccessLog,
    surroundings: impl Into<Surroundings>,
    handler: Rc<S>,
) -> io::Result<()> {
    let (ports, tuning, surroundings) = (ports.into(), tuning.into(), surroundings.into());
    let server = Server::new(handler, tuning.limits(), log.clone(), &surroundings);
    // Tells what became of everything however this ends.
    let report = Report { surroundings: &surroundings, ledger: Rc::clone(&server.ledger) };
    let door = Rc::new(Door::new(tuning, server));
    let over = Notify::new();
    let serving = async {
        let served = door::accept_all(ports, &door).await;
        door.empty().await;
        over.notify_one();
        served
    };
    let watching = async {
        tokio::join!(
            watch_memory(&surroundings, &door),
            show(&surroundings, &door),
            watch_drain(&report),
            door.cut_in_time()
        )
    };
    // The first ends, the second never does and holds nothing.
    tokio::select! {
        (served, ()) = async { tokio::join!(serving, log.keep_writing(&over)) } => served,
        _ = watching => Ok(()),
    }
}

/// Shows how a drain goes on, once it has started. Never ends.
async fn watch_drain(report: &Report<'_>) {
    report.surroundings.drain.started().await;
    report.ledger.tally.start();
    loop {
        report.show();
        sleep(DRAIN_SHOW_INTERVAL).await;
    }
}

/// Judges the memory that there is again and again. Never ends.
async fn watch_memory<S: Service + 'static>(surroundings: &Surroundings, door: &Door<S>) {
    loop {
        let server = door.server();
        if !server.pressure.is_watched() {
            sleep(SAMPLE_INTERVAL).await;
            continue;
        }
        let sample = surroundings.memory();
        let turn = server.pressure.weigh(sample);
        if let Some(turn) = turn {
            let (available_bytes, resident_bytes) = (sample.available_bytes, sample.resident_bytes);
            match turn {
                Turn::Begins => {
                    warn!(available_bytes, resident_bytes, "memory runs out, requests are answered with 503");
                }
                Turn::Ends => info!(available_bytes, resident_bytes, "there is memory again"),
            }
            server.ledger.meter.shedding(turn == Turn::Begins);
            surroundings.show_shedding(turn == Turn::Begins);
        }
        server.judged.notify_waiters();
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// Shows how many connections there are, and lets go of those that have ended. Never ends.
pub(crate) async fn show<S: Service + 'static>(surroundings: &Surroundings, door: &Door<S>) {
    let server = door.server();
    let meter = &server.ledger.meter;
    loop {
        door.reap();
        surroundings.show_connections(meter.open_count(), meter.accepted_count());
        sleep(SHOW_INTERVAL).await;
    }
}

impl<S> Server<S> {
    pub(crate) fn new(handler: Rc<S>, limits: Limits, log: AccessLog, surroundings: &Surroundings) -> Self {
        let ledger = Rc::new(Ledger { log, meter: Meter::new(), tally: Tally::new() });
        let pressure = Rc::new(Pressure::new(&limits));
        let drain = Draining::new(surroundings, &limits);
        Self { handler, limits, ledger, drain, pressure, judged: Rc::default() }
    }

    /// The same under other limits. Memory is judged for all of them together, by the last ones, and so is a drain's time.
    pub(crate) fn under(&self, limits: Limits) -> Self {
        self.pressure.change(&limits);
        self.drain.change(&limits);
        Self {
            handler: Rc::clone(&self.handler),
            limits,
            ledger: Rc::clone(&self.ledger),
            drain: self.drain.clone(),
            pressure: Rc::clone(&self.pressure),
            judged: Rc::clone(&self.judged),
        }
    }

    /// Whether a request is to be refused for want of memory, which is counted.
    pub(crate) fn sheds(&self) -> bool {
        let sheds = self.pressure.sheds();
        if sheds {
            self.ledger.meter.request_shed();
        }
        sheds
    }

    /// Takes down that something lasts, and on which connection.
    pub(crate) fn lasting(&self, kind: Kind, bearer: Option<Bearer>) -> Lasting {
        Lasting::new(&self.ledger, kind, bearer)
    }

    /// Takes down that a connection ends without a request: of a drain's doing, if there is one.
    pub(crate) fn idle_ends(&self) {
        if self.drain.is_draining() {
            self.ledger.tally.add(What::ConnectionsClosedIdle, 1);
        }
    }

    /// Returns once one more connection may be accepted.
    pub(crate) async fn room(&self) {
        while !self.pressure.has_room(self.ledger.meter.open_count()) {
            self.judged.notified().await;
        }
    }
}
