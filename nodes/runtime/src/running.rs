//! The folder `run` of a data directory: which nodes run on it, and where they listen.
//!
//! `NODE.lock` is locked for as long as the node's parent lives and holds its pid. `NODE.json` is there from when its
//! sockets are bound until it ends in good order; it says nothing unless the lock is held. `NODE.instance` tells the
//! seed that a node which was started again is the one that it knows.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protoplex_wire::identity::new_instance;
use serde::{Deserialize, Serialize};

use crate::start::StartCause;

/// [`list`] holds a lock for an instant to see whether it is free.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// What the address of a meta port is called.
pub const META: &str = "meta";

/// A node that runs, as told by `run/NODE.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// `proxy-1`.
    pub node: String,
    /// `proxy`.
    pub kind: String,
    /// Of the parent.
    pub pid: u32,
    /// Of the program.
    pub version: String,
    /// Unix time.
    pub started_at_ms: u64,
    /// How many children it has.
    #[serde(default)]
    pub children: u32,
    /// Where it listens, its meta port ("meta") included.
    pub addresses: Vec<Address>,
}

impl Running {
    /// The first address of this name.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.addresses.iter().find(|address| address.name == name).map(|address| address.address)
    }
}

/// Where a node, or one of its children, listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// What for: "http", "https", "meta", …
    pub name: String,
    /// Only where it is this child's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<u32>,
    /// With the port that it really has.
    pub address: SocketAddr,
}

/// Differs for each boot of each machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which node of a name this is: the id stays the same while a node is restarted on its data directory, on the same
/// boot of the same machine, and none of its earlier processes is left. A copied directory, or an orphaned child that
/// goes on, makes it another one: then leases that are still held have to end first.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    /// Locked for as long as any process, the node's children included, has it open.
    pub(crate) hold: Arc<File>,
}

impl Instance {
    /// Only for who holds the node's lock.
    fn take(path: &Path) -> io::Result<Self> {
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let mut file = open()?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        while let Err(refusal) = file.try_lock() {
            match refusal {
                TryLockError::WouldBlock if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
                // Theirs is the old file, however long they have it open.
                TryLockError::WouldBlock => {
                    fs::remove_file(path)?;
                    file = open()?;
                }
                TryLockError::Error(source) => return Err(source),
            }
        }
        let id = Self::id(&mut file)?;
        Ok(Self { id, hold: Arc::new(file) })
    }

    /// One that an earlier image of this program has taken.
    pub(crate) fn resumed(id: String, hold: OwnedFd) -> Self {
        Self { id, hold: Arc::new(hold.into()) }
    }

    /// The id in the file, or a new one where there is none or where it was copied from elsewhere.
    fn id(file: &mut File) -> io::Result<String> {
        let about = file.metadata()?;
        // Without the boot's id nothing is known again.
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_else(|_| new_instance());
        let here = format!("{} {}:{}", boot.trim(), about.dev(), about.ino());
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let known = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
        match known.and_then(|known| known.split_once(' ')) {
            Some((id, there)) if there == here && !id.is_empty() => Ok(id.to_owned()),
            _ => {
                let id = new_instance();
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(format!("{id} {here}\n").as_bytes())?;
                Ok(id)
            }
        }
    }
}

/// A name that this process has in a data directory, until this is dropped or the process ends however it may.
#[derive(Debug)]
pub struct Claim {
    /// Locked.
    lock: File,
    announcement: PathBuf,
    /// By this process.
    announced: AtomicBool,
    orphaned: bool,
}

impl Claim {
    /// One that an earlier image of this program has.
    pub(crate) fn resumed(data: &Path, node: &str, lock: OwnedFd) -> Self {
        let announcement = data.join("run").join(format!("{node}.json"));
        Self { lock: lock.into(), announcement, announced: false.into(), orphaned: false }
    }

    /// Whoever has it open has the name.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }

    /// Whether who had this name before did not end in good order, so that children of it may still be about.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned
    }

    /// Which node of its name this is.
    pub(crate) fn instance(&self) -> Result<Instance, StartCause> {
        let path = self.announcement.with_extension("instance");
        Instance::take(&path).map_err(|source| StartCause::Data { path, source })
    }

    /// Tells everyone where the node listens.
    pub(crate) fn announce(&self, running: &Running) -> Result<(), StartCause> {
        let write = || {
            let text = serde_json::to_string(running)? + "\n";
            let draft = self.announcement.with_extension("json.new");
            fs::write(&draft, text)?;
            fs::rename(&draft, &self.announcement)
        };
        self.announced.store(true, Ordering::Relaxed);
        write().map_err(|source| StartCause::Data { path: self.announcement.clone(), source })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.announced.load(Ordering::Relaxed) {
            let _ = fs::remove_file(&self.announcement);
        }
    }
}

/// Takes a name (a node's, or "cluster" for a whole cluster) in a data directory, which is made where it is missing.
///
/// # Errors
/// [`StartCause::Running`] with the pid of who has it, or [`StartCause::Data`].
pub fn claim(data: &Path, node: &str) -> Result<Claim, StartCause> {
    let folder = data.join("run");
    let path = folder.join(format!("{node}.lock"));
    let open = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)
    };
    let failed = |source| StartCause::Data { path: path.clone(), source };
    let mut lock = open().map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(refusal) = lock.try_lock() {
        match refusal {
            TryLockError::WouldBlock if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            TryLockError::WouldBlock => return Err(taken(data, node, Ok(lock))),
            TryLockError::Error(source) => return Err(failed(source)),
        }
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
    let announcement = folder.join(format!("{node}.json"));
    let orphaned = announcement.exists();
    Ok(Claim { lock, announcement, announced: false.into(), orphaned })
}

/// Why [`claim`] would fail now, where it would because the name is taken.
pub(crate) fn probe(data: &Path, node: &str) -> Option<StartCause> {
    let lock = data.join("run").join(format!("{node}.lock"));
    is_locked(&lock).then(|| taken(data, node, File::open(lock)))
}

fn taken(data: &Path, node: &str, lock: io::Result<File>) -> StartCause {
    // Without it the error says less, but is no other.
    let pid = lock.and_then(io::read_to_string).unwrap_or_default();
    let pid = if pid.is_empty() { "unknown".to_owned() } else { pid.trim_end().to_owned() };
    StartCause::Running { node: node.to_owned(), data: data.to_owned(), pid }
}

/// The nodes that run on a data directory now, by name. Those that ended, however they ended, are left out.
///
/// # Errors
/// The folder can't be read. A missing one is no error: nothing runs.
pub fn list(data: &Path) -> io::Result<Vec<Running>> {
    let entries = match fs::read_dir(data.join("run")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut running = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && is_locked(&path.with_extension("lock"))
        {
            // It may end right now, and its file with it.
            running
                .extend(fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Running>(&text).ok()));
        }
    }
    running.sort_by(|one, other| one.node.cmp(&other.node));
    Ok(running)
}

fn is_locked(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests;
