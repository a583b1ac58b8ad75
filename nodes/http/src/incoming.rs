//! The body of a client's request on its way to the handler.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::body::BodyError;
use crate::exchange::Exchange;
use crate::framing::Rule;
use crate::gate::Gate;
use crate::patience::Patience;

/// Counts what comes, gives up a client that sends nothing, and tells apart why a body broke off.
pub(crate) struct Incoming {
    body: hyper::body::Incoming,
    exchange: Rc<Exchange>,
    gate: Option<Gate>,
    patience: Patience,
    failed: bool,
}

impl Incoming {
    pub(crate) fn new(
        body: hyper::body::Incoming,
        exchange: &Rc<Exchange>,
        gate: Option<&Gate>,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            body,
            exchange: Rc::clone(exchange),
            gate: gate.cloned(),
            patience: Patience::new(idle_timeout),
            failed: false,
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let error = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.exchange.bytes_in.set(self.exchange.bytes_in.get() + length);
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(_))) => match self.gate.as_ref().and_then(Gate::malformed) {
                Some(rule) => {
                    self.exchange.fault.set(Some(rule));
                    BodyError::Malformed(rule.detail())
                }
                None => BodyError::ClientGone,
            },
            Poll::Pending if self.patience.poll_lost(cx).is_ready() => {
                self.exchange.fault.set(Some(Rule::BodyTooSlow));
                BodyError::TooSlow(self.patience.limit())
            }
            Poll::Pending => return Poll::Pending,
        };
        self.failed = true;
        Poll::Ready(Some(Err(error)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.failed || self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
