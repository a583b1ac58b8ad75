//! Where the lines of one log go in the end. What there is no room for is dropped, counted and told.

use std::io::{self, Write};
use std::path::Path;

use tracing::warn;

use super::loss;
use crate::log_file::{AppendError, LogFile, Rotation};

/// Writes the lines of one log, blocking, and never fails.
#[derive(Debug)]
pub struct Sink {
    /// "log" or "access_log": as on the status page, and a label of the metric.
    log: &'static str,
    to: To,
    /// Since when lines were last written.
    lost: u64,
    /// It was told that the file grows.
    is_stuck: bool,
}

#[derive(Debug)]
enum To {
    Stderr,
    File(LogFile),
}

impl Sink {
    /// To standard error.
    pub fn stderr(log: &'static str) -> Self {
        Self { log, to: To::Stderr, lost: 0, is_stuck: false }
    }

    /// To a file, which is made where it is missing.
    ///
    /// # Errors
    /// It can't be opened for appending.
    pub fn file(log: &'static str, path: &Path, rotation: Rotation) -> io::Result<Self> {
        Ok(Self { log, to: To::File(LogFile::open(path, rotation)?), lost: 0, is_stuck: false })
    }

    /// Writes whole lines, each with its line feed, as far as there is room.
    pub fn write(&mut self, lines: &[u8]) {
        let written = match &mut self.to {
            To::Stderr => {
                io::stderr().write_all(lines).map_err(|source| AppendError { left: lines.len(), source })
            }
            To::File(file) => file.append(lines),
        };
        match written {
            Ok(()) if self.lost > 0 && !lines.is_empty() => self.go_on(),
            Ok(()) => {}
            Err(error) => {
                let left = &lines[lines.len() - error.left..];
                self.lose(left.iter().filter(|byte| **byte == b'\n').count() as u64, &error.to_string());
            }
        }
        self.tell_where_stuck();
    }

    /// Once, until it is put aside.
    fn tell_where_stuck(&mut self) {
        let To::File(file) = &self.to else { return };
        let was_stuck = std::mem::replace(&mut self.is_stuck, file.stuck().is_some());
        if let Some(error) = file.stuck()
            && !was_stuck
        {
            warn!(log = self.log, file = %file.path().display(), error, "can't be put aside and grows");
        }
    }

    /// Counts lines that were dropped, and says so once until lines are written again.
    pub fn lose(&mut self, lines: u64, reason: &str) {
        if lines == 0 {
            return;
        }
        if let (0, To::File(file)) = (self.lost, &self.to) {
            // Whoever reads it may be gone.
            let told =
                format!("the log {}: {reason}; lines are dropped until it goes on\n", file.path().display());
            let _ = io::stderr().write_all(told.as_bytes());
        }
        self.lost += lines;
        loss::note(self.log, lines, reason);
    }

    fn go_on(&mut self) {
        loss::over(self.log);
        warn!(log = self.log, lines = std::mem::take(&mut self.lost), "lines were lost, now the log goes on");
    }
}
