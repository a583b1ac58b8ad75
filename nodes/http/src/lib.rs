//! The public HTTP server and the upstream client that every node with a public port is made of.
//!
//! A request meets the modules below in this order: a socket is accepted ([`serve`]), perhaps announced by a balancer
//! in front of us ([`Fronts`]) and wrapped in TLS ([`tls`]), its head is read by our own HTTP/1.1 engine, or by hyper's for HTTP/2, and a [`Service`] gets an
//! [`Exchange`], with the head in its compact form, and a [`Body`]; a [`Handler`] gets the `http` crate's request. Handlers answer themselves ([`problem`]), relay to
//! another server ([`forwarded`], [`upstream`]) or switch protocols ([`upgrade`]); each exchange ends as one
//! line of the [`access_log`]. Everything is single-threaded: `Rc`, `spawn_local`, no `Send`.
//!
//! This is the only crate of the public side that names hyper, h2 or rustls, so that the engines can be
//! replaced without a change to the nodes.

pub mod access_log;
mod body;
mod buffer;
pub mod clock;
mod connection;
mod deadline;
mod decimal;
mod door;
mod drain;
mod event_stream;
mod exchange;
mod file_part;
pub mod forwarded;
mod fronts;
mod head;
mod http1;
mod http2;
mod limits;
mod meter;
mod outbox;
mod pipe;
mod ports;
mod pressure;
pub mod problem;
mod proxy_header;
pub mod public;
mod request_id;
mod reserved;
#[cfg(test)]
mod script;
mod serve;
mod socket;
mod span;
mod surroundings;
mod tcp;
pub mod tls;
mod tls_stream;
mod trace;
mod tunnel;
mod turn;
pub mod upgrade;
pub mod upstream;
mod websocket;

/// What must hold whatever the bytes are, for the fuzz targets (`nodes/http/fuzz`).
#[cfg(any(test, fuzzing))]
pub mod fuzzing {
    pub use crate::connection::checks::*;
    pub use crate::http1::checks::*;
}

pub use access_log::AccessLog;
pub use body::{Body, BodyError};
pub use exchange::{Answer, Exchange, Handler, Request, Response, Scheme, Service};
pub use fronts::{Fronts, RawProxyProtocol};
pub use head::{Fields, RequestHead, ResponseHead};
pub use limits::{Http2Limits, Limits, RawHttp2Limits, RawLimits};
pub use ports::{Listener, Ports, Tuning};
pub use problem::Problem;
pub use request_id::RequestId;
pub use serve::serve;
pub use surroundings::Surroundings;
