//! The body of a client's request on its way to the handler.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::body::BodyError;
use crate::exchange::Exchange;
use crate::framing::{Rule, may_trail};
use crate::gate::Gate;
use crate::http2::Discard;
use crate::patience::Patience;

/// Counts what comes, gives up a client that sends nothing, and tells apart why a body broke off.
pub(crate) struct Incoming {
    /// Taken when it is dropped.
    body: Option<hyper::body::Incoming>,
    exchange: Rc<Exchange>,
    source: Source,
    patience: Patience,
    failed: bool,
}

/// Where a body comes from, and so what is to be known of it besides.
pub(crate) enum Source {
    /// The gate knows which rule a body has broken.
    Http1(Gate),
    /// What is left of a body that nobody wants is to be discarded here.
    Http2(Discard),
}

impl Incoming {
    pub(crate) fn new(
        body: hyper::body::Incoming,
        exchange: &Rc<Exchange>,
        source: Source,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            body: Some(body),
            exchange: Rc::clone(exchange),
            source,
            patience: Patience::new(idle_timeout),
            failed: false,
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = self.body.as_mut().filter(|_| !self.failed) else { return Poll::Ready(None) };
        let error = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) if self.source.refuses(&frame) => {
                self.exchange.fault.set(Some(Rule::BadTrailer));
                BodyError::Malformed(Rule::BadTrailer.detail())
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.exchange.bytes_in.set(self.exchange.bytes_in.get() + length);
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(_))) => match self.source.malformed() {
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
        self.failed || self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Source::Http2(discard) = &self.source
            && !self.is_end_stream()
            && let Some(body) = self.body.take()
        {
            discard.start(body);
        }
    }
}

impl Source {
    /// Whether these are trailers that must not be. Those of HTTP/1.1 the gate has refused already.
    fn refuses(&self, frame: &Frame<Bytes>) -> bool {
        matches!(self, Self::Http2(_))
            && frame
                .trailers_ref()
                .is_some_and(|trailers| !trailers.keys().all(|name| may_trail(name.as_str().as_bytes())))
    }

    fn malformed(&self) -> Option<Rule> {
        match self {
            Self::Http1(gate) => gate.malformed(),
            Self::Http2(_) => None,
        }
    }
}
