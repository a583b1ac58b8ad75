//! What happens to a recorded upload after its answer: caches told, body pushed to the storage, staging copy dropped.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use super::refusal::Refusal;
use super::steps::{Upload, meta_of};
use super::{Uploads, blocking};
use crate::staging::{Finished, Staged, Step};
use crate::storage::StorageError;

/// The bound of the first pause between two attempts; it doubles up to 2^[`LONGEST_PAUSE`] times it (32 s).
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: u32 = 7;
/// How long one attempt waits for caches to drop stale entries.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts until an invalidation is given up, after some five minutes: by then a live node that still doesn't answer
/// has lost its registrations, and with them the entries are gone.
const INVALIDATE_ATTEMPTS: u32 = 16;

/// Why a body is not in the storage yet.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Datastore(#[from] Refusal),
    #[error("it is recorded in another form, which its own node has to push")]
    OtherForm,
    #[error("the datastore has no record of it")]
    Unrecorded,
    #[error("caches may hold stale entries: live did not answer")]
    Stale,
    #[error("the staging folder failed: {0}")]
    Disk(#[from] std::io::Error),
}

impl Uploads {
    /// Starts the rest of an upload's way. Where too many wait already, it is left to a later sweep.
    pub(super) fn store(self: &Rc<Self>, upload: Upload, staged: Staged, invalidated: bool) {
        let Ok(permit) = self.pushes.clone().try_acquire_owned() else { return };
        let uploads = self.clone();
        self.tasks.spawn(async move {
            uploads.store_patiently(upload, staged, invalidated).await;
            drop(permit);
        });
    }

    /// Tries until it is done or the child drains; then the next owner goes on.
    async fn store_patiently(&self, mut upload: Upload, staged: Staged, mut invalidated: bool) {
        for attempt in 0_u32.. {
            invalidated |= attempt >= INVALIDATE_ATTEMPTS;
            let reason = match self.try_store(&mut upload, &staged, &mut invalidated).await {
                Ok(()) => return,
                Err(reason) => reason,
            };
            metrics::counter!("protoplex_fileserver_push_failures_total").increment(1);
            tracing::warn!(reference = %staged.reference, attempt, "upload is kept staged: {reason}");
            let pause = FIRST_PAUSE * (1 << attempt.min(LONGEST_PAUSE));
            if timeout(pause.mul_f64(rand::random_range(0.5..1.0)), self.drain.started()).await.is_ok() {
                return;
            }
        }
    }

    async fn try_store(
        &self,
        upload: &mut Upload,
        staged: &Staged,
        invalidated: &mut bool,
    ) -> Result<(), PushError> {
        self.push(upload, staged).await?;
        if !*invalidated {
            *invalidated = self.invalidate(&upload.journal, staged, INVALIDATE_TIMEOUT).await;
        }
        if !*invalidated {
            return Err(PushError::Stale);
        }
        upload.feed.stored(&staged.reference);
        self.clear(upload, staged).await
    }

    /// Brings the body to the storage, unless it is there.
    async fn push(&self, upload: &Upload, staged: &Staged) -> Result<(), PushError> {
        let Some(kept) = staged.kept else { return Ok(()) };
        let recorded = self.records.find_file(&staged.reference).await?.ok_or(PushError::Unrecorded)?;
        if recorded.stored {
            return Ok(());
        }
        let form = meta_of(&recorded);
        if form.is_none_or(|form| form.stored_sha256 != staged.meta.stored_sha256) {
            return Err(PushError::OtherForm);
        }
        self.bodies.put(&staged.reference, &staged.meta, &upload.slot.form_path(kept)).await?;
        Ok(self.records.mark_stored(&staged.reference).await?)
    }

    /// Drops the staging copy. Of a tus upload, word of its end is kept until it expires.
    async fn clear(&self, upload: &mut Upload, staged: &Staged) -> Result<(), PushError> {
        let (slot, reference) = (upload.slot.clone(), staged.reference.clone());
        let Some(lease) = staged.tus.clone() else {
            return Ok(blocking(move || slot.remove(Some(&reference))).await?);
        };
        upload.journal.step =
            Step::Finished(Finished { reference: reference.clone(), size: staged.meta.size, lease });
        let (journal, kept) = (upload.journal.clone(), staged.kept);
        Ok(blocking(move || {
            slot.write_journal(&journal)?;
            slot.unlink(&reference)?;
            kept.map_or(Ok(()), |kept| slot.drop_form(kept))
        })
        .await?)
    }
}
