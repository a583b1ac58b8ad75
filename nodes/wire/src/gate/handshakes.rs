//! Handshakes under way on a port, and which of them makes room where more come than there are places.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Where many come at once each has so long for its first byte, and so long from there on.
const FOR_FIRST_BYTE: Duration = Duration::from_millis(100);
const FOR_THE_REST: Duration = Duration::from_millis(500);
/// Of the places an address has one in so many without having to make room at once.
const SHARE: usize = 8;

/// How far one is, by its own word.
#[derive(Default)]
pub(super) struct Progress {
    begun: OnceLock<Instant>,
    done: AtomicBool,
}

impl Progress {
    /// Its first byte has come.
    pub(super) fn begun(&self) {
        self.begun.get_or_init(Instant::now);
    }

    /// It takes no place any more.
    pub(super) fn done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

struct Handshake {
    from: IpAddr,
    since: Instant,
    progress: Arc<Progress>,
    task: AbortHandle,
}

/// All of one port; dropped, they end.
pub(super) struct Handshakes {
    places: usize,
    all: Vec<Handshake>,
    tasks: JoinSet<()>,
}

impl Handshakes {
    pub(super) fn new(places: usize) -> Self {
        Self { places, all: Vec::new(), tasks: JoinSet::new() }
    }

    /// Waits for a place. Meanwhile whoever comes waits in the listener's row, so nobody makes anybody wait by coming often:
    /// an address with many of them loses its oldest at once.
    pub(super) async fn make_room(&mut self) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.all.retain(|one| !one.task.is_finished() && !one.progress.done.load(Ordering::Relaxed));
            if self.all.len() < self.places {
                return;
            }
            let (next, due) = next_to_go(&self.all, (self.places / SHARE).max(1));
            if due <= Instant::now() {
                self.all.swap_remove(next).task.abort();
                continue;
            }
            // Both arms are cancel-safe.
            tokio::select! {
                // It may have begun since: then it has longer.
                () = sleep_until(due) => {}
                _ = self.tasks.join_next() => {}
            }
        }
    }

    pub(super) fn begin<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        from: IpAddr,
        handshake: impl FnOnce(Arc<Progress>) -> F,
    ) {
        let progress = Arc::<Progress>::default();
        let task = self.tasks.spawn(handshake(Arc::clone(&progress)));
        self.all.push(Handshake { from, since: Instant::now(), progress, task });
    }
}

/// Which one makes room, and when: at once the oldest of the address that has more than this share, silent ones before others;
/// else whoever has had its time first.
fn next_to_go(all: &[Handshake], share: usize) -> (usize, Instant) {
    let mut counts = HashMap::<_, usize>::new();
    for one in all {
        *counts.entry(one.from).or_default() += 1;
    }
    let greatest = counts.into_iter().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > share);
    let at = |index: &usize| {
        let Handshake { from, since, progress, .. } = &all[*index];
        let begun = progress.begun.get();
        match greatest {
            Some((greatest, _)) => (*from != greatest, begun.is_some(), *since),
            None => (false, false, begun.map_or(*since + FOR_FIRST_BYTE, |begun| *begun + FOR_THE_REST)),
        }
    };
    let next = (0..all.len()).min_by_key(at).unwrap_or(0);
    (next, at(&next).2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_with_many_makes_room_at_once_and_else_whoever_has_had_its_time() {
        let mut tasks = JoinSet::<()>::new();
        let now = Instant::now();
        let ms = |ms| now + Duration::from_millis(ms);
        let mut handshake = |from: u8, since: u64, begun: Option<u64>| {
            let progress = Progress::default();
            begun.iter().for_each(|begun| progress.begun.set(ms(*begun)).unwrap());
            let task = tasks.spawn(std::future::pending());
            let from = IpAddr::from([10, 0, 0, from]);
            Handshake { from, since: ms(since), progress: progress.into(), task }
        };
        let mut all = vec![
            handshake(1, 0, Some(5)),
            handshake(2, 20, Some(30)),
            handshake(1, 40, None),
            handshake(2, 390, None),
            handshake(3, 500, None),
        ];
        assert_eq!(next_to_go(&all, 2), (2, ms(140)));
        all[2].progress.begun.set(ms(130)).unwrap();
        assert_eq!(next_to_go(&all, 2), (3, ms(490)), "it has begun: it has longer");
        all[3].progress.begun.set(ms(400)).unwrap();
        assert_eq!(next_to_go(&all, 2), (0, ms(505)));
        all.push(handshake(2, 510, None));
        assert_eq!(next_to_go(&all, 2), (5, ms(510)), "of those with many the silent one");
        all[5].progress.begun.set(ms(511)).unwrap();
        assert_eq!(next_to_go(&all, 2), (1, ms(20)), "and the oldest");
    }
}
