//! The disk cache in front of S3: one folder for all children of the machine, one file an object.
//!
//! | file | is | ends by |
//! | --- | --- | --- |
//! | `ab/abcd…` | a whole body in the one-file form, its digest checked when it came | [`sweep`], or damage |
//! | `ab/abcd….part` | a body that one process fills (it holds an flock) while any number follow it | being renamed, or removed with its filler's failure or by whoever finds it without a filler |
//!
//! The folder may be removed whole at any time: nothing in it is the only copy.

mod fill;
mod sweep;

pub(crate) use sweep::sweep;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use metrics::counter;
use protoplex_runtime::drain::Tasks;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::digest::hex;
use crate::disk::{READ_MAX_BYTES, blocking};
use crate::object::{BODY_OFFSET, Meta, ObjectError};
use crate::reference::Reference;
use crate::storage::StorageError;
use crate::storage::directory::place;
use crate::storage::s3::{RemoteBody, S3};
use fill::Fill;
pub(crate) use fill::{End, Progress};

/// After the cache's disk failed or was full, nothing is cached for so long.
const OFF_AFTER_DISK_ERROR: Duration = Duration::from_secs(10);
/// Bodies that a child fills at once; further ones go through uncached.
const FILLS_MAX: usize = 256;
/// A cached body's digest is checked when a child serves it for the first time, up to this many stored bytes; above,
/// its length alone is, since the first byte would wait for the last.
const CHECK_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// How many checked bodies a child remembers.
const CHECKED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// How exact the time of last use is.
const USED_STEP: Duration = Duration::from_secs(60);

/// Where a body's stored bytes come from.
#[derive(Debug)]
pub(crate) enum Found {
    /// A whole file.
    Whole(Meta, Arc<File>),
    /// A file that grows; what can be read of it is told.
    Growing(Meta, watch::Receiver<Progress>),
    /// Past the cache.
    Through(Meta, RemoteBody),
}

/// One child's view of the machine's cache.
#[derive(Clone)]
pub(crate) struct Cache(Rc<Shared>);

struct Shared {
    folder: PathBuf,
    s3: S3,
    fills: RefCell<HashMap<Reference, watch::Receiver<Progress>>>,
    checked: RefCell<LruCache<Reference, ()>>,
    off_until: Cell<Option<Instant>>,
    tasks: Tasks,
}

impl Cache {
    /// The cache in `folder`, which is made when the first body comes; `tasks` holds the fills under way.
    pub(crate) fn new(folder: PathBuf, s3: S3, tasks: Tasks) -> Self {
        Self(Rc::new(Shared {
            folder,
            s3,
            fills: RefCell::default(),
            checked: RefCell::new(LruCache::new(CHECKED_MAX)),
            off_until: Cell::default(),
            tasks,
        }))
    }

    /// What is behind the cache.
    pub(crate) fn s3(&self) -> &S3 {
        &self.0.s3
    }

