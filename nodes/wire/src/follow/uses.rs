//! Keys that are in use here for longer than an answer is fresh, as by a WebSocket: for them the seed is asked again and
//! again, so that it takes none of them for idle, and whoever uses one is told when it has another server.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{LOCATE_TIMEOUT, LocateError, Shared};
use crate::clock::BootTime;
use crate::owners::{Age, Owner};

/// Uses are looked through in a quarter of the time for which answers are fresh, within these bounds.
const SOONEST: Duration = Duration::from_millis(250);
const LATEST: Duration = Duration::from_secs(60);
/// Before the seed has told any time.
const UNKNOWN: Duration = Duration::from_secs(5);
/// From word that keys have moved to the question where to, so that one question is asked for all that moves at once.
const MOVING: Duration = Duration::from_millis(100);
/// Keys asked for in one go: fewer than may be asked for at once, since requests ask, too.
const MAX_ASKED: usize = 512;

type Answer = oneshot::Receiver<Result<Owner, LocateError>>;

/// The keys that are in use; a place is taken again once it is free.
#[derive(Default)]
pub(super) struct Uses {
    places: Vec<Option<Used>>,
    free: Vec<usize>,
    /// By pool, then key.
    by_key: HashMap<Rc<str>, HashMap<Rc<str>, usize>>,
    last_number: u64,
    /// The place from which the next look at all of them begins: with those that there was no room for.
    from: usize,
    moved: Moved,
}

struct Used {
    pool: Rc<str>,
    key: Rc<str>,
    uses: HashMap<u64, Use>,
}

struct Use {
    /// The server that the key is used at, and the epoch of which that server owned it.
    at: SocketAddr,
    epoch: u64,
    /// Told once.
    moved: Option<Box<dyn FnOnce()>>,
}

/// What may have another owner than was known when the uses were last looked through.
#[derive(Default)]
struct Moved {
    places: HashSet<usize>,
    any: bool,
}

/// One use of a key; over when it is dropped.
pub struct InUse {
    place: usize,
    number: u64,
    uses: Weak<RefCell<Uses>>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(uses) = self.uses.upgrade() {
            uses.borrow_mut().end(self.place, self.number);
        }
    }
}

pub(super) fn begin(
    uses: &Rc<RefCell<Uses>>,
    pool: &str,
    key: &str,
    owner: &Owner,
    moved: impl FnOnce() + 'static,
) -> InUse {
    let mut all = uses.borrow_mut();
    all.last_number += 1;
    let (number, place) = (all.last_number, all.place(pool, key));
    let used = Use { at: owner.address, epoch: owner.epoch, moved: Some(Box::new(moved)) };
    all.places[place].as_mut().expect("a key has its place").uses.insert(number, used);
    InUse { place, number, uses: Rc::downgrade(uses) }
}

impl Uses {
    fn find(&self, pool: &str, key: &str) -> Option<usize> {
        self.by_key.get(pool)?.get(key).copied()
    }

    /// The key's place, made if there is none.
    fn place(&mut self, pool: &str, key: &str) -> usize {
        if let Some(place) = self.find(pool, key) {
            return place;
        }
        let pool = self.by_key.get_key_value(pool).map_or_else(|| pool.into(), |(pool, _)| Rc::clone(pool));
        let key: Rc<str> = key.into();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.by_key.entry(Rc::clone(&pool)).or_default().insert(Rc::clone(&key), place);
        self.places[place] = Some(Used { pool, key, uses: HashMap::new() });
        place
    }

    fn end(&mut self, place: usize, number: u64) {
        let Some(used) = &mut self.places[place] else { return };
        used.uses.remove(&number);
        if !used.uses.is_empty() {
            return;
        }
        if let Some(of_pool) = self.by_key.get_mut(&used.pool) {
            of_pool.remove(&used.key);
            if of_pool.is_empty() {
                self.by_key.remove(&used.pool);
            }
        }
        self.places[place] = None;
        self.free.push(place);
    }

    /// Notes these keys for the next look; says whether any is in use.
    fn note(&mut self, pool: &str, keys: &[String]) -> bool {
        let Some(of_pool) = self.by_key.get(pool) else { return false };
        let places = keys.iter().filter_map(|key| of_pool.get(&**key));
        let before = self.moved.places.len();
        self.moved.places.extend(places);
        self.moved.places.len() > before
    }

    /// What is to be looked at now: all, or what was noted.
    fn take_noted(&mut self, all: bool) -> Vec<usize> {
        let Moved { places, any } = std::mem::take(&mut self.moved);
        if all || any { self.all() } else { places.into_iter().collect() }
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (self.from..self.places.len()).chain(0..self.from).collect()
    }
}

