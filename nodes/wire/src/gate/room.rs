//! How many a gate lets in at once, and who has to go where more come: silence keeps nobody out.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::oneshot;
use tracing::warn;

/// How many may be there at once. Where one more comes the oldest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Handshakes under way on a port.
    pub(super) handshakes: usize,
    /// Connections that have shown no certificate: they ask for one, and go.
    pub(super) strangers: usize,
    /// How long those may stay.
    pub(super) stranger_timeout: Duration,
    /// Connections that have shown a certificate.
    pub(super) connections: usize,
    /// The same, of one name.
    pub(super) of_one: usize,
    /// How long a call's message may take to come, where a call has one.
    pub(super) body_timeout: Duration,
}

/// Where files are no hindrance. A large cluster's leader has 10,000 followers and some thousand parents. A node has a parent
/// and at most 256 children, of which each has two connections to a port at most, and for some seconds those of its
/// predecessor that was killed.
pub(super) const ROOM: Room = Room {
    handshakes: 512,
    strangers: 256,
    stranger_timeout: Duration::from_secs(15),
    connections: 32_768,
    of_one: 1_024,
    body_timeout: Duration::from_secs(30),
};

impl Room {
    /// What this process has room for.
    pub(super) fn of_this_process() -> Self {
        Self::within(getrlimit(Resource::Nofile).current)
    }

    /// With so many open files, which a meta port, a database and logs need, too: five eighths of them at most.
    fn within(files: Option<u64>) -> Self {
        let part = |most: usize, share: u64| {
            let files =
                files.map_or(usize::MAX, |files| usize::try_from(files / share).unwrap_or(usize::MAX));
            most.min(files).max(1)
        };
        let connections = part(ROOM.connections, 2);
        Self {
            handshakes: part(ROOM.handshakes, 16),
            strangers: part(ROOM.strangers, 16),
            connections,
            of_one: ROOM.of_one.min(connections.div_ceil(2)),
            ..ROOM
        }
    }
}

/// Those that have shown a certificate, by its name.
#[derive(Default)]
pub(super) struct Connections {
    by_name: HashMap<String, OfOne>,
    names: HashMap<u64, String>,
    /// It was said that there are too many.
    told: bool,
}

#[derive(Default)]
struct OfOne {
    /// In the order in which they came.
    cuts: BTreeMap<u64, oneshot::Sender<()>>,
    told: bool,
}

impl Connections {
    /// One more. Where that is too many for its name its oldest goes; where it is too many in all, the oldest of the name
    /// that has the most.
    pub(super) fn add(&mut self, id: u64, name: String, cut: oneshot::Sender<()>, room: &Room) {
        self.names.insert(id, name.clone());
        let own = self.by_name.entry(name.clone()).or_default();
        own.cuts.insert(id, cut);
        if own.cuts.len() > room.of_one {
            if !std::mem::replace(&mut own.told, true) {
                warn!(
                    name,
                    most = room.of_one,
                    "it has as many connections as it may: its oldest are cut for others"
                );
            }
            self.cut_oldest(&name);
        }
        if self.names.len() > room.connections {
            if !std::mem::replace(&mut self.told, true) {
                let most = room.connections;
                warn!(
                    most,
                    "a gRPC port has no room for more connections: those who have the most lose some"
                );
            }
            // None has more than the newcomer where they are as many.
            let own = self.by_name.get(&name).map_or(0, |own| own.cuts.len());
            let others = self.by_name.iter().map(|(name, one)| (one.cuts.len(), name));
            let most = others.filter(|(count, _)| *count > own).max().map_or(name, |(_, name)| name.clone());
            self.cut_oldest(&most);
        } else if self.names.len() < room.connections - room.connections / 8 {
            self.told = false;
        }
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.take(id);
    }

    /// Ends all of this name, and tells how many that were.
    pub(super) fn cut(&mut self, name: &str) -> usize {
        let all: Vec<_> =
            self.by_name.get(name).into_iter().flat_map(|one| one.cuts.keys().copied()).collect();
        all.iter().for_each(|id| self.end(*id));
        all.len()
    }

    fn cut_oldest(&mut self, name: &str) {
        let oldest = self.by_name.get(name).and_then(|one| one.cuts.keys().next().copied());
        oldest.into_iter().for_each(|id| self.end(id));
    }

    fn end(&mut self, id: u64) {
        // It may have ended just now.
        let _ = self.take(id).map(|cut| cut.send(()));
    }

    fn take(&mut self, id: u64) -> Option<oneshot::Sender<()>> {
        let name = self.names.remove(&id)?;
        let one = self.by_name.get_mut(&name)?;
        let cut = one.cuts.remove(&id);
        if one.cuts.is_empty() {
            self.by_name.remove(&name);
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_leaves_files_for_all_else() {
        for files in [1, 64, 256, 1_024, 4_096, 65_536] {
            let Room { handshakes, strangers, connections, of_one, .. } = Room::within(Some(files));
            let all = handshakes + strangers + connections;
            assert!(files < 16 || all as u64 <= files * 5 / 8, "{all} of {files}");
            assert!(of_one <= connections && of_one > 0 && handshakes > 0 && strangers > 0, "{files}");
        }
        assert_eq!(Room::within(None), ROOM);
        assert_eq!(Room::within(Some(1 << 20)), ROOM);
    }
}
