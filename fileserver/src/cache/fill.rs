//! One fetch of one body from S3 into the cache: by this process, or watched while another process does it.
//!
//! ```text
//! claim ──lock free──► fetch ──────────────► whole (renamed)
//!   │                    ▲  └─ S3 fails ───► failed (removed)
//!   │                    │  └─ disk fails ─► abandoned (removed): readers go on past the cache
//!   └──lock held──► follow ── grown to its whole length ─► whole
//!                        └─ lock falls free ─► take over, or claim anew where the file was removed
//! ```
//!
//! The last piece is written only after the digest of the whole was right: a file of full length is a right one, also
//! for followers in other processes, who see nothing but its length.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::digest::hex;
use crate::disk::blocking;
use crate::object::{BODY_OFFSET, Header, Meta};
use crate::reference::Reference;
use crate::storage::StorageError;
use crate::storage::directory::place;
use crate::storage::s3::S3;

/// How often a fetch goes on from where S3 broke off.
const RESUMES_MAX: u32 = 3;
/// How often a fetch begins again because another process removed the file that was followed.
const CLAIMS_MAX: u32 = 3;
/// How often another process's file is looked at. (No notification tells of a lock that falls free.)
const FOLLOW_INTERVAL: Duration = Duration::from_millis(20);
/// Another process's file that does not grow for so long is not waited for.
const FOLLOW_STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How far a fetch is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) meta: Option<Meta>,
    pub(crate) file: Option<Arc<File>>,
    /// Bytes of the body that can be read from the file.
    pub(crate) written: u64,
    pub(crate) end: Option<End>,
}

/// How a fetch ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// All of the body is in the file.
    Whole,
    /// The disk failed or was full. S3 may be read directly.
    Abandoned,
    /// S3 failed, or gave wrong bytes.
    Failed(StorageError),
}

impl Progress {
    /// Whether it can be said how an answer begins: some of the body is there, or all that will ever be.
    pub(super) fn is_started(&self) -> bool {
        self.end.is_some() || self.written > 0 || self.meta.as_ref().is_some_and(|meta| meta.stored_size == 0)
    }
}

pub(super) struct Fill {
    path: PathBuf,
    part: PathBuf,
    s3: S3,
    reference: Reference,
    progress: watch::Sender<Progress>,
}

enum FillError {
    Disk(io::Error),
    Storage(StorageError),
}

impl From<io::Error> for FillError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<StorageError> for FillError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

/// What was found where the part is kept.
enum Claim {
    /// Locked by us, empty.
    Ours(File),
    /// Locked by another process.
    Theirs(File),
    /// Finished by another process just now.
    Whole(Meta, File),
}

/// What a look at another process's part shows.
enum Look {
    Whole(Meta),
    Growing(Option<Meta>, u64),
    /// Its filler is gone, and the lock is ours.
    Orphaned,
    /// Removed by its filler.
    Discarded,
}

