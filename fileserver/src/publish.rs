//! Brings events and invalidations to the live nodes that own their topics.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderName, StatusCode};
use protoplex_http::upstream::{Pool, SendError};
use protoplex_http::{Body, BodyError, Request};
use protoplex_runtime::drain::{Drain, Tasks};
use protoplex_wire::follow::{Link, LocateError};
use protoplex_wire::identity::LIVE_POOL;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::credential::Credentials;
use crate::progress::{Event, Invalidation, Notice, Notices};
use crate::registrations::shard;

const PROTOPLEX_KEY: HeaderName = HeaderName::from_static("protoplex-key");
const PROTOPLEX_EPOCH: HeaderName = HeaderName::from_static("protoplex-epoch");

/// How long one attempt to deliver an event may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an event other than progress is tried.
const LASTING: Duration = Duration::from_secs(30);
/// How long it is still tried once this child drains: where a whole cluster ends, nobody is left to take it.
const LASTING_IN_DRAIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(250);
/// An invalidation is answered once its registrants have dropped their entries, for which live gives them 500 ms.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of live's answer, in bytes, so that its connection can be used again.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// Delivers to whichever live node owns a key at the moment.
pub(crate) struct Publisher {
    link: Link,
    pool: Rc<Pool>,
    credentials: Rc<Credentials>,
    tasks: Tasks,
    drain: Drain,
}

/// Why something was not delivered.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("no owner: {0}")]
    Locate(#[from] LocateError),
    #[error("live can't be reached: {0}")]
    Send(#[from] SendError),
    #[error("live's answer broke off: {0}")]
    Answer(#[from] BodyError),
    #[error("live answered {0}")]
    Status(StatusCode),
    #[error("the token can't be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error("the request can't be made: {0}")]
    Request(#[from] http::Error),
}

impl Publisher {
    pub(crate) fn new(
        link: Link,
        pool: Rc<Pool>,
        credentials: Rc<Credentials>,
        tasks: Tasks,
        drain: Drain,
    ) -> Rc<Self> {
        Rc::new(Self { link, pool, credentials, tasks, drain })
    }

    /// Delivers what the pipeline hands over, for as long as there is a pipeline.
    pub(crate) async fn deliver(self: Rc<Self>, mut notices: Notices) {
        while let Some(notice) = notices.recv().await {
            let publisher = self.clone();
            match notice {
                Notice::Feed(events) => self.tasks.spawn(async move { publisher.follow(events).await }),
                Notice::Invalidate(names) => {
                    self.tasks.spawn(async move { publisher.invalidate(names).await })
                }
            }
        }
    }

    /// One upload's events, one after the other.
    async fn follow(&self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            let mut given_up = pin!(self.given_up(event.lasting));
            loop {
                match timeout(ATTEMPT_TIMEOUT, self.publish(&event)).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => tracing::debug!(topic = event.topic, "event not delivered: {error}"),
                    Err(_) => tracing::debug!(topic = event.topic, "event not delivered in time"),
                }
                // Both arms are cancel-safe.
                tokio::select! {
                    biased;
                    () = &mut given_up => break,
                    () = sleep(PAUSE) => {}
                }
            }
        }
    }

    /// Ends when an event that could not be delivered until then is let go.
    async fn given_up(&self, lasting: bool) {
        if lasting && timeout(LASTING, self.drain.started()).await.is_ok() {
            sleep(LASTING_IN_DRAIN).await;
        }
    }

    async fn publish(&self, event: &Event) -> Result<(), PublishError> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("topic", &event.topic)
            .append_pair("data", &event.cloud_event)
            .finish();
        let credential = self.credentials.publisher(&event.topic)?;
        self.post(&event.topic, "/.well-known/mercure", &credential, form.into()).await
    }

    /// Tells when every name is told. One that fails leaves the question unanswered, and its asker asks again.
    async fn invalidate(&self, Invalidation { names, done }: Invalidation) {
        let end = Instant::now() + INVALIDATE_TIMEOUT;
        let told = names.iter().map(|name| async move {
            let query: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
            let target = format!("/.well-known/protoplex/invalidate?name={query}");
            let post = async {
                let credential = self.credentials.node()?;
                self.post(&shard(name), &target, &credential, Bytes::new()).await
            };
            match timeout_at(end, post).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(name, "stale entries may be left: {error}");
                    false
                }
                Err(_) => false,
            }
        });
        if futures_util::future::join_all(told).await.into_iter().all(|told| told) {
            // Without a receiver its asker has lost patience.
            let _ = done.send(());
        }
    }

    /// Posts to the owner of a key; where it isn't the owner any more, once more to the new one.
    async fn post(&self, key: &str, target: &str, credential: &str, body: Bytes) -> Result<(), PublishError> {
        let status = self.post_once(key, target, credential, body.clone()).await?;
        let status = match status {
            StatusCode::MISDIRECTED_REQUEST => self.post_once(key, target, credential, body).await?,
            status => status,
        };
        if status.is_success() { Ok(()) } else { Err(PublishError::Status(status)) }
    }

    async fn post_once(
        &self,
        key: &str,
        target: &str,
        credential: &str,
        body: Bytes,
    ) -> Result<StatusCode, PublishError> {
        let owner = self.link.locate(LIVE_POOL, key).await?;
        let request: Request = http::Request::post(target)
            .header(HOST, owner.address.to_string())
            .header(AUTHORIZATION, credential)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(PROTOPLEX_KEY, key)
            .header(PROTOPLEX_EPOCH, owner.epoch)
            .body(Body::full(body))?;
        let response = self.pool.send(owner.address, request).await?;
        let status = response.status();
        if status == StatusCode::MISDIRECTED_REQUEST {
            self.link.refute(LIVE_POOL, key, owner.epoch);
        }
        response.into_body().collect(MAX_ANSWER_BYTES).await?;
        Ok(status)
    }
}

#[cfg(test)]
mod tests;
