//! Uploads without an owner: left by a child that died, or given up while the datastore was away.
//!
//! | journal | what is done |
//! | --- | --- |
//! | receiving | taken back: nothing was promised |
//! | resumable | waits for its client; whole: recorded; expired: taken back |
//! | committing | aborted, which changes nothing once it was recorded; then recorded: pushed, else removed |
//! | committing (tus) | recorded once more, which changes nothing; aborted only where the datastore has ended it |
//! | recorded (tus) | pushed: its client and its watchers were told |
//! | finished | removed when it expires |

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::Answer;
use super::refusal::Refusal;
use super::steps::Upload;
use super::{MAX_RECORDINGS, Uploads, blocking, unix_time_ms};
use crate::staging::{Journal, Slot, Staged, Step, Taken};

/// How often the staging folder is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// What watchers of an upload are told that ended with its process.
const INTERRUPTED: &str = "interrupted";

impl Uploads {
    /// Looks after the staging folder until the child drains.
    pub(crate) async fn look_after(self: &Rc<Self>) {
        while !self.drain.is_draining() {
            if let Err(error) = self.sweep().await {
                tracing::error!("the staging folder can't be swept: {error}");
            }
            // Only the time matters: a drain ends the loop above.
            let _ = timeout(SWEEP_INTERVAL, self.drain.started()).await;
        }
    }

    /// Goes on with every upload that has no owner.
    pub(crate) async fn sweep(self: &Rc<Self>) -> io::Result<()> {
        let staging = self.staging.clone();
        let mut unrecorded = Vec::new();
        for name in blocking(move || staging.uploads()).await? {
            if self.drain.is_draining() {
                break;
            }
            // A storage that is away must keep nothing else from being recorded, or from being cleared away.
            let full = self.pushes.available_permits() == 0;
            let (staging, read) = (self.staging.clone(), name.clone());
            match blocking(move || staging.read(&read)).await {
                Ok(Some(journal)) if waits_for_its_client(&journal) => {}
                Ok(Some(journal)) if waits_to_be_recorded(&journal) => unrecorded.push(name),
                Ok(Some(journal)) if full && waits_for_its_push(&journal) => {}
                Ok(_) => self.take_up(name).await,
                Err(error) => unreadable(&error),
            }
        }
        self.record_all(unrecorded);
        Ok(())
    }

    /// Has whole tus uploads recorded, beside everything else: that may take long, and what is recorded already waits
    /// for its push meanwhile. One list at a time; what isn't on it has its turn with a later sweep.
    fn record_all(self: &Rc<Self>, unrecorded: Vec<String>) {
        if unrecorded.is_empty() {
            return;
        }
        let Ok(turn) = self.backlog.clone().try_acquire_owned() else { return };
        let this = self.clone();
        self.tasks.spawn(async move {
            // All places but one, which is for clients that ask.
            let at_once = Arc::new(Semaphore::new(MAX_RECORDINGS - 1));
            for name in unrecorded {
                let Ok(ours) = at_once.clone().acquire_owned().await else { break };
                let Ok(place) = this.recordings.clone().acquire_owned().await else { break };
                if this.drain.is_draining() {
                    break;
                }
                let uploads = this.clone();
                this.tasks.spawn(async move {
                    uploads.take_up(name).await;
                    drop((place, ours));
                });
            }
            drop(turn);
        });
    }

    /// Goes on with an upload, if nobody does.
    async fn take_up(self: &Rc<Self>, name: String) {
        let staging = self.staging.clone();
        match blocking(move || staging.take(&name)).await {
            Ok(Taken::Ours(ours)) => {
                let (slot, journal) = *ours;
                // Its owner may have come to an end with it just now.
                if !waits_for_its_client(&journal) {
                    self.recover(slot, journal).await;
                }
            }
            Ok(Taken::Busy | Taken::Gone) => {}
            Err(error) => unreadable(&error),
        }
    }

    async fn recover(self: &Rc<Self>, slot: Slot, journal: Journal) {
        let feed = self.live.feed(&journal.watch, &journal.path);
        let mut upload = Upload { slot: Arc::new(slot), journal, feed };
        match upload.journal.step.clone() {
            Step::Receiving => self.withdraw(&mut upload, INTERRUPTED).await,
            Step::Resumable(_) if upload.journal.is_whole() => self.go_on(upload).await,
            Step::Resumable(_) => self.withdraw(&mut upload, "expired").await,
            Step::Committing(staged) if staged.tus.is_some() => self.go_on(upload).await,
            Step::Recorded(staged) => self.store(upload, staged, false),
            Step::Committing(staged) => {
                if let Err(refusal) = self.decide(upload, staged).await {
                    tracing::warn!("an interrupted upload has to wait: {refusal}");
                }
            }
            Step::Finished(finished) => {
                // Its link may be left, where its process ended right after it said so.
                let removed = blocking(move || upload.slot.remove(Some(&finished.reference)));
                if let Err(error) = removed.await {
                    tracing::error!("an expired upload can't be removed: {error}");
                }
            }
        }
    }

    /// All of a tus upload was promised to its client once it had come.
    async fn go_on(self: &Rc<Self>, upload: Upload) {
        if let Err(refusal) = self.complete_tus(upload).await {
            tracing::warn!("a whole tus upload has to wait: {refusal}");
        }
    }

    /// Learns from the datastore whether an upload was recorded, once it can't be any more.
    pub(super) async fn decide(self: &Rc<Self>, mut upload: Upload, staged: Staged) -> Result<(), Refusal> {
        self.records.abort(&upload.journal.upload).await?;
        let site = self.records.find_site(&upload.journal.host, &upload.journal.path).await?;
        let shown = site.and_then(|site| site.file).filter(|file| file.reference == *staged.reference);
        if let Some(file) = shown {
            let answer = Answer::new(&upload.journal, &staged.reference, &file, false);
            upload.feed.finished(serde_json::to_value(&answer).unwrap_or_default());
            self.store(upload, staged, false);
        } else if self.records.find_file(&staged.reference).await?.is_some() {
            // Another upload has this path by now, or the content came by another upload: it must reach the storage.
            upload.feed.failed(INTERRUPTED);
            // A tus client that asks later must not be told that this one came to a good end.
            self.store(upload, Staged { tus: None, ..staged }, false);
        } else {
            self.withdraw(&mut upload, INTERRUPTED).await;
        }
        Ok(())
    }
}

fn waits_for_its_push(journal: &Journal) -> bool {
    matches!(&journal.step, Step::Recorded(_))
        || matches!(&journal.step, Step::Committing(staged) if staged.tus.is_none())
}

fn waits_to_be_recorded(journal: &Journal) -> bool {
    journal.step.lease().is_some() && journal.is_whole() && !journal.is_recorded()
}

fn unreadable(error: &io::Error) {
    tracing::error!("an upload in the staging folder can't be read: {error}");
}

fn waits_for_its_client(journal: &Journal) -> bool {
    let now = unix_time_ms();
    match &journal.step {
        Step::Resumable(checkpoint) => checkpoint.lease.expires_at_ms > now && !journal.is_whole(),
        Step::Finished(finished) => finished.lease.expires_at_ms > now,
        Step::Receiving | Step::Committing(_) | Step::Recorded(_) => false,
    }
}
