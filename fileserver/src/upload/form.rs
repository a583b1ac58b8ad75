//! An upload by form (multipart/form-data, RFC 7578): each of its files goes the way of a raw upload.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use futures_util::stream;
use http::Method;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use multer::{Field, Multipart};
use protoplex_http::{Body, BodyError, Response, Scheme};
use tokio::sync::mpsc;

use super::Uploads;
use super::answer::{Answer, created};
use super::intent::{Intent, Sender, bad, content_type, file_path, text};
use super::refusal::Refusal;

/// Files of one form.
const MAX_FILES: usize = 100;

/// Whether a request is a form with files.
pub(super) fn is_form(head: &Parts) -> bool {
    let declared = head.headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let form = b"multipart/form-data";
    head.method == Method::POST
        && declared.get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form))
}

impl Uploads {
    /// Stores the files of a form in their order. Where one fails, those before it are stored and the problem says so.
    pub(super) async fn form(self: &Rc<Self>, head: &Parts, body: Body, scheme: Scheme) -> Response {
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
        head: &Parts,
        mut body: Body,
        scheme: Scheme,
        stored: &mut Vec<Answer>,
    ) -> Result<(), Refusal> {
        let sender = Sender::of(head, scheme)?;
        let boundary = multer::parse_boundary(text(&head.headers, &CONTENT_TYPE)?.unwrap_or_default())?;
        // multer wants a stream that could go to another thread, which a body can't: one piece at a time is handed over.
        let (pieces, taken) = mpsc::channel(1);
        let hand_over = async move {
            while let Some(piece) = body.chunk().await {
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
        };
        let pieces = stream::unfold(taken, async |mut taken: mpsc::Receiver<Result<_, BodyError>>| {
            taken.recv().await.map(|piece| (piece, taken))
        });
        let multipart = Multipart::new(pieces, boundary);
        match select(pin!(self.parts(head.uri.path(), &sender, multipart, stored)), pin!(hand_over)).await {
            Either::Left((result, _)) => result,
            Either::Right(((), parts)) => parts.await,
        }
    }

    async fn parts(
        self: &Rc<Self>,
        target: &str,
        sender: &Sender,
        mut multipart: Multipart<'_>,
        stored: &mut Vec<Answer>,
    ) -> Result<(), Refusal> {
        while let Some(mut field) = multipart.next_field().await.map_err(cause)? {
            // Other fields of the form are nobody's business; a browser sends an empty name where no file was chosen.
            let Some(name) = field.file_name().filter(|name| !name.is_empty()) else { continue };
            if stored.len() == MAX_FILES {
                return Err(bad("a form may have at most 100 files"));
            }
            if !stored.is_empty() && !target.ends_with('/') {
                return Err(bad("several files need a path that ends with a slash"));
            }
            let path = file_path(target, Some(name))?;
            let content_type = content_type(field.content_type().map(|mime| mime.as_ref()), &path)?;
            let intent = Intent { sender: sender.clone(), path, content_type, declared: None };
            let next = async || next_piece(&mut field).await;
            stored.push(self.upload(intent, next).await?);
        }
        if stored.is_empty() { Err(bad("the form has no file")) } else { Ok(()) }
    }
}

async fn next_piece(field: &mut Field<'_>) -> Option<Result<bytes::Bytes, Refusal>> {
    field.chunk().await.map_err(cause).transpose()
}

/// What the body itself failed with, where it was that.
fn cause(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(cause) => match cause.downcast::<BodyError>() {
            Ok(body) => Refusal::Body(*body),
            Err(other) => Refusal::Form(multer::Error::StreamReadFailed(other)),
        },
        other => Refusal::Form(other),
    }
}
