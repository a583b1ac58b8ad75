//! Who wants to be told when what it has cached under a name is no longer so.
//!
//! A registrant holds one connection for each shard of names, with JSON lines both ways:
//!
//! | registrant | live node |
//! | --- | --- |
//! | `{"register":"site:h:/p"}` | `{"registered":"site:h:/p"}`, or `{"refused":"site:h:/p"}` where there are too many |
//! | `{"unregister":"site:h:/p"}` | |
//! | | `{"invalidate":"site:h:/p","id":7}` |
//! | `{"ack":7}` | |
//!
//! A registration stands until it is taken back or its connection ends, and its registrant forgets everything it has
//! through a connection that ended. So one that doesn't acknowledge in time is cut.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

/// Names registered on one connection.
pub(crate) const MAX_NAMES_A_PEER: usize = 1 << 16;
/// Names registered on all connections of a child.
pub(crate) const MAX_NAMES: usize = 1 << 20;
/// The longest name, in bytes: a host and a path.
pub(crate) const MAX_NAME_BYTES: usize = 12 << 10;

/// One registration connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PeerId(u64);

/// One invalidation, until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RoundId(u64);

/// What a registrant says.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Heard {
    Register(String),
    Unregister(String),
    Ack(u64),
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Told {
    Registered { registered: String },
    Refused { refused: String },
    Invalidate { invalidate: String, id: u64 },
}

/// A registrant said what no well-behaved one says: it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Misbehaved;

/// The answer to an invalidation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) registrants: usize,
    pub(crate) acked: usize,
    /// Connected still, and without an answer.
    #[serde(skip)]
    pub(crate) late: Vec<PeerId>,
}

/// Every registration of a child.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    peers: HashMap<PeerId, HashSet<Rc<str>>>,
    names: HashMap<Rc<str>, HashSet<PeerId>>,
    rounds: HashMap<RoundId, Round>,
    /// Registrations: pairs of a peer and a name.
    count: usize,
    last_id: u64,
}

#[derive(Debug)]
struct Round {
    registrants: usize,
    acked: usize,
    waiting: HashSet<PeerId>,
}

impl Registrations {
    /// A new connection.
    pub(crate) fn connect(&mut self) -> PeerId {
        let peer = PeerId(self.next_id());
        self.peers.insert(peer, HashSet::new());
        peer
    }

    /// A connection has ended, or is cut. Nobody waits for its acknowledgement any more.
    pub(crate) fn disconnect(&mut self, peer: PeerId) {
        for name in self.peers.remove(&peer).unwrap_or_default() {
            self.forget(peer, &name);
        }
        for round in self.rounds.values_mut() {
            round.waiting.remove(&peer);
        }
    }

    /// What a connected peer said, and what it is answered.
    pub(crate) fn hear(&mut self, peer: PeerId, heard: Heard) -> Result<Option<Told>, Misbehaved> {
        match heard {
            Heard::Register(name) if name.is_empty() || name.len() > MAX_NAME_BYTES => Err(Misbehaved),
            Heard::Register(name) => Ok(Some(self.register(peer, name))),
            Heard::Unregister(name) => {
                if self.peers.get_mut(&peer).is_some_and(|names| names.remove(name.as_str())) {
                    self.forget(peer, &name);
                }
                Ok(None)
            }
            Heard::Ack(id) => {
                let round = self.rounds.get_mut(&RoundId(id)).ok_or(Misbehaved)?;
                if !round.waiting.remove(&peer) {
                    return Err(Misbehaved);
                }
                round.acked += 1;
                Ok(None)
            }
        }
    }

    /// Opens a round: what each of the peers registered under `name` is to be told.
    pub(crate) fn invalidate(&mut self, name: &str) -> (RoundId, Told, Vec<PeerId>) {
        let id = RoundId(self.next_id());
        let waiting = self.names.get(name).cloned().unwrap_or_default();
        let peers = waiting.iter().copied().collect();
        self.rounds.insert(id, Round { registrants: waiting.len(), acked: 0, waiting });
        (id, Told::Invalidate { invalidate: name.into(), id: id.0 }, peers)
    }

    /// Whether nobody's acknowledgement is awaited.
    pub(crate) fn settled(&self, round: RoundId) -> bool {
        self.rounds.get(&round).is_none_or(|round| round.waiting.is_empty())
    }

    /// Ends a round, once: what is acknowledged after that is a misbehaviour.
    pub(crate) fn close(&mut self, round: RoundId) -> Option<Outcome> {
        let Round { registrants, acked, waiting } = self.rounds.remove(&round)?;
        Some(Outcome { registrants, acked, late: waiting.into_iter().collect() })
    }

    /// All registrations.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn register(&mut self, peer: PeerId, name: String) -> Told {
        // Only the connected are heard.
        let Some(names) = self.peers.get_mut(&peer) else { return Told::Refused { refused: name } };
        if names.contains(name.as_str()) {
            return Told::Registered { registered: name };
        }
        if names.len() >= MAX_NAMES_A_PEER || self.count >= MAX_NAMES {
            return Told::Refused { refused: name };
        }
        // One copy of a name, however many are registered under it.
        let shared = self
            .names
            .get_key_value(name.as_str())
            .map_or_else(|| name.as_str().into(), |(shared, _)| Rc::clone(shared));
        names.insert(Rc::clone(&shared));
        self.names.entry(shared).or_default().insert(peer);
        self.count += 1;
        Told::Registered { registered: name }
    }

    fn forget(&mut self, peer: PeerId, name: &str) {
        self.count -= 1;
        if let Some(peers) = self.names.get_mut(name) {
            peers.remove(&peer);
            if peers.is_empty() {
                self.names.remove(name);
            }
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

#[cfg(test)]
mod tests;
