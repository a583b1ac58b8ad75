//! One body type for everything that travels: what a client sends, what an upstream answers, what a node
//! makes.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::{Frame, SizeHint};

use crate::buffer::Buffer;
use crate::file_part::FilePart;
use crate::http1;
use crate::http2;
use crate::outbox::Data;
use crate::upgrade::Upgraded;
use crate::upstream::Flight;

/// The body of a request or a response: data frames, then perhaps trailers. Not `Send`.
///
/// It is polled by whoever it is handed to, so back-pressure goes through it from end to end. Dropping it
/// before its end gives up whatever produces it: an upstream's connection is closed, a client's is closed
/// after its answer.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>>>>),
    Wrapped(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
    /// From memory that will be used again.
    Held(Buffer),
    /// Of a client's request.
    Http1(http1::Incoming),
    Http2(Box<http2::Incoming>),
    /// Of an upstream's answer.
    Upstream(Box<Flight>),
    /// A part of a file.
    File(Box<FilePart>),
    Upgraded(Box<Upgraded>),
}

/// Why a body ended before its end. What was received until then is not the whole and must not be taken for
/// it.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client closed or reset its connection or stream. The client's doing; nobody is left to answer.
    #[error("the client went away before the end of the body")]
    ClientGone,
    /// Nothing came from the client for `body_idle_timeout`. The client's fault; answered with 408.
    #[error("the client sent nothing of the body for {0:?}")]
    TooSlow(Duration),
    /// The framing of the body was violated (a bad chunk or trailer, RFC 9112 section 7.1); the text says
    /// how. The client's fault; answered with 400.
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    /// The body is longer than whoever reads it allows.
    #[error("the body is longer than {limit_bytes} bytes")]
    TooLarge {
        /// What was allowed.
        limit_bytes: u64,
    },
    /// The upstream's connection ended or failed before the end of its answer. The upstream's fault.
    #[error("the upstream broke off its answer: {0}")]
    Upstream(String),
    /// Nothing came from the upstream for its `body_idle_timeout`. The upstream's fault.
    #[error("the upstream sent nothing of its answer for {0:?}")]
    UpstreamTooSlow(Duration),
    /// Reading the body's source failed. Ours.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Any other failure of a body's source. Ours.
    #[error("{0}")]
    Other(String),
}

