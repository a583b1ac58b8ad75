//! Nodes of a single process: a parent without children that runs the node's code itself.

use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::commands::Reload;
use crate::config::Timing;
use crate::context::Context;
use crate::control::{Configuration, Report};
use crate::drain::Drain;
use crate::node::Body;
use crate::orders;
use crate::parent::{Bound, Spec, failed};
use crate::telemetry;

/// A node whose one process does its work.
#[derive(Debug)]
pub(crate) struct Solo {
    spec: Mutex<Spec>,
    context: Context,
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
    let (spec, hello, sockets) = match bound.children.solo() {
        Ok(told) => told,
        Err(error) => return failed(&error),
    };
    let (trigger, drain) = Drain::new();
    let context = Context::new(hello, sockets, drain);
    tokio::spawn(telemetry::keep_telling(context.clone()));
    let solo = Solo { spec: Mutex::new(spec), context: context.clone() };
    let service = match bound.station.serve(Body::Solo(Box::new(solo)), reload) {
        Ok(service) => service,
        Err(error) => return failed(&error),
    };
    let Body::Solo(solo) = service.node.body() else { return ExitCode::FAILURE };
    let noticed = || {
        service.node.start_draining();
        let timing = solo.timing();
        (timing.drain_grace(), timing.drain_timeout())
    };
    orders::follow(&service.orders, main(context), noticed, trigger).await
}
