//! One line a request, gathered in memory and written in batches off the event loop.

mod combined;
mod line;
mod time;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::exchange::Exchange;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Nowhere.
    Off,
    /// Standard error.
    Stderr,
    /// Appended to a file (`O_APPEND`, so that children can share one), which is made where it is missing.
    File(PathBuf),
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `name=value` pairs behind the time, for people.
    Text,
    /// As nginx and Apache name and write it, for what reads their logs.
    Combined,
}

/// The access log of a child. Cheap to clone.
#[derive(Clone)]
pub struct AccessLog(Option<Rc<Inner>>);

struct Inner {
    sink: Sink,
    format: Format,
    lines: RefCell<Vec<u8>>,
    /// Lines that there was no room for.
    lost: Cell<u64>,
    full: Notify,
}

#[derive(Clone)]
enum Sink {
    Stderr,
    File(Arc<File>),
}

/// Lines wait for others so long at most.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// So many bytes of lines are written at once, without waiting for more.
const BATCH_BYTES: usize = 64 * 1024;
/// What a line hardly ever exceeds.
const LINE_BYTES: usize = 4 * 1024;
/// With so many bytes waiting for a slow disk, further lines are counted and dropped.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

impl AccessLog {
    /// Opens the log. Blocking.
    ///
    /// # Errors
    /// The file can't be opened for appending.
    pub fn open(target: &Target, format: Format) -> io::Result<Self> {
        let sink = match target {
            Target::Off => return Ok(Self::off()),
            Target::Stderr => Sink::Stderr,
            Target::File(path) => {
                Sink::File(Arc::new(OpenOptions::new().create(true).append(true).open(path)?))
            }
        };
        let (lines, lost, full) = (RefCell::default(), Cell::default(), Notify::new());
        Ok(Self(Some(Rc::new(Inner { sink, format, lines, lost, full }))))
    }

    /// A log that takes nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Adds the line of an exchange that has ended now.
    pub(crate) fn write(&self, exchange: &Exchange, now: Instant) {
        let Some(inner) = &self.0 else { return };
        let mut lines = inner.lines.borrow_mut();
        if lines.len() >= MAX_WAITING_BYTES {
            inner.lost.set(inner.lost.get() + 1);
            return;
        }
        inner.format.write(&mut lines, exchange, now);
        lines.push(b'\n');
        if lines.len() >= BATCH_BYTES {
            inner.full.notify_one();
        }
    }

    /// Writes batches until `over` is notified, then what is left.
    pub(crate) async fn keep_writing(&self, over: &Notify) {
        let Some(inner) = &self.0 else {
            return over.notified().await;
        };
        let mut last = false;
        while !last {
            // All three can be dropped at any time: a notification that came is kept.
            last = tokio::select! {
                () = over.notified() => true,
                () = inner.full.notified() => false,
                () = sleep(FLUSH_INTERVAL) => false,
            };
            inner.flush().await;
        }
    }
}

impl Format {
    /// Writes the line of an exchange that has ended now behind what `out` has, without its end.
    fn write(self, out: &mut Vec<u8>, exchange: &Exchange, now: Instant) {
        match self {
            Self::Json => line::write(out, exchange, true, now),
            Self::Text => line::write(out, exchange, false, now),
            Self::Combined => combined::write(out, exchange, now),
        }
    }
}

impl Inner {
    async fn flush(&self) {
        let lost = self.lost.take();
        if lost > 0 {
            tracing::warn!(lines = lost, "the access log's disk is too slow, lines were dropped");
        }
        if self.lines.borrow().is_empty() {
            return;
        }
        // With room for all of the next batch: growing by and by would copy each line once more.
        let batch = self.lines.replace(Vec::with_capacity(BATCH_BYTES + LINE_BYTES));
        let sink = self.sink.clone();
        let written = tokio::task::spawn_blocking(move || match sink {
            Sink::Stderr => io::stderr().write_all(&batch),
            Sink::File(file) => (&*file).write_all(&batch),
        });
        // A writer that was cancelled is a runtime that ends; then there is nobody to tell.
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "can't write to the access log, lines were lost");
        }
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessLog")
    }
}

#[cfg(test)]
mod tests;