impl Fill {
    pub(super) fn new(
        folder: &Path,
        s3: S3,
        reference: Reference,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let path = place(folder, &reference);
        Self { part: path.with_extension("part"), path, s3, reference, progress }
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Brings the body into the cache. The end is told to nobody yet: see [`Fill::finish`].
    pub(super) async fn run(&self) -> End {
        for _ in 0..CLAIMS_MAX {
            match self.attempt().await {
                Ok(true) => return End::Whole,
                Ok(false) => {}
                Err(FillError::Storage(error)) => return End::Failed(error),
                Err(FillError::Disk(error)) => {
                    tracing::warn!(reference = %self.reference, %error, "the cache's disk failed; serving past the cache");
                    return End::Abandoned;
                }
            }
        }
        End::Failed(StorageError::Unavailable("other processes keep failing to fetch it".into()))
    }

    /// Tells all readers how it ended.
    pub(super) fn finish(self, end: End) {
        self.progress.send_modify(|progress| progress.end = Some(end));
    }

    /// False where another process failed and it is our turn to try.
    async fn attempt(&self) -> Result<bool, FillError> {
        let (path, part) = (self.path.clone(), self.part.clone());
        match blocking(move || claim(&path, &part)).await? {
            Claim::Ours(file) => self.fetch_or_remove(Arc::new(file)).await.map(|()| true),
            Claim::Theirs(file) => self.follow(Arc::new(file)).await,
            Claim::Whole(meta, file) => {
                self.tell(&meta, &Arc::new(file), meta.stored_size);
                Ok(true)
            }
        }
    }

    async fn fetch_or_remove(&self, file: Arc<File>) -> Result<(), FillError> {
        let fetched = self.fetch(&file).await;
        if fetched.is_err() {
            let part = self.part.clone();
            // What failed is told by the fetch; a part that stays is taken over or swept.
            let _ = blocking(move || fs::remove_file(part)).await;
        }
        fetched
    }

    /// Reads S3 into a part that is ours. Readers of a part that was taken over meet the same bytes once more.
    async fn fetch(&self, file: &Arc<File>) -> Result<(), FillError> {
        let (meta, mut body) = self.s3.open(&self.reference, 0).await?;
        let header = meta.header()?;
        let (target, size) = (Arc::clone(file), meta.stored_size);
        blocking(move || begin(&target, &header, size)).await?;
        self.tell(&meta, file, 0);

        let mut sha256 = Sha256::new();
        let mut written = 0;
        let mut resumes = 0;
        while written < meta.stored_size {
            let piece = match body.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Err(StorageError::Damaged("shorter than announced".into()).into()),
                Err(error) if error.is_passing() && resumes < RESUMES_MAX => {
                    resumes += 1;
                    body = self.s3.open(&self.reference, written).await?.1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let at = written;
            written += piece.len() as u64;
            let expected = (written == meta.stored_size).then(|| meta.stored_sha256.clone());
            let target = Arc::clone(file);
            sha256 = blocking(move || append(&target, sha256, at, &piece, expected)).await?;
            self.tell(&meta, file, written);
        }

        let (file, part, path) = (Arc::clone(file), self.part.clone(), self.path.clone());
        blocking(move || {
            file.sync_data()?;
            fs::rename(part, path)
        })
        .await?;
        Ok(())
    }

    /// Watches a part that another process fills. False where that one failed.
    async fn follow(&self, file: Arc<File>) -> Result<bool, FillError> {
        let mut seen = 0;
        let mut grown = Instant::now();
        loop {
            let (watched, part) = (Arc::clone(&file), self.part.clone());
            match blocking(move || look(&watched, &part)).await? {
                Look::Whole(meta) => {
                    self.tell(&meta, &file, meta.stored_size);
                    return Ok(true);
                }
                Look::Growing(Some(meta), written) if written > seen => {
                    (seen, grown) = (written, Instant::now());
                    self.tell(&meta, &file, written);
                }
                Look::Growing(..) if grown.elapsed() > FOLLOW_STALL_TIMEOUT => {
                    return Err(
                        StorageError::Timeout("another process that fetches it stalled".into()).into()
                    );
                }
                Look::Growing(..) => {}
                Look::Orphaned => return self.fetch_or_remove(file).await.map(|()| true),
                Look::Discarded => return Ok(false),
            }
            sleep(FOLLOW_INTERVAL).await;
        }
    }

    fn tell(&self, meta: &Meta, file: &Arc<File>, written: u64) {
        self.progress.send_modify(|progress| {
            progress.meta.get_or_insert_with(|| meta.clone());
            progress.file = Some(Arc::clone(file));
            progress.written = written;
        });
    }
}

fn claim(path: &Path, part: &Path) -> io::Result<Claim> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(part)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Claim::Theirs(file)),
            Err(TryLockError::Error(error)) => return Err(error),
            // Between our opening and our locking its filler may have renamed or removed it.
            Ok(()) if !is_at(&file, part)? => {}
            Ok(()) => {
                if let Ok(whole) = File::open(path)
                    && let Ok(meta) = Meta::read_from(&whole)
                {
                    fs::remove_file(part)?;
                    return Ok(Claim::Whole(meta, whole));
                }
                file.set_len(0)?;
                return Ok(Claim::Ours(file));
            }
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the space, so that a full disk shows before the first byte, and writes the header.
fn begin(file: &File, header: &Header, stored_size: u64) -> io::Result<()> {
    file.set_len(0)?;
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, BODY_OFFSET + stored_size) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    file.write_all_at(header, 0)
}

/// Writes a piece; the last one only where the digest of all is as expected.
fn append(
    file: &File,
    mut sha256: Sha256,
    at: u64,
    piece: &Bytes,
    expected: Option<String>,
) -> Result<Sha256, FillError> {
    sha256.update(piece);
    if let Some(expected) = expected
        && hex(&sha256.clone().finalize()) != expected
    {
        return Err(StorageError::Damaged("its digest is not what its metadata says".into()).into());
    }
    file.write_all_at(piece, BODY_OFFSET + at)?;
    Ok(sha256)
}

fn look(file: &File, part: &Path) -> io::Result<Look> {
    if let Ok(meta) = Meta::read_from(file) {
        return Ok(Look::Whole(meta));
    }
    match file.try_lock() {
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut header: Header = [0; BODY_OFFSET as usize];
            let meta = file.read_exact_at(&mut header, 0).ok().and_then(|()| Meta::from_header(&header));
            Ok(Look::Growing(meta, file.metadata()?.len().saturating_sub(BODY_OFFSET)))
        }
        // It may have become whole between the first look and the lock.
        Ok(()) => match Meta::read_from(file) {
            Ok(meta) => Ok(Look::Whole(meta)),
            Err(_) if is_at(file, part)? => Ok(Look::Orphaned),
            Err(_) => Ok(Look::Discarded),
        },
    }
}
