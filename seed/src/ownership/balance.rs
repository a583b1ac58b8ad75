//! Who has less than its share since it joined a pool that grows gets the difference, and no more.
//!
//! | | |
//! | --- | --- |
//! | who gets | a member that joined with less than four fifths of its share of its zone, once it has stayed for a while (`settling`) |
//! | how many | what it lacked then: of n members with equal shares at most one n-th of all keys |
//! | who gives | members of its zone that have a twentieth more than their share; where it is the first of its zone, members elsewhere that have far more than theirs; only those that tell whoever uses the key |
//! | how fast | [`BATCH_SHARE`] of the pool's keys about twice a second, so that users don't all come back at once |
//! | which first | keys that nobody has asked for lately; once as much again and a half has passed, any |
//!
//! Nobody else's coming or going moves a key that is owned, so nothing can swing.

use std::collections::HashMap;
use std::time::Duration;

use protoplex_wire::clock::BootTime;

use super::Ownership;
use super::members::MemberIndex;

/// Not asked for so long: then no proxy uses the key all the time.
const COLD: Duration = Duration::from_secs(30);
/// One in so many of the pool's keys is moved in one batch, and not more than the most.
const BATCH_SHARE: u64 = 200;
const MAX_BATCH: usize = 250;
/// From one batch to the next, with up to as much again.
const BATCH_PAUSE: Duration = Duration::from_millis(300);

/// What may be moved in this step, by pool.
#[derive(Debug, Default)]
pub(super) struct Moves(HashMap<String, PoolMoves>);

#[derive(Debug)]
struct PoolMoves {
    to: MemberIndex,
    id: String,
    left: usize,
    taken: usize,
    only_cold: bool,
    /// How many each of these may lose.
    donors: HashMap<MemberIndex, u64>,
}

impl Moves {
    /// Is this key, asked for so long ago, one that moves?
    pub(super) fn take(&mut self, pool: &str, owner: MemberIndex, passed: Duration) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let Some(moves) = self.0.get_mut(pool) else { return false };
        if moves.left == 0 || (moves.only_cold && passed < COLD) {
            return false;
        }
        let Some(spare) = moves.donors.get_mut(&owner).filter(|spare| **spare > 0) else { return false };
        *spare -= 1;
        moves.left -= 1;
        moves.taken += 1;
        true
    }

    pub(super) fn newcomer(&self, pool: &str) -> Option<&str> {
        self.0.get(pool).map(|moves| moves.id.as_str())
    }
}

impl Ownership {
    /// A member has just joined, with the keys that it has.
    pub(super) fn note_newcomer(&mut self, index: MemberIndex, now: BootTime) {
        let slot = &self.members[index];
        let (pool, zone) = (&slot.member.pool, &slot.member.zone);
        let owned = slot.owned as u64;
        let of_zone = self.members.totals(pool, Some(zone)).share(slot.capacity);
        let first_of_zone = !self
            .members
            .of_pool(pool)
            .any(|(other, slot)| other != index && slot.is_live() && slot.member.zone == *zone);
        let share = if first_of_zone {
            let elsewhere = self.members.of_pool(pool).map(|(other, _)| self.members.excess(other)).sum();
            self.members.totals(pool, None).share(slot.capacity).min(elsewhere)
        } else {
            of_zone
        };
        let settling = self.timing.settling;
        if owned * 5 < share * 4 {
            let wanted = usize::try_from(share - owned).unwrap_or(usize::MAX);
            self.unbalanced = true;
            self.members.change(index, |slot| {
                (slot.wanted, slot.wanted_from, slot.joined) = (wanted, now + settling, now);
            });
        }
    }

    /// Who may get keys now, and from whom: one member of each pool at a time.
    pub(super) fn planned_moves(&mut self, now: BootTime) -> Moves {
        let mut moves = Moves::default();
        if !self.unbalanced {
            return moves;
        }
        let wanting = self.members.indices(|slot| slot.wanted > 0);
        self.unbalanced = !wanting.is_empty();
        for index in wanting {
            let donors = self.donors(index);
            let slot = &self.members[index];
            let ready = slot.is_live() && slot.link.is_some() && now >= slot.wanted_from;
            if ready && donors.is_empty() {
                // Nobody has too many, or nobody who may be asked for them: new keys will level it out.
                self.members.change(index, |slot| slot.wanted = 0);
                continue;
            }
            let pool = &slot.member.pool;
            if !ready || !self.takes_keys(slot) || slot.overloaded || moves.0.contains_key(pool) {
                continue;
            }
            let all = self.members.totals(pool, None);
            let batch = usize::try_from(all.owned() / BATCH_SHARE).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH);
            let moves_of_pool = PoolMoves {
                to: index,
                id: slot.member.id.clone(),
                left: batch.min(slot.wanted),
                taken: 0,
                only_cold: now < slot.joined + self.timing.settling * 5 / 2,
                donors,
            };
            moves.0.insert(pool.clone(), moves_of_pool);
        }
        moves
    }

    /// Who has too many for the newcomer to have too few, and how many too many.
    fn donors(&self, newcomer: MemberIndex) -> HashMap<MemberIndex, u64> {
        let (pool, zone) = (&self.members[newcomer].member.pool, &self.members[newcomer].member.zone);
        let of_zone = self.members.totals(pool, Some(zone));
        let others = self.members.of_pool(pool).filter(|(other, slot)| *other != newcomer && slot.yields);
        let spare = others.map(|(other, slot)| {
            if slot.member.zone == *zone {
                let share = of_zone.share(slot.capacity);
                (other, (slot.owned as u64).saturating_sub(share + share / 20))
            } else {
                (other, self.members.excess(other))
            }
        });
        spare.filter(|(_, spare)| *spare > 0).collect()
    }

    /// Some were asked for: the next batch comes later.
    pub(super) fn moved(&mut self, moves: Moves, now: BootTime) {
        for moves in moves.0.into_values().filter(|moves| moves.taken > 0) {
            // Any number that changes from one batch to the next.
            let jitter = BATCH_PAUSE * (self.sequence % 16) as u32 / 16;
            self.members.change(moves.to, |slot| {
                slot.wanted = slot.wanted.saturating_sub(moves.taken);
                slot.wanted_from = now + BATCH_PAUSE + jitter;
            });
        }
    }
}
