//! One line a request, gathered in memory and written in batches off the event loop.

mod combined;
mod line;
mod time;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protoplex_runtime::log_file::Rotation;
use protoplex_runtime::telemetry::Sink;
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
    /// Appended to a file, which children and nodes can share, and which is made where it is missing.
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
    /// Locked for one batch at a time, by the thread that writes it.
    sink: Arc<Mutex<Sink>>,
    format: Format,
    lines: RefCell<Vec<u8>>,
    /// Lines that there was no room for.
    lost: Cell<u64>,
    full: Notify,
    /// When the sink was last called.
    written: Cell<Instant>,
}

/// Its name among the logs of a process.
const NAME: &str = "access_log";
/// Lines wait for others so long at most.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How often a log to which nothing is written is looked after: it may have become too old.
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);
/// So many bytes of lines are written at once, without waiting for more.
const BATCH_BYTES: usize = 64 * 1024;
/// What a line hardly ever exceeds.
const LINE_BYTES: usize = 4 * 1024;
/// With so many bytes waiting for a slow disk, further lines are counted and dropped.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

impl AccessLog {
    /// Opens the log, whose file is put aside by the rule of all logs. Blocking.
    ///
    /// # Errors
    /// The file can't be opened for appending.
    pub fn open(target: &Target, format: Format, rotation: Rotation) -> io::Result<Self> {
        let sink = match target {
            Target::Off => return Ok(Self::off()),
            Target::Stderr => Sink::stderr(NAME),
            Target::File(path) => Sink::file(NAME, path, rotation)?,
        };
        let sink = Arc::new(Mutex::new(sink));
        let (lines, lost, full) = (RefCell::default(), Cell::default(), Notify::new());
        let written = Cell::new(Instant::now());
        Ok(Self(Some(Rc::new(Inner { sink, format, lines, lost, full, written }))))
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
        if self.lines.borrow().is_empty() && self.written.get().elapsed() < IDLE_INTERVAL {
            return;
        }
        self.written.set(Instant::now());
        // With room for all of the next batch: growing by and by would copy each line once more.
        let batch = self.lines.replace(Vec::with_capacity(BATCH_BYTES + LINE_BYTES));
        let lost = self.lost.take();
        let sink = Arc::clone(&self.sink);
        let written = tokio::task::spawn_blocking(move || {
            // A sink does not panic.
            let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.lose(lost, "its disk is too slow");
            sink.write(&batch);
        });
        // A writer that was cancelled is a runtime that ends; then there is nobody to tell.
        let _ = written.await;
    }
}

/// What was cut at the end of a drain has its lines, too.
impl Drop for Inner {
    fn drop(&mut self) {
        let lines = self.lines.take();
        // Where it is locked a disk stands still, and nobody waits for that now.
        if !lines.is_empty()
            && let Ok(mut sink) = self.sink.try_lock()
        {
            sink.lose(self.lost.take(), "its disk is too slow");
            sink.write(&lines);
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
