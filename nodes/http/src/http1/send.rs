//! Sends an answer, whatever its body is, no faster than the client takes it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body::{Body as _, Frame};

use super::framer::Framer;
use super::wire::Wire;
use super::write::{self, Framing, Persistence};
use crate::body::Body;
use crate::decimal;
use crate::exchange::{Answer, Exchange};
use crate::file_part;
use crate::head::{Known, ResponseHead};
use crate::outbox::Data;
use crate::pipe::Pipe;

/// How the sending of an answer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    /// The same, by the end of the connection.
    Last,
    /// Broken off, which the client can see from what it got: it is shorter than it was said to be.
    Short,
    /// Broken off where the end of the connection would pass for the end of the answer.
    Unframed,
}

/// An answer on its way.
pub(super) struct Sending<'a> {
    wire: &'a RefCell<Wire>,
    exchange: &'a Exchange,
    framer: Framer,
    /// Other answers may follow.
    stays: bool,
    body: Body,
    /// Of an upstream's body that goes through one.
    pipe: Option<Pipe>,
}

/// Past the outbox.
#[derive(Clone, Copy)]
enum Straight {
    File,
    Pipe,
}

/// The client, or the source of the body, is of no use any more.
struct Lost;

/// Sends an answer to its end. A short one that others may follow is left in the outbox, for [`Wire::poll_next`] to send.
pub(super) async fn send(
    wire: &RefCell<Wire>,
    exchange: &Exchange,
    answer: Answer,
    persistence: Persistence,
) -> Sent {
    let Answer { head, body } = answer;
    let framing = framing(exchange, &head, &body);
    let persistence = match framing {
        Framing::UntilEnd => Persistence::Closes,
        _ => persistence,
    };
    write::response_head(wire.borrow_mut().out.head(), &head, exchange.head.version, framing, persistence);
    drop(head);
    let framer = match exchange.head.method {
        Method::HEAD => Framer::without_body(),
        _ => Framer::new(framing),
    };
    let stays = persistence != Persistence::Closes;
    let mut sending = Sending { wire, exchange, framer, stays, body, pipe: None };
    let whole = poll_fn(|cx| sending.poll(cx)).await;
    if !whole {
        // What was sound goes out before the end that shows that it was not all.
        let _ = poll_fn(|cx| wire.borrow_mut().poll_flush(cx)).await;
    }
    match (whole, framing) {
        (true, Framing::UntilEnd) => Sent::Last,
        (true, _) => Sent::Whole,
        (false, Framing::UntilEnd) => Sent::Unframed,
        (false, _) => Sent::Short,
    }
}

/// How the client is told where the body ends (RFC 9112 section 6).
fn framing(exchange: &Exchange, head: &ResponseHead, body: &Body) -> Framing {
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let said = head.fields.known(Known::ContentLength).next().and_then(decimal::read);
    if exchange.head.method == Method::HEAD {
        // What a GET would have been told, where it is known.
        return match (said, body.exact_length()) {
            (None, Some(length @ 1..)) => Framing::Exact(length),
            _ => Framing::Bodiless,
        };
    }
    match body.exact_length().or(said) {
        _ if bodiless => Framing::Bodiless,
        Some(length) => Framing::Exact(length),
        None if exchange.head.version == Version::HTTP_10 => Framing::UntilEnd,
        None => Framing::Chunked,
    }
}

