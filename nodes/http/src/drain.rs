//! The end in good order as connections see it: since when, how long each kind of work may still take, and what became of
//! it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use metrics::{Counter, counter};
use protoplex_runtime::drain::{Drain, Drained};
use tokio::task::Id;
use tokio::time::Instant;

use crate::exchange::Ledger;
use crate::limits::Limits;
use crate::surroundings::Surroundings;

/// The process's drain, with a time for each kind of work. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Draining {
    drain: Drain,
    times: Rc<Cell<Times>>,
    /// None of those times is longer: then the process ends.
    whole: Duration,
}

/// How long work may go on once a drain has started.
#[derive(Clone, Copy)]
struct Times {
    requests: Option<Duration>,
    event_streams: Duration,
    tunnels: Duration,
}

/// What outlasts any request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    EventStream,
    Tunnel,
}

/// What there is on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// If anything.
    Requests,
    Lasting(Kind),
    Both(Kind),
}

/// The connection that something lasts on.
pub(crate) struct Bearer {
    pub(crate) task: Id,
    /// How many exchanges there are on it, where there may be several.
    pub(crate) open: Option<Rc<Cell<usize>>>,
}

/// What lasts on a connection.
struct Borne {
    kind: Kind,
    count: usize,
    /// So many of them have told already what became of them.
    told: usize,
    open: Option<Rc<Cell<usize>>>,
}

impl Borne {
    fn load(&self) -> Load {
        match &self.open {
            Some(open) if open.get() > self.count => Load::Both(self.kind),
            _ => Load::Lasting(self.kind),
        }
    }
}

/// How one of those ends: it is asked to at a time of its own, so that not all clients come back at once, and cut in the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parting {
    pub(crate) at: Instant,
    pub(crate) until: Instant,
}

/// So much of the time is for asking, the rest for the answer of who was asked last.
const SPREAD: f64 = 0.75;
/// Each sees to its own end. Where it can't, for want of a client that takes anything, the connection is cut so much later.
const CUT_MARGIN: Duration = Duration::from_millis(250);
/// Between two looks at what waits for others.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Times {
    fn new(limits: &Limits) -> Self {
        Self {
            requests: limits.request_drain_timeout,
            event_streams: limits.event_stream_drain_timeout,
            tunnels: limits.tunnel_drain_timeout,
        }
    }
}

impl Draining {
    pub(crate) fn new(surroundings: &Surroundings, limits: &Limits) -> Self {
        let times = Rc::new(Cell::new(Times::new(limits)));
        Self { drain: surroundings.drain.clone(), times, whole: surroundings.drain_timeout }
    }

    /// From now on these times count, for all connections.
    pub(crate) fn change(&self, limits: &Limits) {
        self.times.set(Times::new(limits));
    }

    /// When something that lasts is to end, as it was drawn before. It is asked to at once where it is recalled.
    pub(crate) fn part(
        &self,
        kind: Kind,
        drawn: &mut Option<Parting>,
        recalled: Option<Instant>,
    ) -> Option<Parting> {
        if drawn.is_none() {
            *drawn = self.parting(kind);
        }
        if let Some(since) = recalled
            && drawn.is_none_or(|drawn| drawn.at > since)
        {
            *drawn = Some(Parting { at: since, until: since + self.time(kind) });
        }
        *drawn
    }

    /// When something that lasts is to end; drawn anew each time. `None` before the drain.
    pub(crate) fn parting(&self, kind: Kind) -> Option<Parting> {
        let (since, time) = (self.since()?, self.time(kind));
        let begin = Instant::now().max(since);
        let spread = (since + time.mul_f64(SPREAD)).saturating_duration_since(begin);
        Some(Parting { at: begin + spread.mul_f64(rand::random()), until: since + time })
    }

    fn time(&self, kind: Kind) -> Duration {
        let times = self.times.get();
        match kind {
            Kind::EventStream => times.event_streams.min(self.whole),
            Kind::Tunnel => times.tunnels.min(self.whole),
        }
    }

