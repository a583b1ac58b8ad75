//! By which time events become too old: that of the wall, but a clock that is set ahead drops nothing early.
//!
//! | the wall's clock                   | events                                                                  |
//! | ---------------------------------- | ----------------------------------------------------------------------- |
//! | goes as the time since boot does   | go at their age                                                         |
//! | steps ahead                        | of before go at their age by the time since boot; once they have gone, the wall counts again |
//! | steps back                         | stay longer by as much, unless that takes a step ahead back             |
//! | is wrong when the datastore starts | go too early or too late, but for ten minutes none goes by age          |

use std::time::Duration;

use protoplex_wire::clock::BootTime;

/// What the two clocks may differ between two looks: neither a busy machine nor one whose clock is being slewed is a step.
const SLACK: Duration = Duration::from_secs(5);
/// For so long after its start nothing goes by age: a machine may have booted with a wrong clock, and learns the time now.
const START_GRACE: Duration = Duration::from_mins(10);

/// What is known of the wall's clock.
#[derive(Debug)]
pub(crate) struct Ageing {
    started: BootTime,
    wall_ms: i64,
    boot: BootTime,
    /// By how much the wall is ahead of what counts.
    ahead_ms: i64,
    /// When it came to be so.
    stepped: BootTime,
}

impl Ageing {
    /// The wall's clock counts as it is.
    pub(crate) fn new(wall_ms: i64, boot: BootTime) -> Self {
        Self { started: boot, wall_ms, boot, ahead_ms: 0, stepped: boot }
    }

    /// Unix time by which ages are to be reckoned now, and by how many milliseconds the wall has stepped ahead since the last
    /// look, where it has.
    pub(crate) fn now(&mut self, wall_ms: i64, boot: BootTime, max_age: Duration) -> (i64, Option<i64>) {
        let passed = boot.since(self.boot);
        let off = wall_ms.saturating_sub(self.wall_ms).saturating_sub(millis(passed));
        (self.wall_ms, self.boot) = (wall_ms, boot);
        if self.ahead_ms > 0 && boot.since(self.stepped) >= max_age {
            // Nothing is left of before the step.
            self.ahead_ms = 0;
        }
        let is_step = off > millis(SLACK);
        if is_step {
            self.ahead_ms = self.ahead_ms.saturating_add(off);
            self.stepped = boot;
        } else if off < -millis(SLACK) {
            self.ahead_ms = self.ahead_ms.saturating_add(off).max(0);
        }
        let now_ms = match boot.since(self.started) < START_GRACE {
            true => 0,
            false => wall_ms.saturating_sub(self.ahead_ms),
        };
        (now_ms, is_step.then_some(off))
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    const WEEK: Duration = Duration::from_hours(7 * 24);
    /// Unix time at the start.
    const START: i64 = 1_800_000_000_000;

    /// The time that counts, and the step that is told of, so many milliseconds after the start, by a wall that is off by
    /// so many.
    fn look(ageing: &mut Ageing, after: i64, off: i64) -> (i64, Option<i64>) {
        let boot = BootTime::ZERO + Duration::from_millis(after.cast_unsigned());
        let (now_ms, step) = ageing.now(START + after + off, boot, WEEK);
        (now_ms - START, step)
    }

    fn begun() -> Ageing {
        let mut ageing = Ageing::new(START, BootTime::ZERO);
        assert_eq!(look(&mut ageing, HOUR, 0), (HOUR, None));
        ageing
    }

    #[test]
    fn row_a_clock_that_is_set_ahead_makes_nothing_older_and_counts_once_all_is_newer() {
        let (mut ageing, year, week) = (begun(), 365 * 24 * HOUR, 7 * 24 * HOUR);
        assert_eq!(look(&mut ageing, HOUR + 2_000, year), (HOUR + 2_000, Some(year)));
        for after in [HOUR + 4_000, 2 * HOUR, week] {
            assert_eq!(look(&mut ageing, after, year), (after, None), "told once");
        }
        let later = HOUR + 2_000 + week;
        assert_eq!(look(&mut ageing, later, year), (later + year, None));
    }

    #[test]
    fn a_step_that_is_taken_back_is_forgotten() {
        let mut ageing = begun();
        assert_eq!(look(&mut ageing, 2 * HOUR, 9 * HOUR), (2 * HOUR, Some(9 * HOUR)));
        assert_eq!(look(&mut ageing, 3 * HOUR, 0), (3 * HOUR, None));
        // One that only goes back makes nothing older either.
        assert_eq!(look(&mut ageing, 4 * HOUR, -9 * HOUR), (-5 * HOUR, None));
        assert_eq!(look(&mut ageing, 5 * HOUR, 0), (-4 * HOUR, Some(9 * HOUR)));
    }

    #[test]
    fn a_clock_that_is_slewed_and_a_machine_that_slept_are_no_steps() {
        let mut ageing = begun();
        let mut off = 0;
        for look_at in 1..1_000 {
            off += 20;
            let after = HOUR + look_at * 2_000;
            assert_eq!(look(&mut ageing, after, off), (after + off, None));
        }
        // Time since boot goes on in a sleep.
        assert_eq!(look(&mut ageing, 100 * HOUR, off), (100 * HOUR + off, None));
    }

    #[test]
    fn nothing_goes_by_age_right_after_a_start() {
        let mut ageing = Ageing::new(START, BootTime::ZERO);
        assert_eq!(look(&mut ageing, 0, 0).0, -START);
        assert_eq!(look(&mut ageing, 10 * MINUTE - 1, 0).0, -START);
        assert_eq!(look(&mut ageing, 10 * MINUTE, 0).0, 10 * MINUTE);
    }
}
