//! Who follows, what each is sent, and the recent invalidations that one who comes back may have missed.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use prost::Message as _;
use protoplex_wire::proto::{FollowReply, Invalidate, Position, ResetOwners, follow_reply::Message};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::ownership::LinkId;

/// Messages that may wait for one follower; one that is slower is cut off, and learns what it missed when it returns.
pub(crate) const MAX_WAITING_MESSAGES: usize = 65_536;
/// Invalidations kept for followers that return, and their bytes. What is larger than that alone is not kept: who returns
/// forgets every owner.
const MAX_RECENT: usize = 16_384;
const MAX_RECENT_BYTES: usize = 16 << 20;

/// The seed's end of one follower's link.
pub(crate) struct Outgoing {
    pub(crate) messages: mpsc::Sender<Result<FollowReply, Status>>,
    /// Dropped with this: then the link's reader ends too.
    pub(crate) _reader: oneshot::Sender<()>,
}

struct Follower {
    outgoing: Outgoing,
    since: Position,
    node: Arc<str>,
    zone: String,
    /// Of a server of the user's own: the pools that it may hear of. Its certificate says so; keys of others may be secrets
    /// (a cookie, say).
    pools: Option<Vec<String>>,
    /// Gets what all get; a member only after its hello is accepted.
    welcomed: bool,
}

impl Follower {
    fn may_hear(&self, about: &About) -> bool {
        match (&self.pools, about) {
            (None, _) | (_, About::All) => true,
            (Some(pools), About::Pool(pool)) => pools.contains(pool),
            (Some(_), About::Cluster) => false,
        }
    }
}

/// Whom a message to all concerns.
enum About {
    All,
    Pool(String),
    /// Handlers, members and builds: nodes.
    Cluster,
}

impl About {
    fn of(message: &Message) -> Self {
        match message {
            Message::Table(_) | Message::Build(_) | Message::Known(_) => Self::Cluster,
            Message::MemberGone(gone) => Self::Pool(gone.pool.clone()),
            Message::Invalidate(encoded) => {
                // The seed's own encoding, which can be read.
                Invalidate::decode(encoded.clone()).map_or(Self::Cluster, |it| Self::Pool(it.pool))
            }
            _ => Self::All,
        }
    }
}

/// What a follower has missed.
#[derive(Debug, PartialEq)]
enum Missed {
    These(Vec<Message>),
    /// More than is known: it has to forget every owner.
    Unknown,
    /// Nobody can say yet; what it has to do comes when the recovery ends.
    Undecided,
}

#[derive(Default)]
pub(crate) struct Followers {
    links: HashMap<LinkId, Follower>,
    /// The links of each node's children.
    nodes: HashMap<Arc<str>, Vec<LinkId>>,
    recent: VecDeque<(Position, Message)>,
    /// Of all that is recent.
    recent_bytes: usize,
    /// Links that were cut off, to be told to the core.
    cut: Vec<LinkId>,
}

impl Followers {
    pub(crate) fn open(
        &mut self,
        link: LinkId,
        outgoing: Outgoing,
        since: Position,
        node: &str,
        zone: String,
        pools: Option<Vec<String>>,
    ) {
        let node: Arc<str> = node.into();
        self.nodes.entry(Arc::clone(&node)).or_default().push(link);
        self.links.insert(link, Follower { outgoing, since, node, zone, pools, welcomed: false });
    }