    /// When a connection is cut with what there is on it. `None` where the process's end does it, and before the drain.
    fn cut_at(&self, load: Load) -> Option<Instant> {
        let lasting = |kind| self.time(kind) + CUT_MARGIN;
        let requests = self.times.get().requests;
        let after = match load {
            Load::Requests => requests,
            Load::Lasting(kind) => Some(lasting(kind)),
            Load::Both(kind) => requests.map(|requests| requests.max(lasting(kind))),
        };
        Some(self.since()? + after.filter(|after| *after < self.whole)?)
    }
}

impl Deref for Draining {
    type Target = Drain;

    fn deref(&self) -> &Drain {
        &self.drain
    }
}

/// What became of something in a drain, or of what was recalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    RequestsFinished,
    RequestsCut,
    EventStreamsEnded,
    EventStreamsCut,
    WebsocketsClosed,
    TunnelsCut,
    ConnectionsClosedIdle,
}

impl What {
    const ALL: [(Self, &str); 7] = [
        (Self::RequestsFinished, "requests_finished"),
        (Self::RequestsCut, "requests_cut"),
        (Self::EventStreamsEnded, "event_streams_ended"),
        (Self::EventStreamsCut, "event_streams_cut"),
        (Self::WebsocketsClosed, "websockets_closed"),
        (Self::TunnelsCut, "tunnels_cut"),
        (Self::ConnectionsClosedIdle, "connections_closed_idle"),
    ];
}

/// What there is, and what became of it in the drain.
pub(crate) struct Tally {
    /// Exchanges of all kinds.
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// Those among them that last, by kind.
    lasting: [Cell<u64>; 2],
    lasting_ended: Cell<u64>,
    /// By connection.
    connections: RefCell<HashMap<Id, Borne, foldhash::fast::FixedState>>,
    /// Requests that had ended when the drain began, and when it began to cut.
    at_start: Cell<Option<u64>>,
    at_cut: Cell<Option<u64>>,
    counts: [Cell<u64>; What::ALL.len()],
    counters: [Counter; What::ALL.len()],
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            begun: Cell::default(),
            ended: Cell::default(),
            lasting: Default::default(),
            lasting_ended: Cell::default(),
            connections: RefCell::default(),
            at_start: Cell::default(),
            at_cut: Cell::default(),
            counts: Default::default(),
            counters: What::ALL.map(|(_, what)| counter!("protoplex_http_drained_total", "what" => what)),
        }
    }

    pub(crate) fn exchange_begins(&self) {
        add(&self.begun, 1);
    }

    pub(crate) fn exchange_ends(&self) {
        add(&self.ended, 1);
    }

    /// The drain begins.
    pub(crate) fn start(&self) {
        self.at_start.set(Some(self.requests_ended()));
    }

    pub(crate) fn add(&self, what: What, count: u64) {
        add(&self.counts[what as usize], count);
        self.counters[what as usize].increment(count);
    }

    /// When the next connections are to be cut, or looked at: where there are requests beside what lasts, that is cut once
    /// they have ended.
    pub(crate) fn next_cut(&self, drain: &Draining, after: Instant) -> Option<Instant> {
        let may_wait = self.connections.borrow().values().any(|borne| borne.open.is_some());
        let look = may_wait.then(|| after + LOOK_INTERVAL);
        let loads = [Load::Requests, Load::Lasting(Kind::EventStream), Load::Lasting(Kind::Tunnel)];
        loads.into_iter().filter_map(|load| drain.cut_at(load)).filter(|at| *at > after).chain(look).min()
    }

    /// Whether a connection is to be cut now. What lasts on it is taken for cut then.
    pub(crate) fn is_cut(&self, drain: &Draining, connection: Id, now: Instant) -> bool {
        let connections = self.connections.borrow();
        let borne = connections.get(&connection);
        let load = borne.map_or(Load::Requests, Borne::load);
        let is_cut = drain.cut_at(load).is_some_and(|at| at <= now);
        if is_cut {
            if let Some(Borne { kind, count, told, .. }) = borne {
                self.add(kind.cut(), count.saturating_sub(*told) as u64);
            }
            if !matches!(load, Load::Lasting(_)) && self.at_cut.get().is_none() {
                self.at_cut.set(Some(self.requests_ended()));
            }
        }
        is_cut
    }

    fn requests_ended(&self) -> u64 {
        self.ended.get().saturating_sub(self.lasting_ended.get())
    }

    /// Takes down what became of the requests; of what is in flight still nothing will come where `is_over`.
    fn settle(&self, is_over: bool) {
        let Some(at_start) = self.at_start.get() else { return };
        let ended = self.requests_ended();
        let finished = self.at_cut.get().unwrap_or(ended);
        let mut cut = ended - finished;
        if is_over {
            let lasting: u64 = self.lasting.iter().map(Cell::get).sum();
            cut += self.begun.get().saturating_sub(self.ended.get() + lasting);
            for kind in [Kind::EventStream, Kind::Tunnel] {
                self.add(kind.cut(), self.lasting[kind as usize].take());
            }
        }
        for (what, now) in [(What::RequestsFinished, finished - at_start), (What::RequestsCut, cut)] {
            self.add(what, now.saturating_sub(self.counts[what as usize].get()));
        }
    }

    fn count(&self, what: What) -> u64 {
        self.counts[what as usize].get()
    }

    fn drained(&self) -> Drained {
        What::ALL.iter().map(|(what, name)| (*name, self.count(*what))).collect()
    }
}

