//! A child of a node: the same executable once more, on one thread, with sockets and orders from its parent.

use std::fmt::Display;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{self, LocalOptions};
use tracing::error;

use crate::context::Context;
use crate::control::{self, Hello};
use crate::descriptors;
use crate::drain::Drain;
use crate::orders::{self, Orders};
use crate::sys::stack;
use crate::telemetry;

/// Threads of a child for what blocks: disk, hashing, compression.
const BLOCKING_THREADS: usize = 8;

/// What `ps` and `top` call it.
const NAME: &str = "protoplex";

/// This process, where it is a child.
#[derive(Debug)]
pub struct Child {
    hello: Hello,
    sockets: Vec<TcpListener>,
    parent: UnixStream,
    /// Open until the process ends, see [`crate::running`].
    instance: OwnedFd,
}

/// Whether this process is a child of a node. To be asked first thing in `main`, before arguments are looked at.
///
/// # Errors
/// It should be one, but what its parent said can't be understood.
pub fn from_environment() -> io::Result<Option<Child>> {
    let Some(parent) = control::inherited(control::CHILD)? else {
        return Ok(None);
    };
    let (hello, sockets, instance) = control::receive(&parent)?;
    // Its name would be that of the link it was started by, "exe". Without this tools show that.
    let _ = fs::write("/proc/self/comm", NAME);
    Ok(Some(Child { hello, sockets, parent, instance }))
}

impl Child {
    /// Which kind of node this is a child of: tells which code to run.
    pub fn kind(&self) -> &str {
        &self.hello.kind
    }

    /// Runs the child's code on one current-thread runtime that takes local tasks, until it returns, or `drain_timeout`
    /// after the drain began.
    ///
    /// The code should return once its drain has started and it has finished. An error is logged and becomes exit
    /// code 1; the parent starts a successor.
    pub fn run<F, E>(self, main: F) -> ExitCode
    where
        F: AsyncFnOnce(Context) -> Result<(), E>,
        E: Display,
    {
        let common = &self.hello.configuration.common;
        let index = self.hello.index;
        let started = telemetry::start(&common.telemetry, &common.node, Some(index))
            .and_then(|()| telemetry::trace::start_child(common, index));
        if let Err(error) = started {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        if let Err(error) = descriptors::reserve() {
            error!(%error, "with all files open it can be given no sockets");
        }
        if let Err(error) = stack::log_at_quit() {
            error!(%error, "should this process get stuck, it can't tell where");
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                error!(%error, "no event loop");
                return ExitCode::FAILURE;
            }
        };
        let Self { hello, sockets, parent, instance } = self;
        let code = runtime.block_on(serve(hello, sockets, parent, main));
        telemetry::trace::finish();
        telemetry::flush();
        // What still runs on a blocking thread was cut, and is not waited for.
        runtime.shutdown_background();
        // Whoever holds it may still serve; from here on this process doesn't.
        drop(instance);
        code
    }
}

async fn serve<F, E>(hello: Hello, sockets: Vec<TcpListener>, parent: UnixStream, main: F) -> ExitCode
where
    F: AsyncFnOnce(Context) -> Result<(), E>,
    E: Display,
{
    let timing = hello.configuration.common.timing.clone();
    let (trigger, drain) = Drain::new();
    let context = Context::new(hello, sockets, drain);
    tokio::spawn(telemetry::keep_telling(context.clone()));
    let orders = match Orders::of_child(parent, &context) {
        Ok(orders) => orders,
        Err(error) => {
            error!(%error, "no control socket");
            return ExitCode::FAILURE;
        }
    };
    // The parent has let the grace pass before it tells its children.
    let code =
        orders::follow(&orders, main(context), || (Duration::ZERO, timing.drain_timeout()), trigger).await;
    orders.finish().await;
    code
}
