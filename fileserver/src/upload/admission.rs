//! Who may upload: asked before a byte of a body is read, a file is made or a place is taken.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::OwnedSemaphorePermit;

use super::Uploads;
use super::intent::Sender;
use super::refusal::Refusal;
use super::steps::count;
use crate::path::FilePath;

/// A request that may upload, and its place among those that do so at once. Dropping it frees the place.
pub(super) struct Admission {
    /// When the token ends; none: never.
    pub(super) token_ends: Option<SystemTime>,
    _place: OwnedSemaphorePermit,
}

impl Uploads {
    /// Admits a request whose token opens this path, or for a folder, something below it. Nothing is reserved by it.
    pub(super) async fn admit(
        &self,
        sender: &Sender,
        path: &FilePath,
        declared: Option<u64>,
    ) -> Result<Admission, Refusal> {
        let opened = self.records.check(sender, path, declared).await.inspect_err(refused)?;
        let token_ends = u64::try_from(opened.expires_at_ms).ok().filter(|ends| *ends > 0);
        let token_ends = token_ends.map(|ends| UNIX_EPOCH + Duration::from_millis(ends));
        Ok(Admission { token_ends, _place: self.place().inspect_err(refused)? })
    }

    /// A place among the uploads that run at once, for a client that has shown that it may upload.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.in_flight.clone().try_acquire_owned().map_err(|_| Refusal::Busy)
    }
}

fn refused(refusal: &Refusal) {
    count(refusal.kind());
}
