//! Event streams that are relayed: where their events end, and their end in good order when the process drains, or their
//! exchange is recalled.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::Frame;
use memchr::memchr2;

use crate::body::{Body, BodyError};
use crate::clock;
use crate::deadline::Deadline;
use crate::drain::{Bearer, Draining, Kind, Lasting, Parting, What};
use crate::exchange::{Answer, Exchange};
use crate::serve::Server;
use crate::upstream::Flight;

/// Clients of a stream that we end come back after a time of their own between these, in milliseconds.
const RETRY_MS: std::ops::Range<u64> = 200..2_000;
/// When a stream looks around that has nothing to wait for: the start of a drain wakes it.
const IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// Has an upstream's answer end in good order in a drain, if it is a stream of events that we can add one to. Whoever asked
/// by another method than GET, with a prompt, say, waits for the one answer and does not come back: it is a request as any.
pub(crate) fn attend<S>(
    answer: &mut Answer,
    server: &Server<S>,
    exchange: &Rc<Exchange>,
    bearer: impl FnOnce() -> Option<Bearer>,
) {
    if exchange.head.method != Method::GET {
        return;
    }
    let Some(flight) = answer.body.as_upstream() else { return };
    let plain = flight.size_hint().exact().is_none() && flight.has_sent() && is_event_stream(answer);
    if !plain {
        return;
    }
    let Some(flight) = answer.body.take_upstream() else { return };
    let lasting = server.lasting(Kind::EventStream, bearer());
    answer.body = Body::wrap(EventStream {
        flight: Some(flight),
        events: Events::default(),
        exchange: Rc::clone(exchange),
        drain: server.drain.clone(),
        parting: None,
        deadline: Deadline::default(),
        lasting,
    });
}

fn is_event_stream(answer: &Answer) -> bool {
    let fields = &answer.head.fields;
    let essence = fields.get(&CONTENT_TYPE).map(|value| value.split(|byte| *byte == b';').next());
    essence.flatten().is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
        && !fields.contains(&CONTENT_ENCODING)
}

/// The body of such an answer.
struct EventStream {
    /// Gone once we have ended it.
    flight: Option<Box<Flight>>,
    events: Events,
    exchange: Rc<Exchange>,
    drain: Draining,
    /// Drawn when the drain starts, or the exchange is recalled.
    parting: Option<Parting>,
    deadline: Deadline,
    lasting: Lasting,
}

impl EventStream {
    /// The last words.
    fn part(&mut self) -> Frame<Bytes> {
        self.flight = None;
        self.lasting.became(What::EventStreamsEnded);
        let line_end = if self.events.is_at_line() { "" } else { "\n" };
        Frame::data(format!("{line_end}retry: {}\n\n", rand::random_range(RETRY_MS)).into())
    }

    fn cut(&mut self) -> BodyError {
        self.flight = None;
        self.lasting.became(What::EventStreamsCut);
        BodyError::Other("the stream was to end, and is within an event".to_owned())
    }
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            let recalled = this.exchange.recalled(cx);
            let parting = this.drain.part(Kind::EventStream, &mut this.parting, recalled);
            let parts = parting.is_some_and(|parting| parting.at <= clock::now());
            if parts && this.flight.is_some() && this.events.are_whole() {
                return Poll::Ready(Some(Ok(this.part())));
            }
            let Some(flight) = &mut this.flight else { return Poll::Ready(None) };
            if let Poll::Ready(frame) = flight.poll_frame(cx) {
                let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
                return Poll::Ready(Some(Ok(match frame.into_data() {
                    Ok(data) if parts => Frame::data(this.events.pass_until_whole(data)),
                    Ok(data) => {
                        this.events.pass(&data);
                        Frame::data(data)
                    }
                    Err(trailers) => trailers,
                })));
            }
            let until = match parting {
                None => clock::recent() + IDLE,
                Some(parting) if parts => parting.until,
                Some(parting) => parting.at,
            };
            ready!(this.deadline.poll(cx, until));
            if parts {
                let ended = if this.events.are_between() { Ok(this.part()) } else { Err(this.cut()) };
                return Poll::Ready(Some(ended));
            }
        }
    }
}

/// An event stream, followed from its first byte: whether what has passed ends behind an event. Lines of comment, by which
/// many a stream shows that it lives, belong to none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events {
    line: Line,
    /// The last byte was one: a line feed belongs to it.
    after_carriage_return: bool,
    /// There is a field since the last empty line.
    in_event: bool,
    /// So many bytes of the byte order mark have passed that a stream may begin with, or all where it does not.
    mark: usize,
}

/// Of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What stands in the present line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Nothing,
    Comment,
    Field,
}

impl Events {
    pub(crate) fn are_whole(&self) -> bool {
        self.are_between() && self.is_at_line()
    }

    /// Whether they are, but for the end of a comment.
    fn are_between(&self) -> bool {
        !self.in_event
    }

    fn is_at_line(&self) -> bool {
        self.line == Line::Nothing
    }

    /// All of this passes.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            self.step(*first);
            bytes = rest;
            if self.line != Line::Nothing {
                // Nothing counts before the end of the line.
                bytes = &bytes[memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len())..];
            }
        }
    }

    /// What passes of this up to the end of an event, or all of it.
    pub(crate) fn pass_until_whole(&mut self, mut bytes: Bytes) -> Bytes {
        let found = bytes.iter().position(|byte| {
            self.step(*byte);
            self.are_whole()
        });
        if let Some(last) = found {
            let in_line_end = self.after_carriage_return && bytes.get(last + 1) == Some(&b'\n');
            bytes.truncate(last + 1 + usize::from(in_line_end));
        }
        bytes
    }

    fn step(&mut self, byte: u8) {
        if BYTE_ORDER_MARK.get(self.mark) == Some(&byte) {
            self.mark += 1;
            return;
        }
        self.mark = BYTE_ORDER_MARK.len();
        let after_carriage_return = std::mem::replace(&mut self.after_carriage_return, byte == b'\r');
        match byte {
            b'\n' if after_carriage_return => {}
            b'\n' | b'\r' => {
                self.in_event &= self.line != Line::Nothing;
                self.line = Line::Nothing;
            }
            b':' if self.line == Line::Nothing => self.line = Line::Comment,
            _ if self.line == Line::Nothing => (self.line, self.in_event) = (Line::Field, true),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
