//! What a supervised process runs, and one of the real processes that it is in the course of its life.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tracing::warn;

use super::child::Child;

use crate::control::{self, Configuration, LineError, Lines, Order, Parcel, Word};
use crate::sockets::Socket;
use crate::sys::stack;
use crate::systemd;

/// Orders are short: where the socket has no room for one, the process has read nothing for a long time.
const ORDER_TIMEOUT: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Debug)]
pub struct Program {
    name: String,
    executable: PathBuf,
    arguments: Vec<OsString>,
    /// Only for a child of a node.
    parcel: Option<Parcel>,
}

/// Whether mimalloc lets the kernel use huge pages. One of which a little is in use is resident as a whole.
const HUGE_PAGES: &str = "MIMALLOC_ALLOW_THP";

impl Program {
    /// A node of `protoplex up`: a command line whose process calls [`crate::parent::Bound::run`] or
    /// [`crate::solo::run`]. It is told to drain, and tells its readiness, over its control socket.
    pub fn node(name: &str, executable: PathBuf, arguments: Vec<OsString>) -> Self {
        Self { name: name.to_owned(), executable, arguments, parcel: None }
    }

    /// A child of a node: this executable, even where another file has taken its place on disk.
    pub(crate) fn child(parcel: Parcel) -> Self {
        Self {
            name: format!("{}:{}", parcel.hello.configuration.common.node, parcel.hello.index),
            executable: PathBuf::from("/proc/self/exe"),
            arguments: Vec::new(),
            parcel: Some(parcel),
        }
    }

    /// One that is not started again.
    pub(crate) fn ended(name: &str) -> Self {
        Self { name: name.to_owned(), executable: PathBuf::new(), arguments: Vec::new(), parcel: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn executable(&self) -> &Path {
        &self.executable
    }

    /// What the next incarnation goes by.
    pub(super) fn adopt(&mut self, configuration: Configuration) {
        if let Some(parcel) = &mut self.parcel {
            parcel.hello.configuration = configuration;
        }
    }

    pub(super) fn spawn(&self, shared: &[Arc<Socket>]) -> io::Result<Incarnation> {
        let started = Instant::now();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let mut command = Command::new(&self.executable);
        command.args(&self.arguments).stdin(Stdio::from(OwnedFd::from(theirs)));
        let mut given = BTreeSet::new();
        match &self.parcel {
            Some(parcel) => {
                let sent = parcel.send(&ours, shared)?;
                given.extend(shared[..sent].iter().map(|socket| socket.handed.id));
                command.arg0(format!("protoplex {}", self.name)).env(control::VARIABLE, control::CHILD);
                if std::env::var_os(HUGE_PAGES).is_none() {
                    command.env(HUGE_PAGES, "0");
                }
            }
            None => {
                command.env(control::VARIABLE, control::NODE);
            }
        }
        for variable in systemd::VARIABLES {
            command.env_remove(variable);
        }
        // Dropping the library's handle leaves the process alone.
        let mut library = command.spawn()?;
        let incarnation = Child::of(library.id())
            .and_then(|process| Incarnation::new(process, started, ours, Vec::new(), given));
        if incarnation.is_err() {
            // Else nobody would bury it.
            let _ = library.kill();
            let _ = library.wait();
        }
        incarnation
    }
}

/// One real process.
pub(super) struct Incarnation {
    process: Child,
    pub(super) started: Instant,
    /// Nothing once the process has ended its side, or has said what can't be believed.
    lines: Option<Lines<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    /// The sockets that it shares and was given.
    given: BTreeSet<u64>,
    /// How the process has ended, while its last words are read.
    ended: Option<String>,
}

/// For the last words of a process that has ended: they are there, unless another one holds its end of the socket.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(100);

/// What comes from a process.
pub(super) enum Happening {
    /// A message.
    Said(Word),
    /// Its end, and how it came: "exit status: 1".
    Ended(String),
}

/// One real process as another image of this program goes on with it.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) pid: u32,
    pub(crate) age: Duration,
    /// Our end of the control socket.
    pub(crate) control: OwnedFd,
    /// What was read of a message that was not yet whole.
    pub(crate) unread: Vec<u8>,
    /// The sockets that it shares and was given.
    pub(crate) given: BTreeSet<u64>,
}

impl Incarnation {
    fn new(
        process: Child,
        started: Instant,
        control: std::os::unix::net::UnixStream,
        unread: Vec<u8>,
        given: BTreeSet<u64>,
    ) -> io::Result<Self> {
        control.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(control)?.into_split();
        Ok(Self { process, started, lines: Some(Lines::resumed(reader, unread)), writer, given, ended: None })
    }

