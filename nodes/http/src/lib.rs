//! The public HTTP server and the upstream client that every node with a public port is made of.
//!
//! A request meets the modules below in this order: a socket is accepted ([`serve`]), perhaps wrapped in TLS
//! ([`tls`]), its bytes pass a strict framing check before the HTTP/1.1 engine sees them, and a [`Handler`]
//! gets an
//! `http` request with our own [`Body`] and an [`Exchange`]. Handlers answer themselves ([`problem`]), relay to
//! another server ([`forwarded`], [`upstream`]) or switch protocols ([`upgrade`]); each exchange ends as one
//! line of the [`access_log`]. Everything is single-threaded: `Rc`, `spawn_local`, no `Send`.
//!
//! This is the only crate of the public side that names hyper, h2 or rustls, so that the engines can be
//! replaced without a change to the nodes.

pub mod access_log;
mod body;
mod buffer;
mod deadline;
mod exchange;
pub mod forwarded;
mod head;
mod http1;
mod http2;
mod limits;
mod meter;
mod outbox;
pub mod problem;
pub mod public;
mod request_id;
mod reserved;
mod serve;
mod socket;
pub mod tls;
pub mod upgrade;
pub mod upstream;

pub use access_log::AccessLog;
pub use body::{Body, BodyError};
pub use exchange::{Answer, Exchange, Handler, Request, Response, Scheme, Service};
pub use head::{Fields, RequestHead, ResponseHead};
#[cfg(any(test, fuzzing))]
pub use http1::checks as fuzzing;
pub use limits::{Http2Limits, Limits, RawHttp2Limits, RawLimits};
pub use problem::Problem;
pub use request_id::RequestId;
pub use serve::{Listener, serve};
