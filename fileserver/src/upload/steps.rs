//! The steps of an upload up to its answer. Between any two of them the process may end: see `recover.rs`.

use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protoplex_wire::proto::StoredFile;

use super::answer::Answer;
use super::intent::{Intent, new_id};
use super::refusal::Refusal;
use super::{Uploads, blocking};
use crate::compress::{self, Pass, TRIAL_BYTES};
use crate::digest::{Digests, Hashers, Intake, hex};
use crate::object::{BODY_OFFSET, Encoding, Meta};
use crate::progress::Feed;
use crate::reference::Reference;
use crate::staging::{Journal, Slot, Staged, Step, TusLease};

/// How long the answer waits for caches to drop what they hold under the upload's names.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(1);

/// An upload that was admitted. Dropping it leaves it to whoever sweeps the staging folder next.
pub(super) struct Upload {
    pub(super) slot: Arc<Slot>,
    pub(super) journal: Journal,
    pub(super) feed: Feed,
}

/// A body that has been received whole.
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) digests: Digests,
}

/// An upload that the datastore has recorded.
pub(super) struct Recorded {
    pub(super) staged: Staged,
    pub(super) answer: Answer,
    /// No cache holds anything stale under its names.
    pub(super) invalidated: bool,
}

impl Uploads {
    /// The whole way of one file whose body comes in one go.
    pub(super) async fn upload(
        self: &Rc<Self>,
        intent: Intent,
        next: impl AsyncFnMut() -> Option<Result<Bytes, Refusal>>,
    ) -> Result<Answer, Refusal> {
        let mut upload = self.begin(intent).await?;
        match self.take_in(&mut upload, next).await {
            Ok(recorded) => Ok(self.finish(upload, recorded).await),
            Err(refusal) => {
                self.undo(&mut upload, &refusal).await;
                Err(refusal)
            }
        }
    }

    async fn take_in(
        &self,
        upload: &mut Upload,
        next: impl AsyncFnMut() -> Option<Result<Bytes, Refusal>>,
    ) -> Result<Recorded, Refusal> {
        let mut intake = upload.intake(0, Hashers::default()).await?;
        upload.receive(&mut intake, next).await?;
        let content = upload.whole(intake).await?;
        self.keep(upload, content, None).await
    }

    /// From a whole body to a recorded file.
    pub(super) async fn keep(
        &self,
        upload: &mut Upload,
        content: Content,
        tus: Option<TusLease>,
    ) -> Result<Recorded, Refusal> {
        let staged = self.shape(upload, content, tus).await?;
        upload.stage(&staged).await?;
        self.commit(upload, staged).await
    }

    /// From a staged body to a recorded file. Repeated, it changes nothing and answers the same.
    pub(super) async fn commit(&self, upload: &mut Upload, staged: Staged) -> Result<Recorded, Refusal> {
        let (file, existed) = self.records.complete(&upload.journal, &staged).await?;
        let invalidated = self.invalidate(&upload.journal, &staged, INVALIDATE_TIMEOUT).await;
        let answer = Answer::new(&upload.journal, &staged.reference, &file, existed);
        Ok(Recorded { staged, answer, invalidated })
    }

    /// Asks the datastore to admit an upload. Its journal comes first, so that what is reserved is given back whatever
    /// happens; not a byte of the body is read.
    pub(super) async fn begin(&self, intent: Intent) -> Result<Upload, Refusal> {
        let mut journal = Self::journal(&intent);
        let slot = self.make_slot(&journal).await?;
        match self.records.begin(&journal, &intent.sender.token).await {
            Ok(admitted) => {
                journal.max_bytes = admitted.max_bytes;
                let feed = self.live.feed(&journal.watch, &journal.path);
                feed.started(journal.declared);
                Ok(Upload { slot, journal, feed })
            }
            Err(refusal) => {
                count(refusal.kind());
                // Without an answer the datastore may have reserved all the same; if this can't take it back, the next
                // sweep does.
                let refused = matches!(refusal, Refusal::Token { .. });
                if refused || self.records.abort(&journal.upload).await.is_ok() {
                    blocking(move || slot.remove(None)).await?;
                }
                Err(refusal)
            }
        }
    }

    pub(super) fn journal(intent: &Intent) -> Journal {
        Journal {
            upload: new_id(),
            watch: intent.sender.watch.clone(),
            host: intent.sender.host.to_string(),
            path: intent.path.to_string(),
            url_path: intent.path.to_url(),
            origin: intent.sender.origin.clone(),
            content_type: intent.content_type.clone(),
            declared: intent.declared,
            max_bytes: 0,
            step: Step::Receiving,
        }
    }

    pub(super) async fn make_slot(&self, journal: &Journal) -> io::Result<Arc<Slot>> {
        let (staging, journal) = (self.staging.clone(), journal.clone());
        blocking(move || staging.create(&journal)).await.map(Arc::new)
    }

