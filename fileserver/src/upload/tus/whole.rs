//! The last step of a tus upload: all of its body is here, and it is to be recorded.
//!
//! A client takes the full offset for the end (tus-js-client and tuspy both do), so it is told only once the upload is
//! recorded. Until then a whole upload is locked (423), which both ask about again; any other refusal of a HEAD would
//! make tus-js-client send everything anew. Whoever asks has the recording tried again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use protoplex_http::Response;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{TusRefusal, progressed, restore, show};
use crate::digest::Intake;
use crate::reference::Reference;
use crate::staging::{Journal, Step, TusLease};
use crate::upload::Uploads;
use crate::upload::answer::Answer;
use crate::upload::refusal::Refusal;
use crate::upload::steps::Upload;

/// How long a HEAD waits for a whole upload to be recorded before it calls it locked.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

impl Uploads {
    /// The answer about an upload that has come whole. Where it isn't recorded, that is tried now; with `patience`,
    /// whoever asks doesn't wait longer for it.
    pub(super) async fn whole(
        self: &Rc<Self>,
        journal: &Journal,
        patience: Option<Duration>,
    ) -> Result<Response, TusRefusal> {
        let lease = journal.step.lease().ok_or(TusRefusal::Unknown)?;
        let mut response = progressed(StatusCode::NO_CONTENT, journal.declared, lease);
        let reference = match &journal.step {
            Step::Recorded(staged) => staged.reference.clone(),
            Step::Finished(finished) => finished.reference.clone(),
            Step::Receiving | Step::Resumable(_) | Step::Committing(_) => {
                self.record_now(&journal.upload, patience).await?
            }
        };
        show(&mut response, &reference, &journal.url());
        Ok(response)
    }

    async fn record_now(
        self: &Rc<Self>,
        name: &str,
        patience: Option<Duration>,
    ) -> Result<Reference, TusRefusal> {
        // There are many: this one's turn comes with the next question, or with a sweep.
        let place = self.recordings.clone().try_acquire_owned().map_err(|_| TusRefusal::Locked)?;
        let (slot, journal) = self.take(name).await?;
        if matches!(journal.step, Step::Receiving | Step::Finished(_)) {
            return Err(TusRefusal::Locked);
        }
        let feed = self.live.feed(&journal.watch, &journal.path);
        let upload = Upload { slot: Arc::new(slot), journal, feed };
        let (told, answer) = oneshot::channel();
        let uploads = self.clone();
        self.tasks.spawn(async move {
            // Without a receiver its client asks again.
            let _ = told.send(uploads.complete_tus(upload).await);
            drop(place);
        });
        let answer = match patience {
            Some(patience) => timeout(patience, answer).await.map_err(|_| TusRefusal::Locked)?,
            None => answer.await,
        };
        match answer.unwrap_or(Err(Refusal::Broken)) {
            Ok(reference) => Ok(reference),
            Err(Refusal::Ended(_)) => Err(TusRefusal::Gone),
            Err(_) if patience.is_some() => Err(TusRefusal::Locked),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Goes on with an upload that came whole and was not recorded, or may not have been: its process is no more, or the
    /// datastore didn't answer.
    pub(in crate::upload) async fn complete_tus(
        self: &Rc<Self>,
        mut upload: Upload,
    ) -> Result<Reference, Refusal> {
        let staged = match upload.journal.step.clone() {
            Step::Resumable(checkpoint) => {
                let intake = upload.intake(checkpoint.offset, restore(&checkpoint)?).await?;
                return self.record(upload, intake, checkpoint.lease).await.map(|answer| answer.reference);
            }
            Step::Committing(staged) => staged,
            Step::Recorded(staged) => {
                let reference = staged.reference.clone();
                self.store(upload, staged, false);
                return Ok(reference);
            }
            Step::Receiving | Step::Finished(_) => return Err(Refusal::Broken),
        };
        // Its process may have ended before all of this was done.
        upload.stage(&staged).await?;
        match self.commit(&mut upload, staged.clone()).await {
            Ok(recorded) => Ok(self.finish(upload, recorded).await.reference),
            Err(refusal @ Refusal::Ended(_)) => {
                // Ended there, or recorded so long ago that the datastore has forgotten that it was this upload.
                self.decide(upload, staged).await?;
                Err(refusal)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Records a whole body. Only a datastore that has ended the upload undoes it: else all of it was promised.
    pub(super) async fn record(
        self: &Rc<Self>,
        mut upload: Upload,
        intake: Intake,
        lease: TusLease,
    ) -> Result<Answer, Refusal> {
        let content = upload.whole(intake).await?;
        match self.keep(&mut upload, content, Some(lease)).await {
            Ok(recorded) => Ok(self.finish(upload, recorded).await),
            Err(refusal) => {
                if matches!(refusal, Refusal::Ended(_)) {
                    self.undo(&mut upload, &refusal).await;
                }
                Err(refusal)
            }
        }
    }
}
