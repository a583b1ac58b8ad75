//! Nodes of a single process: a parent without children that runs the node's code itself.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::sleep;
use tracing::{error, warn};

use crate::children::{READY_TIMEOUT, Unstarted};
use crate::commands::Reload;
use crate::config::Timing;
use crate::context::Context;
use crate::control::{Configuration, Report};
use crate::drain::{Drain, Trigger};
use crate::node::{Body, Node};
use crate::orders;
use crate::parent::{Bound, Spec, failed};
use crate::telemetry;
use crate::upgrade::{ChildrenPart, Packing};

/// A node whose one process does its work.
#[derive(Debug)]
pub(crate) struct Solo {
    spec: Mutex<Spec>,
    context: Context,
    /// Until it drains: from then on who connects is refused.
    sockets: Mutex<Option<Unstarted>>,
}

impl Solo {
    /// What the process says of itself.
    pub(crate) fn report(&self) -> watch::Receiver<Report> {
        self.context.report()
    }

    /// What it goes by.
    pub(crate) fn configuration(&self) -> Configuration {
        self.spec().configuration()
    }

    /// What of another configuration it can't go by, as that is called there. See [`Spec::fixed_in_process`].
    pub(crate) fn fixed(&self, other: &Spec) -> Option<String> {
        self.spec().fixed_in_process(other)
    }

    /// Goes by another configuration. Says whether that changes anything.
    pub(crate) fn adopt(&self, spec: Spec) -> bool {
        let changed = self.spec().differs(&spec);
        self.context.adopt(spec.configuration());
        *self.spec() = spec;
        changed
    }

    /// For another program of the node.
    pub(crate) fn hand_over(&self, packing: &mut Packing) -> io::Result<ChildrenPart> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.as_ref().map_or_else(|| Ok(ChildrenPart::default()), |sockets| sockets.hand_over(packing))
    }

    /// From here on only the node's code has its sockets.
    fn let_go(&self) {
        *self.sockets.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn timing(&self) -> Timing {
        self.spec().common.timing.clone()
    }

    fn spec(&self) -> MutexGuard<'_, Spec> {
        // No code panics while it holds this lock.
        self.spec.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the node's code until it returns, or `drain_timeout` after the drain began. Its sockets are its own ones of the
/// [`Context`]. An error is logged and becomes exit code 1.
pub async fn run<F, R, E>(bound: Bound, reload: Reload, main: F) -> ExitCode
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), E>>,
    E: Display,
{
    let Bound { children, station, .. } = bound;
    let (spec, hello, sockets) = match children.solo() {
        Ok(told) => told,
        Err(error) => return failed(&error),
    };
    let (trigger, drain) = Drain::new();
    let context = Context::new(hello, sockets, drain.clone());
    tokio::spawn(telemetry::keep_telling(context.clone()));
    let sockets = Mutex::new(Some(children));
    let solo = Solo { spec: Mutex::new(spec), context: context.clone(), sockets };
    let service = match station.serve(Body::Solo(Box::new(solo)), reload) {
        Ok(service) => service,
        Err(error) => return failed(&error),
    };
    let node = &service.node;
    let Body::Solo(solo) = node.body() else { return ExitCode::FAILURE };
    // Held from the first moment on.
    let turn = match &node.estate().came {
        Some(_) => Some(node.upgrades().turn().await),
        None => None,
    };
    tokio::spawn(settle(Arc::clone(node), context.clone(), turn));
    tokio::spawn(let_go(Arc::clone(node), drain));
    let noticed = || {
        node.start_draining();
        let timing = solo.timing();
        (timing.drain_grace(), timing.drain_timeout())
    };
    let code = tokio::select! {
        code = orders::follow(&service.orders, main(context), noticed, trigger.clone()) => code,
        () = give_over(node, solo, &trigger) => ExitCode::FAILURE,
        () = overdue(node) => ExitCode::FAILURE,
    };
    if node.should_drain() {
        node.finish().await;
        return code;
    }
    let upgrade = if node.upgrades().over().is_draining() {
        let failed = node.go_on_as_rehearsed().await;
        // The code of this program has ended: it starts anew.
        node.go_on_as(Path::new("/proc/self/exe"), Some(failed.to_string())).await
    } else if let Some(came) = node.estate().came.as_ref().filter(|came| came.returned.is_none())
        && !node.was_ready()
    {
        node.go_back(came, "it did not become ready".to_owned()).await
    } else {
        return code;
    };
    if node.should_drain() {
        node.finish().await;
        return code;
    }
    error!(error = %upgrade, "there is no program to go on with");
    ExitCode::FAILURE
}

/// Has the code end for another program, and waits until it had all the time for that.
async fn give_over(node: &Node, solo: &Solo, trigger: &Trigger) {
    node.upgrades().over().started().await;
    trigger.pull();
    let timing = solo.timing();
    sleep(timing.drain_timeout()).await;
    warn!(drain_timeout_ms = timing.drain_timeout_ms, "cut what was still in flight");
}

/// Returns when a program that has taken over from one that served still isn't ready.
async fn overdue(node: &Node) {
    if node.estate().came.as_ref().is_some_and(|came| came.was_ready && came.returned.is_none()) {
        sleep(READY_TIMEOUT).await;
        if !node.was_ready() {
            return;
        }
    }
    std::future::pending().await
}

/// Closes the sockets, as far as the node holds them, once its code accepts no more; not for another program.
async fn let_go(node: Arc<Node>, drain: Drain) {
    drain.started().await;
    if let (Body::Solo(solo), true) = (node.body(), node.should_drain()) {
        solo.let_go();
    }
}

/// Tells how an upgrade went, once this program has shown that it can do it.
async fn settle(node: Arc<Node>, context: Context, _turn: Option<OwnedMutexGuard<()>>) {
    let mut report = context.report();
    if report.wait_for(|report| report.ready).await.is_ok() {
        node.settled();
    }
}
