//! A channel is one bounded history that is also every subscriber's queue: a subscriber is a position in it.
//!
//! Publishing appends one formatted frame; subscribers read it from here, each at its own pace, and share its bytes.
//! So recovery is nothing but a starting position, and a consumer is too slow exactly when the event that it needs next
//! has left the history.
//!
//! An event's id is `#{epoch}.{sequence}`, the epoch in hexadecimal: a URI fragment, as the Mercure specification has it
//! for a hub's own offsets. The epoch is that of the key's ownership, so that an id of an earlier owner is known for one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::frame;

/// How much of a channel's past is kept: what is over any of the three limits goes, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retention {
    /// Events.
    pub(crate) count: usize,
    /// Bytes of formatted frames. The newest event stays even where it alone is larger.
    pub(crate) bytes: usize,
    /// Time since the event was published.
    pub(crate) age: Duration,
}

/// What a publisher sends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Update {
    /// The `data` of the event, of any number of lines.
    pub(crate) data: String,
    /// The event's type: SSE's `event`.
    pub(crate) kind: Option<String>,
    /// The publisher's own id for this revision, shown to subscribers in the place of the channel's.
    pub(crate) id: Option<String>,
    /// SSE's `retry`, in milliseconds.
    pub(crate) retry_ms: Option<u64>,
    /// Only for subscribers whose token covers the topic.
    pub(crate) private: bool,
}

/// Where a subscription starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Since {
    /// With the next event.
    Now,
    /// With all that the history has.
    Earliest,
    /// After the event of this id.
    Event(String),
}

/// A subscriber's place: the sequence number of the last event that it was given, or passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

/// The answer to [`Channel::start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// Where to read on.
    pub(crate) position: Position,
    /// Whether nothing between the asked event and `position` is missing. Always so for [`Since::Now`].
    pub(crate) complete: bool,
}

/// The answer to [`Channel::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// The next event's frame.
    Frame(Bytes),
    /// Nothing new yet.
    UpToDate,
    /// The next events have left the history.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// One topic's events, while its key is owned at one epoch.
#[derive(Debug)]
pub(crate) struct Channel {
    epoch: u64,
    retention: Retention,
    /// In order, without holes: the last one's sequence number is `head`.
    history: VecDeque<Event>,
    head: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Event {
    frame: Bytes,
    id: Option<String>,
    private: bool,
    published: Instant,
}

impl Channel {
    /// An empty channel. `epoch` must be one that no other channel of this topic has or had.
    pub(crate) fn new(epoch: u64, retention: Retention) -> Self {
        Self { epoch, retention, history: VecDeque::new(), head: 0, bytes: 0 }
    }

    /// Appends an update, formatting its frame, and returns its id.
    pub(crate) fn publish(&mut self, update: Update, now: Instant) -> String {
        self.head += 1;
        let own_id = self.id(Position(self.head));
        let frame = frame::event(&update, &own_id);
        self.bytes += frame.len();
        self.history.push_back(Event {
            frame,
            id: update.id.clone(),
            private: update.private,
            published: now,
        });
        while self.history.len() > self.retention.count
            || (self.bytes > self.retention.bytes && self.history.len() > 1)
        {
            self.forget_oldest();
        }
        update.id.unwrap_or(own_id)
    }

    /// Where a subscriber that asks for `since` reads on. What can't be found is answered with all that the history has:
    /// it is newer than an event that has left it, and than any of an earlier owner.
    pub(crate) fn start(&self, since: &Since) -> Start {
        let earliest = Position(self.head - self.history.len() as u64);
        match since {
            Since::Now => Start { position: Position(self.head), complete: true },
            Since::Earliest => Start { position: earliest, complete: false },
            Since::Event(id) => {
                match self.find(id).filter(|found| (earliest..=Position(self.head)).contains(found)) {
                    Some(position) => Start { position, complete: true },
                    None => Start { position: earliest, complete: false },
                }
            }
        }
    }

    /// The next frame after `position`, which moves on; private ones are passed over without `private`.
    pub(crate) fn read(&self, position: &mut Position, private: bool) -> Read {
        let oldest = self.head - self.history.len() as u64;
        if position.0 < oldest {
            return Read::Lagged { missed: oldest - position.0 };
        }
        while position.0 < self.head {
            let event = &self.history[(position.0 - oldest) as usize];
            position.0 += 1;
            if !event.private || private {
                return Read::Frame(event.frame.clone());
            }
        }
        Read::UpToDate
    }

    /// The id that stands for a position: recovery since it goes on exactly there.
    pub(crate) fn id(&self, position: Position) -> String {
        format!("#{:x}.{}", self.epoch, position.0)
    }

    /// Forgets what is too old, and tells whether any history is left.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        while self
            .history
            .front()
            .is_some_and(|oldest| now.saturating_duration_since(oldest.published) >= self.retention.age)
        {
            self.forget_oldest();
        }
        !self.history.is_empty()
    }

    /// A publisher's own id that was used twice is found where it was used first: rather an event again than one lost.
    fn find(&self, id: &str) -> Option<Position> {
        if let Some(own) = id.strip_prefix('#') {
            let (epoch, sequence) = own.split_once('.')?;
            let same_epoch = u64::from_str_radix(epoch, 16).ok()? == self.epoch;
            return same_epoch.then_some(Position(sequence.parse().ok()?));
        }
        let index = self.history.iter().position(|event| event.id.as_deref() == Some(id))?;
        Some(Position(self.head - (self.history.len() - index - 1) as u64))
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.history.pop_front() {
            self.bytes -= oldest.frame.len();
        }
    }
}

#[cfg(test)]
mod tests;
