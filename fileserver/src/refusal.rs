//! Why a request for a file gets none, and the answer that says so.

use std::time::Duration;

use http::header::{ALLOW, HeaderValue};
use http::{Method, StatusCode};
use protoplex_http::Problem;

use crate::host::VirtualHost;
use crate::path::{FilePath, PathError};
use crate::storage::StorageError;
use crate::vhost_files::SiteError;

/// What may be asked here.
pub(crate) const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS, POST, PUT");
/// When a passing failure is worth another try.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why there is no file in the answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The client's.
    #[error("{0} is not answered here")]
    Method(Method),
    /// The client's.
    #[error("the request names no host, or none that could be one")]
    Host,
    /// The client's.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The client's, or whoever gave it the link.
    #[error("{host} has no file at {path}")]
    NotFound { host: VirtualHost, path: FilePath },
    /// Ours: the datastore.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// Ours: the storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Ours: too much is uncompressed at the moment.
    #[error("too many bodies are uncompressed at the moment for clients that take no gzip, or want a part")]
    Busy,
    /// Ours: a file that is recorded is not in the storage.
    #[error("the file is recorded, but the storage does not have it")]
    Missing,
    /// Ours: the file is on the node that took the upload, and on its way to the storage.
    #[error("the file was uploaded a moment ago and is on its way to the storage")]
    Underway,
}

impl Refusal {
    /// The answer. None of them is to be cached.
    pub(crate) fn problem(&self) -> Problem {
        let (status, kind) = match self {
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed"),
            Self::Host => (StatusCode::BAD_REQUEST, "bad-host"),
            Self::Path(_) => (StatusCode::BAD_REQUEST, "bad-path"),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, "no-such-file"),
            Self::Site(SiteError::Away(_)) => (StatusCode::SERVICE_UNAVAILABLE, "datastore-unavailable"),
            Self::Site(SiteError::Damaged) => (StatusCode::BAD_GATEWAY, "datastore-damaged"),
            Self::Storage(error) => (error.status(), "storage-unavailable"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Missing => (StatusCode::BAD_GATEWAY, "body-missing"),
            Self::Underway => (StatusCode::SERVICE_UNAVAILABLE, "body-underway"),
        };
        let problem = Problem::new(status, kind, self.detail());
        match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => problem.retry_after(RETRY_AFTER),
            StatusCode::METHOD_NOT_ALLOWED => problem.header(ALLOW, ALLOWED),
            _ => problem,
        }
    }

    /// What a client is told. The inner workings of the storage are for the log.
    fn detail(&self) -> String {
        match self {
            Self::Storage(StorageError::NotFound) => "There is no such file.".into(),
            Self::Storage(_) => "The storage can't give the file at the moment.".into(),
            Self::Site(_) => "It can't be looked up at the moment which file this is.".into(),
            told => told.to_string(),
        }
    }

    /// Whether it is to be told to the operator.
    pub(crate) fn is_ours(&self) -> bool {
        self.problem().status().is_server_error()
    }
}
