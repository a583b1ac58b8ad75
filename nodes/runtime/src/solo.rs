//! Nodes of a single process: a parent without children that runs the node's code itself.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::process::ExitCode;

use crate::context::Context;
use crate::drain::Drain;
use crate::node::Body;
use crate::orders;
use crate::parent::{Bound, failed};
use crate::telemetry;

/// Runs the node's code until it returns, or `drain_timeout` after the drain began. Its `shared` sockets are those of
/// the [`Context`]. An error is logged and becomes exit code 1.
pub async fn run<F, R, E>(mut bound: Bound, main: F) -> ExitCode
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), E>>,
    E: Display,
{
    let Some((hello, sockets)) = bound.hellos().next() else {
        return failed(&io::Error::other("no sockets"));
    };
    let timing = hello.common.timing.clone();
    let (trigger, drain) = Drain::new();
    let context = Context::new(hello, sockets, drain);
    tokio::spawn(telemetry::keep_telling(context.clone()));
    let service = match bound.serve(Body::Solo(context.report())) {
        Ok(service) => service,
        Err(error) => return failed(&error),
    };
    let noticed = || service.node.start_draining();
    orders::follow(&service.orders, main(context), &timing, timing.drain_grace(), noticed, trigger).await
}
