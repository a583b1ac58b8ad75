//! Another program for a node that runs (`protoplex upgrade`, SIGUSR2).
//!
//! The node's process stays: it executes the new program in place (execve(2)), with its name, its sockets and its children
//! handed over, so that whoever supervises it notices nothing, and nobody is refused. Then the children are replaced, one
//! after the other, as in a restart.
//!
//! ```text
//!   old program                        new program
//!   rehearse ───── all but the act ──► reads its configuration, checks what it is given: "I could"
//!   hand over ──── execve ───────────► goes on with the children, replaces them one after the other
//!   goes on  ◄──── execve ──────────── a child of it that does not become ready
//! ```
//!
//! Nothing is changed by a program that can't be executed, refuses the configuration, or says nothing in time. One whose
//! children don't become ready goes back to the old program, which is kept open for that.

mod estate;
mod handover;
mod rehearsal;

use std::ffi::{CString, NulError, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::{dup2_stdin, execve};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::control::{self, VARIABLE};
use crate::systemd;
use crate::telemetry;

pub(crate) use estate::{ANSWER_TIME, Came, Estate, Upgrades};
pub(crate) use handover::{ChildrenPart, Descriptors, Handover, Packing, PlacePart, PortPart};
pub(crate) use rehearsal::rehearse;

/// The value of [`VARIABLE`] for a program that is to go on with a node.
const SUCCESSOR: &str = "successor";
/// The same for one that only says whether it could.
const REHEARSAL: &str = "rehearsal";

/// What `ps` and `top` call a program that was executed by its descriptor.
const NAME: &str = "protoplex";

/// Why a node does not run by another program. The old one goes on.
#[derive(Debug, Error)]
pub(crate) enum UpgradeError {
    #[error("{}: {source}", path.display())]
    Program { path: PathBuf, source: io::Error },
    #[error("{}: it can't go on with the node: {said}", path.display())]
    Refused { path: PathBuf, said: String },
    #[error("{}: it did not say within {seconds} s that it can go on with the node", path.display())]
    Silent { path: PathBuf, seconds: u64 },
    #[error("{}: it is another one than was rehearsed", path.display())]
    Replaced { path: PathBuf },
    #[error("the node is about to end")]
    Draining,
    #[error("the node can't be handed over: {0}")]
    HandOver(#[from] io::Error),
}

/// How far an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    UnderWay,
    Done,
    Failed,
}

/// How the last upgrade went, or goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UpgradeStatus {
    pub(crate) at_ms: u64,
    pub(crate) progress: Progress,
    /// The version of the program before.
    pub(crate) from: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// A node that this process is to go on with, or could.
#[derive(Debug)]
pub struct Succession {
    pub(crate) handover: Handover,
    descriptors: Vec<OwnedFd>,
    /// Who asks whether it could.
    asker: Option<UnixStream>,
}

/// This process's node, where another program hands one over. To be asked first thing in `main`.
///
/// # Errors
/// What was handed over can't be understood.
pub fn from_environment() -> io::Result<Option<Succession>> {
    let (socket, is_rehearsal) = match (control::inherited(SUCCESSOR)?, control::inherited(REHEARSAL)?) {
        (Some(socket), _) => (socket, false),
        (None, Some(socket)) => (socket, true),
        (None, None) => return Ok(None),
    };
    let (handover, descriptors) = Handover::receive(&socket)?;
    let stdin = descriptors.get(handover.stdin.index()).ok_or(io::ErrorKind::InvalidData)?;
    dup2_stdin(stdin)?;
    let _ = fs::write("/proc/self/comm", NAME);
    Ok(Some(Succession { handover, descriptors, asker: is_rehearsal.then_some(socket) }))
}

impl Succession {
    /// Whether somebody only wants to know if this program could go on with the node: then nothing must be done.
    pub fn is_rehearsal(&self) -> bool {
        self.asker.is_some()
    }

    /// Says that it could.
    ///
    /// # Errors
    /// Who asked is gone.
    pub fn consent(self) -> io::Result<()> {
        match self.asker {
            Some(mut asker) => asker.write_all(rehearsal::CONSENT),
            None => Ok(()),
        }
    }

    /// Gives the node back to the program that it came from; returns only where that fails, or where there is nothing to
    /// give back.
    pub fn go_back(self, why: &str) -> io::Error {
        let Self { handover, descriptors, asker } = self;
        if asker.is_some() || handover.returned.is_some() {
            return io::Error::other(why.to_owned());
        }
        let image = handover.image.index();
        let Some(program) = descriptors.get(image).map(proc_path) else {
            return io::ErrorKind::InvalidData.into();
        };
        execute(&program, &Handover { returned: Some(why.to_owned()), ..handover }, &descriptors)
    }

    /// Copies of what came along.
    pub(crate) fn descriptors(&self) -> io::Result<Descriptors> {
        Descriptors::copied(&self.descriptors)
    }
}

/// Where the program of this process was started from, links not followed: a later look may find another one there.
pub fn executable() -> PathBuf {
    let started = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let is_ours = |path: &PathBuf| is_program(path, Path::new("/proc/self/exe"));
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let found = match started.components().count() {
        // A bare name was searched for.
        1 => std::env::split_paths(&searched).map(|folder| folder.join(&started)).find(is_ours),
        _ => Some(started.clone()),
    };
    let absolute = found.and_then(|path| std::path::absolute(path).ok()).filter(is_ours);
    absolute.or_else(|| std::env::current_exe().ok()).unwrap_or(started)
}

/// Whether a process runs this one's program.
pub(crate) fn runs_the_same(pid: u32) -> bool {
    is_program(&Path::new("/proc").join(pid.to_string()).join("exe"), Path::new("/proc/self/exe"))
}

/// Tells one program from another that takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Fingerprint {
    pub(crate) fn of(program: &Path) -> io::Result<Self> {
        let about = fs::metadata(program)?;
        let changed = (about.ctime(), about.ctime_nsec());
        Ok(Self { device: about.dev(), inode: about.ino(), changed })
    }
}

fn is_program(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|about| (about.dev(), about.ino()));
    matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
}

/// A path that leads to an open file, whatever became of its name.
pub(crate) fn proc_path(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Has this process go on as another program, which hears the signals that this thread holds. Returns only where that
/// fails; then all is as before.
pub(crate) fn execute(program: &Path, handover: &Handover, descriptors: &[OwnedFd]) -> io::Error {
    let attempt = || {
        let (ours, theirs) = UnixStream::pair()?;
        handover.send(descriptors, &ours)?;
        // All that there is to say is on its way.
        drop(ours);
        let program = CString::new(program.as_os_str().to_owned().into_vec())?;
        let arguments = strings(std::env::args_os())?;
        let environment = strings(environment())?;
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        telemetry::flush();
        dup2_stdin(&theirs)?;
        let Err(error) = execve(&program, &arguments, &environment);
        Err(dup2_stdin(&stdin).err().unwrap_or(error).into())
    };
    match attempt() {
        Ok(never) => never,
        Err(error) => error,
    }
}

fn environment() -> impl Iterator<Item = OsString> {
    // The sockets that systemd gave are handed over under their own names.
    let gone = |name: &OsString| {
        name == VARIABLE || name.to_str().is_some_and(|name| systemd::SOCKETS.contains(&name))
    };
    let kept = std::env::vars_os().filter(move |(name, _)| !gone(name));
    kept.chain([(VARIABLE.into(), SUCCESSOR.into())]).map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    })
}

fn strings(texts: impl Iterator<Item = OsString>) -> Result<Vec<CString>, NulError> {
    texts.map(|text| CString::new(text.into_vec())).collect()
}
