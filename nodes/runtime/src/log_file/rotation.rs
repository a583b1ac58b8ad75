//! When a log is put aside, and for how long what was put aside is kept: the rule alone.

use std::time::Duration;

use super::{first_line, whole_lines};

/// The rule. A zero is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// A file that would become larger is put aside first, in bytes. Only a line that is longer by itself exceeds it.
    pub max_bytes: u64,
    /// So many are kept.
    pub keep: u32,
    /// A file that was begun so long ago is put aside, and one that was last written to so long ago is removed.
    pub max_age: Duration,
}

impl Rotation {
    /// Whether a file of this size has no room for a line.
    pub(super) fn is_full(&self, size: u64, line: usize) -> bool {
        self.max_bytes > 0 && size > 0 && size.saturating_add(line as u64) > self.max_bytes
    }

    /// The lines that a file of this size has room for, at least one.
    pub(super) fn part<'a>(&self, size: u64, lines: &'a [u8]) -> &'a [u8] {
        let room = match self.max_bytes {
            0 => lines.len(),
            max => usize::try_from(max.saturating_sub(size)).unwrap_or(usize::MAX).min(lines.len()),
        };
        &lines[..whole_lines(&lines[..room]).max(first_line(lines))]
    }

    /// Whether a file that was begun so long ago is to be put aside.
    pub(super) fn is_old(&self, age: Duration) -> bool {
        !self.max_age.is_zero() && age >= self.max_age
    }

    /// Whether what was put aside is kept no longer.
    pub(super) fn is_over(&self, number: u32, age: Duration) -> bool {
        (self.keep > 0 && number > self.keep) || self.is_old(age)
    }

    /// What gets which number, in this order, so that 0 becomes 1. The oldest that is kept gives way to the next; a gap,
    /// which a process that was killed has left, is filled first.
    pub(super) fn moves(&self, exists: impl Fn(u32) -> bool) -> impl Iterator<Item = (u32, u32)> {
        let last = if self.keep == 0 { u32::MAX } else { self.keep };
        let free = (1..last).find(|number| !exists(*number)).unwrap_or(last);
        (0..free).rev().map(|number| (number, number + 1))
    }
}
