//! Resumable uploads by the tus protocol 1.0.0 (core, creation, creation-with-upload, expiration, termination).
//!
//! Nothing of a tus upload is kept in memory between two requests: offset and hashes are in its journal, so whichever
//! child gets the next request goes on, also after a crash, without reading again what came before.

mod metadata;
mod whole;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use http::{HeaderName, Method, StatusCode};
use protoplex_http::{Body, Problem, Response, Scheme};
use protoplex_wire::proto::TokenRefusal;
use sha2::{Digest, Sha256};

use self::metadata::Metadata;
use super::answer::Answer;
use super::intent::{Intent, Sender, bad, bearer, content_type, text, valid_id};
use super::refusal::{Refusal, header};
use super::steps::Upload;
use super::{Uploads, blocking, unix_ms, unix_time_ms};
use crate::digest::{Hashers, Intake, hex};
use crate::object::Encoding;
use crate::reference::Reference;
use crate::staging::{Checkpoint, Journal, Slot, Step, Taken, TusLease};

const BASE: &str = "/.well-known/tus";
const VERSION: &str = "1.0.0";
const EXTENSIONS: &str = "creation,creation-with-upload,expiration,termination";
const PATCH_TYPE: &str = "application/offset+octet-stream";

const TUS_RESUMABLE: HeaderName = header("tus-resumable");
const TUS_VERSION: HeaderName = header("tus-version");
const TUS_EXTENSION: HeaderName = header("tus-extension");
const UPLOAD_OFFSET: HeaderName = header("upload-offset");
const UPLOAD_LENGTH: HeaderName = header("upload-length");
const UPLOAD_METADATA: HeaderName = header("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = header("upload-expires");
const METHOD_OVERRIDE: HeaderName = header("x-http-method-override");
const REFERENCE: HeaderName = header("protoplex-reference");

/// How long a client may take to finish an upload.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How much longer than its token an upload may take that began while the token was good.
const GRACE: Duration = Duration::from_secs(6 * 3600);
/// When a client may ask again about an upload that is locked.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// What a crash may make a client send again, in bytes.
const CHECKPOINT_BYTES: u64 = 16 * 1024 * 1024;

/// Why a tus request is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum TusRefusal {
    #[error(transparent)]
    Upload(#[from] Refusal),
    #[error("this server speaks tus {VERSION} alone")]
    Version,
    #[error("the upload is at offset {0}")]
    Offset(u64),
    #[error("another request works on this upload")]
    Locked,
    #[error("there is no such upload")]
    Unknown,
    #[error("the upload is finished, or its time is over")]
    Gone,
    #[error("tus has no such request")]
    Method,
}

impl From<std::io::Error> for TusRefusal {
    fn from(error: std::io::Error) -> Self {
        Self::Upload(error.into())
    }
}

impl TusRefusal {
    fn problem(&self) -> Problem {
        let problem = |status, kind| Problem::new(status, kind, self.to_string());
        match self {
            Self::Upload(refusal) => refusal.problem(),
            Self::Version => problem(StatusCode::PRECONDITION_FAILED, "tus-version")
                .header(TUS_VERSION, HeaderValue::from_static(VERSION)),
            Self::Offset(offset) => {
                problem(StatusCode::CONFLICT, "tus-offset").header(UPLOAD_OFFSET, HeaderValue::from(*offset))
            }
            Self::Locked => problem(StatusCode::LOCKED, "tus-locked").retry_after(RETRY_AFTER),
            Self::Unknown => problem(StatusCode::NOT_FOUND, "tus-unknown"),
            Self::Gone => problem(StatusCode::GONE, "tus-gone"),
            Self::Method => problem(StatusCode::METHOD_NOT_ALLOWED, "tus-method"),
        }
    }
}

/// Whether a path belongs to tus.
pub(super) fn is_tus(path: &str) -> bool {
    path.strip_prefix(BASE).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Uploads {
    /// Answers a tus request.
    pub(super) async fn tus(self: &Rc<Self>, head: &Parts, body: Body, scheme: Scheme) -> Response {
        let mut response = match self.tus_request(head, body, scheme).await {
            Ok(response) => response,
            Err(refusal) => refusal.problem().into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(TUS_RESUMABLE, HeaderValue::from_static(VERSION));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    async fn tus_request(
        self: &Rc<Self>,
        head: &Parts,
        body: Body,
        scheme: Scheme,
    ) -> Result<Response, TusRefusal> {
        let method = match text(&head.headers, &METHOD_OVERRIDE)? {
            Some(method) if head.method == Method::POST => method,
            _ => head.method.as_str(),
        };
        if method == "OPTIONS" {
            return Ok(capabilities());
        }
        if text(&head.headers, &TUS_RESUMABLE)? != Some(VERSION) {
            return Err(TusRefusal::Version);
        }
        let name = head.uri.path().strip_prefix(BASE).unwrap_or_default().trim_matches('/');
        match (method, name) {
            ("POST", "") => self.create(head, body, scheme).await,
            (_, "") => Err(TusRefusal::Method),
            (_, name) if !valid_id(name) => Err(TusRefusal::Unknown),
            ("HEAD", name) => self.offset(head, name).await,
            ("PATCH", name) => self.patch(head, name, body).await,
            ("DELETE", name) => self.terminate(head, name).await,
            _ => Err(TusRefusal::Method),
        }
    }

    /// Creation: admitted like any upload, with its length declared.
    async fn create(
        self: &Rc<Self>,
        head: &Parts,
        body: Body,
        scheme: Scheme,
    ) -> Result<Response, TusRefusal> {
        let sender = Sender::of(head, scheme)?;
        let declared = number(head, &UPLOAD_LENGTH)?.ok_or_else(|| bad("Upload-Length is missing"))?;
        let metadata = Metadata::parse(text(&head.headers, &UPLOAD_METADATA)?.unwrap_or_default())?;
        let path = metadata.file_path()?;
        let content_type = content_type(metadata.file_type(), &path)?;
        let admission = self.admit(&sender, &path, Some(declared)).await?;
        let lease = TusLease {
            expires_at_ms: unix_ms(ends(SystemTime::now(), admission.token_ends)),
            token_sha256: token_digest(&sender.token),
            metadata: metadata.into_text(),
        };
        let intent = Intent { sender, path, content_type, declared: Some(declared) };
        let mut upload = self.begin(intent).await?;
        upload.journal.max_bytes = declared;
        let location = format!("{}{BASE}/{}", upload.journal.origin, upload.journal.upload);
        let checkpoint = Checkpoint { offset: 0, hashers: Hashers::default().save(), lease: lease.clone() };
        if let Err(error) = upload.save(checkpoint.clone()).await {
            let refusal = error.into();
            self.undo(&mut upload, &refusal).await;
            return Err(refusal.into());
        }
        let with_upload = text(&head.headers, &CONTENT_TYPE)? == Some(PATCH_TYPE);
        let body = if with_upload { body } else { Body::empty() };
        let (offset, answer) = self.append(upload, checkpoint, body).await?;
        let mut response = progressed(StatusCode::CREATED, with_upload.then_some(offset), &lease);
        if let Some(answer) = answer {
            show(&mut response, &answer.reference, &answer.url);
        }
        insert(&mut response, LOCATION, &location);
        Ok(response)
    }

    /// Where a client goes on.
    async fn offset(self: &Rc<Self>, head: &Parts, name: &str) -> Result<Response, TusRefusal> {
        let journal = self.known(head, name).await?;
        let mut response = match journal.is_whole() {
            // The offset counts once nobody moves it any more.
            false => {
                let (_, checkpoint) = self.resume(head, name).await?;
                progressed(StatusCode::OK, Some(checkpoint.offset), &checkpoint.lease)
            }
            true => self.whole(&journal, Some(whole::PATIENCE)).await?,
        };
        *response.status_mut() = StatusCode::OK;
        if let Some(declared) = journal.declared {
            response.headers_mut().insert(UPLOAD_LENGTH, HeaderValue::from(declared));
        }
        if let Some(lease) = journal.step.lease().filter(|lease| !lease.metadata.is_empty()) {
            insert(&mut response, UPLOAD_METADATA, &lease.metadata);
        }
        Ok(response)
    }

    /// The next part of the body.
    async fn patch(
        self: &Rc<Self>,
        head: &Parts,
        name: &str,
        mut body: Body,
    ) -> Result<Response, TusRefusal> {
        if text(&head.headers, &CONTENT_TYPE)? != Some(PATCH_TYPE) {
            return Err(
                Refusal::Unsupported(format!("a part of a tus upload is sent as {PATCH_TYPE}")).into()
            );
        }
        let offset = number(head, &UPLOAD_OFFSET)?.ok_or_else(|| bad("Upload-Offset is missing"))?;
        let journal = self.known(head, name).await?;
        let _place = self.place()?;
        if journal.is_whole() {
            // A client that missed the last answer, or was told that it isn't decided, sends nothing from the end on.
            let limit_bytes = journal.max_bytes;
            if offset != limit_bytes {
                // The full offset says that it is recorded.
                return Err(match journal.is_recorded() {
                    true => TusRefusal::Offset(limit_bytes),
                    false => TusRefusal::Locked,
                });
            }
            if body.chunk().await.is_some() {
                return Err(Refusal::TooLong { limit_bytes }.into());
            }
            return self.whole(&journal, None).await;
        }
        let (upload, checkpoint) = self.resume(head, name).await?;
        if offset != checkpoint.offset {
            return Err(TusRefusal::Offset(checkpoint.offset));
        }
        let limit_bytes = upload.journal.max_bytes;
        if number(head, &CONTENT_LENGTH)?.is_some_and(|length| length > limit_bytes - offset) {
            return Err(Refusal::TooLong { limit_bytes }.into());
        }
        let lease = checkpoint.lease.clone();
        let (offset, answer) = self.append(upload, checkpoint, body).await?;
        let mut response = progressed(StatusCode::NO_CONTENT, Some(offset), &lease);
        if let Some(answer) = answer {
            show(&mut response, &answer.reference, &answer.url);
        }
        Ok(response)
    }

    /// Termination: the client doesn't want it any more.
    async fn terminate(&self, head: &Parts, name: &str) -> Result<Response, TusRefusal> {
        if !matches!(self.known(head, name).await?.step, Step::Resumable(_)) {
            return Err(TusRefusal::Gone);
        }
        let (mut upload, checkpoint) = self.take_over(head, name).await?;
        self.withdraw(&mut upload, "terminated").await;
        Ok(progressed(StatusCode::NO_CONTENT, None, &checkpoint.lease))
    }

    /// What is known of an upload, for its own client.
    async fn known(&self, head: &Parts, name: &str) -> Result<Journal, TusRefusal> {
        let (staging, name) = (self.staging.clone(), name.to_owned());
        let journal = blocking(move || staging.read(&name)).await?.ok_or(TusRefusal::Unknown)?;
        check_token(head, journal.step.lease().ok_or(TusRefusal::Unknown)?)?;
        Ok(journal)
    }

    async fn take(&self, name: &str) -> Result<(Slot, Journal), TusRefusal> {
        let (staging, name) = (self.staging.clone(), name.to_owned());
        match blocking(move || staging.take(&name)).await? {
            Taken::Ours(ours) => Ok(*ours),
            Taken::Busy => Err(TusRefusal::Locked),
            Taken::Gone => Err(TusRefusal::Unknown),
        }
    }

    /// Goes on with an upload that waits for more.
    async fn resume(&self, head: &Parts, name: &str) -> Result<(Upload, Checkpoint), TusRefusal> {
        let (upload, checkpoint) = self.take_over(head, name).await?;
        if upload.journal.is_whole() {
            // The last of it came since its journal was looked at, and it isn't recorded.
            return Err(TusRefusal::Locked);
        }
        if checkpoint.lease.expires_at_ms <= unix_time_ms() {
            return Err(TusRefusal::Gone);
        }
        Ok((upload, checkpoint))
    }

    /// Takes over an upload that nobody works on and that isn't staged, if this is its client.
    async fn take_over(&self, head: &Parts, name: &str) -> Result<(Upload, Checkpoint), TusRefusal> {
        let (slot, journal) = self.take(name).await?;
        let checkpoint = match &journal.step {
            Step::Resumable(checkpoint) => checkpoint.clone(),
            // It came to its end since its journal was looked at.
            Step::Committing(_) | Step::Recorded(_) | Step::Finished(_) => return Err(TusRefusal::Locked),
            Step::Receiving => return Err(TusRefusal::Unknown),
        };
        check_token(head, &checkpoint.lease)?;
        let feed = self.live.feed(&journal.watch, &journal.path);
        Ok((Upload { slot: Arc::new(slot), journal, feed }, checkpoint))
    }

    /// Takes a part of the body, saving a checkpoint every [`CHECKPOINT_BYTES`] and at its end, however it ends. The
    /// offset then; and the answer, once the body is whole.
    async fn append(
        self: &Rc<Self>,
        mut upload: Upload,
        checkpoint: Checkpoint,
        mut body: Body,
    ) -> Result<(u64, Option<Answer>), Refusal> {
        let hashers = restore(&checkpoint)?;
        let mut intake = upload.intake(checkpoint.offset, hashers).await?;
        let mut ended = false;
        while !ended {
            let mut room = CHECKPOINT_BYTES;
            let next = async || {
                if room == 0 {
                    return None;
                }
                let piece = body.chunk().await;
                match &piece {
                    Some(Ok(piece)) => room = room.saturating_sub(piece.len() as u64),
                    Some(Err(_)) | None => ended = true,
                }
                piece.map(|piece| piece.map_err(Refusal::Body))
            };
            let received = upload.receive(&mut intake, next).await;
            if let Err(refusal @ (Refusal::DiskFull | Refusal::Disk(_))) = received {
                return Err(refusal);
            }
            upload.checkpoint(&mut intake, checkpoint.lease.clone()).await?;
            received?;
        }
        let offset = intake.received();
        if upload.journal.declared != Some(offset) {
            return Ok((offset, None));
        }
        self.record(upload, intake, checkpoint.lease).await.map(|answer| (offset, Some(answer)))
    }
}

impl Upload {
    /// Forces to the disk what was received, then says so in the journal.
    async fn checkpoint(&mut self, intake: &mut Intake, lease: TusLease) -> Result<(), Refusal> {
        let hashers = intake.settle().await?.save();
        let checkpoint = Checkpoint { offset: intake.received(), hashers, lease };
        let (slot, offset) = (self.slot.clone(), checkpoint.offset);
        blocking(move || slot.form(Encoding::Identity, offset)?.sync_data()).await?;
        Ok(self.save(checkpoint).await?)
    }

    async fn save(&mut self, checkpoint: Checkpoint) -> std::io::Result<()> {
        self.journal.step = Step::Resumable(checkpoint);
        let (slot, journal) = (self.slot.clone(), self.journal.clone());
        blocking(move || slot.write_journal(&journal)).await
    }
}

fn restore(checkpoint: &Checkpoint) -> Result<Hashers, Refusal> {
    Hashers::restore(&checkpoint.hashers).map_err(|damaged| Refusal::Disk(std::io::Error::other(damaged)))
}

fn token_digest(token: &str) -> String {
    hex(&Sha256::digest(token))
}

/// Whoever goes on with an upload has the token that it was created with. Digests are compared, so the time that takes
/// says nothing about the token.
fn check_token(head: &Parts, lease: &TusLease) -> Result<(), Refusal> {
    let token = bearer(&head.headers).ok_or(Refusal::TokenMissing)?;
    if token_digest(token) == lease.token_sha256 {
        Ok(())
    } else {
        Err(Refusal::Token { refusal: TokenRefusal::Forged, limit_bytes: 0 })
    }
}

/// What this server can do (tus, section "OPTIONS").
fn capabilities() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    insert(&mut response, TUS_VERSION, VERSION);
    insert(&mut response, TUS_EXTENSION, EXTENSIONS);
    response
}

fn progressed(status: StatusCode, offset: Option<u64>, lease: &TusLease) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if let Some(offset) = offset {
        response.headers_mut().insert(UPLOAD_OFFSET, HeaderValue::from(offset));
    }
    let expires = UNIX_EPOCH + Duration::from_millis(lease.expires_at_ms);
    insert(&mut response, UPLOAD_EXPIRES, &httpdate::fmt_http_date(expires));
    response
}

/// Says what became of an upload.
fn show(response: &mut Response, reference: &Reference, url: &str) {
    insert(response, REFERENCE, reference);
    insert(response, CONTENT_LOCATION, url);
}

/// When an upload that begins now is given up. Its token's end counts when it begins; from then on it has what it needs
/// to be finished, also where it breaks off, but not for ever.
fn ends(now: SystemTime, token_ends: Option<SystemTime>) -> SystemTime {
    let ends = now + LIFE;
    token_ends.map_or(ends, |token_ends| ends.min(token_ends + GRACE))
}

/// Our own header values are plain text; one that a client has broken (a strange `Host`) is left out.
fn insert(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn number(head: &Parts, name: &HeaderName) -> Result<Option<u64>, Refusal> {
    let parse = |number: &str| number.parse().map_err(|_| bad(&format!("{name} is not a number")));
    text(&head.headers, name)?.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_outlives_its_token_for_a_while_and_no_upload_lives_for_ever() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let hours = |hours: u64| now + Duration::from_secs(3600 * hours);
        let table = [(None, 24), (Some(1), 7), (Some(17), 23), (Some(18), 24), (Some(1_000_000), 24)];
        for (token_ends, upload_ends) in table {
            assert_eq!(ends(now, token_ends.map(hours)), hours(upload_ends), "{token_ends:?}");
        }
    }
}
