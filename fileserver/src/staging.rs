//! The staging folder: uploads that the storage does not have yet, and the journal that says how far each has come.
//!
//! ```text
//! staging/uploads/{upload}/journal   how far it is; replaced by renaming, forced to the disk each time
//! staging/uploads/{upload}/body      the raw bytes
//! staging/uploads/{upload}/gzip      the compressed form, where it pays
//! staging/objects/{reference}/{upload}   one of the two, in the one-file form: a hard link, made before the upload is
//!                                    recorded, removed once the storage has it
//! ```
//!
//! The children of a machine share the folder. Whoever works on an upload holds an flock on its folder, which the
//! kernel gives up with the process: an upload whose folder can be locked has no owner. Uploads of one content have
//! a link each, so none ever depends on what happens to another.
//!
//! Everything here blocks: callers are on the blocking pool.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::HasherState;
use crate::object::{BODY_OFFSET, Encoding, Meta};
use crate::reference::Reference;

/// A folder without a journal belongs to nobody once it is this old: its upload died while it was made or removed.
const ORPHAN_AGE: Duration = Duration::from_secs(10);
/// How often a link is tried while others keep removing the folder that it goes into.
const LINK_ATTEMPTS: usize = 16;

/// What is kept on disk about an upload from before its token is checked until the storage has its body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// Names the reservation in the datastore and the upload's folder; nobody can guess it.
    pub(crate) upload: String,
    /// The public id, of the topic `upload/{watch}`.
    pub(crate) watch: String,
    pub(crate) host: String,
    /// Decoded.
    pub(crate) path: String,
    /// As it stands in a URL.
    pub(crate) url_path: String,
    /// The answer's URLs begin with it: `http://example.com:8080`.
    pub(crate) origin: String,
    pub(crate) content_type: String,
    /// Bytes, where the client declared them.
    pub(crate) declared: Option<u64>,
    /// The most that the token and its quota allow, in bytes.
    pub(crate) max_bytes: u64,
    pub(crate) step: Step,
}

/// How far an upload has come. What a restart does with it stands in `upload/recover.rs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// Nothing was promised: after a restart the upload is undone.
    Receiving,
    /// A tus upload: what was received up to here is promised until it expires.
    Resumable(Checkpoint),
    /// The body is whole, named and forced to the disk; the datastore may have recorded it.
    Committing(Staged),
    /// A tus upload that was recorded and is on its way to the storage: its client may be told so.
    Recorded(Staged),
    /// A tus upload that was recorded; kept so that a client that missed the answer learns of it.
    Finished(Finished),
}

impl Journal {
    /// Whether all of the body has come.
    pub(crate) fn is_whole(&self) -> bool {
        match &self.step {
            Step::Receiving => false,
            Step::Resumable(checkpoint) => self.declared == Some(checkpoint.offset),
            Step::Committing(_) | Step::Recorded(_) | Step::Finished(_) => true,
        }
    }

    /// Whether the datastore is known to have the upload: its client may be told of the full offset.
    pub(crate) fn is_recorded(&self) -> bool {
        matches!(self.step, Step::Recorded(_) | Step::Finished(_))
    }

    /// Where the path shows what is uploaded.
    pub(crate) fn url(&self) -> String {
        format!("{}{}", self.origin, self.url_path)
    }
}

impl Step {
    /// Who may ask about the upload and go on with it, where it is one by tus.
    pub(crate) fn lease(&self) -> Option<&TusLease> {
        match self {
            Self::Receiving => None,
            Self::Resumable(checkpoint) => Some(&checkpoint.lease),
            Self::Committing(staged) | Self::Recorded(staged) => staged.tus.as_ref(),
            Self::Finished(finished) => Some(&finished.lease),
        }
    }
}

/// Where a tus upload goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Bytes of the body that are on the disk and in the hashes.
    pub(crate) offset: u64,
    pub(crate) hashers: HasherState,
    #[serde(flatten)]
    pub(crate) lease: TusLease,
}

