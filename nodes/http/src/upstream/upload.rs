//! A request on its way to an upstream: its head, and its body as it is made.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tokio::time::Instant;

use crate::body::{Body, BodyError};
use crate::clock;
use crate::deadline::Deadline;
use crate::head::{Known, RequestHead};
use crate::http1::{self, Framer, Framing};
use crate::outbox::{Data, Outbox};
use crate::socket::Stream;

/// What is sent, and how far that is.
pub(super) struct Upload {
    out: Outbox,
    framer: Framer,
    body: Body,
    /// The body once more, where it is wholly in memory.
    spare: Option<Body>,
    /// Until then nothing is sent of the body: the client has asked the upstream for a word before.
    hold: Option<Hold>,
    /// When the head was written.
    pub(super) began: Instant,
    /// A byte was sent.
    begun: bool,
    /// The body has been asked for a piece.
    touched: bool,
    /// The upstream takes nothing any more. It may have answered before; how it goes on is told by reading.
    deaf: bool,
    /// When the connection last took something, or when the body had nothing to give.
    moved: Instant,
    /// It is the body's source that everybody waits for.
    starved: bool,
    /// Not all went at once.
    waited: bool,
}

struct Hold {
    until: Instant,
    deadline: Deadline,
}

/// Upstreams may well ignore `Expect` (RFC 9110 section 10.1.1): after so long the body is sent unasked.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

impl Upload {
    pub(super) fn new(head: &RequestHead, body: Body) -> Self {
        let length = if body.is_end_stream() { Some(0) } else { body.exact_length() };
        let framing = length.map_or(Framing::Chunked, Framing::Exact);
        let mut out = Outbox::default();
        http1::request_head(out.head(), head, framing);
        let expects =
            head.fields.known(Known::Expect).any(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let now = clock::now();
        let framer = Framer::new(framing);
        let hold = (expects && !framer.has_ended())
            .then(|| Hold { until: now + CONTINUE_WAIT, deadline: Deadline::default() });
        Self {
            out,
            framer,
            spare: body.copy(),
            body,
            hold,
            began: now,
            begun: false,
            touched: false,
            deaf: false,
            moved: now,
            starved: false,
            waited: false,
        }
    }

    /// Whether all has been sent.
    pub(super) fn has_ended(&self) -> bool {
        self.framer.has_ended() && self.out.is_empty() && !self.deaf
    }

    /// Whether not a byte has been sent.
    pub(super) fn is_unsent(&self) -> bool {
        !self.begun && self.has_body()
    }

    /// Whether the body can be had as it was.
    pub(super) fn has_body(&self) -> bool {
        !self.touched || self.spare.is_some()
    }

    pub(super) fn take_body(&mut self) -> Body {
        self.spare.take().unwrap_or_else(|| std::mem::take(&mut self.body))
    }

    /// The upstream wants the body.
    pub(super) fn go_on(&mut self) {
        self.hold = None;
    }

    /// Since when it is the upstream that keeps everybody waiting; `None` while it is not.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (!self.starved).then_some(self.moved)
    }

    /// Whether something was sent, or waited for at its source, since this was asked last.
    pub(super) fn moved_since(&self, last: &mut Option<Instant>) -> bool {
        !self.deaf && (self.starved || last.replace(self.moved) != Some(self.moved))
    }

    /// Sends what can be sent now. Ready when there is no more to come; an error is the body's, which breaks the
    /// request off.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Result<(), BodyError>> {
        loop {
            if self.deaf {
                return Poll::Pending;
            }
            if !self.held(cx) && !self.framer.has_ended() && self.out.takes_data() {
                self.touched = true;
                let frame = Pin::new(&mut self.body).poll_frame(cx);
                self.starved = frame.is_pending();
                self.waited |= self.starved;
                if let Poll::Ready(frame) = frame {
                    if let Err(error) = self.take(frame) {
                        // Never to be ended: the upstream must see that this was not all.
                        self.deaf = true;
                        self.out.clear();
                        return Poll::Ready(Err(error));
                    }
                    if self.out.is_empty() && !self.framer.has_ended() {
                        // An empty piece: nobody would wake us for the next one.
                        continue;
                    }
                } else if self.out.is_empty() {
                    self.moved = clock::now();
                    return Poll::Pending;
                }
            }
            if self.out.is_empty() {
                return if self.framer.has_ended() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            ready!(self.poll_flush(cx, stream));
            if self.framer.has_ended() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends what waits in the outbox.
    fn poll_flush(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<()> {
        while !self.out.is_empty() {
            let Poll::Ready(written) = self.out.poll_write(cx, stream) else {
                self.waited = true;
                return Poll::Pending;
            };
            match written {
                Ok(sent) => {
                    self.begun = true;
                    self.out.consume(sent);
                }
                Err(_) => {
                    self.deaf = true;
                    self.out.clear();
                    return Poll::Ready(());
                }
            }
            // Nearly always it all goes at once, when the time is known.
            self.moved = if self.waited { clock::now() } else { clock::recent() };
        }
        Poll::Ready(())
    }

    fn held(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(hold) = &mut self.hold else { return false };
        if hold.deadline.poll(cx, hold.until).is_ready() {
            self.hold = None;
            self.waited = true;
        }
        self.hold.is_some()
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) -> Result<(), BodyError> {
        let put = match frame.transpose()?.map(Frame::into_data) {
            None => self.framer.end(&mut self.out, None),
            Some(Ok(data)) => {
                // A body that is known to end here needs no further look.
                let is_last = self.body.is_end_stream();
                self.framer.data(&mut self.out, Data::Shared(data), is_last)
            }
            Some(Err(frame)) => self.framer.end(&mut self.out, frame.into_trailers().ok()),
        };
        put.map_err(|mismatch| BodyError::Other(mismatch.to_string()))
    }
}
