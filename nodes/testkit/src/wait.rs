//! Waiting for a condition, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
const BETWEEN_TWO_LOOKS: Duration = Duration::from_millis(20);

/// Looks again and again until `condition` has a value, and panics with `what` if it has none for 30 s.
///
/// # Panics
/// When the deadline has passed.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited 30 s in vain: {what}");
        thread::sleep(BETWEEN_TWO_LOOKS);
    }
}
