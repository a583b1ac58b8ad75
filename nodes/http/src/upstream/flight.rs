//! One request on a connection to an upstream, from its first byte to the last of its answer.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::upload::Upload;
use super::{AskError, Asked, Pool, SendErrorKind};
use crate::body::{Body, BodyError};
use crate::clock;
use crate::deadline::{Deadline, Patience};
use crate::exchange::{Answer, Exchange};
use crate::forwarded::has_token;
use crate::head::{Known, RequestHead, ResponseHead};
use crate::http1::{Bounds, Content, Intake, Read, Rule, Scan, Taken};
use crate::pipe::PIPE_BYTES;
use crate::socket::{Socket, Stream};
use crate::upgrade::Upgraded;

/// A connection in use. Dropped before the answer's end it is closed; after it the pool has it again.
pub(crate) struct Flight {
    pool: Weak<Pool>,
    origin: SocketAddr,
    /// Taken when both messages are over.
    stream: Option<Stream>,
    /// Of the answer.
    intake: Intake,
    upload: Upload,
    /// Of a head of the answer that came in several pieces.
    scan: Option<Scan>,
    /// So many heads have come, the final one among them.
    heads: usize,
    /// For the first byte.
    deadline: Deadline,
    patience: Patience,
    /// The upstream will take another request on this connection.
    stays: bool,
    broken_off: bool,
    /// What the upload had done when it was looked at last.
    upload_moved: Option<Instant>,
}

/// The most of an answer's head, and of its trailer section.
const BOUNDS: Bounds = Bounds { bytes: 64 * 1024, fields: 256 };
/// The most heads of one answer, the final one among them.
const MAX_HEADS: usize = 100;
/// Less is not worth the detour through a pipe.
const SPLICE_MIN_BYTES: u64 = 64 * 1024;
/// For an upstream that takes nothing of what an upgraded connection brings.
const UPGRADED_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

impl Flight {
    pub(super) fn new(
        pool: &Rc<Pool>,
        origin: SocketAddr,
        stream: Stream,
        head: &RequestHead,
        body: Body,
    ) -> Box<Self> {
        Box::new(Self {
            pool: Rc::downgrade(pool),
            origin,
            stream: Some(stream),
            intake: Intake::new(BOUNDS),
            upload: Upload::new(head, body),
            scan: None,
            heads: 0,
            deadline: Deadline::default(),
            patience: Patience::new(pool.settings.get().body_idle_timeout),
            stays: false,
            broken_off: false,
            upload_moved: None,
        })
    }

