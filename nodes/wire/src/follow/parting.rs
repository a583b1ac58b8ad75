//! A member that is about to leave gives up its keys bit by bit, so that their users don't all come to others at once.

use std::time::Duration;

use rand::RngExt;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep, timeout};

use super::{Link, Membership};

/// So long the seed may be away.
const SEED_PATIENCE: Duration = Duration::from_millis(500);
/// From one batch to the next, with up to as much again.
const PAUSE: Duration = Duration::from_millis(50);

impl Link {
    /// Gives up all keys over this time, in batches of any keys, each as large as the time that has passed; `end` is told
    /// of each first, and then nothing of it may be served any more. The member is given no new ones from now on. Ends at
    /// once where nobody else is in the pool, and soon where the seed is away, as nobody would get them. What is left
    /// after all [`Self::leave`] gives up.
    pub async fn part_with_all(&self, over: Duration, end: impl Fn(&str, u64)) {
        self.drain();
        let until = Instant::now() + over;
        let mut keys = Vec::new();
        while Instant::now() < until && self.has_heirs() {
            let mut connection = self.connection();
            if timeout(SEED_PATIENCE, connection.wait_for(|connected| *connected)).await.is_err() {
                return;
            }
            if keys.is_empty() {
                // Some may have been assigned since, or are assigned at other epochs now.
                keys = self.owned();
                keys.shuffle(&mut rand::rng());
            }
            if keys.is_empty() {
                return;
            }
            let pause = PAUSE + rand::rng().random_range(Duration::ZERO..PAUSE);
            sleep(pause).await;
            let left = until.saturating_duration_since(Instant::now()) + pause;
            let part = pause.as_secs_f64() / left.as_secs_f64();
            let batch = (keys.len() as f64 * part).ceil() as usize;
            let given_up = keys.split_off(keys.len().saturating_sub(batch));
            given_up.iter().for_each(|(key, epoch)| end(key, *epoch));
            self.release(given_up);
        }
    }

    /// Is anybody else in the pool?
    fn has_heirs(&self) -> bool {
        let Some(Membership { member, .. }) = &self.shared.who.membership else { return false };
        let table = self.table();
        let others =
            table.pools.iter().filter(|pool| pool.name == member.pool).flat_map(|pool| &pool.members);
        others.into_iter().any(|other| other.id != member.id)
    }
}