    /// Decides in which form the content is kept, and makes it: none where it is safe elsewhere, the recorded one where
    /// there is one, else gzip where that pays.
    pub(super) async fn shape(
        &self,
        upload: &Upload,
        content: Content,
        tus: Option<TusLease>,
    ) -> Result<Staged, Refusal> {
        let reference = content.digests.reference();
        let known = self.records.find_file(&reference).await?;
        if let Some(meta) = known.as_ref().and_then(meta_of) {
            let stored = known.is_some_and(|file| file.stored);
            if stored || self.is_staged(&reference, &meta).await {
                return Ok(Staged { reference, meta, kept: None, tus });
            }
            if meta.encoding == Encoding::Identity {
                return Ok(Staged { reference, meta, kept: Some(Encoding::Identity), tus });
            }
        }
        let raw = Meta {
            size: content.size,
            stored_size: content.size,
            encoding: Encoding::Identity,
            content_type: upload.journal.content_type.clone(),
            stored_sha256: hex(&content.digests.sha256),
        };
        let meta = upload.compress(&raw).await?.unwrap_or(raw);
        Ok(Staged { reference, kept: Some(meta.encoding), meta, tus })
    }

    async fn is_staged(&self, reference: &Reference, meta: &Meta) -> bool {
        let (staging, reference, meta) = (self.staging.clone(), reference.clone(), meta.clone());
        blocking(move || Ok(staging.has(&reference, &meta))).await.unwrap_or(false)
    }

    /// Has every cache drop what it holds under the names of this upload.
    pub(super) async fn invalidate(&self, journal: &Journal, staged: &Staged, patience: Duration) -> bool {
        let file = format!("file:{}", staged.reference);
        let site = format!("site:{}:{}", journal.host, journal.path);
        self.live.invalidate(vec![file, site], patience).await
    }

    /// The client's answer; the way to the storage goes on without it.
    pub(super) async fn finish(self: &Rc<Self>, mut upload: Upload, recorded: Recorded) -> Answer {
        count("stored");
        // Strings and numbers alone: this can't fail.
        upload.feed.finished(serde_json::to_value(&recorded.answer).unwrap_or_default());
        // Last: from then on nobody counts or tells it again.
        upload.note_recorded(&recorded.staged).await;
        self.store(upload, recorded.staged, recorded.invalidated);
        recorded.answer
    }

    /// Undoes an upload that its client was not promised.
    pub(super) async fn undo(&self, upload: &mut Upload, refusal: &Refusal) {
        count(refusal.kind());
        if matches!(refusal, Refusal::Undecided) {
            tracing::warn!(upload = upload.journal.watch, "{refusal}");
            return;
        }
        tracing::info!(upload = upload.journal.watch, path = upload.journal.path, "upload failed: {refusal}");
        self.withdraw(upload, refusal.kind()).await;
    }

    /// Removes an upload and gives back what it had reserved. Where the datastore is away, the journal stays and the
    /// next sweep goes on here.
    pub(super) async fn withdraw(&self, upload: &mut Upload, reason: &str) {
        let cleared = upload.clear().await;
        let aborted = self.records.abort(&upload.journal.upload).await;
        let slot = upload.slot.clone();
        match (cleared, aborted) {
            (Ok(()), Ok(())) => {
                if let Err(error) = blocking(move || slot.remove(None)).await {
                    tracing::error!(
                        upload = upload.journal.watch,
                        "could not remove a failed upload: {error}"
                    );
                }
            }
            (Err(error), _) => {
                tracing::error!(upload = upload.journal.watch, "could not clear an upload: {error}")
            }
            (Ok(()), Err(_)) => {}
        }
        upload.feed.failed(reason);
    }
}

impl Upload {
    /// Takes the body from here on.
    pub(super) async fn intake(&self, offset: u64, hashers: Hashers) -> io::Result<Intake> {
        let slot = self.slot.clone();
        let file = blocking(move || {
            let file = match offset {
                0 => slot.make_form(Encoding::Identity)?,
                _ => slot.form(Encoding::Identity, offset)?,
            };
            // What lies behind a checkpoint was not promised and is sent again.
            file.set_len(BODY_OFFSET + offset)?;
            Ok(file)
        });
        Ok(Intake::new(Arc::new(file.await?), BODY_OFFSET, offset, hashers))
    }

    /// Receives a body to its end.
    pub(super) async fn receive(
        &mut self,
        intake: &mut Intake,
        mut next: impl AsyncFnMut() -> Option<Result<Bytes, Refusal>>,
    ) -> Result<(), Refusal> {
        let limit_bytes = self.journal.max_bytes;
        while let Some(piece) = next().await {
            let piece = piece?;
            if intake.received() + piece.len() as u64 > limit_bytes {
                return Err(Refusal::TooLong { limit_bytes });
            }
            intake.write(&piece).await?;
            metrics::counter!("protoplex_fileserver_upload_bytes_total").increment(piece.len() as u64);
            self.feed.progress(intake.received(), self.journal.declared, Instant::now());
        }
        Ok(())
    }

