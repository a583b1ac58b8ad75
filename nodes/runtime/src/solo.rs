//! Nodes of a single process: a parent without children that runs the node's code itself.

use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;

use crate::commands::Reload;
use crate::context::Context;
use crate::drain::Drain;
use crate::node::Body;
use crate::orders;
use crate::parent::{Bound, failed};
use crate::telemetry;

/// Runs the node's code until it returns, or `drain_timeout` after the drain began. Its sockets are its own ones of the
/// [`Context`]. An error is logged and becomes exit code 1.
pub async fn run<F, R, E>(bound: Bound, reload: Reload, main: F) -> ExitCode
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), E>>,
    E: Display,
{
    let (hello, sockets) = match bound.children.solo() {
        Ok(told) => told,
        Err(error) => return failed(&error),
    };
    let timing = hello.configuration.common.timing.clone();
    let (trigger, drain) = Drain::new();
    let context = Context::new(hello, sockets, drain);
    tokio::spawn(telemetry::keep_telling(context.clone()));
    let service = match bound.station.serve(Body::Solo(context.report()), reload) {
        Ok(service) => service,
        Err(error) => return failed(&error),
    };
    let noticed = || service.node.start_draining();
    orders::follow(&service.orders, main(context), &timing, timing.drain_grace(), noticed, trigger).await
}
