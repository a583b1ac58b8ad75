//! Whether memory runs out: then requests are refused, before the system ends the process and all of them with it.

use std::cell::Cell;

use protoplex_runtime::memory::Sample;

use crate::limits::Limits;

/// Between memory and the requests of one child.
#[derive(Debug)]
pub(crate) struct Pressure {
    shed_below_available_bytes: Cell<u64>,
    max_resident_bytes: Cell<u64>,
    shedding: Cell<bool>,
    /// While it sheds: so many connections may be open.
    ceiling: Cell<u64>,
}

/// What a sample has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// From here on requests are refused.
    Begins,
    /// From here on they are served.
    Ends,
}

/// Connections that may be open beyond those that were, or are left, while memory runs out: enough for health checks.
const FEW_CONNECTIONS: u64 = 16;

impl Pressure {
    pub(crate) fn new(limits: &Limits) -> Self {
        let pressure = Self {
            shed_below_available_bytes: Cell::default(),
            max_resident_bytes: Cell::default(),
            shedding: Cell::new(false),
            ceiling: Cell::new(u64::MAX),
        };
        pressure.change(limits);
        pressure
    }

    /// From now on these limits count.
    pub(crate) fn change(&self, limits: &Limits) {
        self.shed_below_available_bytes.set(limits.shed_below_available_bytes);
        self.max_resident_bytes.set(limits.max_resident_bytes.unwrap_or(u64::MAX));
    }

    /// Whether there is anything to watch: a limit that could be reached, or an episode that has to end.
    pub(crate) fn is_watched(&self) -> bool {
        let limited = self.shed_below_available_bytes.get() > 0 || self.max_resident_bytes.get() < u64::MAX;
        limited || self.shedding.get()
    }

    /// Whether requests are to be refused.
    pub(crate) fn sheds(&self) -> bool {
        self.shedding.get()
    }

    /// Judges a sample. What has begun ends only with a quarter more left than the limit, and an eighth less in memory:
    /// else it would begin anew with the first requests.
    pub(crate) fn weigh(&self, sample: Sample) -> Option<Turn> {
        let (least, most) = (self.shed_below_available_bytes.get(), self.max_resident_bytes.get());
        let short = sample.available_bytes < least || sample.resident_bytes > most;
        let relaxed = sample.available_bytes >= least.saturating_add(least / 4)
            && sample.resident_bytes <= most - most / 8;
        match self.shedding.get() {
            false if short => {
                self.ceiling.set(u64::MAX);
                self.shedding.set(true);
                Some(Turn::Begins)
            }
            true if relaxed => {
                self.shedding.set(false);
                Some(Turn::Ends)
            }
            _ => None,
        }
    }

    /// Whether one more connection may be accepted, with so many open. The more of them end, the fewer may come.
    pub(crate) fn has_room(&self, open: u64) -> bool {
        if !self.shedding.get() {
            return true;
        }
        self.ceiling.set(self.ceiling.get().min(open + FEW_CONNECTIONS));
        open < self.ceiling.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pressure(least: u64, most: Option<u64>) -> Pressure {
        let limits =
            Limits { shed_below_available_bytes: least, max_resident_bytes: most, ..Limits::default() };
        Pressure::new(&limits)
    }

    /// The turns that samples of available and resident memory bring about, in MiB.
    fn turns(pressure: &Pressure, samples: &[(u64, u64)]) -> Vec<Option<Turn>> {
        let weigh = |&(available, resident)| {
            pressure.weigh(Sample { resident_bytes: resident * MIB, available_bytes: available * MIB })
        };
        samples.iter().map(weigh).collect()
    }

    #[test]
    fn it_begins_below_the_limit_and_ends_well_above_it() {
        let pressure = pressure(64 * MIB, None);
        let turns =
            turns(&pressure, &[(64, 9999), (63, 0), (0, 0), (64, 0), (79, 0), (80, 0), (64, 0), (63, 0)]);
        let (begins, ends) = (Some(Turn::Begins), Some(Turn::Ends));
        assert_eq!(turns, [None, begins, None, None, None, ends, None, begins]);
        assert!(pressure.sheds());
    }

    #[test]
    fn what_the_child_has_itself_counts_likewise_and_both_must_be_well() {
        let pressure = pressure(64 * MIB, Some(800 * MIB));
        let turns = turns(&pressure, &[(999, 800), (999, 801), (999, 701), (70, 700), (999, 701), (80, 700)]);
        assert_eq!(turns, [None, Some(Turn::Begins), None, None, None, Some(Turn::Ends)]);
    }

    #[test]
    fn without_a_limit_nothing_is_refused() {
        let free = pressure(0, None);
        assert_eq!(turns(&free, &[(0, 1 << 40)]), [None]);
        assert!(!free.is_watched());
        assert!(pressure(1, None).is_watched() && pressure(0, Some(1)).is_watched());
    }

    #[test]
    fn where_the_limit_is_taken_away_it_ends() {
        let pressure = pressure(64 * MIB, None);
        assert_eq!(turns(&pressure, &[(0, 0)]), [Some(Turn::Begins)]);
        pressure.change(&Limits { shed_below_available_bytes: 0, ..Limits::default() });
        assert!(pressure.is_watched());
        assert_eq!(turns(&pressure, &[(0, 0)]), [Some(Turn::Ends)]);
        assert!(!pressure.is_watched());
    }

    #[test]
    fn while_it_sheds_connections_can_not_grow_and_those_that_end_make_no_room_for_as_many() {
        let pressure = pressure(64 * MIB, None);
        assert!(pressure.has_room(5000));
        turns(&pressure, &[(1, 0)]);
        for (open, room) in
            [(1000, true), (1015, true), (1016, false), (500, true), (515, true), (516, false)]
        {
            assert_eq!(pressure.has_room(open), room, "{open}");
        }
        turns(&pressure, &[(999, 0)]);
        assert!(pressure.has_room(5000));
        turns(&pressure, &[(1, 0)]);
        assert!(pressure.has_room(4999) && pressure.has_room(5000));
    }
}
