//! The body of a client's request on its way to the handler.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::rule::Rule;
use super::wire::{BodyFault, Wire};
use crate::body::BodyError;
use crate::exchange::Exchange;

/// Reads from the connection as it is polled, counts what comes, and notes what breaks a rule.
pub(crate) struct Incoming {
    wire: Rc<RefCell<Wire>>,
    exchange: Rc<Exchange>,
    failed: bool,
}

impl Incoming {
    pub(super) fn new(wire: &Rc<RefCell<Wire>>, exchange: &Rc<Exchange>) -> Self {
        wire.borrow_mut().has_reader = true;
        Self { wire: Rc::clone(wire), exchange: Rc::clone(exchange), failed: false }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let frame = ready!(self.wire.borrow_mut().poll_body(cx));
        if !matches!(frame, Ok(Some(_))) {
            self.wire.borrow_mut().wake();
        }
        Poll::Ready(match frame {
            Ok(frame) => {
                let length = frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
                self.exchange.bytes_in.set(self.exchange.bytes_in.get() + length);
                frame.map(Ok)
            }
            Err(fault) => {
                self.failed = true;
                let rule = match fault {
                    BodyFault::Broken(rule) => Some(rule),
                    BodyFault::TooSlow(_) => Some(Rule::BodyTooSlow),
                    BodyFault::Gone => None,
                };
                self.exchange.fault.set(rule.or(self.exchange.fault.get()));
                Some(Err(fault.into()))
            }
        })
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.failed || !self.wire.borrow().has_body()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.wire.borrow().body_length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut wire = self.wire.borrow_mut();
        wire.has_reader = false;
        wire.wake();
    }
}
