//! Where bodies are kept for good: a local directory on one machine, S3 for many.

pub(crate) mod directory;
pub(crate) mod s3;

use std::io;
use std::path::Path;
use std::sync::Arc;

use http::StatusCode;

use crate::cache::Cache;
use crate::object::{Meta, ObjectError};
use crate::reference::Reference;
use directory::Directory;

/// The storage of a cluster. Content-addressed: a body never changes under its reference.
#[derive(Clone)]
pub(crate) enum Bodies {
    /// Files below one directory.
    Directory(Directory),
    /// Objects of a bucket (AWS, Garage, MinIO), behind the disk cache.
    S3(Cache),
}

/// Why the storage did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StorageError {
    /// The storage answered that it has no such body. Nothing else is ever taken for this.
    #[error("the storage has no such body")]
    NotFound,
    /// The storage's fault: too slow by one of its named timeouts.
    #[error("the storage did not answer in time: {0}")]
    Timeout(String),
    /// The storage's fault: away, overloaded or failing; another try may succeed.
    #[error("the storage is not available: {0}")]
    Unavailable(String),
    /// Our configuration's fault: credentials, bucket or permissions.
    #[error("the storage refused: {0}")]
    Refused(String),
    /// The storage has something else than what was put there.
    #[error("the stored body is damaged: {0}")]
    Damaged(String),
    /// This machine's disk failed.
    #[error("local disk: {0}")]
    Disk(Arc<io::Error>),
}

impl StorageError {
    /// The status of a download that failed with this.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(_) | Self::Damaged(_) => StatusCode::BAD_GATEWAY,
            Self::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same try may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::Unavailable(_))
    }
}

impl From<io::Error> for StorageError {
    fn from(error: io::Error) -> Self {
        Self::Disk(Arc::new(error))
    }
}

impl From<ObjectError> for StorageError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Io(error) => error.into(),
            damaged => Self::Damaged(damaged.to_string()),
        }
    }
}

impl Bodies {
    /// Keeps the body of a whole file in the one-file form, whose header says `meta`. When this returns, the body is
    /// safe. Repeating it changes nothing; the file stays where it is.
    pub(crate) async fn put(
        &self,
        reference: &Reference,
        meta: &Meta,
        path: &Path,
    ) -> Result<(), StorageError> {
        match self {
            Self::Directory(directory) => directory.put(reference, path).await,
            Self::S3(cache) => {
                cache.s3().put(reference, meta, path).await?;
                cache.adopt(reference, path).await;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod contract_tests;
#[cfg(test)]
pub(crate) mod fault_s3;
