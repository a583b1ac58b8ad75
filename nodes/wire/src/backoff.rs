//! How long to wait before the next attempt to connect: longer each time, and never two nodes in step.

use std::time::Duration;

/// Half of it is the shortest first wait, so that a restarted seed is found again at once.
const FIRST: Duration = Duration::from_millis(50);
/// A member has just under 2 s of lease left when a dead seed's row has ended: it must have found the new one by then.
const LONGEST: Duration = Duration::from_secs(1);

/// Exponential back-off with jitter: each wait is drawn from the upper half of a bound that doubles.
#[derive(Debug)]
pub struct Backoff {
    bound: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { bound: FIRST }
    }
}

impl Backoff {
    /// The wait before the next attempt, at most 1 s.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(rand::random_range(0.5..1.0));
        self.bound = (self.bound * 2).min(LONGEST);
        delay
    }

    /// As [`Self::next_delay`], of which the attempts themselves have taken this much already; but never nothing.
    pub(crate) fn next_delay_after(&mut self, taken: Duration) -> Duration {
        let delay = self.next_delay();
        delay.saturating_sub(taken).max(delay / 10)
    }

    /// An attempt succeeded: the next wait is a short one again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_anew() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next_delay()).collect();
        assert!(waits[0] <= FIRST);
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[11] >= LONGEST / 2);
        let waited = backoff.next_delay_after(Duration::from_secs(3));
        assert!(!waited.is_zero() && waited <= LONGEST / 10, "what has taken long is not waited for again");
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