/// Who may go on with a tus upload, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TusLease {
    /// Unix time.
    pub(crate) expires_at_ms: u64,
    /// SHA-256 of the token that it was created with, in hex.
    pub(crate) token_sha256: String,
    /// The client's Upload-Metadata, as it came.
    pub(crate) metadata: String,
}

/// A body that is ready to be recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Staged {
    pub(crate) reference: Reference,
    pub(crate) meta: Meta,
    /// The form that is kept for the storage; `None` where the content is safe elsewhere already.
    pub(crate) kept: Option<Encoding>,
    /// Of a tus upload.
    pub(crate) tus: Option<TusLease>,
}

/// What is left of a tus upload that is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) reference: Reference,
    pub(crate) size: u64,
    #[serde(flatten)]
    pub(crate) lease: TusLease,
}

/// The staging folder of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Staging {
    uploads: PathBuf,
    objects: PathBuf,
}

/// An upload's folder, and the lock that makes it ours. Dropping it gives the lock up and leaves the files.
#[derive(Debug)]
pub(crate) struct Slot {
    folder: PathBuf,
    objects: PathBuf,
    /// The open folder: it carries the lock, and is what is forced to the disk after a change of names.
    lock: File,
}

/// What became of an attempt to take over an upload.
#[derive(Debug)]
pub(crate) enum Taken {
    Ours(Box<(Slot, Journal)>),
    /// Its owner is alive and works on it.
    Busy,
    Gone,
}

