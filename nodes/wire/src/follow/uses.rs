//! Keys that are in use here for longer than an answer is fresh, as by a WebSocket: for them the seed is asked again and
//! again, so that it takes none of them for idle.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use crate::clock::BootTime;
use crate::owners::Age;

/// Uses are looked through in a quarter of the time for which answers are fresh, within these bounds.
const SOONEST: Duration = Duration::from_millis(250);
const LATEST: Duration = Duration::from_secs(60);
/// Before the seed has told any time.
const UNKNOWN: Duration = Duration::from_secs(5);
/// Keys asked for in one go: fewer than may be asked for at once, since requests ask, too.
const MAX_ASKED: usize = 512;

/// The uses there are; a place is taken again once it is free.
#[derive(Default)]
pub(super) struct Uses {
    places: Vec<Option<(Rc<str>, Box<str>)>>,
    free: Vec<usize>,
    pools: HashSet<Rc<str>>,
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

pub(super) fn begin(uses: &Rc<RefCell<Uses>>, pool: &str, key: &str) -> InUse {
    let mut all = uses.borrow_mut();
    let pool = match all.pools.get(pool) {
        Some(known) => Rc::clone(known),
        None => {
            let pool: Rc<str> = pool.into();
            all.pools.insert(Rc::clone(&pool));
            pool
        }
    };
    let used = Some((pool, key.into()));
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

/// Asks for what is used and was not asked for of late, for as long as the link is there.
pub(super) async fn keep_asking(link: Weak<Shared>) {
    let mut fresh: Option<Duration> = None;
    loop {
        sleep(fresh.map_or(UNKNOWN, |fresh| (fresh / 4).clamp(SOONEST, LATEST))).await;
        let Some(shared) = link.upgrade().filter(|shared| !shared.left.get()) else { return };
        fresh = shared.shortest_fresh.get();
        if shared.lost_since.get().is_some() {
            continue;
        }
        let now = BootTime::now();
        let mut ageing = HashSet::new();
        for (pool, key) in shared.uses.borrow().places.iter().flatten() {
            let known = shared.owners.borrow_mut().known(pool, key, now);
            if known.is_none_or(|(_, age)| age != Age::Fresh) && ageing.len() < MAX_ASKED {
                ageing.insert((Rc::clone(pool), key.clone()));
            }
        }
        for (pool, key) in ageing {
            // Its answer is learnt whoever waits for it.
            drop(shared.ask(&pool, &key));
        }
    }
}
