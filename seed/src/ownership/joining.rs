//! Members: their hello, their renewals, their end.

use std::collections::{BTreeMap, HashMap};

use protoplex_wire::clock::BootTime;
use protoplex_wire::identity::Kind;
use protoplex_wire::proto::{
    Assigned, Member, MemberGone, OwnedKey, Renewed, Revoked, follow_reply::Message,
};

use super::members::{MemberIndex, Presence, Slot, node_of};
use super::{Action, Ending, Joining, LinkId, Ownership};

/// A hello whose member's row is being written.
struct PendingJoin {
    joining: Joining,
    revision: u64,
    /// Its link is still there.
    open: bool,
}

/// The hellos whose members' rows are being written.
#[derive(Default)]
pub(super) struct Pending {
    by_link: BTreeMap<LinkId, PendingJoin>,
    /// By pool, then id: few are written more than once at a time.
    by_member: HashMap<String, HashMap<String, Vec<LinkId>>>,
}

impl Pending {
    fn insert(&mut self, link: LinkId, join: PendingJoin) {
        let Member { pool, id, .. } = &join.joining.member;
        self.by_member.entry(pool.clone()).or_default().entry(id.clone()).or_default().push(link);
        self.by_link.insert(link, join);
    }

    fn remove(&mut self, link: LinkId) -> Option<PendingJoin> {
        let join = self.by_link.remove(&link)?;
        let Member { pool, id, .. } = &join.joining.member;
        if let Some(of_pool) = self.by_member.get_mut(pool)
            && let Some(links) = of_pool.get_mut(id)
        {
            links.retain(|other| *other != link);
            if links.is_empty() {
                of_pool.remove(id);
            }
            if of_pool.is_empty() {
                self.by_member.remove(pool);
            }
        }
        Some(join)
    }

    /// Those of this member.
    fn of(&self, pool: &str, id: &str) -> impl Iterator<Item = &PendingJoin> {
        let links = self.by_member.get(pool).and_then(|of_pool| of_pool.get(id));
        links.into_iter().flatten().filter_map(|link| self.by_link.get(link))
    }

    fn closed(&mut self, link: LinkId) {
        if let Some(join) = self.by_link.get_mut(&link) {
            join.open = false;
        }
    }

    /// The links that are still there.
    pub(super) fn open_links(&self) -> impl Iterator<Item = LinkId> {
        self.by_link.iter().filter(|(_, join)| join.open).map(|(link, _)| *link)
    }
}

/// What became of a key that a member reports.
enum Adopted {
    AsReported,
    /// It is the member's at this later epoch.
    At(u64),
    /// It is another's, was later than it was this member's, or was never.
    No,
}

impl Ownership {
    /// A member says hello on a new link.
    pub fn hello(&mut self, link: LinkId, joining: Joining, now: BootTime) {
        self.advance(now);
        let admissible = self.admissible(&joining).and_then(|()| match self.rival(&joining) {
            Some(rival) => Err(taken(rival)),
            None => Ok(()),
        });
        if let Err(why) = admissible {
            self.actions.push_back(Action::Close(link, why));
            return;
        }
        let known = self.members.find(&joining.member.pool, &joining.member.id);
        if known
            .is_some_and(|index| self.members[index].recorded && self.members[index].member == joining.member)
        {
            self.accept(link, joining, now);
        } else {
            let revision = self.next_epoch();
            self.actions.push_back(Action::Record(link, joining.member.clone(), revision));
            self.pending.insert(link, PendingJoin { joining, revision, open: true });
        }
    }

    /// The row asked for by [`Action::Record`] is written, or could not be.
    pub fn recorded(&mut self, link: LinkId, written: bool, now: BootTime) {
        self.advance(now);
        let Some(PendingJoin { joining, revision, open }) = self.pending.remove(link) else {
            return;
        };
        let accepted = match self.admissible(&joining) {
            _ if !open => Err(Ending::Away("closed")),
            _ if !written => Err(Ending::Away("the datastore did not take the member")),
            admissible => admissible,
        };
        let Err(why) = accepted else {
            return self.accept(link, joining, now);
        };
        if open {
            self.actions.push_back(Action::Close(link, why));
        }
        // The row of this attempt, and no later one, must not outlive it, unless the member is there or expected.
        let Member { pool, id, .. } = joining.member;
        let known = self.members.find(&pool, &id);
        if known.is_none_or(|index| self.members[index].presence == Presence::Gone) {
            self.actions.push_back(Action::Erase(pool, id, revision));
        }
    }

