//! Topics that other live children own: publishes to them and follows them, as any node would, through their owners.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, StatusCode, Uri};
use protoplex_http::upstream::{Pool, Settings};
use protoplex_http::{Body, Request, Response};
use protoplex_wire::follow::{Link, LocateError};
use protoplex_wire::identity::LIVE_POOL;
use thiserror::Error;

use crate::channel::{Since, Update};
use crate::config::Config;
use crate::frame;
use crate::mercure::{EARLIEST, LAST_EVENT_ID, PATH};
use crate::{PROTOPLEX_EPOCH, PROTOPLEX_KEY};

/// How often an owner is asked for one request: the known one, then the one that the seed names anew.
const OWNERS_ASKED: usize = 2;
/// How long an owner may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to other live children.
#[derive(Clone)]
pub(crate) struct Elsewhere {
    link: Link,
    upstream: Rc<Pool>,
    max_block_bytes: usize,
}

/// Why a topic could not be published to or followed at its owner.
#[derive(Debug, Error)]
pub(crate) enum ElsewhereError {
    /// The seed names none.
    #[error("has no owner now: {}", .0.reason)]
    NoOwner(LocateError),
    /// The owner does not want to.
    #[error("its owner answered {0}")]
    Refused(StatusCode),
    /// The owner does not answer, or not as a live node would.
    #[error("its owner can't be reached: {0}")]
    Unreachable(String),
}

/// One topic's event stream at its owner.
pub(crate) struct Stream {
    body: Body,
    buffer: BytesMut,
    max_block_bytes: usize,
}

/// A stream that has begun.
pub(crate) struct Followed {
    pub(crate) stream: Stream,
    /// The id of the place where it starts.
    pub(crate) position: String,
    /// Whether that is where it was asked to.
    pub(crate) complete: bool,
}

impl Elsewhere {
    /// Other children are taken to be configured as this one is.
    pub(crate) fn new(link: Link, config: &Config) -> Self {
        let settings = Settings {
            first_byte_timeout: ANSWER_TIMEOUT,
            body_idle_timeout: config.heartbeat * 3,
            ..Settings::default()
        };
        // In the worst case each byte of an update is a line of its own.
        let max_block_bytes = config.max_update_bytes * "data: \n".len() + 4096;
        Self { link, upstream: Pool::new(settings), max_block_bytes }
    }

    /// Publishes to `topic`, with the publisher's own token.
    pub(crate) async fn publish(
        &self,
        topic: &str,
        update: &Update,
        token: &str,
    ) -> Result<(), ElsewhereError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("topic", topic).append_pair("data", &update.data);
        form.extend_pairs(update.kind.iter().map(|kind| ("type", kind)));
        form.extend_pairs(update.id.iter().map(|id| ("id", id)));
        form.extend_pairs(update.retry_ms.iter().map(|retry_ms| ("retry", retry_ms.to_string())));
        form.extend_pairs(update.private.then_some(("private", "on")));
        let form = form.finish();
        let request = || {
            let mut request = Request::new(Body::full(form.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = Uri::from_static(PATH);
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, kind);
            request
        };
        self.ask(topic, Some(token), request).await.map(drop)
    }

    /// Opens the event stream of `topic`, with the subscriber's own token.
    pub(crate) async fn follow(
        &self,
        topic: &str,
        since: &Since,
        token: Option<&str>,
    ) -> Result<Followed, ElsewhereError> {
        let since = match since {
            Since::Now => None,
            Since::Earliest => Some(EARLIEST),
            Since::Event(id) => Some(id.as_str()),
        };
        let since = since.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok());
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("topic", topic).finish();
        let request = || {
            let mut request = Request::new(Body::empty());
            // What is percent-encoded is a good URI.
            *request.uri_mut() = format!("{PATH}?{query}").parse().unwrap_or_default();
            request.headers_mut().extend(since.clone().map(|since| (LAST_EVENT_ID, since)));
            request
        };
        let answer = self.ask(topic, token, request).await?;
        let complete = answer.headers().get(LAST_EVENT_ID) == since.as_ref();
        let mut stream = Stream {
            body: answer.into_body(),
            buffer: BytesMut::new(),
            max_block_bytes: self.max_block_bytes,
        };
        let opening = stream.block().await?;
        let position = frame::split(&opening).position.map(str::to_owned);
        let position =
            position.ok_or_else(|| ElsewhereError::Unreachable("its stream has no beginning".into()))?;
        Ok(Followed { stream, position, complete })
    }

    async fn ask(
        &self,
        topic: &str,
        token: Option<&str>,
        request: impl Fn() -> Request,
    ) -> Result<Response, ElsewhereError> {
        let unreachable = |error: &dyn std::fmt::Display| ElsewhereError::Unreachable(error.to_string());
        for _ in 0..OWNERS_ASKED {
            let owner = self.link.locate(LIVE_POOL, topic).await.map_err(ElsewhereError::NoOwner)?;
            let mut request = request();
            let headers = request.headers_mut();
            let value =
                |text: &str| HeaderValue::from_bytes(text.as_bytes()).map_err(|error| unreachable(&error));
            headers.insert(PROTOPLEX_KEY, value(topic)?);
            headers.insert(PROTOPLEX_EPOCH, owner.epoch.into());
            headers.insert(HOST, value(&owner.address.to_string())?);
            if let Some(token) = token {
                headers.insert(AUTHORIZATION, value(&format!("Bearer {token}"))?);
            }
            let answer =
                self.upstream.send(owner.address, request).await.map_err(|error| unreachable(&error))?;
            match answer.status() {
                StatusCode::OK => return Ok(answer),
                StatusCode::MISDIRECTED_REQUEST => self.link.refute(LIVE_POOL, topic, owner.epoch),
                status => return Err(ElsewhereError::Refused(status)),
            }
        }
        Err(ElsewhereError::Refused(StatusCode::MISDIRECTED_REQUEST))
    }
}

impl Stream {
    /// The next block with its empty line. Cancel-safe: what was read waits in the buffer.
    pub(crate) async fn block(&mut self) -> Result<String, ElsewhereError> {
        let broken = |reason: String| ElsewhereError::Unreachable(reason);
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block = String::from_utf8_lossy(&self.buffer[..end + 2]).into_owned();
                self.buffer.advance(end + 2);
                return Ok(block);
            }
            if self.buffer.len() > self.max_block_bytes {
                return Err(broken("an event of it is too long".into()));
            }
            match self.body.chunk().await {
                Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
                Some(Err(error)) => return Err(broken(error.to_string())),
                None => return Err(broken("its stream ended".into())),
            }
        }
    }
}
