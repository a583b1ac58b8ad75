//! A log that all processes of a machine append to, and that whoever finds it too large or too old puts aside.
//!
//! A batch of lines is appended under an advisory lock on the side file `LOG.lock`, so that nobody writes to a file that
//! has been put aside, no line is torn, and a reader who has seen the end of one has seen it all. `LOG` becomes `LOG.1`,
//! which becomes `LOG.2`. The lock's file was last modified when the log was begun.

mod rotation;
mod trail;

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

pub use rotation::Rotation;
pub(crate) use trail::{Trail, TrailError, Verdict};

/// How long the lock is waited for. It is held for one batch; who holds it for longer stands still, and it is done
/// without: a line of ours may then be in a file that is put aside just now, but none is lost.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(1);
/// Between two looks for files that are too old.
const TIDY_INTERVAL: Duration = Duration::from_secs(3600);

/// A log of one or many processes.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// A pipe or a device is only written to.
    is_regular: bool,
    tidied: Option<Instant>,
    /// Why it could not be put aside when that was due last.
    stuck: Option<String>,
}

/// Not all lines could be appended.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct AppendError {
    /// How many bytes at the end of the batch were not; they begin with a line.
    pub left: usize,
    /// What the system says.
    pub source: io::Error,
}

impl LogFile {
    /// Opens it for appending; it is made, readable by its owner alone, where it is missing. Blocking, as all of this.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let file = open(&path)?;
        let is_regular = file.metadata()?.is_file();
        Ok(Self { path, rotation, file, is_regular, tidied: None, stuck: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the file grows although it should have been put aside, if it does.
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// Appends whole lines, each with its line feed, and puts the file aside where that is due; where that can't be, it
    /// grows. Without lines only the latter.
    ///
    /// # Errors
    /// See [`AppendError`]. The next call tries anew.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let mut left = lines;
        let appended = if self.is_regular {
            self.append_locked(&mut left)
        } else {
            write(&self.file, left).map(|written| left = &left[written..])
        };
        let appended = appended.and_then(|()| if left.is_empty() { Ok(()) } else { Err(full()) });
        appended.map_err(|source| AppendError { left: left.len(), source })
    }

    fn append_locked(&mut self, left: &mut &[u8]) -> io::Result<()> {
        let lock = lock(&self.path);
        self.reopen_where_moved()?;
        // Tried once a batch: lines are worth more than their file's size.
        let mut rotates = lock.is_some();
        if let Some(lock) = &lock {
            self.tidy();
            rotates = !self.is_old(lock)? || self.made_room(lock);
        }
        while !left.is_empty() {
            let mut size = self.file.metadata()?.len();
            if rotates
                && let Some(lock) = &lock
                && self.rotation.is_full(size, first_line(left))
            {
                rotates = self.made_room(lock);
                size = self.file.metadata()?.len();
            }
            if size > 0 && !self.ends_with_a_line(size)? {
                // Who wrote this was killed on its way.
                (&self.file).write_all(b"\n")?;
                size += 1;
            }
            let part = if rotates { self.rotation.part(size, left) } else { *left };
            let written = write(&self.file, part)?;
            let whole = whole_lines(&part[..written]);
            *left = &left[whole..];
            if written < part.len() && lock.is_some() {
                self.file.set_len(size + whole as u64)?;
            }
            if whole == 0 {
                return Err(full());
            }
        }
        Ok(())
    }

    /// Another process has put our file aside, or somebody has removed it.
    fn reopen_where_moved(&mut self) -> io::Result<()> {
        if !is_at(&self.file.metadata()?, &self.path) {
            self.file = open(&self.path)?;
            self.stuck = None;
        }
        Ok(())
    }

    fn is_old(&self, lock: &File) -> io::Result<bool> {
        let begun = lock.metadata()?.modified()?;
        // A clock that was set back makes it young.
        let age = begun.elapsed().unwrap_or_default();
        Ok(self.rotation.is_old(age) && self.file.metadata()?.len() > 0)
    }

    /// Puts the present file aside, if that can be.
    fn made_room(&mut self, lock: &File) -> bool {
        self.stuck = self.rotate(lock).err().map(|error| error.to_string());
        self.stuck.is_none()
    }

    /// Puts the present file aside and begins another. After each step of it the next process can go on.
    fn rotate(&mut self, lock: &File) -> io::Result<()> {
        for (from, to) in self.rotation.moves(|number| aside(&self.path, number).exists()) {
            fs::rename(aside(&self.path, from), aside(&self.path, to))?;
        }
        self.file = open(&self.path)?;
        self.tidied = None;
        lock.set_modified(std::time::SystemTime::now())
    }

    /// Removes what was put aside too long ago, or is beyond the number to be kept.
    fn tidy(&mut self) {
        if self.tidied.is_some_and(|tidied| tidied.elapsed() < TIDY_INTERVAL) {
            return;
        }
        self.tidied = Some(Instant::now());
        for (number, path) in put_aside(&self.path) {
            let modified = fs::metadata(&path).and_then(|about| about.modified());
            let age = modified.map_or(Duration::ZERO, |modified| modified.elapsed().unwrap_or_default());
            if self.rotation.is_over(number, age) {
                // What can't be removed now is tried again at the next look.
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn ends_with_a_line(&self, size: u64) -> io::Result<bool> {
        let mut last = [0];
        let read = self.file.read_at(&mut last, size - 1)?;
        Ok(read == 0 || last == *b"\n")
    }
}

fn open(path: &Path) -> io::Result<File> {
    let open = |read| OpenOptions::new().read(read).create(true).append(true).mode(0o600).open(path);
    // A pipe that is opened for reading, too, has a reader for ever.
    let is_regular = fs::metadata(path).map_or(true, |about| about.is_file());
    open(is_regular)
}

/// The lock, held until the file is dropped. None where it can't be had: then there is a stranger's mistake, and lines
/// are worth more than their file's size.
fn lock(path: &Path) -> Option<File> {
    let path = with_suffix(path, ".lock");
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(path).ok()?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(refusal) = lock.try_lock() {
        match refusal {
            fs::TryLockError::WouldBlock if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            _ => return None,
        }
    }
    Some(lock)
}

/// One system call, so that lines of others don't come between ours. Returns how much of them there was room for.
fn write(mut file: &File, lines: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(lines) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

fn full() -> io::Error {
    ErrorKind::StorageFull.into()
}

/// How many bytes the first line has.
fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1)
}

/// How many bytes the lines have that are whole.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

/// Whether the file is the one that has this path now.
fn is_at(file: &Metadata, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (file.dev(), file.ino()))
}

/// `LOG` for 0, `LOG.1`, …
fn aside(path: &Path, number: u32) -> PathBuf {
    if number == 0 { path.to_owned() } else { with_suffix(path, &format!(".{number}")) }
}

/// Everything that was put aside, in no order.
fn put_aside(path: &Path) -> Vec<(u32, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let number = |of: OsString| {
        let number = of.to_str()?.strip_prefix(name.to_str()?)?.strip_prefix('.')?.parse().ok()?;
        (aside(path, number).file_name()? == of).then_some(number)
    };
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| Some((number(file.file_name())?, file.path()))).collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

#[cfg(test)]
mod tests;