impl Body {
    /// No body at all.
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body that is wholly in memory.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(Some(bytes))) }
    }

    /// A body of unknown length, made while it is sent. An error breaks the message off, visibly for the
    /// receiver.
    pub fn stream(stream: impl Stream<Item = Result<Bytes, BodyError>> + 'static) -> Self {
        Self(Kind::Stream(Box::pin(stream)))
    }

    /// A part of a file, read as it is sent. A file that proves shorter breaks the message off.
    pub fn file(file: Arc<File>, range: Range<u64>) -> Self {
        Self(Kind::File(Box::new(FilePart::new(file, range))))
    }

    /// A body around another one, with its trailers and its length.
    pub fn wrap(body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self(Kind::Wrapped(Box::pin(body)))
    }

    pub(crate) fn held(buffer: Buffer) -> Self {
        if buffer.is_empty() { Self::empty() } else { Self(Kind::Held(buffer)) }
    }

    pub(crate) fn client(incoming: http1::Incoming) -> Self {
        Self(Kind::Http1(incoming))
    }

    pub(crate) fn http2(incoming: http2::Incoming) -> Self {
        Self(Kind::Http2(Box::new(incoming)))
    }

    pub(crate) fn upstream(flight: Box<Flight>) -> Self {
        Self(Kind::Upstream(flight))
    }

    /// What is in memory of it, if it is all of it.
    pub(crate) fn take_ready(&mut self) -> Option<Data> {
        match &mut self.0 {
            Kind::Full(bytes) => Some(bytes.take().map_or(Data::Nothing, Data::Shared)),
            Kind::Held(buffer) => Some(Data::Held(std::mem::take(buffer))),
            _ => None,
        }
    }

    pub(crate) fn as_file(&mut self) -> Option<&mut FilePart> {
        match &mut self.0 {
            Kind::File(part) => Some(part),
            _ => None,
        }
    }

    pub(crate) fn as_upstream(&mut self) -> Option<&mut Flight> {
        match &mut self.0 {
            Kind::Upstream(flight) => Some(flight),
            _ => None,
        }
    }

    /// What an upstream sends, if this is it and nothing of it was read.
    pub(crate) fn take_upstream(&mut self) -> Option<Box<Flight>> {
        match std::mem::take(&mut self.0) {
            Kind::Upstream(flight) => Some(flight),
            kind => {
                self.0 = kind;
                None
            }
        }
    }

    /// A copy of a body that is wholly in memory, at no cost.
    pub(crate) fn copy(&self) -> Option<Self> {
        match &self.0 {
            Kind::Empty => Some(Self::empty()),
            Kind::Full(bytes) => Some(Self(Kind::Full(bytes.clone()))),
            _ => None,
        }
    }

    pub(crate) fn upgraded(upgraded: Upgraded) -> Self {
        Self(Kind::Upgraded(Box::new(upgraded)))
    }

    pub(crate) fn into_upgraded(self) -> Result<Upgraded, Self> {
        match self.0 {
            Kind::Upgraded(upgraded) => Ok(*upgraded),
            kind => Err(Self(kind)),
        }
    }

    /// The next piece of data; `None` at the body's true end. Trailers are passed over.
    ///
    /// Cancel-safe. After an error there is nothing more.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            match poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *self), cx)).await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The whole body in memory.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] as soon as it is known to be longer than `limit_bytes`; whatever ended it
    /// early.
    pub async fn collect(mut self, limit_bytes: u64) -> Result<Bytes, BodyError> {
        let too_large = || BodyError::TooLarge { limit_bytes };
        if http_body::Body::size_hint(&self).lower() > limit_bytes {
            return Err(too_large());
        }
        let Some(first) = self.chunk().await.transpose()? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 > limit_bytes {
            return Err(too_large());
        }
        let Some(second) = self.chunk().await.transpose()? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(&first[..]);
        let mut next = Some(second);
        while let Some(data) = next {
            if (whole.len() + data.len()) as u64 > limit_bytes {
                return Err(too_large());
            }
            whole.extend_from_slice(&data);
            next = self.chunk().await.transpose()?;
        }
        Ok(whole.freeze())
    }

    /// How many bytes are still to come, where that is known: from Content-Length, or from memory.
    pub fn exact_length(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty | Kind::Upgraded(_) => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Stream(stream) => {
                let item = ready!(stream.as_mut().poll_next(cx));
                Poll::Ready(item.map(|item| item.map(Frame::data)))
            }
            Kind::Wrapped(body) => body.as_mut().poll_frame(cx),
            Kind::Held(buffer) => {
                let bytes = std::mem::take(buffer).into_bytes();
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Http1(incoming) => incoming.poll_frame(cx),
            Kind::Http2(incoming) => incoming.poll_frame(cx),
            Kind::Upstream(flight) => flight.poll_frame(cx),
            Kind::File(part) => part.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty | Kind::Upgraded(_) => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Stream(_) => false,
            Kind::Wrapped(body) => body.is_end_stream(),
            Kind::Held(buffer) => buffer.is_empty(),
            Kind::Http1(incoming) => incoming.is_end_stream(),
            Kind::Http2(incoming) => incoming.is_end_stream(),
            Kind::Upstream(flight) => flight.is_end_stream(),
            Kind::File(part) => part.len() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty | Kind::Upgraded(_) => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Stream(_) => SizeHint::default(),
            Kind::Wrapped(body) => body.size_hint(),
            Kind::Held(buffer) => SizeHint::with_exact(buffer.len() as u64),
            Kind::Http1(incoming) => incoming.size_hint(),
            Kind::Http2(incoming) => incoming.size_hint(),
            Kind::Upstream(flight) => flight.size_hint(),
            Kind::File(part) => SizeHint::with_exact(part.len()),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Stream(_) => "stream",
            Kind::Wrapped(_) => "around another",
            Kind::Held(_) => "held",
            Kind::Http1(_) | Kind::Http2(_) => "from a client",
            Kind::Upstream(_) => "from an upstream",
            Kind::File(_) => "a file",
            Kind::Upgraded(_) => "upgraded",
        };
        write!(f, "Body({kind})")
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::full(bytes)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::full(text)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::full(text)
    }
}