impl Staging {
    /// Opens the folder, making it if need be.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let staging = Self { uploads: folder.join("uploads"), objects: folder.join("objects") };
        fs::create_dir_all(&staging.uploads)?;
        fs::create_dir_all(&staging.objects)?;
        File::open(folder)?.sync_all()?;
        Ok(staging)
    }

    /// The stored form of a content that is complete here, in the one-file form: what the storage does not have yet is
    /// served from it. It may be gone when it is opened; then the storage has it.
    pub(crate) fn staged(&self, reference: &Reference) -> Option<PathBuf> {
        let mut links = fs::read_dir(self.objects.join(reference.as_str())).ok()?;
        links.find_map(|link| Some(link.ok()?.path()))
    }

    /// Makes a folder for a new upload, locked, its journal on the disk.
    pub(crate) fn create(&self, journal: &Journal) -> io::Result<Slot> {
        let folder = self.uploads.join(&journal.upload);
        fs::create_dir(&folder)?;
        let slot = self.lock(folder)?.ok_or(ErrorKind::ResourceBusy)?;
        let written = slot.write_journal(journal).and_then(|()| File::open(&self.uploads)?.sync_all());
        match written {
            Ok(()) => Ok(slot),
            Err(error) => {
                slot.remove(None)?;
                Err(error)
            }
        }
    }

    /// Takes over an upload that nobody works on.
    pub(crate) fn take(&self, upload: &str) -> io::Result<Taken> {
        let slot = match self.lock(self.uploads.join(upload)) {
            Ok(Some(slot)) => slot,
            Ok(None) => return Ok(Taken::Busy),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Taken::Gone),
            Err(error) => return Err(error),
        };
        if let Some(journal) = self.read(upload)? {
            return Ok(Taken::Ours(Box::new((slot, journal))));
        }
        let age = slot.lock.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > ORPHAN_AGE {
            slot.remove(None)?;
        }
        Ok(Taken::Gone)
    }

    /// What the journal of an upload says, whoever owns it.
    pub(crate) fn read(&self, upload: &str) -> io::Result<Option<Journal>> {
        match fs::read(self.uploads.join(upload).join("journal")) {
            Ok(journal) => Ok(Some(serde_json::from_slice(&journal)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the content is complete here in just this stored form.
    pub(crate) fn has(&self, reference: &Reference, form: &Meta) -> bool {
        let Ok(links) = fs::read_dir(self.objects.join(reference.as_str())) else { return false };
        links.flatten().any(|link| {
            let found = File::open(link.path()).ok().and_then(|file| Meta::read_from(&file).ok());
            found.is_some_and(|found| {
                found.encoding == form.encoding && found.stored_sha256 == form.stored_sha256
            })
        })
    }

    /// All uploads that have a folder.
    pub(crate) fn uploads(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.uploads)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn lock(&self, folder: PathBuf) -> io::Result<Option<Slot>> {
        let lock = File::open(&folder)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Slot { folder, objects: self.objects.clone(), lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Slot {
    /// Replaces the journal; what it says is on the disk when this returns.
    pub(crate) fn write_journal(&self, journal: &Journal) -> io::Result<()> {
        let (new, current) = (self.folder.join("journal.new"), self.folder.join("journal"));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(journal)?)?;
        file.sync_all()?;
        fs::rename(new, current)?;
        self.lock.sync_all()
    }

    /// Removes the journal: from here on the upload is nobody's, and its folder is removed by and by.
    pub(crate) fn drop_journal(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.folder.join("journal")))?;
        self.lock.sync_all()
    }

    /// Begins one of the two forms anew, for reading and writing.
    pub(crate) fn make_form(&self, encoding: Encoding) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(true).open(self.form_path(encoding))
    }

    /// Opens a form of which the journal says that `body_bytes` of its body are here. One that is gone, or shorter, is
    /// an error: made anew, it would pass zeros for the bytes that were hashed.
    pub(crate) fn form(&self, encoding: Encoding, body_bytes: u64) -> io::Result<File> {
        let file = File::options().read(true).write(true).open(self.form_path(encoding))?;
        if file.metadata()?.len() < BODY_OFFSET + body_bytes {
            let cut = "a body in the staging folder is shorter than its journal says";
            return Err(io::Error::new(ErrorKind::InvalidData, cut));
        }
        Ok(file)
    }

    /// Where a form is.
    pub(crate) fn form_path(&self, encoding: Encoding) -> PathBuf {
        self.folder.join(match encoding {
            Encoding::Identity => "body",
            Encoding::Gzip => "gzip",
        })
    }

    /// Removes a form that is not kept.
    pub(crate) fn drop_form(&self, encoding: Encoding) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.form_path(encoding)))
    }

    /// Makes the content readable under its reference.
    pub(crate) fn link(&self, reference: &Reference, encoding: Encoding) -> io::Result<()> {
        let (folder, link) = self.object(reference);
        for _ in 0..LINK_ATTEMPTS {
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            match fs::hard_link(self.form_path(encoding), &link) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                // Another upload of this content was stored just now and took the empty folder away.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            File::open(&folder)?.sync_all()?;
            return File::open(&self.objects)?.sync_all();
        }
        Err(ErrorKind::ResourceBusy.into())
    }

    /// Takes the content away from its reference, if it is there.
    pub(crate) fn unlink(&self, reference: &Reference) -> io::Result<()> {
        let (folder, link) = self.object(reference);
        absent_is_fine(fs::remove_file(link))?;
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => absent_is_fine(removed),
        }
    }

    /// Removes the upload, its journal last but for the folder itself: what a crash leaves can still be told apart.
    pub(crate) fn remove(&self, reference: Option<&Reference>) -> io::Result<()> {
        if let Some(reference) = reference {
            self.unlink(reference)?;
        }
        self.drop_form(Encoding::Identity)?;
        self.drop_form(Encoding::Gzip)?;
        absent_is_fine(fs::remove_file(self.folder.join("journal")))?;
        absent_is_fine(fs::remove_dir_all(&self.folder))
    }

    fn object(&self, reference: &Reference) -> (PathBuf, PathBuf) {
        let folder = self.objects.join(reference.as_str());
        let link = folder.join(self.folder.file_name().unwrap_or_default());
        (folder, link)
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
