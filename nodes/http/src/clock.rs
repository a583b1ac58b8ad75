//! The time, asked of the system no more often than needed: a request's way is short enough for that to count.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

thread_local! {
    static RECENT: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The same moment by two clocks.
    static MOMENT: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

/// How long the wall clock is taken to go on evenly.
const MOMENT_LIFE: Duration = Duration::from_millis(500);

/// The time.
pub fn now() -> Instant {
    let now = Instant::now();
    RECENT.set(Some(now));
    now
}

/// What [`now`] said last in this thread, for whoever knows that it was asked just before: in the same turn of the event
/// loop.
pub fn recent() -> Instant {
    RECENT.get().unwrap_or_else(now)
}

/// The wall clock's time at a moment that has just been.
pub(crate) fn wall(at: Instant) -> SystemTime {
    if let Some((then, wall)) = MOMENT.get()
        && let Some(since) = at.checked_duration_since(then)
        && since < MOMENT_LIFE
    {
        return wall + since;
    }
    let moment = (Instant::now(), SystemTime::now());
    MOMENT.set(Some(moment));
    moment.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_follows_and_recent_is_what_now_said() {
        let first = now();
        assert_eq!(recent(), first);
        let wall_first = wall(first);
        let later = first + Duration::from_millis(100);
        let apart = wall(later).duration_since(wall_first).unwrap_or_default();
        assert!(apart >= Duration::from_millis(99), "{apart:?}");
        let drift = SystemTime::now().duration_since(wall(now())).unwrap_or_default();
        assert!(drift < Duration::from_secs(1), "{drift:?}");
    }
}
