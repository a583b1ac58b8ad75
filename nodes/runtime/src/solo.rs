//! Nodes of a single process: a parent without children that runs the node's code itself.

use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::time::sleep;
use tracing::{error, warn};

use crate::commands::Reload;
use crate::config::Timing;
use crate::context::Context;
use crate::drain::{Drain, Trigger};
use crate::node::{Body, Node, Solo};
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
    let Bound { children: sockets, station, .. } = bound;
    let (hello, own) = match sockets.solo() {
        Ok(told) => told,
        Err(error) => return failed(&error),
    };
    let timing = hello.configuration.common.timing.clone();
    let (trigger, drain) = Drain::new();
    let context = Context::new(hello, own, drain.clone());
    tokio::spawn(telemetry::keep_telling(context.clone()));
    let solo = Solo::new(context.report(), sockets);
    let service = match station.serve(Body::Solo(Box::new(solo)), reload) {
        Ok(service) => service,
        Err(error) => return failed(&error),
    };
    let node = &service.node;
    tokio::spawn(settle(Arc::clone(node), context.clone()));
    tokio::spawn(let_go(Arc::clone(node), drain));
    let noticed = || node.start_draining();
    let code = tokio::select! {
        code = orders::follow(&service.orders, main(context), &timing, timing.drain_grace(), noticed, trigger.clone()) => code,
        () = give_over(node, &trigger, &timing) => ExitCode::FAILURE,
    };
    if node.should_drain() {
        return code;
    }
    let upgrade = if node.upgrades().over().is_draining() {
        node.go_on_as(&node.estate().executable, None).await
    } else if let Some(came) = node.estate().came.as_ref().filter(|came| came.returned.is_none())
        && !node.was_ready()
    {
        node.go_back(came, "its code ended before it was ready".to_owned()).await
    } else {
        return code;
    };
    error!(error = %upgrade, "there is no program to go on with");
    ExitCode::FAILURE
}

/// Has the code end for another program, and waits until it had all the time for that.
async fn give_over(node: &Node, trigger: &Trigger, timing: &Timing) {
    node.upgrades().over().started().await;
    trigger.pull();
    sleep(timing.drain_timeout()).await;
    warn!(drain_timeout_ms = timing.drain_timeout_ms, "cut what was still in flight");
}

/// Closes the sockets, as far as the node holds them, once its code accepts no more; not for another program.
async fn let_go(node: Arc<Node>, drain: Drain) {
    drain.started().await;
    if let (Body::Solo(solo), true) = (node.body(), node.should_drain()) {
        solo.let_go();
    }
}

/// Tells how an upgrade went, once this program has shown that it can do it.
async fn settle(node: Arc<Node>, context: Context) {
    let mut report = context.report();
    if report.wait_for(|report| report.ready).await.is_ok() {
        node.settled();
    }
}
