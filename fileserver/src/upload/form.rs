//! An upload by form (multipart/form-data, RFC 7578): each of its files goes the way of a raw upload.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{Stream, stream};
use http::Method;
use http::header::CONTENT_TYPE;
use http::request::Parts as Head;
use multer::{Field, Multipart};
use protoplex_http::{Body, BodyError, Response, Scheme};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Uploads;
use super::answer::{Answer, created};
use super::intent::{Intent, Sender, bad, content_type, file_path, text};
use super::refusal::Refusal;
use crate::path::FilePath;

/// Files of one form.
const MAX_FILES: usize = 100;
/// Other fields of one form, among them those where a browser's user chose no file.
const MAX_FIELDS: usize = 100;
/// The content of one of them. It is read over.
const MAX_FIELD_BYTES: usize = 64 * 1024;
/// The head of a part, and what a client sends before the first one.
const MAX_PART_HEAD_BYTES: usize = 16 * 1024;
/// How long a client may take to come to its first file, and from the end of one to the next.
const FORM_START_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a request is a form with files.
pub(super) fn is_form(head: &Head) -> bool {
    let declared = head.headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let form = b"multipart/form-data";
    head.method == Method::POST
        && declared.get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form))
}

impl Uploads {
    /// Stores the files of a form in their order. Where one fails, those before it are stored and the problem says so.
    pub(super) async fn form(self: &Rc<Self>, head: &Head, body: Body, scheme: Scheme) -> Response {
        let mut stored = Vec::new();
        match self.files(head, body, scheme, &mut stored).await {
            Ok(()) => created(&stored),
            Err(refusal) => {
                let stored = serde_json::to_value(&stored).unwrap_or_default();
                refusal.problem().with("stored", stored).into_response()
            }
        }
    }

    async fn files(
        self: &Rc<Self>,
        head: &Head,
        mut body: Body,
        scheme: Scheme,
        stored: &mut Vec<Answer>,
    ) -> Result<(), Refusal> {
        let sender = Sender::of(head, scheme)?;
        let boundary = multer::parse_boundary(text(&head.headers, &CONTENT_TYPE)?.unwrap_or_default())?;
        let target = FilePath::parse(head.uri.path()).map_err(|error| bad(&error.to_string()))?;
        let _admission = self.admit(&sender, &target, None).await?;
        // multer wants a stream that could go to another thread, which a body can't: one piece at a time is handed over.
        let (pieces, taken) = mpsc::channel(1);
        let hand_over = async move {
            while let Some(piece) = body.chunk().await {
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
        };
        let unparsed = Arc::default();
        let parts = Parts {
            multipart: Multipart::new(bounded(taken, Arc::clone(&unparsed)), boundary),
            unparsed,
            fields: 0,
        };
        match select(pin!(self.parts(head.uri.path(), &sender, parts, stored)), pin!(hand_over)).await {
            Either::Left((result, _)) => result,
            Either::Right(((), parts)) => parts.await,
        }
    }

    async fn parts(
        self: &Rc<Self>,
        target: &str,
        sender: &Sender,
        mut parts: Parts<'_>,
        stored: &mut Vec<Answer>,
    ) -> Result<(), Refusal> {
        loop {
            let next = timeout(FORM_START_TIMEOUT, parts.next_file()).await;
            let next = next.map_err(|_| Refusal::FormTooSlow(FORM_START_TIMEOUT))??;
            let Some((name, mut field)) = next else { break };
            if stored.len() == MAX_FILES {
                return Err(bad(&format!("a form may have at most {MAX_FILES} files")));
            }
            if !stored.is_empty() && !target.ends_with('/') {
                return Err(bad("several files need a path that ends with a slash"));
            }
            let path = file_path(target, Some(&name))?;
            let content_type = content_type(field.content_type().map(|mime| mime.as_ref()), &path)?;
            let intent = Intent { sender: sender.clone(), path, content_type, declared: None };
            let next = async || parts.next_piece(&mut field).await.transpose();
            stored.push(self.upload(intent, next).await?);
        }
        if stored.is_empty() { Err(bad("the form has no file")) } else { Ok(()) }
    }
}

/// The parts of a form as they come.
struct Parts<'r> {
    multipart: Multipart<'r>,
    /// Bytes that the parser took in since it last gave something out.
    unparsed: Arc<AtomicUsize>,
    /// Seen so far that were no files.
    fields: usize,
}

impl<'r> Parts<'r> {
    /// The next file and its name. Other fields before it are nobody's business.
    async fn next_file(&mut self) -> Result<Option<(String, Field<'r>)>, Refusal> {
        while let Some(mut field) = self.multipart.next_field().await.map_err(cause)? {
            self.unparsed.store(0, Ordering::Relaxed);
            // A browser sends an empty name where no file was chosen.
            if let Some(name) = field.file_name().filter(|name| !name.is_empty()) {
                return Ok(Some((name.to_owned(), field)));
            }
            self.fields += 1;
            if self.fields > MAX_FIELDS {
                return Err(over(&format!("more than {MAX_FIELDS} fields that are no files")));
            }
            let mut size = 0;
            while let Some(piece) = self.next_piece(&mut field).await? {
                size += piece.len();
                if size > MAX_FIELD_BYTES {
                    return Err(over(&format!(
                        "a field of more than {MAX_FIELD_BYTES} bytes that is no file"
                    )));
                }
            }
        }
        Ok(None)
    }

    /// The next piece of a part's content.
    async fn next_piece(&self, field: &mut Field<'_>) -> Result<Option<Bytes>, Refusal> {
        let piece = field.chunk().await.map_err(cause)?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(piece)
    }
}

/// Gives a body to multer, which by itself keeps in memory whatever it finds no end of: the head of a part, and what
/// stands before the first one. It gets one piece at a time, and none where it made nothing of the last
/// [`MAX_PART_HEAD_BYTES`].
fn bounded(
    mut pieces: mpsc::Receiver<Result<Bytes, BodyError>>,
    unparsed: Arc<AtomicUsize>,
) -> impl Stream<Item = Result<Bytes, Refusal>> {
    let mut given = false;
    stream::poll_fn(move |cx| {
        if std::mem::take(&mut given) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if unparsed.load(Ordering::Relaxed) > MAX_PART_HEAD_BYTES {
            return Poll::Ready(Some(Err(over(&format!(
                "a part's head of more than {MAX_PART_HEAD_BYTES} bytes"
            )))));
        }
        let piece = std::task::ready!(pieces.poll_recv(cx));
        if let Some(Ok(piece)) = &piece {
            given = true;
            unparsed.fetch_add(piece.len(), Ordering::Relaxed);
        }
        Poll::Ready(piece.map(|piece| piece.map_err(Refusal::Body)))
    })
}

fn over(what: &str) -> Refusal {
    Refusal::FormTooLarge(format!("the form has {what}"))
}

/// What the body itself failed with, where it was that.
fn cause(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(cause) => match cause.downcast::<Refusal>() {
            Ok(refusal) => *refusal,
            Err(other) => Refusal::Form(multer::Error::StreamReadFailed(other)),
        },
        other => Refusal::Form(other),
    }
}
