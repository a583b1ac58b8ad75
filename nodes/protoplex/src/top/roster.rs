//! Which nodes are looked at: also those that nobody tells of any more, until it is known what has become of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::nodes::{Found, Lost, Nodes};

/// A node that nobody tells of, and that doesn't answer, is shown for so long: as long as a seed tells of those that it has
/// lost.
const SHOWN: Duration = Duration::from_secs(3600);

/// What a node that does not answer is, by the word of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The seed that leads has it, or it runs on this machine.
    Here,
    /// The seed that leads has lost it.
    Lost,
    /// Nobody who knows tells of it.
    Unknown,
}

/// A node, as far as it doesn't speak for itself.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) found: Found,
    pub(super) standing: Standing,
    /// When it was heard of last.
    pub(super) heard: Instant,
    /// Of the seed that has told of it.
    term: Option<u64>,
}

/// The nodes that are looked at, by name.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// The names and kinds that are wanted; none are all.
    wanted: Vec<String>,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl Roster {
    pub(super) fn new(wanted: &[String]) -> Self {
        Self { wanted: wanted.to_vec(), entries: BTreeMap::new() }
    }

    /// Those that there are now. Who is not among them has drained if the very seed that told of it says so by its silence;
    /// another one may not have heard of it yet, or never.
    pub(super) fn take(&mut self, nodes: &Nodes, now: Instant) {
        let mut before = std::mem::take(&mut self.entries);
        let is_wanted = |name: &str, found: &Found| {
            self.wanted.is_empty() || self.wanted.iter().any(|one| *one == name || *one == found.kind)
        };
        for (name, found) in nodes.all().filter(|(name, found)| is_wanted(name, found)) {
            // Since when it hasn't answered is not the seed's to say.
            let heard = before.remove(name).map_or(now, |entry| entry.heard);
            let entry = Entry { found: found.clone(), standing: Standing::Here, heard, term: nodes.term };
            self.entries.insert(name.to_owned(), entry);
        }
        for (name, Lost { found, ago }) in
            nodes.lost.iter().filter(|(name, lost)| is_wanted(name, &lost.found))
        {
            before.remove(name);
            let heard = now.checked_sub(*ago).unwrap_or(now);
            let entry = Entry { found: found.clone(), standing: Standing::Lost, heard, term: nodes.term };
            self.entries.insert(name.clone(), entry);
        }
        let may_return = |entry: &Entry| nodes.term.is_none() || entry.term != nodes.term;
        let left = before.into_iter().filter(|(_, entry)| may_return(entry) && now - entry.heard < SHOWN);
        self.entries.extend(left.map(|(name, entry)| (name, Entry { standing: Standing::Unknown, ..entry })));
    }

    /// This one has answered.
    pub(super) fn heard(&mut self, name: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.heard = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(roster: &Roster) -> Vec<(&str, Standing)> {
        roster.entries.iter().map(|(name, entry)| (name.as_str(), entry.standing)).collect()
    }

    #[test]
    fn who_was_known_stays_until_it_is_known_what_has_become_of_it() {
        use Standing::{Here, Lost, Unknown};
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut roster = Roster::new(&[]);
        roster.take(&Nodes::sample(), now);
        assert_eq!(shown(&roster), [("live-1", Here), ("proxy-1", Here), ("seed-1", Here)]);
        roster.take(&Nodes::of_kinds(&["proxy"], None), later(5));
        assert_eq!(shown(&roster), [("live-1", Unknown), ("proxy-1", Here), ("seed-1", Unknown)]);
        assert_eq!(roster.entries["live-1"].heard, now);
        // The next seed that leads has never heard of the live node, which died with the last one.
        roster.take(&Nodes::of_kinds(&["proxy", "seed"], Some(2)), later(10));
        assert_eq!(shown(&roster), [("live-1", Unknown), ("proxy-1", Here), ("seed-1", Here)]);
        roster.heard("live-1", later(11));
        assert_eq!(roster.entries["live-1"].heard, later(11));
        let all = || Nodes::of_kinds(&["live", "proxy", "seed"], Some(2));
        roster.take(&all(), later(12));
        roster.take(&all().without("live-1", Duration::from_secs(2)), later(15));
        assert_eq!(shown(&roster), [("live-1", Lost), ("proxy-1", Here), ("seed-1", Here)]);
        assert_eq!(roster.entries["live-1"].heard, later(13));
        // What the seed that has told of it has no longer, and has not lost, was drained.
        roster.take(&Nodes::of_kinds(&["live", "seed"], Some(2)), later(16));
        assert_eq!(shown(&roster), [("live-1", Here), ("seed-1", Here)]);
        roster.take(&Nodes::default(), later(16) + SHOWN);
        assert!(shown(&roster).is_empty(), "not for ever");
    }

    #[test]
    fn those_are_kept_that_are_wanted() {
        let mut roster = Roster::new(&["proxy".to_owned(), "live-1".to_owned()]);
        roster.take(&Nodes::sample().without("live-1", Duration::ZERO), Instant::now());
        assert_eq!(shown(&roster), [("live-1", Standing::Lost), ("proxy-1", Standing::Here)]);
    }
}
