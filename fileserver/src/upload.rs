//! Uploads: a raw PUT or POST, a form, or tus, each on the one way from a token to a file that is never lost.
//!
//! | step | on disk when it is done | after a crash |
//! | --- | --- | --- |
//! | token checked ([`admission`]), use and quota reserved ([`steps`]) | journal: receiving | undone, use and quota given back |
//! | body received and hashed | body | undone (tus: goes on at the last checkpoint) |
//! | compressed, where it pays and the content is new | body, gzip | undone |
//! | staged | journal: committing; the content under its reference | the datastore knows whether it was recorded |
//! | recorded in the datastore, stale cache entries dropped, 201 | the same; tus: journal: recorded | pushed |
//! | pushed to the storage, marked as stored ([`store`]) | the same | pushed again, which changes nothing |
//! | removed | nothing | |
//!
//! An upload runs in a task of its own: when its client leaves, the request is dropped but the upload ends in order.

mod admission;
mod answer;
mod form;
mod intent;
mod raw;
mod records;
mod recover;
mod refusal;
mod steps;
mod store;
mod tus;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::Method;
use http::request::Parts;
use protoplex_http::{Exchange, Request, Response, Scheme};
use protoplex_runtime::drain::{Drain, Tasks};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;

pub(crate) use self::records::Records;
use self::refusal::Refusal;
use crate::progress::Live;
use crate::staging::Staging;
use crate::storage::Bodies;

/// Uploads of a child that may run at once; each has half a mebibyte of body in memory at most.
const MAX_IN_FLIGHT: usize = 128;
/// Bodies of a child that may wait for the storage in memory of their own; more wait on the disk alone.
const MAX_PUSHES: usize = 32;

/// Whole tus uploads of a child that are recorded at once, aside from those whose last part came just now: each may have
/// gigabytes to compress.
const MAX_RECORDINGS: usize = 4;

/// The upload side of one child.
pub(crate) struct Uploads {
    records: Records,
    staging: Staging,
    bodies: Rc<Bodies>,
    live: Live,
    tasks: Tasks,
    drain: Drain,
    in_flight: Arc<Semaphore>,
    pushes: Arc<Semaphore>,
    recordings: Arc<Semaphore>,
    /// Whoever has it brings whole uploads to be recorded, one after the other.
    backlog: Arc<Semaphore>,
}

/// Whether a request is an upload, rather than a question for a file.
pub(crate) fn is_upload(head: &Parts) -> bool {
    head.method == Method::PUT || head.method == Method::POST || tus::is_tus(head.uri.path())
}

impl Uploads {
    pub(crate) fn new(
        records: Records,
        staging: Staging,
        bodies: Rc<Bodies>,
        live: Live,
        tasks: Tasks,
        drain: Drain,
    ) -> Rc<Self> {
        let [in_flight, pushes, recordings, backlog] =
            [MAX_IN_FLIGHT, MAX_PUSHES, MAX_RECORDINGS, 1].map(|permits| Arc::new(Semaphore::new(permits)));
        Rc::new(Self { records, staging, bodies, live, tasks, drain, in_flight, pushes, recordings, backlog })
    }

    /// Answers an upload. Dropping the future doesn't end it: its body does, one way or the other.
    pub(crate) async fn handle(self: &Rc<Self>, request: Request, exchange: &Exchange) -> Response {
        self.in_its_own_task(request, exchange.scheme).await
    }

    async fn in_its_own_task(self: &Rc<Self>, request: Request, scheme: Scheme) -> Response {
        let (answer, told) = oneshot::channel();
        let uploads = self.clone();
        self.tasks.spawn(async move {
            let response = uploads.respond(request, scheme).await;
            // Without a receiver the client has left; the upload is stored or undone all the same.
            let _ = answer.send(response);
        });
        told.await.unwrap_or_else(|_| Refusal::Broken.problem().into_response())
    }

    async fn respond(self: &Rc<Self>, request: Request, scheme: Scheme) -> Response {
        let (head, body) = request.into_parts();
        if tus::is_tus(head.uri.path()) {
            return self.tus(&head, body, scheme).await;
        }
        if form::is_form(&head) {
            return self.form(&head, body, scheme).await;
        }
        match self.raw(&head, body, scheme).await {
            Ok(answer) => answer::created(&[answer]),
            Err(refusal) => refusal.problem().into_response(),
        }
    }
}

/// Does disk work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await?
}

/// The wall clock, in Unix milliseconds.
fn unix_time_ms() -> u64 {
    unix_ms(SystemTime::now())
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
