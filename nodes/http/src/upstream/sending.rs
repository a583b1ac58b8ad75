//! The body of a request on its way to an upstream.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::StatusCode;
use http::header::EXPECT;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::body::{Body, BodyError};
use crate::exchange::Request;

/// Watches what the connection takes of the body, and keeps it back until the upstream wants it.
pub(super) struct Sending {
    progress: Rc<Progress>,
    /// Until it is over nothing is sent: the client has asked the upstream for a word before.
    hold: Option<LocalBoxFuture<'static, ()>>,
}

/// How far the sending is, told to whoever waits for the answer.
pub(super) struct Progress {
    /// Here, and not in what the connection holds, so that one that nobody has touched can be had back.
    body: RefCell<Body>,
    touched: Cell<bool>,
    /// When the connection last took something, or asked for more.
    moved: Cell<Instant>,
    /// It is the body's source that everybody waits for.
    starved: Cell<bool>,
    ended: Cell<bool>,
    error: RefCell<Option<BodyError>>,
}

/// Upstreams may well ignore `Expect` (RFC 9110 section 10.1.1): after so long the body is sent unasked.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

impl Sending {
    pub(super) fn wrap(request: Request) -> (http::Request<Self>, Rc<Progress>) {
        let (head, body) = request.into_parts();
        let ended = body.is_end_stream();
        let progress = Rc::new(Progress {
            body: RefCell::new(body),
            touched: Cell::new(false),
            moved: Cell::new(Instant::now()),
            starved: Cell::new(false),
            ended: Cell::new(ended),
            error: RefCell::default(),
        });
        let sending = Self { progress: Rc::clone(&progress), hold: None };
        let mut request = http::Request::from_parts(head, sending);
        let expects = request
            .headers()
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if expects && !progress.ended() {
            let wanted = Arc::new(Notify::new());
            let asked = Arc::clone(&wanted);
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == StatusCode::CONTINUE {
                    asked.notify_one();
                }
            });
            request.body_mut().hold = Some(Box::pin(async move {
                // Asked for or not: both end the wait.
                let _ = timeout(CONTINUE_WAIT, wanted.notified()).await;
            }));
        }
        (request, progress)
    }

    /// The request as it was before [`Sending::wrap`], given back because nothing of it was sent.
    pub(super) fn unwrap(request: http::Request<Self>) -> Request {
        request.map(|sending| sending.progress.body.take())
    }
}

impl Progress {
    /// Since when it is the upstream that keeps everybody waiting.
    pub(super) fn since(&self) -> Instant {
        if self.starved.get() { Instant::now() } else { self.moved.get() }
    }

    /// Whether all of the body has been taken.
    pub(super) fn ended(&self) -> bool {
        self.ended.get()
    }

    /// The body, where not a frame of it was taken.
    pub(super) fn untouched(&self) -> Option<Body> {
        (!self.touched.replace(true)).then(|| self.body.take())
    }

    pub(super) fn take_error(&self) -> Option<BodyError> {
        self.error.take()
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(hold) = &mut self.hold {
            ready!(hold.as_mut().poll(cx));
            self.hold = None;
        }
        self.progress.touched.set(true);
        let frame = Pin::new(&mut *self.progress.body.borrow_mut()).poll_frame(cx);
        self.progress.starved.set(frame.is_pending());
        self.progress.moved.set(Instant::now());
        match ready!(frame) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => {
                let text = io::Error::other(error.to_string());
                self.progress.error.replace(Some(error));
                Poll::Ready(Some(Err(text)))
            }
            None => {
                self.progress.ended.set(true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.progress.body.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.progress.body.borrow().size_hint()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // A body of known length need not be asked for its end.
        if self.is_end_stream() && self.progress.error.borrow().is_none() {
            self.progress.ended.set(true);
        }
        // What has begun can't be sent anew, and whoever makes it should know.
        if self.progress.touched.get() {
            self.progress.body.take();
        }
    }
}
