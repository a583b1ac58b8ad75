//! Who of a subscription's members gets which event, and up to where all is done. Pure: time is an argument.
//!
//! | an event is | until |
//! | --- | --- |
//! | ahead | it is taken in from the log |
//! | waiting | its time has come and a member has room |
//! | out | its member answers, leaves, or lets its time pass |
//! | dead | it is buried; so is one that was out too often |
//! | done | |

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::clock::BootTime;

use super::log::Record;

/// Events of one subscription that are taken in and not done.
pub(super) const MAX_PENDING: usize = 4096;
/// Their bytes; one is taken in, however large.
pub(super) const MAX_PENDING_BYTES: usize = 16 << 20;
/// So far a subscription reads ahead of the first event that isn't done: all of it comes again after a crash of the seed.
pub(super) const MAX_AHEAD: u64 = 100_000;

/// Names a member for as long as the subscription is served.
pub(super) type MemberId = u64;

/// How events are given out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// A member has so long for its answer; for ever where it is none.
    pub(super) ack_timeout: Option<Duration>,
    /// An event that was given out so often is dead.
    pub(super) max_attempts: u32,
}

/// One subscription as it is served.
pub(super) struct Sharing {
    terms: Terms,
    /// All up to here was taken in.
    cursor: u64,
    pending: BTreeMap<u64, Pending>,
    bytes: usize,
    /// Those that wait, by the time from which they may be given out.
    waiting: BTreeSet<(BootTime, u64)>,
    /// Those that are out and have a deadline.
    deadlines: BTreeSet<(BootTime, u64)>,
    dead: BTreeSet<u64>,
    members: BTreeMap<MemberId, Member>,
}

struct Pending {
    record: Arc<Record>,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Waiting(BootTime),
    Out(MemberId, BootTime),
    Dead,
}

struct Member {
    window: usize,
    out: BTreeSet<u64>,
    /// Up to which event it has answered, and when it did so last.
    answered: Option<(u64, BootTime)>,
    /// When it last let the time of an event pass that counts as an attempt.
    late: Option<BootTime>,
}

/// An event for a member.
pub(super) struct Offer {
    pub(super) member: MemberId,
    pub(super) record: Arc<Record>,
    pub(super) attempt: u32,
}

impl Sharing {
    /// All up to `position` is done.
    pub(super) fn new(position: u64, terms: Terms) -> Self {
        Self {
            terms,
            cursor: position,
            pending: BTreeMap::new(),
            bytes: 0,
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            dead: BTreeSet::new(),
            members: BTreeMap::new(),
        }
    }

    /// All up to here is done.
    pub(super) fn position(&self) -> u64 {
        self.pending.keys().next().map_or(self.cursor, |first| first - 1)
    }

