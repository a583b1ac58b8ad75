//! The body of a client's request on its way to the handler.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::Discard;
use crate::body::BodyError;
use crate::deadline::Patience;
use crate::exchange::Exchange;
use crate::http1::{Rule, may_trail};

/// Counts what comes, gives up a client that sends nothing, and tells apart why a body broke off.
pub(crate) struct Incoming {
    /// Taken when it is dropped.
    body: Option<hyper::body::Incoming>,
    exchange: Rc<Exchange>,
    /// What is left of a body that nobody wants is to be discarded here.
    discard: Discard,
    patience: Patience,
    failed: bool,
}

impl Incoming {
    pub(super) fn new(
        body: hyper::body::Incoming,
        exchange: &Rc<Exchange>,
        discard: Discard,
        idle_timeout: Duration,
    ) -> Self {
        let (exchange, patience) = (Rc::clone(exchange), Patience::new(idle_timeout));
        Self { body: Some(body), exchange, discard, patience, failed: false }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = self.body.as_mut().filter(|_| !self.failed) else { return Poll::Ready(None) };
        let error = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) if refuses(&frame) => {
                self.exchange.fault.set(Some(Rule::BadTrailer));
                BodyError::Malformed(Rule::BadTrailer.detail())
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.exchange.bytes_in.set(self.exchange.bytes_in.get() + length);
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(_))) => BodyError::ClientGone,
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
        self.failed || self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_end_stream()
            && let Some(body) = self.body.take()
        {
            self.discard.start(body);
        }
    }
}

/// Whether these are trailers that must not be.
fn refuses(frame: &Frame<Bytes>) -> bool {
    let sound = |trailers: &http::HeaderMap| trailers.keys().all(|name| may_trail(name.as_str().as_bytes()));
    frame.trailers_ref().is_some_and(|trailers| !sound(trailers))
}
