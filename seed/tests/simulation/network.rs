//! Connections as TCP makes them: each direction in order, stalled by partitions, broken at any point with the loss of
//! its tail, and closed for one end long before the other notices.

use std::collections::VecDeque;

use protoplex_seed::ownership::{Joining, Question};
use protoplex_wire::proto::{HandlerChanges, OwnedKey, follow_reply::Message};

/// Microseconds of true time, which nobody in the simulation can read.
pub(crate) type Time = u64;
pub(crate) type Machine = usize;

#[derive(Clone, Debug)]
pub(crate) enum Packet {
    /// A follower that is no member.
    Follow,
    Hello(Joining),
    Renew(u64),
    Locate(Question),
    /// What is given up, and what is kept of what was asked for as idle.
    Released(Vec<OwnedKey>, Vec<OwnedKey>),
    Draining,
    Leave,
    /// An operator's change of handlers.
    Change(u64, HandlerChanges),
    /// Whether it is made; or nobody knows, or it can't be.
    Changed(u64, bool),
    Reply(Message),
    Welcome,
    Closed,
}

#[derive(Default)]
pub(crate) struct Direction {
    pub(crate) queue: VecDeque<(Time, Packet)>,
    /// Nothing goes in any more.
    pub(crate) shut: bool,
}

impl Direction {
    pub(crate) fn push(&mut self, ready: Time, packet: Packet) -> Option<Time> {
        if self.shut {
            return None;
        }
        let ready = self.queue.back().map_or(ready, |(last, _)| ready.max(*last));
        self.queue.push_back((ready, packet));
        Some(ready)
    }

    /// The end of the stream: what is in flight beyond `keep` packets is lost.
    pub(crate) fn shut(&mut self, keep: usize, ready: Time) -> Option<Time> {
        if self.shut {
            return None;
        }
        self.queue.truncate(keep);
        let ready = self.push(ready, Packet::Closed);
        self.shut = true;
        ready
    }
}

/// From a client machine (member or asker) to a seed; each end is one process's life.
pub(crate) struct Connection {
    pub(crate) client: (Machine, u64),
    pub(crate) server: (Machine, u64),
    pub(crate) up: Direction,
    pub(crate) down: Direction,
    pub(crate) client_open: bool,
    pub(crate) server_open: bool,
}

impl Connection {
    pub(crate) fn direction(&mut self, up: bool) -> &mut Direction {
        if up { &mut self.up } else { &mut self.down }
    }
}