    /// All up to here was taken in.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether more may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.has_members()
            && self.pending.len() < MAX_PENDING
            && self.bytes < MAX_PENDING_BYTES
            && self.cursor - self.position() < MAX_AHEAD
    }

    /// An event of the subscription, behind all before.
    pub(super) fn take_in(&mut self, record: Arc<Record>, now: BootTime) {
        let position = record.position;
        if position > self.cursor {
            self.cursor = position;
            self.bytes += record.event.len();
            self.pending.insert(position, Pending { record, attempts: 0, place: Place::Waiting(now) });
            self.waiting.insert((now, position));
        }
    }

    /// Up to here there is no other event of the subscription.
    pub(super) fn pass(&mut self, position: u64) {
        self.cursor = self.cursor.max(position);
    }

    /// A member comes, who may have so many events out.
    pub(super) fn join(&mut self, member: MemberId, window: usize) {
        self.members.insert(member, Member { window, out: BTreeSet::new(), answered: None, late: None });
    }

    /// A member leaves. What it had is for others, at once. Only the first of it counts as an attempt: that one it may
    /// have failed of, the rest it had not come to.
    pub(super) fn leave(&mut self, member: MemberId, now: BootTime) {
        let Some(Member { out, .. }) = self.members.remove(&member) else { return };
        for (n, position) in out.into_iter().enumerate() {
            if n > 0
                && let Some(pending) = self.pending.get_mut(&position)
            {
                pending.attempts -= 1;
            }
            self.give_back(position, now);
        }
    }

    /// A member has answered this event, so it is at work: what it has behind that one waits its turn.
    pub(super) fn answered(&mut self, member: MemberId, position: u64, now: BootTime) {
        if let Some(member) = self.members.get_mut(&member) {
            let last = member.answered.map_or(position, |(last, _)| last.max(position));
            (member.answered, member.late) = (Some((last, now)), None);
        }
    }

    /// A member has dealt with an event; whatever has become of it meanwhile, it is done.
    pub(super) fn ack(&mut self, position: u64) {
        let Some(pending) = self.pending.remove(&position) else { return };
        self.bytes -= pending.record.event.len();
        self.displace(position, pending.place);
    }

    /// A member can't deal with an event, which is to be given out again at `from`.
    pub(super) fn nack(&mut self, member: MemberId, position: u64, from: BootTime) {
        let is_its = |pending: &Pending| matches!(pending.place, Place::Out(of, _) if of == member);
        if self.pending.get(&position).is_some_and(is_its) {
            self.give_back(position, from);
        }
    }

    /// Takes back what members have let time out. Of those who take one event after the other the rest has only waited for
    /// its turn: it has more time while they go on, and when they stand still only the first of it counts as an attempt.
    pub(super) fn expire(&mut self, now: BootTime) {
        while let Some(&(deadline, position)) = self.deadlines.first()
            && deadline <= now
        {
            match self.turn_ends(position).filter(|end| *end > now) {
                Some(end) => self.put_off(position, end),
                None => {
                    self.blame(position, now);
                    self.give_back(position, now);
                }
            }
        }
    }

    /// Until when an event may be out that its member has not come to yet, as it seems.
    fn turn_ends(&self, position: u64) -> Option<BootTime> {
        let Place::Out(member, _) = self.pending.get(&position)?.place else { return None };
        let (last, at) = self.members.get(&member)?.answered?;
        (position > last).then_some(at + self.terms.ack_timeout?)
    }

    fn put_off(&mut self, position: u64, deadline: BootTime) {
        let Some(Pending { place: Place::Out(_, before), .. }) = self.pending.get_mut(&position) else {
            return;
        };
        self.deadlines.remove(&(*before, position));
        *before = deadline;
        self.deadlines.insert((deadline, position));
    }

    /// The time of an event that is out has passed: an attempt, unless its member stands still at an earlier one.
    fn blame(&mut self, position: u64, now: BootTime) {
        let Some(pending) = self.pending.get_mut(&position) else { return };
        let (Place::Out(member, _), Some(timeout)) = (pending.place, self.terms.ack_timeout) else { return };
        let Some(member) = self.members.get_mut(&member) else { return };
        match member.late {
            // What was given out with the one that counts.
            Some(late) if now < late + timeout / 2 => pending.attempts -= 1,
            _ => member.late = Some(now),
        }
    }

    /// The next event that is to be given out now, and to whom: the member with the most room.
    pub(super) fn next_offer(&mut self, now: BootTime) -> Option<Offer> {
        let &(from, position) = self.waiting.first()?;
        if from > now {
            return None;
        }
        let room = |member: &Member| member.window.saturating_sub(member.out.len());
        let (&id, member) = self.members.iter_mut().max_by_key(|(_, member)| room(member))?;
        if room(member) == 0 {
            return None;
        }
        let pending = self.pending.get_mut(&position)?;
        member.out.insert(position);
        self.waiting.pop_first();
        let deadline = self.terms.ack_timeout.map(|timeout| now + timeout);
        pending.attempts += 1;
        pending.place = Place::Out(id, deadline.unwrap_or_default());
        self.deadlines.extend(deadline.map(|deadline| (deadline, position)));
        Some(Offer { member: id, record: Arc::clone(&pending.record), attempt: pending.attempts })
    }

    /// When there is something to do again without anybody's doing.
    pub(super) fn next_time(&self) -> Option<BootTime> {
        let first = |times: &BTreeSet<(BootTime, u64)>| times.first().map(|(time, _)| *time);
        // What waits for room waits for an answer.
        let is_room = self.members.values().any(|member| member.out.len() < member.window);
        [first(&self.deadlines), first(&self.waiting).filter(|_| is_room)].into_iter().flatten().min()
    }

    /// One that is dead, and how often it was given out. It is done once it is acknowledged.
    pub(super) fn next_dead(&self) -> Option<(Arc<Record>, u32)> {
        let pending = self.pending.get(self.dead.first()?)?;
        Some((Arc::clone(&pending.record), pending.attempts))
    }

    fn give_back(&mut self, position: u64, from: BootTime) {
        let Some(pending) = self.pending.get(&position) else { return };
        let place = pending.place;
        let next = match pending.attempts >= self.terms.max_attempts {
            true => Place::Dead,
            false => Place::Waiting(from),
        };
        self.displace(position, place);
        match next {
            Place::Dead => drop(self.dead.insert(position)),
            _ => drop(self.waiting.insert((from, position))),
        }
        if let Some(pending) = self.pending.get_mut(&position) {
            pending.place = next;
        }
    }

    fn displace(&mut self, position: u64, place: Place) {
        match place {
            Place::Waiting(from) => drop(self.waiting.remove(&(from, position))),
            Place::Out(member, deadline) => {
                self.deadlines.remove(&(deadline, position));
                if let Some(member) = self.members.get_mut(&member) {
                    member.out.remove(&position);
                }
            }
            Place::Dead => drop(self.dead.remove(&position)),
        }
    }
}
