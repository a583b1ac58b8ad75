//! How often it is told of what strangers bring: so many times a second that none of them writes a log full.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const EACH: Duration = Duration::from_secs(1);
const MOST: u32 = 10;

#[derive(Default)]
pub(super) struct Complaints(Mutex<Period>);

#[derive(Default)]
struct Period {
    began: Option<Instant>,
    told: u32,
    /// Since one was told last.
    untold: u64,
}

impl Complaints {
    /// Whether this one is to be told, and then how many were not since the last one that was.
    pub(super) fn tell(&self, now: Instant) -> Option<u64> {
        // Nothing panics while it is held.
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if period.began.is_none_or(|began| now.saturating_duration_since(began) >= EACH) {
            (period.began, period.told) = (Some(now), 0);
        }
        if period.told == MOST {
            period.untold += 1;
            return None;
        }
        period.told += 1;
        Some(std::mem::take(&mut period.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_are_told_and_the_rest_is_counted() {
        let (complaints, begun) = (Complaints::default(), Instant::now());
        let told: Vec<_> = (0..1_000).filter_map(|_| complaints.tell(begun)).collect();
        assert_eq!(told, [0; 10]);
        assert_eq!(complaints.tell(begun + EACH), Some(990));
        assert_eq!(complaints.tell(begun + EACH), Some(0));
    }
}