    /// Of a process that an earlier image of this program has started.
    pub(super) fn resumed(inherited: Inherited) -> io::Result<Self> {
        let Inherited { pid, age, control, unread, given } = inherited;
        let started = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        Self::new(Child::of(pid)?, started, control.into(), unread, given)
    }

    /// For [`Incarnation::resumed`].
    pub(super) fn inherited(&self) -> io::Result<Inherited> {
        Ok(Inherited {
            pid: self.pid(),
            age: self.started.elapsed(),
            control: self.writer.as_ref().as_fd().try_clone_to_owned()?,
            unread: self.lines.as_ref().map(|lines| lines.unread().to_vec()).unwrap_or_default(),
            given: self.given.clone(),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Happening {
        loop {
            if let Some(how) = &self.ended {
                let word = timeout(LAST_WORDS_TIMEOUT, next_word(&mut self.lines)).await;
                let Ok(Ok(Some(word))) = word else { return Happening::Ended(how.clone()) };
                return Happening::Said(word);
            }
            tokio::select! {
                status = self.process.ended() => {
                    self.ended = Some(status.map_or_else(|error| error.to_string(), |status| status.to_string()));
                }
                word = next_word(&mut self.lines) => match word {
                    Ok(Some(word)) => return Happening::Said(word),
                    Ok(None) => self.lines = None,
                    Err(error) => {
                        warn!(pid = self.pid(), %error, "sends rubbish; it is killed");
                        self.lines = None;
                        self.kill();
                    }
                }
            }
        }
    }

    /// Gives it the sockets that it lacks of these, and takes back all others but its own.
    pub(super) async fn share(&mut self, shared: &[Arc<Socket>]) {
        for socket in shared {
            if self.given.insert(socket.handed.id) {
                self.tell(&Order::Take(socket.handed.clone()), Some(socket.listener.as_fd())).await;
            }
        }
        let kept: BTreeSet<_> = shared.iter().map(|socket| socket.handed.id).collect();
        for id in std::mem::take(&mut self.given) {
            match kept.contains(&id) {
                true => drop(self.given.insert(id)),
                false => self.tell(&Order::Release(id), None).await,
            }
        }
    }

    /// Gives it an order, with a socket where one belongs to it; kills it where it takes none.
    pub(super) async fn tell(&mut self, order: &Order, along: Option<BorrowedFd<'_>>) {
        let told = timeout(ORDER_TIMEOUT, control::send(&self.writer, order, along)).await;
        if !matches!(told, Ok(Ok(()))) {
            warn!(pid = self.pid(), order = order.name(), "takes no orders; it is killed");
            self.kill();
        }
    }

    /// Has it tell where it is, and end.
    pub(super) fn quit(&mut self) {
        // It fails where the process has ended by itself.
        let _ = self.process.signal(stack::SIGNAL);
    }

    pub(super) fn kill(&mut self) {
        // It fails where the process has ended by itself, which `next` will tell.
        let _ = self.process.signal(Signal::KILL);
    }
}

async fn next_word(lines: &mut Option<Lines<OwnedReadHalf>>) -> Result<Option<Word>, LineError> {
    match lines {
        Some(lines) => lines.next().await,
        None => std::future::pending().await,
    }
}
