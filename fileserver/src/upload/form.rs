//! An upload by form (multipart/form-data, RFC 7578): each of its files goes the way of a raw upload.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::Method;
use http::header::CONTENT_TYPE;
use http::request::Parts as Head;
use multer::{Field, Multipart};
use protoplex_http::{Body, Response, Scheme};
use tokio::time::timeout;

use super::Uploads;
use super::answer::{Answer, created};
use super::intent::{Intent, Sender as Uploader, bad, content_type, file_path, text};
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
        body: Body,
        scheme: Scheme,
        stored: &mut Vec<Answer>,
    ) -> Result<(), Refusal> {
        let sender = Uploader::of(head, scheme)?;
        let boundary = multer::parse_boundary(text(&head.headers, &CONTENT_TYPE)?.unwrap_or_default())?;
        let target = FilePath::parse(head.uri.path()).map_err(|error| bad(&error.to_string()))?;
        let _admission = self.admit(&sender, &target, None).await?;
        self.parts(head.uri.path(), &sender, Parts::new(body, boundary), stored).await
    }

    async fn parts(
        self: &Rc<Self>,
        target: &str,
        sender: &Uploader,
        mut parts: Parts,
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
///
/// multer takes in all that its stream has before it looks at what it holds, and by itself keeps whatever it finds no
/// end of: the head of a part, and what stands before the first one. So its stream has nothing but what is put into
/// it, which is a piece of the body each time that multer can't go on with what it holds.
struct Parts {
    body: Body,
    multipart: Multipart<'static>,
    /// Into multer's stream; none once the body has ended.
    pieces: Option<Sender<Bytes>>,
    /// Bytes that multer took in since it last gave something out.
    unparsed: usize,
    /// Seen so far that were no files.
    fields: usize,
}

impl Parts {
    fn new(body: Body, boundary: String) -> Self {
        let (pieces, taken) = channel();
        // Whoever puts a piece in polls afterwards: nobody has to be woken.
        let stream = stream::poll_fn(move |_| match taken.try_recv() {
            Ok(piece) => Poll::Ready(Some(Ok::<Bytes, Infallible>(piece))),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        });
        let multipart = Multipart::new(stream, boundary);
        Self { body, multipart, pieces: Some(pieces), unparsed: 0, fields: 0 }
    }

    /// The next file and its name. Other fields before it are nobody's business.
    async fn next_file(&mut self) -> Result<Option<(String, Field<'static>)>, Refusal> {
        while let Some(mut field) = self.next_field().await? {
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

    async fn next_field(&mut self) -> Result<Option<Field<'static>>, Refusal> {
        loop {
            if let Some(field) = self.multipart.next_field().now_or_never() {
                self.unparsed = 0;
                return Ok(field?);
            }
            self.take_in().await?;
        }
    }

    /// The next piece of a part's content.
    async fn next_piece(&mut self, field: &mut Field<'_>) -> Result<Option<Bytes>, Refusal> {
        loop {
            if let Some(piece) = field.chunk().now_or_never() {
                self.unparsed = 0;
                return Ok(piece?);
            }
            self.take_in().await?;
        }
    }

    /// Gives multer a piece of the body, or word of its end; unless it made nothing of what it has.
    async fn take_in(&mut self) -> Result<(), Refusal> {
        if self.unparsed > MAX_PART_HEAD_BYTES {
            return Err(over(&format!("a part's head of more than {MAX_PART_HEAD_BYTES} bytes")));
        }
        let piece = self.body.chunk().await.transpose()?;
        let Some(pieces) = &self.pieces else { return Err(Refusal::Form(multer::Error::IncompleteStream)) };
        match piece {
            Some(piece) => {
                self.unparsed += piece.len();
                // multer has the other end as long as this has multer.
                let _ = pieces.send(piece);
            }
            None => self.pieces = None,
        }
        Ok(())
    }
}

fn over(what: &str) -> Refusal {
    Refusal::FormTooLarge(format!("the form has {what}"))
}

#[cfg(test)]
mod tests;
