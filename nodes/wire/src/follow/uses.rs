//! Keys that are in use here for longer than an answer is fresh, as by a WebSocket: for them the seed is asked again and
//! again, so that it takes none of them for idle, and whoever uses one is told when it has another server.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

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

/// The uses there are; a place is taken again once it is free.
#[derive(Default)]
pub(super) struct Uses {
    places: Vec<Option<Use>>,
    free: Vec<usize>,
    pools: HashSet<Rc<str>>,
}

struct Use {
    pool: Rc<str>,
    key: Box<str>,
    /// The server that it is used at, and the epoch of which that server owned it.
    at: SocketAddr,
    epoch: u64,
    /// Told once.
    moved: Option<Box<dyn FnOnce()>>,
}

/// One use of a key; over when it is dropped.
pub struct InUse {
    place: usize,
    uses: Weak<RefCell<Uses>>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(uses) = self.uses.upgrade() {
            let mut uses = uses.borrow_mut();
            uses.places[self.place] = None;
            uses.free.push(self.place);
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
    let pool = match all.pools.get(pool) {
        Some(known) => Rc::clone(known),
        None => {
            let pool: Rc<str> = pool.into();
            all.pools.insert(Rc::clone(&pool));
            pool
        }
    };
    let used = Some(Use {
        pool,
        key: key.into(),
        at: owner.address,
        epoch: owner.epoch,
        moved: Some(Box::new(moved)),
    });
    let place = match all.free.pop() {
        Some(place) => {
            all.places[place] = used;
            place
        }
        None => {
            all.places.push(used);
            all.places.len() - 1
        }
    };
    InUse { place, uses: Rc::downgrade(uses) }
}

/// Asks for what is used and was not asked for of late, and tells who uses what has moved, for as long as the link is there.
pub(super) async fn keep_asking(link: Weak<Shared>) {
    let mut pause = UNKNOWN;
    loop {
        let Some(news) = link.upgrade().map(|shared| Rc::clone(&shared.keys_moved)) else { return };
        // Both arms are cancel-safe.
        tokio::select! {
            () = sleep(pause) => {}
            () = news.notified() => sleep(MOVING).await,
        }
        let Some(shared) = link.upgrade().filter(|shared| !shared.left.get()) else { return };
        let (answers, all) = shared.ask_ageing(BootTime::now());
        pause = match shared.shortest_fresh.get() {
            _ if !all => SOONEST,
            Some(fresh) => (fresh / 4).clamp(SOONEST, LATEST),
            None => UNKNOWN,
        };
        let deadline = Instant::now() + LOCATE_TIMEOUT;
        for answer in answers {
            // What it says is known then.
            let _ = timeout_at(deadline, answer).await;
        }
        shared.tell_moved(BootTime::now());
    }
}

impl Shared {
    /// Asks for what is not fresh any more, and says whether that was all of it: [`MAX_ASKED`] keys at most are asked
    /// for, and questions may be refused.
    pub(super) fn ask_ageing(&self, now: BootTime) -> (Vec<Answer>, bool) {
        if self.lost_since.get().is_some() {
            return (Vec::new(), true);
        }
        let mut ageing = HashSet::new();
        for Use { pool, key, .. } in self.uses.borrow().places.iter().flatten() {
            if ageing.len() == MAX_ASKED {
                break;
            }
            let known = self.owners.borrow().look(pool, key, now);
            if known.is_none_or(|(_, age)| age != Age::Fresh) {
                ageing.insert((Rc::clone(pool), key.clone()));
            }
        }
        let answers: Vec<_> = ageing.iter().filter_map(|(pool, key)| self.ask(pool, key).ok()).collect();
        let all = answers.len() == ageing.len() && answers.len() < MAX_ASKED;
        (answers, all)
    }

    /// Tells whoever uses what another server has by now.
    pub(super) fn tell_moved(&self, now: BootTime) {
        let mut moved = Vec::new();
        for used in self.uses.borrow_mut().places.iter_mut().flatten() {
            if used.moved.is_some()
                && let Some((owner, _)) = self.owners.borrow().look(&used.pool, &used.key, now)
                && owner.epoch > used.epoch
                && owner.address != used.at
            {
                moved.extend(used.moved.take());
            }
        }
        // Whoever is told may end its use.
        moved.into_iter().for_each(|tell| tell());
    }
}
