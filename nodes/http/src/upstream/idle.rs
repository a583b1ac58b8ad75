//! The connections that are not in use.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::Settings;
use crate::socket::Stream;

/// By address, each with the time at which it is closed.
#[derive(Default)]
pub(super) struct Idle {
    shelves: Rc<RefCell<Shelves>>,
}

#[derive(Default)]
struct Shelves {
    /// Nobody outside chooses the addresses, so that a fast hash is safe.
    streams: HashMap<SocketAddr, Vec<Resting>, RandomState>,
    /// Closes what has rested for too long; runs only while there is something.
    keeper: Option<AbortHandle>,
}

struct Resting {
    stream: Stream,
    until: Instant,
}

/// How often at least what upstreams have closed is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Idle {
    /// A connection that is fit for use, the youngest first: so in quiet times the others age and go. One of which something
    /// has come though nothing was asked is not: that would be taken for the next answer. What comes in this very turn of the
    /// event loop is not seen; to look for it would cost each request a system call.
    pub(super) fn take(&self, origin: SocketAddr) -> Option<Stream> {
        let mut shelves = self.shelves.borrow_mut();
        let shelf = shelves.streams.get_mut(&origin)?;
        while let Some(resting) = shelf.pop() {
            if resting.stream.is_quiet() {
                return Some(resting.stream);
            }
        }
        None
    }

    /// Keeps a connection on which both messages have ended now.
    pub(super) fn put(&self, origin: SocketAddr, stream: Stream, now: Instant, settings: &Settings) {
        let mut shelves = self.shelves.borrow_mut();
        let shelf = shelves.streams.entry(origin).or_default();
        if shelf.len() >= settings.max_idle_per_origin {
            return;
        }
        shelf.push(Resting { stream, until: now + settings.idle_timeout });
        if shelves.keeper.is_none() {
            let keeper = tokio::task::spawn_local(keep(Rc::downgrade(&self.shelves), settings.idle_timeout));
            shelves.keeper = Some(keeper.abort_handle());
        }
    }
}

impl Drop for Shelves {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }
}

/// Closes connections in their time, and those that their upstream has closed, until there are none.
async fn keep(shelves: Weak<RefCell<Shelves>>, timeout: Duration) {
    let mut next = Instant::now() + timeout.min(LOOK_INTERVAL);
    loop {
        sleep_until(next).await;
        let Some(shelves) = Weak::upgrade(&shelves) else { return };
        let mut shelves = shelves.borrow_mut();
        let now = Instant::now();
        next = now + LOOK_INTERVAL;
        for shelf in shelves.streams.values_mut() {
            shelf.retain(|resting| resting.until > now && resting.stream.is_quiet());
            next = shelf.iter().map(|resting| resting.until).fold(next, Instant::min);
        }
        shelves.streams.retain(|_, shelf| !shelf.is_empty());
        if shelves.streams.is_empty() {
            shelves.keeper = None;
            return;
        }
    }
}