impl Kind {
    fn cut(self) -> What {
        match self {
            Self::EventStream => What::EventStreamsCut,
            Self::Tunnel => What::TunnelsCut,
        }
    }
}

fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

/// Something that lasts, on the books for as long as it lives.
pub(crate) struct Lasting {
    ledger: Rc<Ledger>,
    kind: Kind,
    connection: Option<Id>,
    told: Cell<bool>,
}

impl Lasting {
    pub(crate) fn new(ledger: &Rc<Ledger>, kind: Kind, bearer: Option<Bearer>) -> Self {
        let tally = &ledger.tally;
        add(&tally.lasting[kind as usize], 1);
        let connection = bearer.map(|Bearer { task, open }| {
            tally
                .connections
                .borrow_mut()
                .entry(task)
                .or_insert(Borne { kind, count: 0, told: 0, open })
                .count += 1;
            task
        });
        Self { ledger: Rc::clone(ledger), kind, connection, told: Cell::new(false) }
    }

    /// What became of it.
    pub(crate) fn became(&self, what: What) {
        let tally = &self.ledger.tally;
        if tally.at_start.get().is_none() {
            let (_, what) = What::ALL[what as usize];
            counter!("protoplex_http_recalled_total", "what" => what).increment(1);
            return;
        }
        tally.add(what, 1);
        let mut connections = tally.connections.borrow_mut();
        if let Some(borne) = self.connection.and_then(|connection| connections.get_mut(&connection))
            && !self.told.replace(true)
        {
            borne.told += 1;
        }
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        let tally = &self.ledger.tally;
        let open = &tally.lasting[self.kind as usize];
        open.set(open.get().saturating_sub(1));
        add(&tally.lasting_ended, 1);
        let mut connections = tally.connections.borrow_mut();
        if let Some(connection) = self.connection
            && let Some(borne) = connections.get_mut(&connection)
        {
            borne.count -= 1;
            borne.told -= usize::from(self.told.get());
            if borne.count == 0 {
                connections.remove(&connection);
            }
        }
    }
}

/// Tells what became of everything: as it goes on, and when it is dropped, be it that the process's time was over.
pub(crate) struct Report<'a> {
    pub(crate) surroundings: &'a Surroundings,
    pub(crate) ledger: Rc<Ledger>,
}

impl Report<'_> {
    /// On the status page, and in the metrics.
    pub(crate) fn show(&self) {
        self.ledger.tally.settle(false);
        self.surroundings.show_drain(self.ledger.tally.drained());
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        let Some(since) = self.surroundings.drain.since() else { return };
        let tally = &self.ledger.tally;
        tally.settle(true);
        self.surroundings.show_drain(tally.drained());
        tracing::info!(
            took_ms = since.elapsed().as_millis() as u64,
            requests_finished = tally.count(What::RequestsFinished),
            requests_cut = tally.count(What::RequestsCut),
            event_streams_ended = tally.count(What::EventStreamsEnded),
            event_streams_cut = tally.count(What::EventStreamsCut),
            websockets_closed = tally.count(What::WebsocketsClosed),
            tunnels_cut = tally.count(What::TunnelsCut),
            connections_closed_idle = tally.count(What::ConnectionsClosedIdle),
            "drained"
        );
    }
}

#[cfg(test)]
mod tests;
