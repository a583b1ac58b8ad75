//! One upload, as a database keeps it, and what is answered to those that it concerns. Pure.

use protoplex_wire::proto::{
    BeginUploadReply, BeginUploadRequest, CompleteUploadRequest, StoredFile, TokenRefusal,
};
use thiserror::Error;

use crate::store::{StoreError, StoreResult};
use crate::token::{Refused, Terms};

/// The longest id of an upload, in bytes.
const MAX_UPLOAD_ID_BYTES: usize = 128;
/// Old uploads that are removed along with each new one. More than one, so that their number shrinks.
pub(crate) const SWEPT_AT_ONCE: i64 = 16;

/// Refuses an id that no fileserver gives.
pub(crate) fn check_id(upload: &str) -> StoreResult<()> {
    if (1..=MAX_UPLOAD_ID_BYTES).contains(&upload.len()) {
        Ok(())
    } else {
        Err(StoreError::Invalid(format!("an upload's id has 1 to {MAX_UPLOAD_ID_BYTES} bytes")))
    }
}

/// To who has no token.
pub(crate) fn forged() -> BeginUploadReply {
    BeginUploadReply { refusal: TokenRefusal::Forged.into(), ..Default::default() }
}

/// To whom the token opens the upload.
pub(crate) fn granted(token_id: String, terms: &Terms, max_bytes: u64) -> BeginUploadReply {
    BeginUploadReply { max_bytes, token_id, expires_at_ms: terms.expires_at_ms, ..Default::default() }
}

/// To whom it doesn't.
pub(crate) fn refusal(token_id: String, refused: Refused) -> BeginUploadReply {
    BeginUploadReply {
        refusal: refused.refusal.into(),
        limit_bytes: refused.limit_bytes,
        token_id,
        ..Default::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Completed,
    Aborted,
}

/// A state that is none: somebody else has written to the database.
#[derive(Debug, Error)]
#[error("an upload can't be {0:?}")]
pub(crate) struct UnknownState(String);

impl TryFrom<String> for State {
    type Error = UnknownState;

    fn try_from(text: String) -> Result<Self, UnknownState> {
        match text.as_str() {
            "open" => Ok(Self::Open),
            "completed" => Ok(Self::Completed),
            "aborted" => Ok(Self::Aborted),
            _ => Err(UnknownState(text)),
        }
    }
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Upload {
    pub(crate) id: String,
    #[sqlx(try_from = "String")]
    pub(crate) state: State,
    /// None where it was aborted before it began.
    pub(crate) token: Option<String>,
    pub(crate) host: String,
    pub(crate) path: String,
    #[sqlx(try_from = "i64")]
    pub(crate) reserved_bytes: u64,
    /// Of the file that completed it.
    pub(crate) reference: Option<String>,
    pub(crate) existed: bool,
    /// Its public id; empty where it has none.
    pub(crate) watch: String,
}

/// What a completion comes to.
pub(crate) enum Completable {
    Now,
    /// It is a repeated call.
    Before {
        existed: bool,
    },
}

impl Upload {
    /// Whether a repeated begin may have the same answer again.
    pub(crate) fn check_granted_before(&self, request: &BeginUploadRequest, token: &str) -> StoreResult<()> {
        match self.state {
            State::Aborted => Err(StoreError::Conflict(format!("upload {:?} was aborted", self.id))),
            State::Open
                if self.token.as_deref() == Some(token)
                    && self.host == request.host
                    && self.path == request.path =>
            {
                Ok(())
            }
            State::Open | State::Completed => {
                Err(StoreError::AlreadyExists(format!("there is an upload {:?} already", self.id)))
            }
        }
    }

    /// Whether the file may complete this upload.
    pub(crate) fn completable(
        &self,
        request: &CompleteUploadRequest,
        file: &StoredFile,
    ) -> StoreResult<Completable> {
        let id = &self.id;
        let conflict = |why: String| Err(StoreError::Conflict(why));
        if self.state == State::Aborted {
            conflict(format!("upload {id:?} was aborted"))
        } else if (&self.host, &self.path) != (&request.host, &request.path) {
            conflict(format!("upload {id:?} has begun for {}{}", self.host, self.path))
        } else if let Some(reference) = &self.reference {
            if *reference == file.reference {
                Ok(Completable::Before { existed: self.existed })
            } else {
                conflict(format!("upload {id:?} was completed with other content"))
            }
        } else if file.size > self.reserved_bytes {
            conflict(format!("upload {id:?} has {} bytes and reserved {}", file.size, self.reserved_bytes))
        } else {
            Ok(Completable::Now)
        }
    }
}
