//! The clock of leases: time since boot, which goes on while the machine is suspended and never steps. And the wall clock, as
//! messages carry it.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A point in time of this machine's `CLOCK_BOOTTIME`; comparable only with others of the same machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The machine's start.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// Reads the clock.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let (seconds, nanos) = (now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0));
        Self(Duration::new(seconds, nanos))
    }

    /// The time that has passed since `earlier`; zero if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Nanoseconds since the machine's start.
    #[must_use]
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

impl Sub<Duration> for BootTime {
    type Output = Self;

    fn sub(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(earlier))
    }
}

/// Unix time in milliseconds; 0 before 1970.
#[must_use]
pub fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The present time by the wall clock, in the same way.
#[must_use]
pub fn unix_ms_now() -> i64 {
    unix_ms(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_its_differences_saturate() {
        let earlier = BootTime::now();
        let later = BootTime::now() + Duration::from_secs(1);
        assert!(later.since(earlier) >= Duration::from_secs(1));
        assert_eq!(earlier.since(later), Duration::ZERO);
        assert_eq!(BootTime::ZERO - Duration::from_secs(1), BootTime::ZERO);
    }
}