    /// Whether a follower of this node is here.
    pub(crate) fn has(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    fn remove(&mut self, link: LinkId) -> Option<Follower> {
        let follower = self.links.remove(&link)?;
        if let Entry::Occupied(mut siblings) = self.nodes.entry(Arc::clone(&follower.node)) {
            siblings.get_mut().retain(|sibling| *sibling != link);
            if siblings.get().is_empty() {
                siblings.remove();
            }
        }
        Some(follower)
    }

    /// From now on it gets what all get. Sends first `greeting`, then what it has missed.
    pub(crate) fn welcome(&mut self, link: LinkId, greeting: Vec<Message>, now: Position, recovering: bool) {
        let Some(follower) = self.links.get_mut(&link) else { return };
        follower.welcomed = true;
        let since = follower.since;
        let missed = match self.missed(since, now, recovering) {
            Missed::These(messages) => messages,
            Missed::Unknown => vec![Message::ResetOwners(ResetOwners { position: Some(now) })],
            Missed::Undecided => Vec::new(),
        };
        for message in greeting.into_iter().chain(missed) {
            self.send_about(link, &message, &mut None);
        }
    }

    fn missed(&self, since: Position, now: Position, recovering: bool) -> Missed {
        if since == Position::default() || since == now {
            return Missed::These(Vec::new());
        }
        if since.term != now.term {
            return if recovering { Missed::Undecided } else { Missed::Unknown };
        }
        let known_from = self.recent.front().map_or(now.sequence + 1, |(first, _)| first.sequence);
        if since.sequence > now.sequence || since.sequence + 1 < known_from {
            return Missed::Unknown;
        }
        let later = self.recent.iter().filter(|(position, _)| position.sequence > since.sequence);
        Missed::These(later.map(|(_, message)| message.clone()).collect())
    }

    /// Sends it, unless it is none of this follower's affair; what it is about is found out once, and where that counts.
    fn send_about(&mut self, link: LinkId, message: &Message, about: &mut Option<About>) {
        let Some(follower) = self.links.get(&link) else { return };
        if follower.pools.is_none() || follower.may_hear(about.get_or_insert_with(|| About::of(message))) {
            self.send(link, message.clone());
        }
    }

    pub(crate) fn send(&mut self, link: LinkId, message: Message) {
        let Some(follower) = self.links.get(&link) else { return };
        let reply = FollowReply { message: Some(message) };
        if follower.outgoing.messages.try_send(Ok(reply)).is_err() {
            self.remove(link);
            self.cut.push(link);
        }
    }

    /// Sends it to the other welcomed children of this one's node, but to none that is behind: it helps, and isn't needed.
    pub(crate) fn share(&mut self, link: LinkId, message: &Message) {
        let Some(siblings) = self.links.get(&link).and_then(|follower| self.nodes.get(&follower.node)) else {
            return;
        };
        let welcomed = |sibling: &LinkId| {
            let has_room = |messages: &mpsc::Sender<_>| messages.capacity() > messages.max_capacity() / 2;
            *sibling != link
                && self.links.get(sibling).is_some_and(|it| it.welcomed && has_room(&it.outgoing.messages))
        };
        let mut about = None;
        for sibling in siblings.iter().copied().filter(welcomed).collect::<Vec<_>>() {
            self.send_about(sibling, message, &mut about);
        }
    }

    /// Sends it to all, and keeps it for those that return.
    pub(crate) fn broadcast(&mut self, position: Position, message: &Message) {
        if self.recent.front().is_some_and(|(first, _)| first.term != position.term) {
            self.recent.clear();
            self.recent_bytes = 0;
        }
        self.recent.push_back((position, message.clone()));
        self.recent_bytes += message.encoded_len();
        while self.recent.len() > MAX_RECENT || self.recent_bytes > MAX_RECENT_BYTES {
            let Some((_, oldest)) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.encoded_len();
        }
        self.send_all(message);
    }

    pub(crate) fn send_all(&mut self, message: &Message) {
        let welcomed = self.links.iter().filter(|(_, follower)| follower.welcomed);
        let mut about = None;
        for link in welcomed.map(|(link, _)| *link).collect::<Vec<_>>() {
            self.send_about(link, message, &mut about);
        }
    }

    /// Ends the link after what was sent, with its reason.
    pub(crate) fn close(&mut self, link: LinkId, why: Status) {
        if let Some(follower) = self.remove(link) {
            // One that is too slow for even this learns of the end by the end.
            let _ = follower.outgoing.messages.try_send(Err(why));
        }
    }

    pub(crate) fn close_all(&mut self, why: &Status) {
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(link, why.clone());
        }
    }

    /// Those that were cut off since this was called last.
    pub(crate) fn take_cut(&mut self) -> Vec<LinkId> {
        std::mem::take(&mut self.cut)
    }

    pub(crate) fn zone(&self, link: LinkId) -> &str {
        self.links.get(&link).map_or("", |follower| &follower.zone)
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }
}

#[cfg(test)]
mod tests;
