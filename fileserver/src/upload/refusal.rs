//! Why an upload is not taken, and what its client is told.

use std::io;
use std::time::Duration;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderName, StatusCode};
use protoplex_http::{BodyError, Problem};
use protoplex_wire::proto::TokenRefusal;

/// When a client may ask again after something of ours was away.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why an upload was not stored. Nothing of it is left, but for [`Refusal::Undecided`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The request makes no sense. The client's fault.
    #[error("{0}")]
    BadRequest(String),
    /// Something that the request asks for is not to be had here. The client's fault.
    #[error("{0}")]
    Unsupported(String),
    #[error("an upload needs a token: send it as `Authorization: Bearer TOKEN`")]
    TokenMissing,
    /// The token doesn't open this upload; the limit that was met, where it was one. The client's fault.
    #[error("{}", token_refusal(*.refusal).2)]
    Token { refusal: TokenRefusal, limit_bytes: u64 },
    #[error("the body is longer than the {limit_bytes} bytes that the token and its quota allow")]
    TooLong { limit_bytes: u64 },
    #[error("the body ended after {received} of {declared} bytes")]
    Short { declared: u64, received: u64 },
    /// The body broke off or was malformed. The client's fault, or the network's.
    #[error("{0}")]
    Body(#[from] BodyError),
    #[error("{0}")]
    Form(#[from] multer::Error),
    /// Something of a form besides its files is over its limit. The client's fault.
    #[error("{0}")]
    FormTooLarge(String),
    /// The client doesn't come to the point. Its fault, or the network's.
    #[error("the form did not come to its next file within {0:?}")]
    FormTooSlow(Duration),
    /// Of the staging folder or of the datastore. Ours.
    #[error("there is no space left to take the upload")]
    DiskFull,
    #[error("the staging folder failed: {0}")]
    Disk(io::Error),
    #[error("too many uploads are in flight")]
    Busy,
    #[error("the datastore can't be reached")]
    DatastoreAway,
    /// The datastore didn't answer whether it has recorded the upload. It is decided when it is back.
    #[error("the datastore can't be reached: the upload may have been stored, or not")]
    Undecided,
    /// The datastore refuses to record the upload: it was ended there in the meantime.
    #[error("the upload can't be recorded: {0}")]
    Ended(String),
    #[error("the upload's task ended early")]
    Broken,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull
            }
            _ => Self::Disk(error),
        }
    }
}

impl Refusal {
    /// What the client is told. The one place where refusals become status codes.
    pub(crate) fn problem(&self) -> Problem {
        let (status, kind) = self.status();
        let problem = Problem::new(status, kind, self.to_string());
        let problem = match self {
            Self::Token { limit_bytes, .. } | Self::TooLong { limit_bytes } if *limit_bytes > 0 => {
                problem.with("limit_bytes", *limit_bytes)
            }
            Self::Busy | Self::DatastoreAway | Self::Undecided => problem.retry_after(RETRY_AFTER),
            _ => problem,
        };
        match status {
            StatusCode::UNAUTHORIZED if matches!(self, Self::TokenMissing) => {
                problem.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            StatusCode::UNAUTHORIZED => {
                problem.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""))
            }
            _ => problem,
        }
    }

    /// One word for the metric and for `upload.failed`.
    pub(crate) fn kind(&self) -> &'static str {
        self.status().1
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-upload"),
            Self::Unsupported(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-upload"),
            Self::TokenMissing => (StatusCode::UNAUTHORIZED, "token-missing"),
            Self::Token { refusal, .. } => {
                let (status, kind, _) = token_refusal(*refusal);
                (status, kind)
            }
            Self::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "upload-too-large"),
            Self::Short { .. } => (StatusCode::BAD_REQUEST, "body-too-short"),
            Self::Body(BodyError::TooSlow(_)) => (StatusCode::REQUEST_TIMEOUT, "body-too-slow"),
            Self::Body(BodyError::ClientGone) => (StatusCode::BAD_REQUEST, "client-gone"),
            Self::Body(_) => (StatusCode::BAD_REQUEST, "bad-body"),
            Self::FormTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "form-too-large"),
            Self::FormTooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "form-too-slow"),
            Self::Form(_) => (StatusCode::BAD_REQUEST, "bad-form"),
            Self::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk-full"),
            Self::Disk(_) | Self::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "upload-failed"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too-many-uploads"),
            Self::DatastoreAway => (StatusCode::SERVICE_UNAVAILABLE, "datastore-away"),
            Self::Undecided => (StatusCode::SERVICE_UNAVAILABLE, "upload-undecided"),
            Self::Ended(_) => (StatusCode::CONFLICT, "upload-ended"),
        }
    }
}

/// Status, problem type and text of a token that doesn't open an upload (RFC 6750 section 3.1).
fn token_refusal(refusal: TokenRefusal) -> (StatusCode, &'static str, &'static str) {
    match refusal {
        TokenRefusal::Expired => (StatusCode::UNAUTHORIZED, "token-expired", "the token has expired"),
        TokenRefusal::WrongHost => {
            (StatusCode::FORBIDDEN, "token-wrong-host", "the token is not for this host")
        }
        TokenRefusal::WrongPath => {
            (StatusCode::FORBIDDEN, "token-wrong-path", "the token is not for this path")
        }
        TokenRefusal::UsedUp => (StatusCode::FORBIDDEN, "token-used-up", "the token has no use left"),
        TokenRefusal::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, "upload-too-large", "the file is larger than the token allows")
        }
        TokenRefusal::OverQuota => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "over-quota",
            "the file is larger than what is left of the token's quota",
        ),
        TokenRefusal::WatchTaken => (
            StatusCode::CONFLICT,
            "upload-id-taken",
            "an upload with another token goes by this Upload-Id: choose another, best a random one",
        ),
        TokenRefusal::Forged | TokenRefusal::None => {
            (StatusCode::UNAUTHORIZED, "token-forged", "the token is malformed or unknown")
        }
    }
}

/// A header of the project's own and of tus, by name.
pub(crate) const fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}