impl Sending<'_> {
    /// Ready with whether all of it has been sent.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            if let Some(way) = self.straight_way() {
                if ready!(self.poll_flush(cx)).is_err() {
                    return Poll::Ready(false);
                }
                let sent = match way {
                    Straight::File => self.poll_file(cx),
                    Straight::Pipe => self.poll_pipe(cx),
                };
                if let Err(Lost) = ready!(sent) {
                    return Poll::Ready(false);
                }
                continue;
            }
            // One piece at a time, but the head together with the first if that is there.
            if !self.framer.has_ended() && self.may_fill() {
                if let Some(data) = self.body.take_ready()
                    && !self.data(data)
                {
                    return Poll::Ready(false);
                }
                if self.framer.has_ended() || !self.may_fill() {
                    continue;
                }
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(frame) => {
                        if !self.take(frame) {
                            return Poll::Ready(false);
                        }
                    }
                    Poll::Pending => {
                        if ready!(self.poll_flush(cx)).is_err() {
                            return Poll::Ready(false);
                        }
                        return self.wire.borrow_mut().poll_gone(cx).map(|()| false);
                    }
                }
            }
            let ended = self.framer.has_ended();
            if ended && self.stays && self.wire.borrow_mut().out.seal() {
                return Poll::Ready(true);
            }
            if ready!(self.poll_flush(cx)).is_err() {
                return Poll::Ready(false);
            }
            if ended {
                return Poll::Ready(true);
            }
        }
    }

    /// Sends what waits. Meanwhile a request that is still on its way to its upstream goes on: its client may well read
    /// nothing before it has sent everything.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.wire.borrow_mut().poll_flush(cx);
        if flushed.is_pending()
            && let Some(flight) = self.body.as_upstream()
            && flight.upload_on(cx)
        {
            self.wire.borrow_mut().keep_patience();
        }
        flushed
    }

    /// How the rest of the body can go past the outbox, if it can.
    fn straight_way(&mut self) -> Option<Straight> {
        if self.framer.has_ended() || !self.framer.is_bare() {
            return None;
        }
        if self.body.as_file().is_some() {
            return Some(Straight::File);
        }
        if !self.wire.borrow().stream.is_plain() {
            return None;
        }
        if self.pipe.is_none() && self.body.as_upstream().is_some_and(|flight| flight.can_splice()) {
            // With no file descriptors left it goes by way of our memory.
            self.pipe = Pipe::open().ok();
        }
        self.pipe.is_some().then_some(Straight::Pipe)
    }

    /// Sends a part of the file.
    fn poll_file(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let Some(part) = self.body.as_file() else { return Poll::Ready(Err(Lost)) };
        let mut wire = self.wire.borrow_mut();
        // Nothing is read before it can be sent.
        ready!(wire.poll_room(cx)).map_err(|_| Lost)?;
        let sent = file_part::with_space(|space| match part.poll_read(cx, space) {
            Poll::Ready(Ok(read @ 1..)) => wire.poll_send_all(cx, &space[..read]).map_err(|_| Lost),
            // It can't be read, or is shorter than it was said to be.
            Poll::Ready(_) => Poll::Ready(Err(Lost)),
            Poll::Pending => wire.poll_gone(cx).map(|()| Err(Lost)),
        });
        let sent = ready!(sent)?;
        part.consume(sent);
        drop(wire);
        self.passed(sent)
    }

    /// Moves data from the upstream's socket to the client's.
    fn poll_pipe(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let (Some(pipe), Some(flight)) = (&mut self.pipe, self.body.as_upstream()) else {
            return Poll::Ready(Err(Lost));
        };
        let mut wire = self.wire.borrow_mut();
        if pipe.held == 0 {
            match flight.poll_splice(cx, pipe.end_in().map_err(|_| Lost)?) {
                Poll::Ready(Ok(0)) => return Poll::Ready(self.framer.stop().map_err(|_| Lost)),
                Poll::Ready(Ok(length)) => pipe.held = length,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Lost)),
                Poll::Pending => return wire.poll_gone(cx).map(|()| Err(Lost)),
            }
        }
        let sent = wire.poll_drain(cx, pipe.end_out().map_err(|_| Lost)?, pipe.held);
        let sent = ready!(sent).map_err(|_| Lost)?;
        pipe.held -= sent;
        drop(wire);
        self.passed(sent)
    }

    /// So much has gone.
    fn passed(&mut self, sent: usize) -> Poll<Result<(), Lost>> {
        let length = sent as u64;
        self.exchange.bytes_out.set(self.exchange.bytes_out.get() + length);
        Poll::Ready(self.framer.pass(length).map_err(|_| Lost))
    }

    /// Whether there is room for another piece.
    fn may_fill(&self) -> bool {
        self.wire.borrow().out.takes_data()
    }

    /// Puts what the body gave into the outbox; says whether it goes on, or has come to a good end.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, crate::BodyError>>) -> bool {
        match frame {
            None => self.end(None),
            Some(Err(_)) => false,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.data(Data::Shared(data)),
                Err(frame) => self.end(frame.into_trailers().ok()),
            },
        }
    }

    fn data(&mut self, data: Data) -> bool {
        self.exchange.bytes_out.set(self.exchange.bytes_out.get() + data.len() as u64);
        // A body that is known to end here needs no further look. It may read from this very connection.
        let is_last = self.body.is_end_stream();
        self.framer.data(&mut self.wire.borrow_mut().out, data, is_last).is_ok()
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> bool {
        self.framer.end(&mut self.wire.borrow_mut().out, trailers).is_ok()
    }
}