/// Asks for what is used and was not asked for of late, and tells who uses what has moved, for as long as the link is there.
pub(super) async fn keep_asking(link: Weak<Shared>) {
    let mut next_round = Instant::now() + UNKNOWN;
    loop {
        let Some(news) = link.upgrade().map(|shared| Rc::clone(&shared.keys_moved)) else { return };
        // Both arms are cancel-safe.
        tokio::select! {
            () = sleep_until(next_round) => {}
            () = news.notified() => sleep(MOVING).await,
        }
        let Some(shared) = link.upgrade().filter(|shared| !shared.left.get()) else { return };
        let begun = Instant::now();
        let is_round = begun >= next_round;
        let places = shared.uses.borrow_mut().take_noted(is_round);
        let (answers, all) = shared.ask_ageing(&places, BootTime::now());
        if !all {
            next_round = begun + SOONEST;
        } else if is_round {
            let pause = shared.shortest_fresh.get().map(|fresh| (fresh / 4).clamp(SOONEST, LATEST));
            next_round = begun + pause.unwrap_or(UNKNOWN);
        }
        let deadline = begun + LOCATE_TIMEOUT;
        for answer in answers {
            // What it says is known then.
            let _ = timeout_at(deadline, answer).await;
        }
        shared.tell_moved(&places, BootTime::now());
    }
}

impl Shared {
    /// These keys may have another owner.
    pub(super) fn note_moved(&self, pool: &str, keys: &[String]) {
        if self.uses.borrow_mut().note(pool, keys) {
            self.keys_moved.notify_one();
        }
    }

    /// Any key may have another owner.
    pub(super) fn note_any_moved(&self) {
        self.uses.borrow_mut().moved.any = true;
        self.keys_moved.notify_one();
    }

    /// Asks for what is not fresh any more, and says whether that was all of it: [`MAX_ASKED`] keys at most are asked
    /// for, and questions may be refused.
    pub(super) fn ask_ageing(&self, places: &[usize], now: BootTime) -> (Vec<Answer>, bool) {
        let mut answers = Vec::new();
        if self.lost_since.get().is_some() {
            return (answers, true);
        }
        let mut uses = self.uses.borrow_mut();
        for &place in places {
            let Some(Used { pool, key, .. }) = &uses.places[place] else { continue };
            let known = self.owners.borrow().look(pool, key, now);
            if known.is_some_and(|(_, age)| age == Age::Fresh) {
                continue;
            }
            let room = answers.len() < MAX_ASKED;
            let Some(answer) = room.then(|| self.ask(pool, key).ok()).flatten() else {
                uses.from = place;
                return (answers, false);
            };
            answers.push(answer);
        }
        (answers, true)
    }

    /// Tells whoever uses what another server has by now.
    pub(super) fn tell_moved(&self, places: &[usize], now: BootTime) {
        let mut moved = Vec::new();
        let mut uses = self.uses.borrow_mut();
        for &place in places {
            let Some(used) = &mut uses.places[place] else { continue };
            let Some((owner, _)) = self.owners.borrow().look(&used.pool, &used.key, now) else { continue };
            let elsewhere = |it: &&mut Use| owner.epoch > it.epoch && owner.address != it.at;
            moved.extend(used.uses.values_mut().filter(elsewhere).filter_map(|it| it.moved.take()));
        }
        drop(uses);
        // Whoever is told may end its use.
        moved.into_iter().for_each(|tell| tell());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_moves_only_keys_in_use_are_looked_at_and_nothing_is_kept_of_a_use_that_is_over() {
        let uses: Rc<RefCell<Uses>> = Rc::default();
        let owner = Owner { member: "live-1:0".into(), address: "127.0.0.1:1".parse().unwrap(), epoch: 7 };
        let used = |pool, key| begin(&uses, pool, key, &owner, || {});
        let [first, second] = [(); 2].map(|()| used("rooms", "1"));
        let others = [("rooms", "2"), ("rooms", "3"), ("docs", "1")].map(|(pool, key)| used(pool, key));
        let note = |pool, keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
            uses.borrow_mut().note(pool, &keys)
        };
        assert!(!note("rooms", &["4", "5"]) && !note("elsewhere", &["1"]));
        assert!(note("rooms", &["1", "4"]));
        assert!(!note("rooms", &["1"]), "it is noted already");
        assert_eq!(uses.borrow_mut().take_noted(false), [first.place]);
        assert!(uses.borrow_mut().take_noted(false).is_empty());
        assert_eq!(uses.borrow_mut().take_noted(true).len(), 4, "keys, not uses");
        drop(first);
        assert_eq!(uses.borrow().find("rooms", "1"), Some(second.place));
        let place = second.place;
        drop(second);
        assert_eq!(uses.borrow().find("rooms", "1"), None);
        assert_eq!(used("docs", "2").place, place);
        drop(others);
        assert!(uses.borrow().by_key.is_empty() && uses.borrow().places.iter().all(Option::is_none));
    }
}