    /// May this hello be accepted? While a member's lease runs, or may still run from an earlier term, only one of the
    /// same instance, and only a later one: then whoever said hello before it is dead, or is the same process.
    fn admissible(&self, joining: &Joining) -> Result<(), Ending> {
        if self.lead_until.is_none() {
            return Err(Ending::Away("this seed does not lead"));
        }
        let Member { pool, id, instance, .. } = &joining.member;
        // A node of a name that is taken must not come in by a child that the other one does not have. Members of a
        // user's own are no children, and may each be another process.
        let is_there = |slot: &Slot| match slot.presence {
            Presence::Live { .. } => *slot.node == joining.node,
            Presence::Expected => true,
            Presence::Gone => false,
        };
        // A node's children are in the pool of its kind, and servers of a user's own never are: those are somebody else.
        let is_nodes = |pool: &str| Kind::ALL.into_iter().any(|kind| kind.pool() == Some(pool));
        if node_of(id) == Some(&joining.node) {
            let namesake = |slot: &&Slot| {
                slot.member.instance != *instance
                    && is_nodes(&slot.member.pool) == is_nodes(pool)
                    && is_there(slot)
            };
            if let Some(slot) = self.members.children(&joining.node).find(namesake) {
                return Err(taken(&slot.member));
            }
        }
        match self.members.find(pool, id).map(|index| &self.members[index]) {
            Some(slot) if slot.presence != Presence::Gone && slot.member.instance != *instance => {
                Err(taken(&slot.member))
            }
            Some(slot) if slot.is_live() => {
                if (joining.incarnation, joining.attempt) <= (slot.incarnation, slot.attempt) {
                    Err(Ending::refused("a later hello of this member was accepted already"))
                } else {
                    Ok(())
                }
            }
            Some(slot) if slot.presence == Presence::Expected => Ok(()),
            _ if self.members.live() >= self.limits.max_members => {
                Err(Ending::refused("the seed has as many members as its limit max_members allows"))
            }
            _ => Ok(()),
        }
    }

    /// Another instance of this member whose row is being written: a second one must not write over it, since the row
    /// tells the next term whom to wait for.
    fn rival(&self, joining: &Joining) -> Option<&Member> {
        let Member { pool, id, instance, .. } = &joining.member;
        let mut others = self.pending.of(pool, id).map(|join| &join.joining.member);
        others.find(|other| other.instance != *instance)
    }

    fn accept(&mut self, link: LinkId, joining: Joining, now: BootTime) {
        let Joining { node, member, incarnation, attempt, keys, capacity, yields } = joining;
        let overloaded = self.overloaded.contains(&node);
        let pool = member.pool.clone();
        let index = self.members.intern(&pool, &member.id);
        if let Some(old) = self.members.unlink(index) {
            self.actions
                .push_back(Action::Close(old, Ending::refused("the member has joined on another link")));
        }
        let restarted = self.members.change(index, |slot| {
            let restarted = slot.is_live() && slot.incarnation != incarnation;
            slot.node = node.into();
            slot.incarnation = incarnation;
            slot.attempt = attempt;
            slot.recorded = true;
            slot.member = member;
            (slot.capacity, slot.yields, slot.overloaded) = (capacity.max(1), yields, overloaded);
            restarted
        });
        if restarted {
            self.broadcast_gone(index);
        }
        self.members.seat(index, link, now + self.timing.lease);
        self.next_expiry = self.next_expiry.min(now + self.timing.lease);
        let (mut refused, mut renewed) = (Vec::new(), Vec::new());
        for owned in keys {
            match self.adopt(index, &pool, &owned, now) {
                Adopted::AsReported => {}
                Adopted::At(epoch) => renewed.push(Assigned { key: owned.key, epoch }),
                Adopted::No => refused.push(owned),
            }
        }
        self.note_newcomer(index, now);
        self.actions.push_back(Action::Welcome(link));
        for assigned in renewed {
            self.send(link, Message::Assigned(assigned));
        }
        if !refused.is_empty() {
            self.send(link, Message::Revoked(Revoked { keys: refused }));
        }
        self.actions.push_back(Action::TableChanged);
        self.advance(now);
        self.answer_held(|question| question.pool == pool, now);
        self.answer_parked(now);
    }