    /// When the request was written.
    pub(super) fn began(&self) -> Instant {
        self.upload.began
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) fn poll_ask(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
        inform: Option<&Exchange>,
    ) -> Poll<Result<(ResponseHead, Content), SendErrorKind>> {
        while self.heads < MAX_HEADS {
            let scan = ready!(self.poll_head(cx))?;
            self.heads += 1;
            let (head, content) = self.broken(scan.into_response(&request.method))?;
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                self.deadline.clear();
                return Poll::Ready(Ok((head, content)));
            }
            if head.status == StatusCode::CONTINUE {
                self.upload.go_on();
            } else if let Some(exchange) = inform {
                exchange.inform(head);
            }
        }
        let cause = "it sends one answer before the final one after the other".to_owned();
        Poll::Ready(Err(SendErrorKind::Protocol { origin: self.origin, cause }))
    }

    fn broken<T>(&self, read: Result<T, Rule>) -> Result<T, SendErrorKind> {
        let origin = self.origin;
        read.map_err(|rule| SendErrorKind::Protocol { origin, cause: rule.kind().to_owned() })
    }

    /// Sends on, and reads on until a head is whole.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Scan, SendErrorKind>> {
        loop {
            if !self.intake.unread.is_empty() {
                let mut scan = self.scan.take().unwrap_or_else(Scan::response);
                if let Some(length) = self.broken(scan.advance(self.intake.unread.filled(), BOUNDS))? {
                    self.intake.unread.consume(length);
                    return Poll::Ready(Ok(scan));
                }
                self.scan = Some(scan);
            }
            let Some(stream) = &mut self.stream else { return Poll::Pending };
            if let Poll::Ready(Err(error)) = self.upload.poll(cx, stream) {
                return Poll::Ready(Err(SendErrorKind::RequestBody(error)));
            }
            match self.intake.unread.poll_fill(cx, stream) {
                Poll::Ready(Ok(1..)) => {
                    clock::now();
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.closed("it ended"))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.closed(&error.to_string()))),
                Poll::Pending => {
                    let Some(pool) = self.pool.upgrade() else { return Poll::Pending };
                    let after = pool.settings.get().first_byte_timeout;
                    let Some(since) = self.upload.waiting_since() else {
                        self.deadline.clear();
                        return Poll::Pending;
                    };
                    ready!(self.deadline.poll(cx, since + after));
                    return Poll::Ready(Err(SendErrorKind::FirstByteTimeout { origin: self.origin, after }));
                }
            }
        }
    }

    fn closed(&self, cause: &str) -> SendErrorKind {
        SendErrorKind::Closed { origin: self.origin, cause: cause.to_owned() }
    }

    /// Whether all of the request was sent.
    pub(crate) fn has_sent(&self) -> bool {
        self.upload.has_ended()
    }

    /// Whether not a byte of the request was sent.
    pub(super) fn is_unsent(&self) -> bool {
        self.upload.is_unsent()
    }

    /// The failure, with the request's body if nothing of the request was sent.
    pub(super) fn failed(&mut self, kind: SendErrorKind) -> AskError {
        let unsent = self.is_unsent().then(|| self.take_body());
        AskError { kind, unsent }
    }

    /// Whether the request may be sent once more, on another connection, after this one has ended without a byte of an
    /// answer.
    pub(super) fn can_be_sent_anew(&self, head: &RequestHead) -> bool {
        let silent = self.intake.unread.is_empty() && self.heads == 0;
        silent && (self.is_unsent() || (head.method.is_idempotent() && self.upload.has_body()))
    }

    pub(super) fn take_body(&mut self) -> Body {
        self.upload.take_body()
    }

    /// The answer whose head was read just now, with a body that reads on.
    pub(super) fn answer(
        mut self: Box<Self>,
        request: &RequestHead,
        head: ResponseHead,
        content: Content,
        asked: Option<&Asked>,
    ) -> Answer {
        if let Some(asked) = asked {
            asked.first_byte.set(Some(clock::recent() - self.began()));
            asked.status.set(Some(head.status));
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switched(head);
        }
        let says = |token| head.fields.known(Known::Connection).any(|list| has_token(list, token));
        let persists = head.version == http::Version::HTTP_11 || says("keep-alive");
        self.stays = persists && !says("close") && content != Content::UntilEnd;
        // What must not be there may be there all the same, and would be taken for the next answer.
        let odd = head.status == StatusCode::NO_CONTENT
            && (head.fields.known(Known::TransferEncoding).next().is_some()
                || head.fields.known(Known::ContentLength).any(|length| length != b"0"));
        self.stays &= !odd && request.method != Method::CONNECT;
        self.intake.begin(content);
        // Nearly all answers come whole: then the connection is free before they have gone on.
        let whole = if self.upload.has_ended() { self.intake.take_whole() } else { None };
        let body = match whole {
            Some((whole, is_followed)) => {
                if let Some(asked) = asked {
                    asked.over.set(Some(clock::recent()));
                }
                self.stays &= !is_followed;
                self.give_back(clock::recent());
                Body::held(whole)
            }
            None => Body::upstream(self),
        };
        Answer { head, body }
    }

    /// The connection itself, after a 101.
    fn switched(mut self: Box<Self>, head: ResponseHead) -> Answer {
        let stream = self.stream.take().unwrap_or(Stream::Closed);
        let mut socket = Socket::new(stream, UPGRADED_WRITE_TIMEOUT);
        socket.unread(std::mem::take(&mut self.intake.unread).into_bytes());
        Answer { head, body: Body::upgraded(Upgraded::new(socket)) }
    }

    /// Both messages are over, or the connection is of no use.
    fn give_back(&mut self, now: Instant) {
        let sound =
            self.stays && self.intake.unread.is_empty() && self.upload.has_ended() && !self.broken_off;
        if let (Some(stream), true, Some(pool)) = (self.stream.take(), sound, self.pool.upgrade()) {
            pool.idle.put(self.origin, stream, now, &pool.settings.get());
        }
    }

    /// The next piece of the answer's body; what is left of the request goes on meanwhile.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.broken_off || (self.intake.has_ended() && self.stream.is_none()) {
            return Poll::Ready(None);
        }
        match ready!(self.poll_body(cx)) {
            Ok(frame) => {
                if self.intake.has_ended() {
                    self.give_back(clock::now());
                }
                Poll::Ready(frame.map(Ok))
            }
            Err(error) => Poll::Ready(Some(Err(self.break_off(error)))),
        }
    }

    /// Goes on with the request, while nobody can take more of its answer; says whether that gets further. The upstream
    /// may well read all of the request before it goes on with its answer.
    pub(crate) fn upload_on(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        // A body that fails has broken the request off; the answer may be good all the same, and the connection isn't.
        if let Poll::Ready(Err(_)) = self.upload.poll(cx, stream) {
            self.stays = false;
        }
        let moves = !self.upload.has_ended() && self.upload.moved_since(&mut self.upload_moved);
        if moves {
            self.patience.renew();
        }
        moves
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        self.upload_on(cx);
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(None)) };
        let broken = |cause: &str| Err(BodyError::Upstream(cause.to_owned()));
        loop {
            match self.intake.take() {
                Ok(Taken::Frame(frame)) => return Poll::Ready(Ok(Some(frame))),
                Ok(Taken::End) => return Poll::Ready(Ok(None)),
                Ok(Taken::Nothing) => {}
                Err(rule) => return Poll::Ready(broken(rule.kind())),
            }
            let Poll::Ready(read) = self.intake.poll_read(cx, stream) else {
                ready!(self.patience.poll_lost(cx));
                return Poll::Ready(Err(BodyError::UpstreamTooSlow(self.patience.limit())));
            };
            self.patience.renew();
            match read {
                Ok(Read::Data(data)) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                Ok(Read::More) => {}
                Ok(Read::End) if self.intake.connection_ended() => {}
                Ok(Read::End) => return Poll::Ready(broken("it ended")),
                Err(error) => return Poll::Ready(broken(&error.to_string())),
            }
        }
    }

    /// Whether so many of the next bytes are data in the socket that can go on without a look at them.
    pub(crate) fn can_splice(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::is_plain)
            && !self.broken_off
            && self.upload.has_ended()
            && self.intake.data_ahead() >= SPLICE_MIN_BYTES
    }

    /// Moves data of the body into an empty pipe; says how much. 0 is its end.
    pub(crate) fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &OwnedFd,
    ) -> Poll<Result<usize, BodyError>> {
        let Some(stream) = &self.stream else { return Poll::Ready(Ok(0)) };
        let most =
            usize::try_from(self.intake.data_ahead()).map_or(PIPE_BYTES, |ahead| ahead.min(PIPE_BYTES));
        if most == 0 {
            return Poll::Ready(Ok(0));
        }
        match stream.poll_into_pipe(cx, pipe, most) {
            Poll::Ready(Ok(length @ 1..)) => {
                self.patience.renew();
                self.intake.pass(length as u64);
                if self.intake.has_ended() {
                    self.give_back(clock::now());
                }
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Ok(_)) if self.intake.connection_ended() => Poll::Ready(Ok(0)),
            Poll::Ready(Ok(_)) => Poll::Ready(Err(self.break_off(BodyError::Upstream("it ended".into())))),
            Poll::Ready(Err(error)) => {
                Poll::Ready(Err(self.break_off(BodyError::Upstream(error.to_string()))))
            }
            Poll::Pending => {
                ready!(self.patience.poll_lost(cx));
                Poll::Ready(Err(self.break_off(BodyError::UpstreamTooSlow(self.patience.limit()))))
            }
        }
    }

    fn break_off(&mut self, error: BodyError) -> BodyError {
        self.broken_off = true;
        self.stream = None;
        error
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.broken_off || self.intake.has_ended()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.intake.exact_length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // A body of known length need not be asked for its end.
        if self.stream.is_some() && self.intake.has_ended() {
            self.give_back(clock::now());
        }
    }
}