    /// Finds a body in the cache. One that is damaged is dropped, and is a miss; so is one that this disk can't give.
    pub(crate) async fn hit(&self, reference: &Reference) -> Option<Found> {
        let path = place(&self.0.folder, reference);
        let checked = self.0.checked.borrow_mut().get(reference).is_some();
        match blocking(move || open_cached(&path, checked)).await {
            Ok((meta, file)) => {
                counter!("protoplex_fileserver_cache_hits_total").increment(1);
                self.0.checked.borrow_mut().put(reference.clone(), ());
                Some(Found::Whole(meta, Arc::new(file)))
            }
            Err(ObjectError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%reference, %error, "a cached body is not usable and is fetched again");
                counter!("protoplex_fileserver_cache_damaged_total").increment(1);
                self.0.checked.borrow_mut().pop(reference);
                None
            }
        }
    }

    /// Takes a whole file in the one-file form as well, so that what was just uploaded need not be fetched; where that
    /// can't be done, it will be.
    pub(crate) async fn adopt(&self, reference: &Reference, file: &Path) {
        let (file, place) = (file.to_owned(), place(&self.0.folder, reference));
        let linked = blocking(move || {
            place.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::hard_link(file, &place)?;
            // The body may have waited long to be stored: that it came here just now is what eviction goes by.
            File::open(place)?.set_modified(SystemTime::now())
        });
        match linked.await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                tracing::debug!(%reference, %error, "an uploaded body is not taken into the cache");
            }
            _ => {}
        }
    }

    /// Begins to fetch a body, or joins a fetch that is under way. Returns with its first bytes.
    pub(crate) async fn fetch(&self, reference: &Reference) -> Result<Found, StorageError> {
        counter!("protoplex_fileserver_cache_misses_total").increment(1);
        let Some(mut progress) = self.fill(reference) else { return self.through(reference).await };
        let started = progress.wait_for(Progress::is_started).await.map(|progress| progress.clone());
        let started =
            started.map_err(|_| StorageError::Unavailable("the fetch was cut by a drain".into()))?;
        match (started.meta, started.end) {
            (_, Some(End::Failed(error))) => Err(error),
            (_, Some(End::Abandoned)) | (None, _) => self.through(reference).await,
            (Some(meta), _) => Ok(Found::Growing(meta, progress)),
        }
    }

    async fn through(&self, reference: &Reference) -> Result<Found, StorageError> {
        let (meta, body) = self.0.s3.open(reference, 0).await?;
        Ok(Found::Through(meta, body))
    }

    /// The fetch of a body: the one under way, or a new one; none where the cache is off or has its hands full.
    fn fill(&self, reference: &Reference) -> Option<watch::Receiver<Progress>> {
        if self.0.off_until.get().is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let mut fills = self.0.fills.borrow_mut();
        let room = fills.len() < FILLS_MAX;
        match fills.entry(reference.clone()) {
            Entry::Occupied(entry) => Some(entry.get().clone()),
            Entry::Vacant(_) if !room => None,
            Entry::Vacant(entry) => {
                let (sender, receiver) = watch::channel(Progress::default());
                entry.insert(receiver.clone());
                let fill = Fill::new(&self.0.folder, self.0.s3.clone(), reference.clone(), sender);
                let shared = Rc::clone(&self.0);
                self.0.tasks.spawn(async move { shared.run(fill).await });
                Some(receiver)
            }
        }
    }
}

impl Shared {
    async fn run(&self, fill: Fill) {
        counter!("protoplex_fileserver_cache_fills_total").increment(1);
        let end = fill.run().await;
        if matches!(end, End::Abandoned) {
            self.off_until.set(Some(Instant::now() + OFF_AFTER_DISK_ERROR));
        }
        // First forgotten, then told: whoever learns of the end and asks again must not meet this fetch.
        self.fills.borrow_mut().remove(fill.reference());
        fill.finish(end);
    }
}

fn open_cached(path: &Path, checked: bool) -> Result<(Meta, File), ObjectError> {
    let file = File::open(path)?;
    let usable = Meta::read_from(&file).and_then(|meta| {
        if checked || meta.stored_size > CHECK_MAX_BYTES || stored_sha256(&file, &meta)? == meta.stored_sha256
        {
            Ok(meta)
        } else {
            Err(ObjectError::Digest)
        }
    });
    match usable {
        Ok(meta) => {
            touch(&file);
            Ok((meta, file))
        }
        Err(error) => {
            // If it can't be removed either, the fetch that follows replaces it.
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

fn stored_sha256(file: &File, meta: &Meta) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; READ_MAX_BYTES];
    let mut done = 0;
    while done < meta.stored_size {
        let step =
            usize::try_from(meta.stored_size - done).map_or(READ_MAX_BYTES, |left| left.min(READ_MAX_BYTES));
        file.read_exact_at(&mut buffer[..step], BODY_OFFSET + done)?;
        sha256.update(&buffer[..step]);
        done += step as u64;
    }
    Ok(hex(&sha256.finalize()))
}

/// Notes the use for [`sweep`]. That a use goes unnoted harms nothing but the order of eviction.
fn touch(file: &File) {
    let now = SystemTime::now();
    let used = file.metadata().and_then(|metadata| metadata.modified());
    if used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > USED_STEP)) {
        let _ = file.set_modified(now);
    }
}

#[cfg(test)]
mod tests;