    /// Checks the length against what was declared; the digests.
    pub(super) async fn whole(&self, intake: Intake) -> Result<Content, Refusal> {
        let size = intake.received();
        match self.journal.declared {
            Some(declared) if declared != size => Err(Refusal::Short { declared, received: size }),
            _ => Ok(Content { size, digests: intake.finish().await? }),
        }
    }

    /// Writes the compressed form of a body; `None` where that doesn't pay.
    async fn compress(&self, raw: &Meta) -> io::Result<Option<Meta>> {
        let slot = self.slot.clone();
        let (size, content_type) = (raw.size, raw.content_type.clone());
        let promising = blocking(move || {
            let source = slot.form(Encoding::Identity, size)?;
            let mut head = vec![0; TRIAL_BYTES.min(usize::try_from(size).unwrap_or(TRIAL_BYTES))];
            source.read_exact_at(&mut head, BODY_OFFSET)?;
            if !compress::promises(&content_type, size, &head) {
                return Ok(None);
            }
            Ok(Some((Arc::new(source), Arc::new(slot.make_form(Encoding::Gzip)?))))
        });
        let Some((source, target)) = promising.await? else { return Ok(None) };
        let pass = Pass { source, source_at: BODY_OFFSET, size, target, target_at: BODY_OFFSET };
        let packed = pass.run().await?;
        Ok(packed.map(|packed| Meta {
            stored_size: packed.size,
            encoding: Encoding::Gzip,
            stored_sha256: hex(&packed.sha256),
            ..raw.clone()
        }))
    }

    /// Forces the content to the disk, says so in the journal, and makes it readable under its reference. From here on
    /// it outlasts a power cut.
    pub(super) async fn stage(&mut self, staged: &Staged) -> io::Result<()> {
        self.journal.step = Step::Committing(staged.clone());
        let (slot, journal, staged) = (self.slot.clone(), self.journal.clone(), staged.clone());
        blocking(move || {
            if let Some(kept) = staged.kept {
                let file = slot.form(kept, staged.meta.stored_size)?;
                staged.meta.write_to(&file)?;
                file.sync_all()?;
            }
            slot.write_journal(&journal)?;
            if let Some(kept) = staged.kept {
                slot.link(&staged.reference, kept)?;
            }
            for other in
                [Encoding::Identity, Encoding::Gzip].into_iter().filter(|form| Some(*form) != staged.kept)
            {
                slot.drop_form(other)?;
            }
            Ok(())
        })
        .await
    }

    /// Drops what was received. What the journal speaks of goes after it says so: whoever goes on with an upload must
    /// find all that its journal promises.
    pub(super) async fn clear(&mut self) -> io::Result<()> {
        let step = std::mem::replace(&mut self.journal.step, Step::Receiving);
        let (slot, journal) = (self.slot.clone(), self.journal.clone());
        blocking(move || {
            let promised = match &step {
                Step::Receiving | Step::Finished(_) => None,
                Step::Resumable(_) => Some(Encoding::Identity),
                Step::Committing(staged) | Step::Recorded(staged) => {
                    // The journal alone knows of the link.
                    slot.unlink(&staged.reference)?;
                    staged.kept
                }
            };
            for form in
                [Encoding::Identity, Encoding::Gzip].into_iter().filter(|form| Some(*form) != promised)
            {
                slot.drop_form(form)?;
            }
            if !matches!(step, Step::Receiving) {
                match slot.write_journal(&journal).map_err(Refusal::from) {
                    Err(Refusal::DiskFull) => {
                        // What takes the room is what is to go. Until there is a journal again the upload is nobody's;
                        // where there will be none, its reservation ends with its time.
                        slot.drop_journal()?;
                        promised.map_or(Ok(()), |form| slot.drop_form(form))?;
                        return slot.write_journal(&journal).or(Ok(()));
                    }
                    Err(Refusal::Disk(error)) => return Err(error),
                    _ => {}
                }
            }
            promised.map_or(Ok(()), |form| slot.drop_form(form))
        })
        .await
    }

    /// Says in the journal of a tus upload that it was recorded. Where that fails, it is recorded once more instead.
    pub(super) async fn note_recorded(&mut self, staged: &Staged) {
        if staged.tus.is_none() {
            return;
        }
        self.journal.step = Step::Recorded(staged.clone());
        let (slot, journal) = (self.slot.clone(), self.journal.clone());
        if let Err(error) = blocking(move || slot.write_journal(&journal)).await {
            tracing::error!(upload = self.journal.watch, "a journal can't be written: {error}");
        }
    }
}

/// The form in which the datastore has a file; `None` where it is one that we don't know.
pub(super) fn meta_of(file: &StoredFile) -> Option<Meta> {
    Some(Meta {
        size: file.size,
        stored_size: file.stored_size,
        encoding: Encoding::parse(&file.encoding)?,
        content_type: file.content_type.clone(),
        stored_sha256: file.stored_sha256.clone(),
    })
}

/// Counts an upload by how it ended.
pub(super) fn count(outcome: &'static str) {
    metrics::counter!("protoplex_fileserver_uploads_total", "outcome" => outcome).increment(1);
}
