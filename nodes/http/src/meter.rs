//! What the public server counts, under `protoplex_http_`. Handles are looked up once, when serving begins.

use std::cell::Cell;
use std::rc::Rc;

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_histogram, gauge, histogram};
use tokio::time::Instant;

use crate::exchange::{Exchange, Ledger};
use crate::proxy_header::Refusal;

/// The server's metrics.
pub(crate) struct Meter {
    /// By the first digit of the status.
    requests: [Counter; 5],
    seconds: Histogram,
    first_byte_seconds: Histogram,
    bytes_in: Counter,
    bytes_out: Counter,
    connections: Counter,
    open: Gauge,
    handshakes_failed: Counter,
    /// By the number of the refusal.
    proxy_headers_refused: [Counter; Refusal::ALL.len()],
    requests_shed: Counter,
    shedding: Gauge,
    /// For the status page.
    accepted_count: Cell<u64>,
    open_count: Cell<u64>,
}

/// An open connection, as long as it lives.
pub(crate) struct Open(Rc<Ledger>);

impl Open {
    pub(crate) fn new(ledger: &Rc<Ledger>) -> Self {
        ledger.meter.opened();
        Self(Rc::clone(ledger))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.meter.closed();
    }
}

const REQUEST_SECONDS: &str = "protoplex_http_request_seconds";
const FIRST_BYTE_SECONDS: &str = "protoplex_http_upstream_first_byte_seconds";

impl Meter {
    pub(crate) fn new() -> Self {
        describe_histogram!(
            REQUEST_SECONDS,
            Unit::Seconds,
            "From a request's head to the end of its answer."
        );
        describe_histogram!(
            FIRST_BYTE_SECONDS,
            Unit::Seconds,
            "From sending a request to an upstream to the head of its answer."
        );
        let class = |class: &'static str| counter!("protoplex_http_requests_total", "status" => class);
        Self {
            requests: [class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx")],
            seconds: histogram!(REQUEST_SECONDS),
            first_byte_seconds: histogram!(FIRST_BYTE_SECONDS),
            bytes_in: counter!("protoplex_http_request_body_bytes_total"),
            bytes_out: counter!("protoplex_http_response_body_bytes_total"),
            connections: counter!("protoplex_http_connections_total"),
            open: gauge!("protoplex_http_connections"),
            handshakes_failed: counter!("protoplex_http_tls_handshakes_failed_total"),
            proxy_headers_refused: Refusal::ALL.map(
                |refusal| counter!("protoplex_http_proxy_headers_refused_total", "reason" => refusal.kind()),
            ),
            requests_shed: counter!("protoplex_http_requests_shed_total"),
            shedding: gauge!("protoplex_http_shedding"),
            accepted_count: Cell::default(),
            open_count: Cell::default(),
        }
    }

    fn opened(&self) {
        self.connections.increment(1);
        self.open.increment(1);
        self.accepted_count.set(self.accepted_count.get() + 1);
        self.open_count.set(self.open_count.get() + 1);
    }

    fn closed(&self) {
        self.open.decrement(1);
        self.open_count.set(self.open_count.get() - 1);
    }

    /// Connections that there have been.
    pub(crate) fn accepted_count(&self) -> u64 {
        self.accepted_count.get()
    }

    /// Connections that there are.
    pub(crate) fn open_count(&self) -> u64 {
        self.open_count.get()
    }

    pub(crate) fn proxy_header_refused(&self, refusal: Refusal) {
        self.proxy_headers_refused[refusal as usize].increment(1);
    }

    pub(crate) fn request_shed(&self) {
        self.requests_shed.increment(1);
    }

    pub(crate) fn shedding(&self, shedding: bool) {
        self.shedding.set(u8::from(shedding));
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.increment(1);
    }

    pub(crate) fn exchange_over(&self, exchange: &Exchange, now: Instant) {
        let class = usize::from(exchange.status.get().as_u16() / 100);
        if let Some(requests) = self.requests.get(class.wrapping_sub(1)) {
            requests.increment(1);
        }
        self.seconds.record(now - exchange.started);
        if let Some(first_byte) = exchange.asked.first_byte.get() {
            self.first_byte_seconds.record(first_byte);
        }
        self.bytes_in.increment(exchange.bytes_in.get());
        self.bytes_out.increment(exchange.bytes_out.get());
    }
}
