//! Where an archive is written: it holds digests of secrets, and none of it is left where it did not become whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IsTerminal, Write, stdout};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use protoplex_runtime::account::as_root;
use protoplex_runtime::signals::StopSignals;

use super::STANDARD;
use crate::cli::Usage;

/// What a draft's name has behind that of its file.
const DRAFT: &str = ".part";

pub(super) enum Destination {
    /// Standard output.
    Standard,
    /// Something that is there and no file, a pipe say.
    Straight(File),
    /// A file: it has its name only once it is whole.
    Whole(Draft),
}

impl Destination {
    pub(super) fn create(name: &Path) -> anyhow::Result<Self> {
        if name.as_os_str() == STANDARD {
            if stdout().is_terminal() {
                let advice = "an archive is for a file or a pipe: name a FILE, or pipe it to another command";
                return Err(Usage(advice.to_owned()).into());
            }
            return Ok(Self::Standard);
        }
        let made = || match fs::metadata(name) {
            Ok(there) if !there.is_file() => Ok(Self::Straight(OpenOptions::new().write(true).open(name)?)),
            // Through a link: it stays one.
            Ok(_) => Draft::of(fs::canonicalize(name)?).map(Self::Whole),
            Err(_) => Draft::of(name.to_owned()).map(Self::Whole),
        };
        made().map_err(|error: io::Error| Usage(format!("can't write {}: {error}", name.display())).into())
    }

    /// What ends it early, where something would be left: elsewhere signals do so by themselves.
    pub(super) fn stop(&mut self) -> Option<StopSignals> {
        match self {
            Self::Whole(draft) => draft.stop.take(),
            Self::Standard | Self::Straight(_) => None,
        }
    }

    pub(super) fn is_gzip(&self) -> bool {
        let is_gz = |name: &Path| name.extension().is_some_and(|extension| extension == "gz");
        matches!(self, Self::Whole(draft) if is_gz(&draft.name))
    }

    /// On the disk, under its name.
    pub(super) fn keep(self) -> anyhow::Result<()> {
        let Self::Whole(draft) = self else { return Ok(()) };
        let name = draft.name.clone();
        draft.keep().with_context(|| format!("can't write {}", name.display()))
    }

    pub(super) fn out(&self) -> Box<dyn Write + '_> {
        match self {
            Self::Standard => Box::new(stdout()),
            Self::Straight(file) => Box::new(file),
            Self::Whole(draft) => Box::new(&draft.file),
        }
    }
}

/// A file beside the one that it becomes, for its owner alone. It goes when this is dropped; what a process that was killed
/// has left of one the next one replaces.
pub(super) struct Draft {
    /// Locked.
    file: File,
    at: PathBuf,
    name: PathBuf,
    stop: Option<StopSignals>,
}

impl Draft {
    fn of(name: PathBuf) -> io::Result<Self> {
        let mut at = name.clone().into_os_string();
        at.push(DRAFT);
        let at = PathBuf::from(at);
        // First: from here on something would be left behind.
        let stop = Some(StopSignals::take()?);
        if fs::symlink_metadata(&at).is_ok_and(|there| there.is_file()) {
            lock(&File::open(&at)?)?;
        }
        match fs::remove_file(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at)?;
        let draft = Self { file, at, name, stop };
        lock(&draft.file)?;
        Ok(draft)
    }

    fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        // It is the caller's folder, and not that of the user that the database is touched as.
        as_root(|| fs::rename(&self.at, &self.name))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // One that was kept has its name no more.
        let _ = as_root(|| fs::remove_file(&self.at));
    }
}

fn lock(draft: &File) -> io::Result<()> {
    match draft.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "another export writes it"))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_left_of_a_draft_and_one_that_was_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [name, part] = ["edge.jsonl", "edge.jsonl.part"].map(|name| folder.path().join(name));
        fs::write(&name, "old").unwrap();
        fs::write(&part, "left by a process that was killed, and longer").unwrap();
        let draft = Destination::create(&name).unwrap();
        let busy = Destination::create(&name).err().unwrap().to_string();
        assert!(busy.contains("another export writes it"), "{busy}");
        draft.out().write_all(b"cut").unwrap();
        drop(draft);
        assert!(!part.exists());
        assert_eq!(fs::read(&name).unwrap(), b"old");

        let draft = Destination::create(&name).unwrap();
        draft.out().write_all(b"new").unwrap();
        assert_eq!(fs::read(&part).unwrap(), b"new");
        draft.keep().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"new");
        assert!(!part.exists());
    }
}
