//! Log lines on their way to the thread that writes them: an event loop never waits for a disk.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Sink;

/// With so many bytes waiting for a slow disk, further lines are counted and dropped.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// How often a log to which nothing is written is looked after.
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);

/// Takes each event as one piece. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There are lines.
    filled: Condvar,
    /// All of them are written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines that there was no room for.
    lost: u64,
    /// Those taken last are not written yet.
    is_writing: bool,
}

impl Queue {
    /// Begins to write what comes to the sink, for as long as the process lives.
    pub(super) fn start(sink: Sink) -> io::Result<Self> {
        let queue = Self(Arc::default());
        let shared = Arc::clone(&queue.0);
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.keep_writing(sink))?;
        Ok(queue)
    }

    /// Waits until everything is written, but no longer than this.
    pub(super) fn flush(&self, patience: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        drop(self.0.emptied.wait_timeout_while(self.0.lock(), patience, is_busy));
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.lines.len() + line.len() > MAX_WAITING_BYTES {
            waiting.lost += 1;
        } else {
            waiting.lines.extend_from_slice(line);
        }
        drop(waiting);
        self.0.filled.notify_one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_writing(&self, mut sink: Sink) {
        loop {
            let (lines, lost) = self.next_batch();
            sink.lose(lost, "its disk is too slow");
            sink.write(&lines);
            let mut waiting = self.lock();
            waiting.is_writing = false;
            if waiting.lines.is_empty() {
                self.emptied.notify_all();
            }
        }
    }

    /// All that waits; nothing where nothing has come for long.
    fn next_batch(&self) -> (Vec<u8>, u64) {
        let is_idle = |waiting: &mut Waiting| waiting.lines.is_empty();
        let waited = self.filled.wait_timeout_while(self.lock(), IDLE_INTERVAL, is_idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.is_writing = true;
        (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_stands_still_costs_lines_but_neither_time_nor_memory_without_end() {
        let queue = Queue(Arc::default());
        let line = [b'x'; 1000];
        for _ in 0..MAX_WAITING_BYTES / 1000 + 7 {
            queue.clone().write_all(&line).unwrap();
        }
        let (lines, lost) = queue.0.next_batch();
        assert_eq!((lines.len(), lost), (MAX_WAITING_BYTES / 1000 * 1000, 7));
        queue.flush(Duration::from_millis(1));
    }
}