    /// Takes a reported key for what it says, unless that can't be: no such epoch was given, or it was given to another.
    /// What was given to this very member at a later epoch, as its link broke before it heard of it, is its own at that
    /// epoch: it has had it all the time.
    ///
    /// Two members that report one key say the truth only in a new term: the later epoch was given when the earlier lease had
    /// ended. Once all who may come back have, what is known of a key that is owned comes before any report, and of a key that
    /// nobody knows there can be none: whoever had it would have said so, or has lost its lease. Nor does a report make more
    /// keys than there may be.
    fn adopt(&mut self, index: MemberIndex, pool: &str, reported: &OwnedKey, now: BootTime) -> Adopted {
        if reported.epoch > self.last_epoch() {
            return Adopted::No;
        }
        if let Some(record) = self.keys.get(pool, &reported.key) {
            if record.member == index && record.epoch > reported.epoch {
                self.set(pool, &reported.key, index, record.epoch, now);
                return Adopted::At(record.epoch);
            }
            if record.member != index && record.epoch >= reported.epoch {
                return Adopted::No;
            }
            let other = &self.members[record.member];
            if record.member != index && Self::owns(other, &record) {
                if self.recovery_ends.is_none() || record.epoch > self.first_epoch() {
                    return Adopted::No;
                }
                let revoked =
                    Revoked { keys: vec![OwnedKey { key: reported.key.clone(), epoch: record.epoch }] };
                self.actions.extend(other.link.map(|link| Action::Send(link, Message::Revoked(revoked))));
            }
        } else if self.recovery_ends.is_none() || self.keys.len() >= self.limits.max_keys {
            return Adopted::No;
        }
        self.set(pool, &reported.key, index, reported.epoch, now);
        Adopted::AsReported
    }

    /// A renewal arrived on this link.
    pub fn renew(&mut self, link: LinkId, sequence: u64, now: BootTime) {
        self.advance(now);
        let Some(index) = self.members.by_link(link) else {
            return;
        };
        let lease_ends = now + self.timing.lease;
        self.members.change(index, |slot| slot.presence = Presence::Live { lease_ends });
        self.send(link, Message::Renewed(Renewed { sequence }));
    }

    /// The member of this link serves nothing any more.
    pub fn leave(&mut self, link: LinkId, now: BootTime) {
        self.advance(now);
        let Some(index) = self.members.by_link(link) else {
            return;
        };
        self.actions.push_back(Action::Close(link, Ending::refused("the member has left")));
        self.retire(index);
    }

    /// This link is gone; a lease goes on without it.
    pub fn closed(&mut self, link: LinkId) {
        if let Some(index) = self.members.by_link(link) {
            self.members.unlink(index);
        }
        self.pending.closed(link);
        self.held.retain(|question| question.link != link);
    }

    /// Members of a draining node are given no new keys.
    pub fn set_draining(&mut self, node: &str, draining: bool) {
        if draining {
            self.draining.insert(node.to_owned());
        } else {
            self.draining.remove(node);
        }
    }

    /// The member of this link gives up its keys bit by bit: it is given no others.
    pub fn drain(&mut self, link: LinkId) {
        if let Some(index) = self.members.by_link(link) {
            self.members.change(index, |slot| (slot.draining, slot.wanted) = (true, 0));
        }
    }

    /// The machine of a node has more to do than it can, or no longer.
    pub fn set_overloaded(&mut self, node: &str, overloaded: bool) {
        let changed =
            if overloaded { self.overloaded.insert(node.to_owned()) } else { self.overloaded.remove(node) };
        if changed {
            for index in self.members.indices(|slot| *slot.node == *node) {
                self.members.change(index, |slot| slot.overloaded = overloaded);
            }
        }
    }

    /// Ends a membership; its keys stay remembered.
    pub(super) fn retire(&mut self, index: MemberIndex) {
        self.members.unlink(index);
        self.members.change(index, |slot| {
            (slot.presence, slot.recorded, slot.wanted) = (Presence::Gone, false, 0);
        });
        self.broadcast_gone(index);
        let Member { pool, id, .. } = self.members[index].member.clone();
        // The row that a pending hello writes is of a lower revision than this removal would be.
        if self.pending.of(&pool, &id).next().is_none() {
            let revision = self.next_epoch();
            self.actions.push_back(Action::Erase(pool, id, revision));
        }
        self.actions.push_back(Action::TableChanged);
        self.members.tidy(index);
    }

    fn broadcast_gone(&mut self, index: MemberIndex) {
        let Member { pool, id, .. } = self.members[index].member.clone();
        self.broadcast(|position| {
            Message::MemberGone(MemberGone { sequence: position.sequence, pool, member: id })
        });
    }
}

/// For the operator of the second of two processes that were given one name.
fn taken(by: &Member) -> Ending {
    let Member { id, address, .. } = by;
    let text = format!(
        "the name {id:?} is taken by another instance, at {address}: give this one another name (--node, or --id with \
         `protoplex join`); if that one is gone for good, this one gets the name when its lease ends, in a few seconds"
    );
    Ending::Refused(text.into())
}
