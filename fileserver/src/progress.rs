//! What an upload tells those who watch it: CloudEvents for the topic `upload/{id}`, handed to whoever delivers them.
//!
//! The pipeline never waits for live. An upload has one [`Feed`], a short queue in order of time: progress that finds
//! it nearly full is dropped: two places are kept for the event that ends the upload and for `file.stored`.

use std::rc::Rc;
use std::time::{Duration, Instant};

use protoplex_wire::cloud_event::{CloudEvent, EventData, EventError};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// At most ten progress events a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Events of one upload that may wait for a slow live node.
const FEED_EVENTS: usize = 5;
/// Of them, kept for the last two events.
const KEPT_PLACES: usize = 2;
/// Feeds and invalidations that may wait to be taken by their deliverer.
const NOTICES: usize = 1024;

/// The pipeline's end.
#[derive(Clone)]
pub(crate) struct Live {
    /// The CloudEvents' source, `/fileserver-1/0`.
    source: Rc<str>,
    notices: mpsc::Sender<Notice>,
}

/// What there is to deliver.
pub(crate) enum Notice {
    /// A new upload's events; the feed ends with the upload.
    Feed(mpsc::Receiver<Event>),
    /// Names whose cached entries have to go.
    Invalidate(Invalidation),
}

/// An event on its way to the owner of its topic.
#[derive(Debug)]
pub(crate) struct Event {
    /// `upload/{id}`
    pub(crate) topic: String,
    /// A CloudEvent 1.0 in JSON.
    pub(crate) cloud_event: String,
    /// Worth trying again: everything but progress.
    pub(crate) lasting: bool,
}

/// Names to invalidate, and where to tell that every holder of an entry has dropped it.
#[derive(Debug)]
pub(crate) struct Invalidation {
    pub(crate) names: Vec<String>,
    pub(crate) done: oneshot::Sender<()>,
}

/// The deliverer's end.
pub(crate) type Notices = mpsc::Receiver<Notice>;

impl Live {
    /// Both ends.
    pub(crate) fn new(source: &str) -> (Self, Notices) {
        let (notices, receiver) = mpsc::channel(NOTICES);
        (Self { source: source.into(), notices }, receiver)
    }

    /// The feed of the upload whose public id is `watch`.
    pub(crate) fn feed(&self, watch: &str, path: &str) -> Feed {
        let (events, receiver) = mpsc::channel(FEED_EVENTS);
        if self.notices.try_send(Notice::Feed(receiver)).is_err() {
            tracing::warn!(
                upload = watch,
                "too many uploads wait for live: nobody will see this one's progress"
            );
        }
        Feed {
            source: self.source.clone(),
            subject: format!("upload/{watch}"),
            path: path.to_owned(),
            events,
            next: None,
        }
    }

    /// Waits until no cache has a stale entry under these names; `false` where that could not be made sure in time.
    pub(crate) async fn invalidate(&self, names: Vec<String>, patience: Duration) -> bool {
        let (done, answer) = oneshot::channel();
        let told = async {
            self.notices.send(Notice::Invalidate(Invalidation { names, done })).await.ok()?;
            answer.await.ok()
        };
        matches!(timeout(patience, told).await, Ok(Some(())))
    }
}

/// One upload's events.
pub(crate) struct Feed {
    source: Rc<str>,
    subject: String,
    path: String,
    events: mpsc::Sender<Event>,
    /// When the next progress event may be sent.
    next: Option<Instant>,
}

impl Feed {
    /// The upload was admitted; nothing of it has been received.
    pub(crate) fn started(&self, size: Option<u64>) {
        self.send("upload.started", json!({ "size": size, "path": self.path }), true);
    }

    /// So much has been received at `now`. Told at most ten times a second, and only while there is room.
    pub(crate) fn progress(&mut self, received: u64, size: Option<u64>, now: Instant) {
        if self.next.is_some_and(|next| now < next) || self.events.capacity() <= KEPT_PLACES {
            return;
        }
        self.next = Some(now + PROGRESS_INTERVAL);
        self.send("upload.progress", json!({ "received": received, "size": size, "path": self.path }), false);
    }

    /// The client has its answer, which is `data`.
    pub(crate) fn finished(&self, data: Value) {
        self.send("upload.finished", data, true);
    }

    /// Nothing of the upload is left.
    pub(crate) fn failed(&self, reason: &str) {
        self.send("upload.failed", json!({ "reason": reason, "path": self.path }), true);
    }

    /// The storage has the body.
    pub(crate) fn stored(&self, reference: &str) {
        self.send("file.stored", json!({ "reference": reference, "path": self.path }), true);
    }

    fn send(&self, kind: &str, data: Value, lasting: bool) {
        let cloud_event = EventData::json(&data).map_err(EventError::from).and_then(|data| {
            CloudEvent::new(&*self.source, kind)
                .with_subject(&self.subject)
                .with_data("application/json", data)
                .to_json()
        });
        let cloud_event = match cloud_event {
            Ok(json) => String::from_utf8_lossy(&json).into_owned(),
            Err(error) => {
                tracing::debug!(topic = self.subject, kind, "event dropped: {error}");
                return;
            }
        };
        let event = Event { topic: self.subject.clone(), cloud_event, lasting };
        if self.events.try_send(event).is_err() {
            tracing::debug!(topic = self.subject, kind, "event dropped: live is too slow or away");
        }
    }
}

#[cfg(test)]
mod tests;
