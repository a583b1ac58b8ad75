//! The registration connections of this child: hears and tells registrants, and waits for their acknowledgements.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tracing::debug;

use crate::registrations::{Heard, MAX_NAME_BYTES, Outcome, PeerId, Registrations, RoundId, Told};
use crate::tenure::Use;

/// The protocol that a registrant upgrades to.
pub(crate) const PROTOCOL: &str = "protoplex-registrations";
/// How long an invalidation waits for acknowledgements.
const ACK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a peer may not read what it is told.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of a child.
const MAX_PEERS: usize = 4096;
/// Messages that may wait for one peer. One that lets more gather is cut.
const MAX_OUTGOING: usize = 1024;
/// The longest line that is read: a name, every byte of it escaped.
const MAX_LINE_BYTES: u64 = 6 * MAX_NAME_BYTES as u64 + 64;

/// All of them.
#[derive(Default)]
pub(crate) struct Registrants {
    registrations: RefCell<Registrations>,
    peers: RefCell<HashMap<PeerId, Rc<Peer>>>,
    /// An acknowledgement came, or a peer left.
    progress: Notify,
}

struct Peer {
    id: PeerId,
    outgoing: mpsc::Sender<Told>,
    cut: Notify,
}

impl Registrants {
    /// Whether there is room for one more connection.
    pub(crate) fn has_room(&self) -> bool {
        self.peers.borrow().len() < MAX_PEERS
    }

    /// Serves one connection to its end: the peer's, its misbehaviour's, or that of the shard's tenure.
    pub(crate) async fn attend(&self, shard: Use, stream: impl AsyncRead + AsyncWrite) {
        let (outgoing, told) = mpsc::channel(MAX_OUTGOING);
        let attendance = self.connect(outgoing);
        let peer = &attendance.peer;
        let (from_peer, to_peer) = tokio::io::split(stream);

        // The connection ends with the first of these, so none needs to be cancel-safe.
        let reason = tokio::select! {
            heard = self.hear(peer, from_peer) => heard.map_or_else(|error| error.to_string(), |()| "closed".into()),
            told = tell(told, to_peer) => told.map_or_else(|error| error.to_string(), |()| "closed".into()),
            () = peer.cut.notified() => "did not keep up".into(),
            _ = shard.ended() => "its shard has another owner".into(),
        };
        debug!(shard = &*shard.key, reason, "a registrant left");
    }

    /// Tells all who are registered under `name`, and waits until they have acknowledged, or for [`ACK_TIMEOUT`].
    /// Dropping the future early gives the round up.
    pub(crate) async fn invalidate(&self, name: &str) -> Outcome {
        counter!("protoplex_live_invalidations_total").increment(1);
        let (round, told, peers) = self.registrations.borrow_mut().invalidate(name);
        let round = Round { registrants: self, id: round };
        for peer in peers {
            self.tell_or_cut(peer, told.clone());
        }
        let settled = async {
            loop {
                let progress = self.progress.notified();
                if self.registrations.borrow().settled(round.id) {
                    return;
                }
                progress.await;
            }
        };
        // Either way the outcome says how many acknowledged.
        let _ = timeout(ACK_TIMEOUT, settled).await;
        round.close()
    }

    fn connect(&self, outgoing: mpsc::Sender<Told>) -> Attendance<'_> {
        let id = self.registrations.borrow_mut().connect();
        let peer = Rc::new(Peer { id, outgoing, cut: Notify::new() });
        self.peers.borrow_mut().insert(id, Rc::clone(&peer));
        Attendance { registrants: self, peer }
    }

    /// Reads lines until the peer closes (Ok), or says what it should not.
    async fn hear(&self, peer: &Peer, stream: impl AsyncRead + Unpin) -> io::Result<()> {
        let bad = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
            if line.is_empty() {
                return Ok(());
            }
            if !line.ends_with(b"\n") {
                return Err(bad("a line was too long, or broken off"));
            }
            let heard: Heard = serde_json::from_slice(&line).map_err(|_| bad("a line was not understood"))?;
            let answer = self.registrations.borrow_mut().hear(peer.id, heard);
            self.count();
            self.progress.notify_waiters();
            if let Some(answer) =
                answer.map_err(|_| bad("a name was too long, or an acknowledgement unasked for"))?
            {
                // Waits for room: a peer that asks faster than it reads slows itself down.
                let _ = peer.outgoing.send(answer).await;
            }
        }
    }

    fn tell_or_cut(&self, peer: PeerId, told: Told) {
        if let Some(peer) = self.peers.borrow().get(&peer)
            && peer.outgoing.try_send(told).is_err()
        {
            peer.cut.notify_one();
        }
    }

    fn count(&self) {
        gauge!("protoplex_live_registrations").set(self.registrations.borrow().count() as f64);
    }
}

/// Writes what a peer is told, several messages at once where several wait.
async fn tell(mut told: mpsc::Receiver<Told>, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
    let (mut messages, mut lines) = (Vec::new(), Vec::new());
    while told.recv_many(&mut messages, MAX_OUTGOING).await > 0 {
        lines.clear();
        for message in messages.drain(..) {
            serde_json::to_writer(&mut lines, &message)?;
            lines.push(b'\n');
        }
        let written = async {
            stream.write_all(&lines).await?;
            stream.flush().await
        };
        timeout(WRITE_TIMEOUT, written).await??;
    }
    Ok(())
}

/// A connection that is attended; its registrations end with it.
struct Attendance<'a> {
    registrants: &'a Registrants,
    peer: Rc<Peer>,
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        self.registrants.peers.borrow_mut().remove(&self.peer.id);
        self.registrants.registrations.borrow_mut().disconnect(self.peer.id);
        self.registrants.count();
        self.registrants.progress.notify_waiters();
    }
}

/// An open round; however it ends, peers that are late are cut.
struct Round<'a> {
    registrants: &'a Registrants,
    id: RoundId,
}

impl Round<'_> {
    fn close(&self) -> Outcome {
        let outcome = self.registrants.registrations.borrow_mut().close(self.id);
        let outcome = outcome.unwrap_or(Outcome { registrants: 0, acked: 0, late: Vec::new() });
        for late in &outcome.late {
            if let Some(peer) = self.registrants.peers.borrow().get(late) {
                counter!("protoplex_live_registrants_cut_total").increment(1);
                peer.cut.notify_one();
            }
        }
        outcome
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.close();
    }
}
