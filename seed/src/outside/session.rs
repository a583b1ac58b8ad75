//! The two halves of a member's link: what it says comes by requests, what it is told goes out as one long answer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures_util::StreamExt;
use protoplex_wire::identity::new_instance;
use protoplex_wire::proto::{FollowReply, FollowRequest, follow_request};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::message;
use crate::link::Requests;

/// What is sent at once, about: lines of several messages share a chunk.
const CHUNK_BYTES: usize = 32 << 10;

/// The way to a link's reader. It is gone when the link has ended.
pub(super) type Say = mpsc::Sender<follow_request::Message>;

/// What comes by requests, as it comes by gRPC.
pub(super) fn requests(heard: mpsc::Receiver<follow_request::Message>) -> impl Requests<FollowRequest> {
    ReceiverStream::new(heard).map(|message| Ok(FollowRequest { message: Some(message) }))
}

/// Says all of it, in its order, unless the link ends on the way.
pub(super) async fn say_all(say: &Say, messages: Vec<follow_request::Message>) -> bool {
    for message in messages {
        if say.send(message).await.is_err() {
            return false;
        }
    }
    true
}

/// By its name, with that of whoever's it is.
type ById = HashMap<String, (String, Say)>;
type Open = Arc<Mutex<ById>>;

/// The links that stand. There are no more of them than the seed has room for followers.
#[derive(Default)]
pub(super) struct Sessions {
    open: Open,
}

impl Sessions {
    /// A session of this peer under a name that nobody can guess, for as long as what this returns lives.
    pub(super) fn open(&self, peer: String, say: Say) -> Session {
        let id = new_instance();
        locked(&self.open).insert(id.clone(), (peer, say));
        Session { id, open: Arc::clone(&self.open) }
    }

    /// For the one who opened it.
    pub(super) fn find(&self, peer: &str, id: &str) -> Option<Say> {
        let open = locked(&self.open);
        open.get(id).filter(|(of, say)| of == peer && !say.is_closed()).map(|(_, say)| say.clone())
    }
}

/// Nothing in here panics, so none is left half-changed.
fn locked(open: &Mutex<ById>) -> std::sync::MutexGuard<'_, ById> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One that stands. When it is dropped its link ends, as when a gRPC stream is closed: the member's lease goes on.
pub(super) struct Session {
    id: String,
    open: Open,
}

impl Session {
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        locked(&self.open).remove(&self.id);
    }
}

/// What a member is told, a line each. Whoever drops it, since the connection is gone, ends the link.
pub(super) struct Lines {
    first: Option<String>,
    told: mpsc::Receiver<Result<FollowReply, Status>>,
    ended: bool,
    _session: Session,
}

impl Lines {
    pub(super) fn new(
        first: String,
        told: mpsc::Receiver<Result<FollowReply, Status>>,
        session: Session,
    ) -> Self {
        Self { first: Some(first), told, ended: false, _session: session }
    }
}

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut chunk = this.first.take().unwrap_or_default();
        while !this.ended && chunk.len() < CHUNK_BYTES {
            let reply = match this.told.poll_recv(context) {
                Poll::Pending if chunk.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(reply) => reply,
            };
            match reply {
                Some(Ok(reply)) => chunk.extend(reply.message.and_then(message::told)),
                Some(Err(why)) => {
                    chunk.push_str(&message::closed(&why));
                    this.ended = true;
                }
                None => this.ended = true,
            }
        }
        Poll::Ready((!chunk.is_empty()).then(|| Ok(chunk.into())))
    }
}
