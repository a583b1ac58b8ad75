//! A tenure is the time during which this child owns one key at one epoch. It carries the key's channel, and ends once.
//!
//! | ends with | its streams | its key |
//! | --- | --- | --- |
//! | [`End::Revoked`]: the lease or the key was lost | say all that was published, then end | belongs to another |
//! | [`End::Moved`]: the seed has asked for it, for another member | likewise | free as soon as the seed is told |
//! | [`End::Draining`]: this child is about to leave | likewise | likewise, one batch after the other |
//! | idleness: no user and no history | has none | is given back to the seed |

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use metrics::gauge;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::channel::{Channel, Position, Read, Retention, Since, Start, Update};

/// How long an unused key is kept: long enough for a client that reconnects.
const LINGER: Duration = Duration::from_secs(10);

/// Why a tenure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The lease or the key was lost.
    Revoked,
    /// The key moves to another member.
    Moved,
    /// This child is leaving.
    Draining,
}

/// One key, owned at one epoch.
pub(crate) struct Tenure {
    pub(crate) key: Rc<str>,
    pub(crate) epoch: u64,
    channel: RefCell<Channel>,
    /// Something was published, or the tenure has ended.
    changed: Notify,
    end: Cell<Option<End>>,
    users: Cell<usize>,
    touched: Cell<Instant>,
}

/// Keeps a tenure from being idle: held by each stream and each registration connection.
pub(crate) struct Use(Rc<Tenure>);

/// Every key that this child owns and was asked for.
pub(crate) struct Tenures {
    held: RefCell<HashMap<Rc<str>, Rc<Tenure>>>,
    max: usize,
}

impl Tenures {
    /// At most `max` keys at once.
    pub(crate) fn new(max: usize) -> Self {
        Self { held: RefCell::default(), max }
    }

    /// The tenure of a key that was just found to be owned at `epoch`; begun if need be. None: there are too many.
    pub(crate) fn hold(
        &self,
        key: &str,
        epoch: u64,
        retention: impl FnOnce() -> Retention,
    ) -> Option<Rc<Tenure>> {
        let mut held = self.held.borrow_mut();
        if let Some(tenure) = held.get(key) {
            if tenure.epoch == epoch {
                tenure.touched.set(Instant::now());
                return Some(Rc::clone(tenure));
            }
            // The key was lost and came back before we were told of the loss.
            tenure.finish(End::Revoked);
        } else if held.len() >= self.max {
            return None;
        }
        let tenure = Rc::new(Tenure {
            key: key.into(),
            epoch,
            channel: RefCell::new(Channel::new(epoch, retention())),
            changed: Notify::new(),
            end: Cell::new(None),
            users: Cell::new(0),
            touched: Cell::new(Instant::now()),
        });
        held.insert(Rc::clone(&tenure.key), Rc::clone(&tenure));
        gauge!("protoplex_live_channels").set(held.len() as f64);
        Some(tenure)
    }

    /// Ends every tenure for which `over` is true.
    pub(crate) fn end(&self, end: End, over: impl Fn(&Tenure) -> bool) {
        self.held.borrow_mut().retain(|_, tenure| {
            let over = over(tenure);
            if over {
                tenure.finish(end);
            }
            !over
        });
        self.count();
    }

    /// Ends the tenure of `key`, where `over` is true of it.
    pub(crate) fn end_one(&self, key: &str, end: End, over: impl FnOnce(&Tenure) -> bool) {
        let mut held = self.held.borrow_mut();
        if held.get(key).is_some_and(|tenure| over(tenure)) {
            if let Some(tenure) = held.remove(key) {
                tenure.finish(end);
            }
            gauge!("protoplex_live_channels").set(held.len() as f64);
        }
    }

    /// Is the key held at this epoch? Then it is given back when it is idle, and not before.
    pub(crate) fn holds(&self, key: &str, epoch: u64) -> bool {
        self.held.borrow().get(key).is_some_and(|tenure| tenure.epoch == epoch)
    }

    /// Ages all histories and takes out what is idle: keys to give back to the seed, with their epochs.
    pub(crate) fn sweep(&self, now: Instant) -> Vec<(Rc<str>, u64)> {
        let mut idle = Vec::new();
        self.held.borrow_mut().retain(|key, tenure| {
            let has_history = tenure.channel.borrow_mut().expire(now.into_std());
            let keep = has_history || tenure.users.get() > 0 || now < tenure.touched.get() + LINGER;
            if !keep {
                tenure.finish(End::Revoked);
                idle.push((Rc::clone(key), tenure.epoch));
            }
            keep
        });
        self.count();
        idle
    }

    fn count(&self) {
        gauge!("protoplex_live_channels").set(self.held.borrow().len() as f64);
    }
}

impl Tenure {
    /// Publishes to whoever reads, and returns the update's id.
    pub(crate) fn publish(&self, update: Update) -> String {
        let id = self.channel.borrow_mut().publish(update, Instant::now().into_std());
        self.touched.set(Instant::now());
        self.changed.notify_waiters();
        id
    }

    /// Where a subscriber that asks for `since` starts, and the id of that place.
    pub(crate) fn start(&self, since: &Since) -> (Start, String) {
        let mut channel = self.channel.borrow_mut();
        channel.expire(Instant::now().into_std());
        let start = channel.start(since);
        let id = channel.id(start.position);
        (start, id)
    }

    /// The next event after `position`, which moves on.
    pub(crate) fn read(&self, position: &mut Position, private: bool) -> Read {
        self.channel.borrow().read(position, private)
    }

    /// Completes at the next change after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether it is over, and why.
    pub(crate) fn end(&self) -> Option<End> {
        self.end.get()
    }

    /// Completes when the tenure is over.
    pub(crate) async fn ended(&self) -> End {
        loop {
            let changed = self.changed();
            if let Some(end) = self.end.get() {
                return end;
            }
            changed.await;
        }
    }

    /// Keeps it from being idle while the result lives.
    pub(crate) fn employ(self: &Rc<Self>) -> Use {
        self.users.set(self.users.get() + 1);
        Use(Rc::clone(self))
    }

    fn finish(&self, end: End) {
        self.end.set(Some(end));
        self.changed.notify_waiters();
    }
}

impl std::ops::Deref for Use {
    type Target = Tenure;

    fn deref(&self) -> &Tenure {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.users.set(self.0.users.get() - 1);
        self.0.touched.set(Instant::now());
    }
}

#[cfg(test)]
mod tests;
