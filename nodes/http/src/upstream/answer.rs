//! The body of an upstream's answer.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::connection::Lease;
use super::sending::Progress;
use crate::body::BodyError;
use crate::patience::Patience;

/// Holds the connection's lease; read to its end it gives the connection back, dropped before it closes it.
pub(crate) struct Answer {
    body: hyper::body::Incoming,
    lease: Option<Lease>,
    progress: Rc<Progress>,
    patience: Patience,
    failed: bool,
}

impl Answer {
    pub(super) fn new(
        body: hyper::body::Incoming,
        lease: Lease,
        progress: Rc<Progress>,
        idle_timeout: Duration,
    ) -> Self {
        Self { body, lease: Some(lease), progress, patience: Patience::new(idle_timeout), failed: false }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let error = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => {
                self.end();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                return Poll::Ready(Some(Ok(frame)));
            }
            // The upstream may have broken off because we did.
            Poll::Ready(Some(Err(error))) => {
                self.progress.take_error().unwrap_or_else(|| BodyError::Upstream(error.to_string()))
            }
            Poll::Pending if self.patience.poll_lost(cx).is_ready() => {
                BodyError::UpstreamTooSlow(self.patience.limit())
            }
            Poll::Pending => return Poll::Pending,
        };
        self.failed = true;
        self.lease = None;
        Poll::Ready(Some(Err(error)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.failed || self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.progress.ended()
        {
            lease.give_back();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // A body of known length need not be asked for its end.
        if !self.failed && self.body.is_end_stream() {
            self.end();
        }
    }
}
