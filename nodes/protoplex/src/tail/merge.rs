//! Puts the lines of several streams in order of time: the rule alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A line waits so long for earlier ones. Nodes look for new lines five times a second.
const WINDOW: Duration = Duration::from_millis(500);
/// Where so many wait the first ones go.
const MAX_WAITING: usize = 100_000;

/// Lines that wait for earlier ones.
#[derive(Debug)]
pub(super) struct Merge<T> {
    /// By time, and for equal times by arrival.
    waiting: BTreeMap<(String, u64), (Instant, T)>,
    arrived: u64,
}

impl<T> Default for Merge<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), arrived: 0 }
    }
}

impl<T> Merge<T> {
    /// A line of this time (RFC 3339) has come.
    pub(super) fn add(&mut self, time: String, line: T, now: Instant) {
        self.waiting.insert((time, self.arrived), (now, line));
        self.arrived += 1;
    }

    /// The lines that have waited long enough, and those that belong before them.
    pub(super) fn due(&mut self, now: Instant) -> Vec<T> {
        let is_due = |arrived: &Instant| now.duration_since(*arrived) >= WINDOW;
        let last =
            self.waiting.values().rposition(|(arrived, _)| is_due(arrived)).map_or(0, |place| place + 1);
        self.first(last.max(self.waiting.len().saturating_sub(MAX_WAITING)))
    }

    /// All of them.
    pub(super) fn rest(&mut self) -> Vec<T> {
        self.first(usize::MAX)
    }

    fn first(&mut self, count: usize) -> Vec<T> {
        let next = |_| self.waiting.pop_first().map(|(_, (_, line))| line);
        (0..count).map_while(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_order_of_time_once_they_have_waited() {
        let (start, mut merge) = (Instant::now(), Merge::default());
        let at = |ms| start + Duration::from_millis(ms);
        for (time, ms) in [("3", 0), ("1", 100), ("5", 100), ("2", 400), ("3", 450)] {
            merge.add(time.to_owned(), (time, ms), at(ms));
        }
        assert_eq!(merge.due(at(499)), []);
        assert_eq!(merge.due(at(500)), [("1", 100), ("2", 400), ("3", 0)], "what is earlier needn't wait");
        assert_eq!(merge.due(at(600)), [("3", 450), ("5", 100)]);
        merge.add("4".to_owned(), ("4", 700), at(700));
        assert_eq!(
            (merge.due(at(700)), merge.rest()),
            (Vec::new(), vec![("4", 700)]),
            "too late is not lost"
        );
    }

    #[test]
    fn a_flood_is_not_kept_whole() {
        let (now, mut merge) = (Instant::now(), Merge::default());
        (0..MAX_WAITING + 5).for_each(|n| merge.add(format!("{n:09}"), n, now));
        assert_eq!(merge.due(now), [0, 1, 2, 3, 4]);
    }
}
