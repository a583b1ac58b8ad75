//! A body that has to come in time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

/// Ends with an error where its end has not come in time. Whoever sends a little now and then gains nothing.
pub(super) struct Timely {
    body: Body,
    patience: Duration,
    /// From when it is waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    pub(super) fn new(body: Body, patience: Duration) -> Self {
        Self { body, patience, late: None }
    }
}

impl http_body::Body for Timely {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let patience = self.patience;
        ready!(self.late.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(context));
        let why = format!("the message did not come within {} s", patience.as_secs_f32());
        Poll::Ready(Some(Err(Status::deadline_exceeded(why))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
