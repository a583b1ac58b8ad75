//! One shard's registrations over one connection: JSON lines both ways.
//!
//! | we say | live says |
//! | --- | --- |
//! | `{"register":"site:h:/p"}` | `{"registered":"site:h:/p"}` or `{"refused":"site:h:/p"}` |
//! | `{"unregister":"site:h:/p"}` | |
//! | | `{"invalidate":"site:h:/p","id":7}` |
//! | `{"ack":7}` | |

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use lru::LruCache;
use metrics::counter;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

/// Names that stand in one shard; the one unused longest makes room.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");
/// Names that wait to be registered.
const WAITING_MAX: usize = 1_024;
/// Messages that wait to be sent: room for an answer to each, and for as many acknowledgements.
const OUTGOING_MAX: usize = 4_096;
/// The longest line from live: a name, every byte of it escaped.
const LINE_MAX_BYTES: u64 = 6 * 12 * 1024 + 64;
/// After a connection was lost or could not be made, so long nothing is registered.
const AWAY: Duration = Duration::from_millis(500);

/// The promise that we are told when what was looked up under a name is no longer so.
#[derive(Debug, Clone)]
pub(crate) struct Registration(Rc<Cell<Promise>>);

/// What has become of a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// What was looked up since is still so.
    Stands,
    /// We would not be told: what was looked up may still be so.
    Lost,
    /// We were told: it is no longer so.
    Invalidated,
}

impl Registration {
    fn new() -> Self {
        Self(Rc::new(Cell::new(Promise::Stands)))
    }

    /// For what is looked up without a promise.
    pub(crate) fn none() -> Self {
        Self(Rc::new(Cell::new(Promise::Lost)))
    }

    pub(crate) fn promise(&self) -> Promise {
        self.0.get()
    }

    pub(crate) fn stands(&self) -> bool {
        self.promise() == Promise::Stands
    }

    pub(crate) fn lose(&self) {
        if self.stands() {
            self.0.set(Promise::Lost);
        }
    }

    pub(crate) fn invalidate(&self) {
        self.0.set(Promise::Invalidated);
    }
}

#[cfg(test)]
impl Registration {
    pub(crate) fn standing() -> Self {
        Self::new()
    }
}

/// What became of the wish to be registered.
pub(super) enum Asked {
    /// It is already.
    Standing(Registration),
    /// The answer comes; it is dropped where there will be none. `unconnected`: the caller has to see to a connection.
    Waiting { answer: oneshot::Receiver<Registration>, unconnected: bool },
    /// Not now.
    Away,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Register(Rc<str>),
    Unregister(Rc<str>),
    Ack(u64),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Told {
    Registered { registered: Rc<str> },
    Refused { refused: Rc<str> },
    Invalidate { invalidate: Rc<str>, id: u64 },
}

pub(super) struct Shard(RefCell<State>);

struct State {
    connection: Connection,
    standing: LruCache<Rc<str>, Registration>,
    waiting: HashMap<Rc<str>, Vec<oneshot::Sender<Registration>>>,
}

enum Connection {
    None,
    /// Not before then.
    Away(Instant),
    Coming,
    Up(mpsc::Sender<Said>),
}

impl Default for Shard {
    fn default() -> Self {
        let (connection, standing) = (Connection::None, LruCache::new(NAMES_MAX));
        Self(RefCell::new(State { connection, standing, waiting: HashMap::new() }))
    }
}

impl Shard {
    pub(super) fn register(&self, name: &str) -> Asked {
        let mut state = self.0.borrow_mut();
        if let Some(registration) = state.standing.get(name) {
            return Asked::Standing(registration.clone());
        }
        let unconnected = match &state.connection {
            Connection::Away(until) if Instant::now() < *until => return Asked::Away,
            Connection::None | Connection::Away(_) => true,
            Connection::Coming | Connection::Up(_) => false,
        };
        let name: Rc<str> = name.into();
        if !state.waiting.contains_key(&name) {
            if state.waiting.len() >= WAITING_MAX || !state.say(Said::Register(Rc::clone(&name))) {
                return Asked::Away;
            }
            state.waiting.insert(Rc::clone(&name), Vec::new());
        }
        let (sender, answer) = oneshot::channel();
        state.waiting.entry(name).or_default().push(sender);
        if unconnected {
            state.connection = Connection::Coming;
        }
        Asked::Waiting { answer, unconnected }
    }

    /// Talks over a connection until it ends. Names that wait are registered first.
    pub(super) async fn attend(&self, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (outgoing, said) = mpsc::channel(OUTGOING_MAX);
        self.0.borrow_mut().connected(outgoing);
        let (from_live, to_live) = tokio::io::split(stream);
        match select(pin!(self.hear(from_live)), pin!(say(said, to_live))).await {
            Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
        }
    }

    /// The connection is lost: nothing stands any more.
    pub(super) fn lose(&self) {
        let mut state = self.0.borrow_mut();
        state.connection = Connection::Away(Instant::now() + AWAY);
        state.waiting.clear();
        while let Some((_, registration)) = state.standing.pop_lru() {
            registration.lose();
        }
    }

    async fn hear(&self, stream: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut reader).take(LINE_MAX_BYTES).read_until(b'\n', &mut line).await?;
            if line.is_empty() {
                return Ok(());
            }
            let told = serde_json::from_slice(&line)?;
            if !self.0.borrow_mut().told(told) {
                return Err(io::Error::other("live does not read what it is told"));
            }
        }
    }
}

impl State {
    fn connected(&mut self, outgoing: mpsc::Sender<Said>) {
        self.connection = Connection::Up(outgoing);
        let names: Vec<_> = self.waiting.keys().cloned().collect();
        for name in names {
            self.say(Said::Register(name));
        }
    }

    /// False where too much waits already. Before there is a connection nothing is said: see [`State::connected`].
    fn say(&self, said: Said) -> bool {
        match &self.connection {
            Connection::Up(outgoing) => outgoing.try_send(said).is_ok(),
            _ => true,
        }
    }

    /// Takes note of a line. The order of lines is the order of things: who is registered here and invalidated by the
    /// next line learns it even before it is woken.
    fn told(&mut self, told: Told) -> bool {
        match told {
            Told::Registered { registered: name } => {
                let registration = Registration::new();
                for waiting in self.waiting.remove(&name).unwrap_or_default() {
                    // One that waits no more has no use for it.
                    let _ = waiting.send(registration.clone());
                }
                match self.standing.push(Rc::clone(&name), registration) {
                    Some((pushed_out, registration)) if pushed_out != name => {
                        registration.lose();
                        self.say(Said::Unregister(pushed_out))
                    }
                    _ => true,
                }
            }
            Told::Refused { refused } => {
                self.waiting.remove(&refused);
                true
            }
            Told::Invalidate { invalidate: name, id } => {
                counter!("protoplex_fileserver_invalidations_total").increment(1);
                // Live keeps us registered: whoever looks up from now on has a promise of its own.
                if let Some(registration) = self.standing.peek_mut(&name) {
                    std::mem::replace(registration, Registration::new()).invalidate();
                }
                self.say(Said::Ack(id))
            }
        }
    }
}

/// Writes what there is to say, several lines at once where several wait.
async fn say(mut said: mpsc::Receiver<Said>, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
    let (mut waiting, mut lines) = (Vec::new(), Vec::new());
    while said.recv_many(&mut waiting, OUTGOING_MAX).await > 0 {
        lines.clear();
        for said in waiting.drain(..) {
            serde_json::to_writer(&mut lines, &said)?;
            lines.push(b'\n');
        }
        stream.write_all(&lines).await?;
        stream.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
