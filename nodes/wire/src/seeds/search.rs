//! Which seed to try next: pure, without I/O and without a clock.
//!
//! ```text
//!   begin ──▶ next ──▶ try it ──▶ led ─── link lost ──▶ begin, the one that led first
//!     ▲        │ ▲        ├── named another ──▶ that one is next, unless it was tried already
//!     │        │ └────────┴── failed ──▶ the rest, in turn
//!     └─ pause ◀ none is left
//! ```
//!
//! Each seed is tried once between two pauses, so seeds that name each other in a circle cost no more than a round.

use std::collections::VecDeque;
use std::time::Duration;

use super::MAX_SEEDS;

/// How long one of several seeds may take to answer at first, and at most. It grows with each round without success: a
/// machine that is gone should cost little, and seeds that are busy should not be left for that.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(3);

/// The seeds that a node knows, and how far its search for the one that leads has come.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// As a seed that led has told.
    told: Vec<String>,
    /// It led last, or is said to lead.
    leader: Option<String>,
    /// Still to be tried in this round.
    round: VecDeque<String>,
    tried: Vec<String>,
    /// Did not answer in this round, or in the one before.
    silent: Vec<String>,
    silent_before: Vec<String>,
    rounds: u32,
}

impl Search {
    /// A search that has not begun, with what an earlier process was told.
    #[must_use]
    pub fn new(told: Vec<String>) -> Self {
        Self { told, ..Self::default() }
    }

    /// Begins a round, after a pause: with the addresses that the configured ones stand for now. Those that did not answer
    /// in the round before come last.
    pub fn begin(&mut self, configured: &[String]) {
        self.tried.clear();
        self.round.clear();
        self.silent_before = std::mem::take(&mut self.silent);
        let all = self.leader.iter().chain(configured).chain(&self.told);
        let (last, first): (Vec<_>, Vec<_>) = all.cloned().partition(|it| self.silent_before.contains(it));
        for seed in first.into_iter().chain(last) {
            if !self.round.contains(&seed) && self.round.len() < 2 * MAX_SEEDS {
                self.round.push_back(seed);
            }
        }
    }

    /// The seed to try now; `None` where each was: then a pause is due, and [`Self::begin`].
    pub fn next_seed(&mut self) -> Option<String> {
        let next = self.round.pop_front();
        match &next {
            Some(seed) => self.tried.push(seed.clone()),
            None => self.rounds = self.rounds.saturating_add(1),
        }
        next
    }

    /// Whether this one was tried in this round.
    #[must_use]
    pub fn has_tried(&self, seed: &str) -> bool {
        self.tried.iter().any(|tried| tried == seed)
    }

