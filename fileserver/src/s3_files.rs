//! Stored files by their reference: staged here, cached here, or in the storage; and what is known not to exist.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use lru::LruCache;
use metrics::counter;

use crate::cache::Cache;
use crate::disk::blocking;
use crate::object::Meta;
use crate::reference::Reference;
use crate::registrations::{Registration, Registrations};
use crate::staging::Staging;
use crate::storage::StorageError;
use crate::storage::directory::Directory;
use crate::stored::StoredBody;

/// References that are known not to exist.
const ABSENT_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Where bodies are looked for, after the staging folder.
pub(crate) enum Source {
    /// Files that are their own cache.
    Directory(Directory),
    /// S3 behind the disk cache.
    Cache(Cache),
}

/// The stored files of a cluster as one child sees them.
pub(crate) struct S3Files {
    source: Source,
    staging: Staging,
    registrations: Rc<Registrations>,
    absent: RefCell<LruCache<Reference, Registration>>,
}

impl S3Files {
    pub(crate) fn new(source: Source, staging: Staging, registrations: Rc<Registrations>) -> Self {
        Self { source, staging, registrations, absent: RefCell::new(LruCache::new(ABSENT_MAX)) }
    }

    /// Finds a body.
    ///
    /// That there is none is remembered only after it was asked again under a registration: an upload in between is
    /// never hidden, and the many references that do exist cost no registration.
    pub(crate) async fn open(&self, reference: &Reference) -> Result<StoredBody, StorageError> {
        if self.is_absent(reference) {
            counter!("protoplex_fileserver_negative_hits_total", "of" => "file").increment(1);
            return Err(StorageError::NotFound);
        }
        match self.find(reference).await {
            Err(StorageError::NotFound) => {}
            found => return found,
        }
        let Some(registration) = self.registrations.register(&format!("file:{reference}")).await else {
            return Err(StorageError::NotFound);
        };
        let found = self.find(reference).await;
        if matches!(found, Err(StorageError::NotFound)) && registration.stands() {
            self.absent.borrow_mut().put(reference.clone(), registration);
        }
        found
    }

    fn is_absent(&self, reference: &Reference) -> bool {
        let mut absent = self.absent.borrow_mut();
        let stands = absent.get(reference).map(Registration::stands);
        if stands == Some(false) {
            absent.pop(reference);
        }
        stands == Some(true)
    }

    /// The staging folder comes before the storage: a body leaves it only once the storage has it.
    async fn find(&self, reference: &Reference) -> Result<StoredBody, StorageError> {
        match &self.source {
            Source::Directory(directory) => {
                if let Some(body) = self.staged(reference).await? {
                    return Ok(body);
                }
                let (meta, file) = directory.open(reference).await?;
                Ok(StoredBody::whole(meta, Arc::new(file)))
            }
            Source::Cache(cache) => {
                let found = match cache.hit(reference).await {
                    Some(found) => found,
                    None => match self.staged(reference).await? {
                        Some(body) => return Ok(body),
                        None => cache.fetch(reference).await?,
                    },
                };
                Ok(StoredBody::of_cache(found, cache.s3(), reference))
            }
        }
    }

    async fn staged(&self, reference: &Reference) -> Result<Option<StoredBody>, StorageError> {
        let (staging, reference) = (self.staging.clone(), reference.clone());
        blocking(move || {
            let Some(path) = staging.staged(&reference) else { return Ok(None) };
            let file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            Ok(Some(StoredBody::whole(Meta::read_from(&file)?, Arc::new(file))))
        })
        .await
    }
}
