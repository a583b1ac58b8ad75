//! Event streams that are relayed: where their events end, and their end in good order when the process drains.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::Frame;
use tokio::task::Id;

use crate::body::{Body, BodyError};
use crate::clock;
use crate::deadline::Deadline;
use crate::drain::{Draining, Kind, Lasting, Parting, What};
use crate::exchange::Answer;
use crate::serve::Server;
use crate::upstream::Flight;

/// Clients of a stream that we end come back after a time of their own between these, in milliseconds.
const RETRY_MS: std::ops::Range<u64> = 200..2_000;
/// When a stream looks around that has nothing to wait for: the start of a drain wakes it.
const IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// Has an upstream's answer end in good order in a drain, if it is a stream of events that we can add one to. `task` is
/// the connection's.
pub(crate) fn attend<S>(answer: &mut Answer, server: &Server<S>, task: impl FnOnce() -> Option<Id>) {
    let Some(flight) = answer.body.as_upstream() else { return };
    let plain = flight.size_hint().exact().is_none() && flight.has_sent() && is_event_stream(answer);
    if !plain {
        return;
    }
    let Some(flight) = answer.body.take_upstream() else { return };
    let lasting = server.lasting(Kind::EventStream, task());
    answer.body = Body::wrap(EventStream {
        flight: Some(flight),
        events: Events::default(),
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
    drain: Draining,
    /// Drawn when the drain starts.
    parting: Option<Parting>,
    deadline: Deadline,
    lasting: Lasting,
}

impl EventStream {
    /// The last words.
    fn part(&mut self) -> Frame<Bytes> {
        self.flight = None;
        self.lasting.became(What::EventStreamsEnded);
        Frame::data(format!("retry: {}\n\n", rand::random_range(RETRY_MS)).into())
    }

    fn cut(&mut self) -> BodyError {
        self.flight = None;
        self.lasting.became(What::EventStreamsCut);
        BodyError::Other("the process ends, and the stream is within an event".to_owned())
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
            if this.parting.is_none() {
                this.parting = this.drain.parting(Kind::EventStream);
            }
            let parts = this.parting.is_some_and(|parting| parting.at <= clock::now());
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
            let until = match this.parting {
                None => clock::recent() + IDLE,
                Some(parting) if parts => parting.until,
                Some(parting) => parting.at,
            };
            ready!(this.deadline.poll(cx, until));
            if parts {
                return Poll::Ready(Some(Err(this.cut())));
            }
        }
    }
}

/// An event stream, followed from its first byte: whether what has passed ends with an empty line, that is, behind an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events {
    /// Nothing stands in the present line yet.
    line_is_empty: bool,
    /// The last byte was one: a line feed belongs to it.
    after_carriage_return: bool,
    are_whole: bool,
}

/// The longest form of the end of an event: nothing before it counts.
const END_BYTES: usize = "\r\n\r\n".len();

impl Default for Events {
    fn default() -> Self {
        Self { line_is_empty: true, after_carriage_return: false, are_whole: true }
    }
}

impl Events {
    pub(crate) fn are_whole(&self) -> bool {
        self.are_whole
    }

    /// All of this passes.
    pub(crate) fn pass(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(END_BYTES);
        if from > 0 {
            *self = Self { line_is_empty: false, after_carriage_return: false, are_whole: false };
        }
        bytes[from..].iter().for_each(|byte| self.step(*byte));
    }

    /// What passes of this up to the end of an event, or all of it.
    pub(crate) fn pass_until_whole(&mut self, mut bytes: Bytes) -> Bytes {
        let found = bytes.iter().position(|byte| {
            self.step(*byte);
            self.are_whole
        });
        if let Some(last) = found {
            let in_line_end = self.after_carriage_return && bytes.get(last + 1) == Some(&b'\n');
            bytes.truncate(last + 1 + usize::from(in_line_end));
        }
        bytes
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'\n' if self.after_carriage_return => self.after_carriage_return = false,
            b'\n' | b'\r' => {
                (self.are_whole, self.line_is_empty) = (self.line_is_empty, true);
                self.after_carriage_return = byte == b'\r';
            }
            _ => *self = Self { line_is_empty: false, after_carriage_return: false, are_whole: false },
        }
    }
}

#[cfg(test)]
mod tests;
