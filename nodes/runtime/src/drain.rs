//! The wish to end in good order, and the set of tasks that such an end waits for.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Starts the [`Drain`]s made with it. Where all triggers are dropped they never start.
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<Option<Instant>>);

impl Trigger {
    /// Starts the drain; once started it can't be taken back.
    pub fn pull(&self) {
        self.0.send_if_modified(|since| since.is_none() && since.replace(Instant::now()).is_none());
    }

    /// Whether that was done, by whomever.
    pub(crate) fn is_pulled(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// Tells when to stop taking new work and to finish what is in flight.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<Option<Instant>>);

impl Drain {
    /// A drain that has not started, and what starts it.
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(None);
        (Trigger(sender), Self(receiver))
    }

    /// Returns when the drain starts, at once if it has. Cancel-safe.
    pub async fn started(&self) {
        if self.0.clone().wait_for(Option::is_some).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether it has started.
    pub fn is_draining(&self) -> bool {
        self.since().is_some()
    }

    /// Since when it goes on.
    pub fn since(&self) -> Option<Instant> {
        *self.0.borrow()
    }
}

/// What became of work in drains, by name and in numbers: `requests_finished`, `tunnels_cut`. Numbers only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Drained(BTreeMap<String, u64>);

impl Drained {
    /// Whether nothing became of anything.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(|count| *count == 0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(what, count)| (what.as_str(), *count))
    }

    pub(crate) fn add(&mut self, more: &Self) {
        for (what, count) in &more.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    /// What has been added since it was `before`.
    #[must_use]
    pub(crate) fn since(mut self, before: &Self) -> Self {
        for (what, count) in &mut self.0 {
            *count = count.saturating_sub(before.0.get(what).copied().unwrap_or_default());
        }
        self
    }
}

impl<W: Into<String>> FromIterator<(W, u64)> for Drained {
    fn from_iter<I: IntoIterator<Item = (W, u64)>>(counts: I) -> Self {
        Self(counts.into_iter().map(|(what, count)| (what.into(), count)).collect())
    }
}

/// `requests finished 12, tunnels cut 1`: what there was.
impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (what, count) in self.0.iter().filter(|(_, count)| **count > 0) {
            write!(f, "{separator}{} {count}", what.replace('_', " "))?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The tasks of one child. A drain waits for them; when the child ends without waiting they are dropped.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Rc<Set>);

#[derive(Debug, Default)]
struct Set {
    running: Cell<usize>,
    empty: Notify,
}

impl Tasks {
    /// Runs a task on the child's thread. Must be called within a `LocalSet`, as everything in a child is.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let member = Member::enter(&self.0);
        tokio::task::spawn_local(async move {
            let _member = member;
            task.await;
        });
    }

    /// How many tasks run now.
    pub fn running(&self) -> usize {
        self.0.running.get()
    }

    /// Returns when no task runs. Cancel-safe.
    pub async fn finished(&self) {
        while self.running() > 0 {
            self.0.empty.notified().await;
        }
    }
}

/// Counts a task for as long as it lives, however it ends.
struct Member(Rc<Set>);

impl Member {
    fn enter(set: &Rc<Set>) -> Self {
        set.running.set(set.running.get() + 1);
        Self(Rc::clone(set))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let left = self.0.running.get() - 1;
        self.0.running.set(left);
        if left == 0 {
            self.0.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
