//! The datastore's part: one lease row, the members' rows and the handlers, executed one request at a time, however late it
//! arrives. What a seed changes is refused where another has led since.

use std::collections::BTreeMap;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{Handler, Member};

use crate::Plant;

#[derive(Clone, Debug)]
pub(crate) enum Request {
    Take {
        holder: usize,
        term: u64,
        ttl: Duration,
    },
    /// The holder of this term gives the row up.
    Release {
        holder: usize,
        term: u64,
    },
    Peek,
    Load,
    Put {
        member: Member,
        revision: u64,
        term: u64,
    },
    Erase {
        pool: String,
        id: String,
        revision: u64,
        term: u64,
    },
    /// All handlers, as a change of those of this version makes them.
    Change {
        base: u64,
        after: Vec<Handler>,
        term: u64,
    },
    Handlers,
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Taken {
        granted: bool,
        term: u64,
    },
    /// By whom, and for how long if nothing renews it; zero where nobody does.
    Held {
        left: Duration,
        holder: Option<usize>,
    },
    Loaded(Vec<Member>, u64, Vec<Handler>),
    Changed(bool),
    Handlers(u64, Vec<Handler>),
    /// Refused: this newer term was granted.
    Superseded(u64),
    Done,
}

#[derive(Default)]
pub(crate) struct Datastore {
    holder: Option<usize>,
    pub(crate) term: u64,
    expires: BootTime,
    members: BTreeMap<(String, String), (Member, u64)>,
    version: u64,
    pub(crate) handlers: Vec<Handler>,
    /// The bugs that are planted here.
    any_version: bool,
    any_term: bool,
}

impl Datastore {
    pub(crate) fn new(plant: Plant) -> Self {
        Self { any_version: plant == Plant::AnyVersion, any_term: plant == Plant::AnyTerm, ..Self::default() }
    }

    pub(crate) fn execute(&mut self, request: Request, now: BootTime) -> Reply {
        if let Request::Put { term, .. } | Request::Erase { term, .. } | Request::Change { term, .. } =
            request
            && term < self.term
            && !self.any_term
        {
            return Reply::Superseded(self.term);
        }
        match request {
            Request::Release { holder, term } => {
                if self.holder == Some(holder) && self.term == term {
                    self.expires = self.expires.min(now);
                }
                Reply::Done
            }
            Request::Take { holder, term, ttl } => self.take(holder, term, ttl, now),
            Request::Peek => Reply::Held { left: self.expires.since(now), holder: self.holder },
            Request::Load => {
                let members = self.members.values().map(|(member, _)| member.clone()).collect();
                Reply::Loaded(members, self.version, self.handlers.clone())
            }
            Request::Handlers => Reply::Handlers(self.version, self.handlers.clone()),
            Request::Change { base, after, .. } => {
                let taken = base == self.version || self.any_version;
                if taken {
                    self.version += 1;
                    self.handlers = after;
                }
                Reply::Changed(taken)
            }
            Request::Put { member, revision, .. } => {
                let key = (member.pool.clone(), member.id.clone());
                if self.members.get(&key).is_none_or(|(_, known)| *known <= revision) {
                    self.members.insert(key, (member, revision));
                }
                Reply::Done
            }
            Request::Erase { pool, id, revision, .. } => {
                let key = (pool, id);
                let theirs = self.members.get(&key).is_some_and(|(_, known)| *known <= revision);
                if theirs {
                    self.members.remove(&key);
                }
                Reply::Done
            }
        }
    }

    /// A term of 0 takes the row anew: at once where it was this holder's own, else when it is over.
    fn take(&mut self, holder: usize, term: u64, ttl: Duration, now: BootTime) -> Reply {
        let mine = self.holder == Some(holder);
        let granted = if term == 0 { mine || now >= self.expires } else { mine && term == self.term };
        if granted {
            self.term += u64::from(term == 0);
            self.holder = Some(holder);
            self.expires = now + ttl;
        }
        Reply::Taken { granted, term: self.term }
    }
}
