//! Which files the disk cache gives up when it is over its size: a pure decision on what a listing shows.

use std::time::{Duration, SystemTime};

/// Once over its limit the cache is brought down to this share of it, in hundredths, so that it is not over it again
/// with the next file.
const TARGET_PERCENT: u64 = 95;

/// A file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// Its size on disk.
    pub(crate) bytes: u64,
    /// When it was last served, to the minute.
    pub(crate) used: SystemTime,
}

/// The entries to give up so that the rest fits, those of most size and longest rest first.
///
/// The measure is the space-time product (A. J. Smith, "Long Term File Migration", 1981): bytes times the time since the
/// last use. A file ten times as large has to be asked for ten times as often to stay.
pub(crate) fn victims(mut entries: Vec<Entry>, max_bytes: u64, now: SystemTime) -> Vec<Entry> {
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    if total <= max_bytes {
        return Vec::new();
    }
    let target = max_bytes / 100 * TARGET_PERCENT;
    entries.sort_by_cached_key(|entry| std::cmp::Reverse(cost(entry, now)));
    let mut victims = Vec::new();
    for entry in entries {
        if total <= target {
            break;
        }
        total -= entry.bytes;
        victims.push(entry);
    }
    victims
}

fn cost(entry: &Entry, now: SystemTime) -> u128 {
    // A use in the future is a clock that was set back: as good as now. A second is added so that, among files used
    // just now, the larger goes first.
    let idle = now.duration_since(entry.used).unwrap_or_default() + Duration::from_secs(1);
    u128::from(entry.bytes) * idle.as_millis()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, bytes: u64, idle_s: u64, now: SystemTime) -> Entry {
        Entry { name: name.into(), bytes, used: now - Duration::from_secs(idle_s) }
    }

    fn names(victims: &[Entry]) -> Vec<&str> {
        victims.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn nothing_goes_while_all_fits() {
        let now = SystemTime::now();
        assert!(victims(vec![entry("a", 60, 9, now), entry("b", 40, 9, now)], 100, now).is_empty());
    }

    #[test]
    fn the_longest_unused_goes_first_among_equals() {
        let now = SystemTime::now();
        let entries =
            vec![entry("new", 400, 1, now), entry("old", 400, 100, now), entry("middle", 400, 10, now)];
        assert_eq!(names(&victims(entries, 1_000, now)), ["old"]);
    }

    #[test]
    fn a_large_file_has_to_be_asked_for_more_often() {
        let now = SystemTime::now();
        let entries = vec![entry("large", 900, 10, now), entry("small", 200, 30, now)];
        assert_eq!(names(&victims(entries, 1_000, now)), ["large"]);
        let entries = vec![entry("large", 900, 10, now), entry("small", 200, 60, now)];
        assert_eq!(names(&victims(entries, 1_000, now)), ["small"]);
    }

    #[test]
    fn a_clock_set_back_harms_nothing() {
        let now = SystemTime::now();
        let future = Entry { name: "future".into(), bytes: 600, used: now + Duration::from_secs(3_600) };
        assert_eq!(names(&victims(vec![future, entry("old", 600, 60, now)], 1_000, now)), ["old"]);
    }

    proptest! {
        #[test]
        fn what_stays_fits_and_no_victim_goes_in_vain(
            files in prop::collection::vec((0_u64..1_000, 0_u64..10_000), 0..50), max_bytes in 0_u64..20_000,
        ) {
            let now = SystemTime::now();
            let entries: Vec<_> =
                files.iter().enumerate().map(|(n, &(bytes, idle))| entry(&n.to_string(), bytes, idle, now)).collect();
            let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
            let gone = victims(entries, max_bytes, now);
            let freed: u64 = gone.iter().map(|entry| entry.bytes).sum();
            prop_assert!(total - freed <= max_bytes);
            prop_assert_eq!(total > max_bytes, !gone.is_empty());
            if let Some(last) = gone.last() {
                prop_assert!(total - freed + last.bytes > max_bytes / 100 * TARGET_PERCENT);
            }
        }
    }
}