    /// How long the seed that is tried may take to answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        if self.round.is_empty() && self.tried.len() < 2 {
            return LONGEST_PATIENCE;
        }
        // Somebody else may begin to lead meanwhile.
        let silent = self.tried.last().is_some_and(|seed| self.silent_before.contains(seed));
        if silent { FIRST_PATIENCE } else { (FIRST_PATIENCE * self.rounds.max(1)).min(LONGEST_PATIENCE) }
    }

    /// The seed that is tried did not answer.
    pub fn unanswered(&mut self) {
        self.silent.extend(self.tried.last().cloned());
    }

    /// A seed names the one that leads: it goes next, unless it was tried in this round, or was silent in the last one,
    /// which others may not have noticed yet.
    pub fn redirected(&mut self, leader: &str) {
        self.leader = Some(leader.to_owned());
        if self.tried.iter().chain(&self.silent_before).any(|seed| seed == leader) {
            return;
        }
        self.round.retain(|seed| seed != leader);
        self.round.push_front(leader.to_owned());
    }

    /// The datastore names the one that leads: it goes next, whatever was found out before.
    pub fn elected(&mut self, leader: &str) {
        self.leader = Some(leader.to_owned());
        self.round.retain(|seed| seed != leader);
        self.round.push_front(leader.to_owned());
    }

    /// This one has welcomed, so it leads. Once its link is lost a pause is due, and a round that begins with it.
    pub fn led(&mut self, seed: &str) {
        self.leader = Some(seed.to_owned());
        self.round.clear();
        self.tried.clear();
        self.silent.clear();
        self.silent_before.clear();
        self.rounds = 0;
    }

    /// Where seeds are, by the one that leads; says whether that is news.
    pub fn told(&mut self, mut seeds: Vec<String>) -> bool {
        seeds.truncate(MAX_SEEDS);
        let news = self.told != seeds;
        self.told = seeds;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|&address| address.to_owned()).collect()
    }

    /// What is tried until a pause is due.
    fn round(search: &mut Search) -> Vec<String> {
        std::iter::from_fn(|| search.next_seed()).collect()
    }

    #[test]
    fn each_is_tried_once_between_two_pauses() {
        let mut search = Search::new(all(&["c:1", "a:1"]));
        assert_eq!(search.next_seed(), None, "nothing before it has begun");
        search.begin(&all(&["a:1", "b:1"]));
        assert_eq!(round(&mut search), ["a:1", "b:1", "c:1"]);
        search.begin(&all(&["a:1"]));
        assert_eq!(round(&mut search), ["a:1", "c:1"], "what the configuration stands for may change");
    }

    #[test]
    fn the_one_that_led_comes_first_when_its_link_is_lost() {
        let mut search = Search::new(all(&["c:1"]));
        search.begin(&all(&["a:1", "b:1"]));
        search.next_seed();
        search.next_seed();
        search.led("b:1");
        assert_eq!(search.next_seed(), None, "a pause comes first, however short");
        search.begin(&all(&["a:1", "b:1"]));
        assert_eq!(round(&mut search), ["b:1", "a:1", "c:1"]);
        search.begin(&all(&["a:1", "b:1"]));
        search.next_seed();
        search.unanswered();
        assert_eq!(round(&mut search), ["a:1", "c:1"]);
        search.begin(&all(&["a:1", "b:1"]));
        assert_eq!(search.next_seed().as_deref(), Some("a:1"));
        search.redirected("b:1");
        assert_eq!(round(&mut search), ["c:1", "b:1"], "who was silent comes last, whatever others say");
        assert_eq!(search.patience(), FIRST_PATIENCE);
        search.begin(&all(&["a:1", "b:1"]));
        assert_eq!(round(&mut search), ["b:1", "a:1", "c:1"], "it has answered since");
    }

    #[test]
    fn the_one_that_is_named_goes_next_and_a_circle_ends() {
        let mut search = Search::default();
        search.begin(&all(&["a:1", "b:1"]));
        assert_eq!(search.next_seed().as_deref(), Some("a:1"));
        search.redirected("c:1");
        assert_eq!(search.next_seed().as_deref(), Some("c:1"), "also one that nobody has told of");
        search.redirected("a:1");
        assert_eq!(search.next_seed().as_deref(), Some("b:1"));
        search.redirected("c:1");
        assert_eq!(search.next_seed(), None);
        search.begin(&all(&["a:1", "b:1"]));
        search.redirected("b:1");
        assert_eq!(search.next_seed().as_deref(), Some("b:1"));
    }

    #[test]
    fn whom_the_datastore_names_is_tried_again() {
        let mut search = Search::default();
        search.begin(&all(&["a:1", "b:1"]));
        assert_eq!(round(&mut search), ["a:1", "b:1"]);
        search.elected("a:1");
        assert_eq!(round(&mut search), ["a:1"]);
    }

    #[test]
    fn a_hand_over_needs_no_pause() {
        let mut search = Search::default();
        search.begin(&all(&["a:1", "b:1"]));
        search.next_seed();
        search.led("a:1");
        search.redirected("b:1");
        assert_eq!(search.next_seed().as_deref(), Some("b:1"));
    }

    #[test]
    fn patience_grows_and_one_alone_has_all_of_it() {
        let mut search = Search::default();
        search.begin(&all(&["a:1"]));
        search.next_seed();
        assert_eq!(search.patience(), LONGEST_PATIENCE);
        let mut search = Search::default();
        let mut attempt = || {
            search.next_seed();
            search.begin(&all(&["a:1", "b:1"]));
            search.next_seed();
            let patience = search.patience().as_secs();
            while search.next_seed().is_some() {}
            patience
        };
        assert_eq!([(); 3].map(|()| attempt()), [1, 3, 3], "it grows with each round");
        search.led("b:1");
        search.begin(&all(&["a:1", "b:1"]));
        search.next_seed();
        assert_eq!(search.patience(), FIRST_PATIENCE);
    }

    #[test]
    fn what_is_told_is_bounded() {
        let mut search = Search::default();
        let many: Vec<_> = (0..100).map(|n| format!("a:{n}")).collect();
        assert!(search.told(many.clone()));
        search.begin(&[]);
        assert_eq!(round(&mut search).len(), MAX_SEEDS);
        assert!(!search.told(many[..MAX_SEEDS].to_vec()), "the same is no news");
    }
}
