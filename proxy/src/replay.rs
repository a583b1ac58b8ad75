//! A request's body that can be sent once more: what was read of it is kept until the answer is known to stand.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use protoplex_http::{Body, BodyError};

/// The most that is kept of a body, in bytes. A request that has sent more can't be sent again.
pub(crate) const MAX_REPLAY_BYTES: usize = 64 * 1_024;

/// What a piece costs besides its bytes.
const FRAME_BYTES: usize = 64;

/// The body of one request, over all the times it is sent.
pub(crate) struct Replay {
    /// `None` where there is no body: nothing to keep.
    tape: Option<Rc<RefCell<Tape>>>,
}

struct Tape {
    source: Body,
    source_ended: bool,
    kept: Vec<Kept>,
    kept_bytes: usize,
    /// Kept frames that the current sending has given.
    given: usize,
    /// False once the answer stands, or when too much was read.
    keeping: bool,
    /// The sending that may read on; earlier ones were broken off.
    current: u32,
    /// Of the current sending, while it waits for the source.
    waiting: Option<Waker>,
}

#[derive(Clone)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// One sending of a [`Replay`].
struct Sending {
    tape: Rc<RefCell<Tape>>,
    number: u32,
}

impl Replay {
    /// Keeps what is read of `source` from now on.
    pub(crate) fn new(source: Body) -> Self {
        let tape = Tape {
            source,
            source_ended: false,
            kept: Vec::new(),
            kept_bytes: 0,
            given: 0,
            keeping: true,
            current: 0,
            waiting: None,
        };
        Self { tape: (!tape.source.is_end_stream()).then(|| Rc::new(RefCell::new(tape))) }
    }

    /// The body from its beginning, for the first time or once more. Whoever was sending it before is broken off.
    ///
    /// `None` where more than [`MAX_REPLAY_BYTES`] were read, so that its beginning is lost.
    pub(crate) fn send(&self) -> Option<Body> {
        let Some(shared) = &self.tape else { return Some(Body::empty()) };
        let mut tape = shared.borrow_mut();
        if !tape.keeping {
            return None;
        }
        tape.current += 1;
        tape.given = 0;
        // It learns that it is broken off, and lets go of its connection.
        if let Some(earlier) = tape.waiting.take() {
            earlier.wake();
        }
        Some(Body::wrap(Sending { tape: Rc::clone(shared), number: tape.current }))
    }

    /// The answer stands: the body goes on without being kept.
    pub(crate) fn settle(&self) {
        if let Some(tape) = &self.tape {
            let mut tape = tape.borrow_mut();
            tape.keeping = false;
            tape.forget();
        }
    }
}

impl Tape {
    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Kept, BodyError>>> {
        if self.source_ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut self.source).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => {
                self.source_ended = true;
                return Poll::Ready(None);
            }
            Poll::Pending => {
                self.waiting = Some(context.waker().clone());
                return Poll::Pending;
            }
        };
        let kept = match frame.into_data() {
            Ok(data) => Kept::Data(data),
            Err(frame) => Kept::Trailers(frame.into_trailers().unwrap_or_default()),
        };
        Poll::Ready(Some(Ok(kept)))
    }

    /// Lets go of what nobody will ask for any more.
    fn forget(&mut self) {
        if !self.keeping && self.given >= self.kept.len() {
            self.kept = Vec::new();
        }
    }

    /// Keeps a frame that was read, where it fits.
    fn keep(&mut self, frame: &Kept) {
        if let Kept::Data(data) = frame {
            self.kept_bytes += data.len() + FRAME_BYTES;
        }
        if self.kept_bytes > MAX_REPLAY_BYTES + FRAME_BYTES {
            self.keeping = false;
        }
        if self.keeping {
            self.kept.push(match frame {
                // A piece of few bytes may hold the memory of many.
                Kept::Data(data) => Kept::Data(Bytes::copy_from_slice(data)),
                trailers => trailers.clone(),
            });
        }
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let tape = Rc::clone(&self.tape);
        let mut tape = tape.borrow_mut();
        if tape.current != self.number {
            return Poll::Ready(Some(Err(BodyError::Other("sent anew to another owner".to_owned()))));
        }
        let frame = match tape.kept.get(tape.given).cloned() {
            Some(kept) => kept,
            None => match ready!(tape.poll_source(context)) {
                Some(Ok(frame)) => {
                    tape.keep(&frame);
                    frame
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            },
        };
        tape.given += 1;
        tape.forget();
        Poll::Ready(Some(Ok(match frame {
            Kept::Data(data) => Frame::data(data),
            Kept::Trailers(trailers) => Frame::trailers(trailers),
        })))
    }

    fn is_end_stream(&self) -> bool {
        let tape = self.tape.borrow();
        tape.current == self.number && tape.source_ended && tape.given >= tape.kept.len()
    }

    fn size_hint(&self) -> SizeHint {
        let tape = self.tape.borrow();
        let left = tape.source.size_hint();
        let unsent: usize = tape.kept.iter().skip(tape.given).map(Kept::bytes).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(left.lower() + unsent as u64);
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + unsent as u64);
        }
        hint
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests;
