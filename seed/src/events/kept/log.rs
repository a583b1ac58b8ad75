//! The log of events as the leading seed has it: what comes is appended in batches, the latest stays in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::events::{MAX_BATCH, MAX_BATCH_BYTES};
use protoplex_wire::proto::{
    AppendEventsReply, AppendEventsRequest, KeptEvent, LoggedEvent, LostEvents, NewEvent, ReadEventsRequest,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::cluster::Handle;
use crate::datastores::{Datastores, call, call_within, limited, limited_to};
use crate::events::carrier::{CarrierError, Outgoing};
use crate::leader::fenced;

/// Calls that wait to be appended; more are told to come later.
const MAX_WAITING: usize = 1024;
/// How long the datastore may take for a batch.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// What is kept in memory: for those that follow closely no page is read.
const TAIL_EVENTS: usize = 16_384;
const TAIL_BYTES: usize = 32 << 20;
/// Events of one page.
const PAGE: u32 = 512;
/// How often it is looked whether somebody else has appended, or an append whose answer was lost has been made.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An event of the log.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) position: u64,
    pub(super) kept_at_ms: i64,
    pub(super) topic: String,
    pub(super) event: Vec<u8>,
}

/// What was read.
#[derive(Default)]
pub(super) struct Page {
    pub(super) records: Vec<Arc<Record>>,
    /// Positions before the first that are kept no longer.
    pub(super) lost: Option<LostEvents>,
    /// All up to here was read.
    pub(super) up_to: u64,
}

/// The log during one term of this seed.
pub(super) struct Log {
    term: u64,
    cluster: Handle,
    datastores: Arc<Datastores>,
    tail: Mutex<Tail>,
    head: watch::Sender<u64>,
    waiting: mpsc::Sender<Waiting>,
}

/// The last events, without a hole.
#[derive(Default)]
struct Tail {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
}

/// Events that wait to be appended.
pub(super) struct Waiting {
    events: Vec<Outgoing>,
    done: oneshot::Sender<Result<Vec<KeptEvent>, CarrierError>>,
}

impl Log {
    /// The log, and what waits for [`Self::append_all`].
    pub(super) async fn open(
        term: u64,
        cluster: Handle,
        datastores: Arc<Datastores>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Waiting>), CarrierError> {
        let (waiting, to_append) = mpsc::channel(MAX_WAITING);
        let (tail, head) = (Mutex::default(), watch::Sender::new(0));
        let log = Self { term, cluster, datastores, tail, head, waiting };
        log.look().await?;
        Ok((Arc::new(log), to_append))
    }

    /// The last position.
    pub(super) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Appends events, all or none.
    pub(super) async fn append(&self, events: Vec<Outgoing>) -> Result<Vec<KeptEvent>, CarrierError> {
        let (done, outcome) = oneshot::channel();
        self.waiting.try_send(Waiting { events, done }).map_err(|_| {
            CarrierError::Full("too many events wait to be kept: publish more slowly".to_owned())
        })?;
        outcome.await.unwrap_or_else(|_| Err(CarrierError::Away("this seed leads no more".to_owned())))
    }

    /// Appends what comes, as much at a time as there is.
    pub(super) async fn append_all(self: Arc<Self>, mut waiting: mpsc::Receiver<Waiting>) {
        let mut next = None;
        loop {
            let Some(first) = (match next.take() {
                Some(first) => Some(first),
                None => waiting.recv().await,
            }) else {
                return;
            };
            let mut batch = vec![first];
            let (mut events, mut bytes) = size(&batch[0]);
            while let Ok(more) = waiting.try_recv() {
                let (more_events, more_bytes) = size(&more);
                if events + more_events > MAX_BATCH || bytes + more_bytes > MAX_BATCH_BYTES {
                    next = Some(more);
                    break;
                }
                (events, bytes) = (events + more_events, bytes + more_bytes);
                batch.push(more);
            }
            self.append_batch(batch).await;
        }
    }

    async fn append_batch(&self, batch: Vec<Waiting>) {
        let new = |event: &Outgoing| NewEvent { key: event.key.to_vec(), event: event.json.clone() };
        let events = batch.iter().flat_map(|waiting| &waiting.events).map(new).collect();
        let mut datastore = self.datastores.events();
        let request = AppendEventsRequest { term: self.term, events };
        match call_within(APPEND_TIMEOUT, datastore.append_events(limited_to(APPEND_TIMEOUT, request))).await
        {
            Ok(AppendEventsReply { positions, kept_at_ms }) => {
                let mut positions = positions.into_iter();
                for Waiting { events, done } in batch {
                    let positions: Vec<_> = positions.by_ref().take(events.len()).collect();
                    let kept =
                        |&position: &u64| KeptEvent { position, repeated: position == 0, due_at_ms: 0 };
                    let _ = done.send(Ok(positions.iter().map(kept).collect()));
                    self.remember(events, &positions, kept_at_ms);
                }
            }
            Err(status) => {
                tracing::debug!(reason = status.message(), "events are not kept");
                fenced(&status, &self.cluster).await;
                for Waiting { done, .. } in batch {
                    let _ = done.send(Err(status.clone().into()));
                }
            }
        }
    }

    fn remember(&self, events: Vec<Outgoing>, positions: &[u64], kept_at_ms: i64) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        for (event, &position) in events.into_iter().zip(positions).filter(|(_, position)| **position > 0) {
            let Outgoing { topic, json, .. } = event;
            tail.push(Record { position, kept_at_ms, topic, event: json });
        }
        let last = tail.records.back().map_or(0, |record| record.position);
        drop(tail);
        self.head.send_if_modified(|head| std::mem::replace(head, last.max(*head)) < last);
    }

    /// What comes after a position.
    pub(super) async fn read(&self, after: u64) -> Result<Page, CarrierError> {
        if let Some(page) = self.remembered(after) {
            return Ok(page);
        }
        let mut datastore = self.datastores.events();
        let request = ReadEventsRequest { after, limit: PAGE };
        let page = call(datastore.read_events(limited(request))).await?;
        let first = page.events.first().map_or(page.head + 1, |event| event.position);
        let lost = (first > after + 1).then(|| LostEvents { first: after + 1, last: first - 1 });
        let up_to = page.events.last().map_or(page.head.max(after), |event| event.position);
        Ok(Page { records: page.events.into_iter().filter_map(record).map(Arc::new).collect(), lost, up_to })
    }

    /// The first position that is kept, and the last one.
    pub(super) async fn ends(&self) -> Result<(u64, u64), CarrierError> {
        let mut datastore = self.datastores.events();
        let request = ReadEventsRequest { after: u64::MAX >> 1, limit: 0 };
        let page = call(datastore.read_events(limited(request))).await?;
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).forget(page.earliest);
        Ok((page.earliest, page.head))
    }

    /// Notices what others have appended.
    pub(super) async fn look_again_and_again(self: Arc<Self>) {
        loop {
            sleep(LOOK_EVERY).await;
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "can't look at the log of events");
            }
        }
    }

    async fn look(&self) -> Result<(), CarrierError> {
        let (_, last) = self.ends().await?;
        self.head.send_if_modified(|head| std::mem::replace(head, last.max(*head)) < last);
        Ok(())
    }

    fn remembered(&self, after: u64) -> Option<Page> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let first = tail.records.front()?.position;
        let skipped = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let records: Vec<_> = tail.records.iter().skip(skipped).take(PAGE as usize).cloned().collect();
        let up_to = records.last()?.position;
        Some(Page { records, lost: None, up_to })
    }
}

impl Tail {
    fn push(&mut self, record: Record) {
        if self.records.back().is_some_and(|last| last.position + 1 != record.position) {
            *self = Self::default();
        }
        self.bytes += record.event.len();
        self.records.push_back(Arc::new(record));
        while self.records.len() > TAIL_EVENTS || self.bytes > TAIL_BYTES {
            self.pop();
        }
    }

    /// What comes before is kept no longer.
    fn forget(&mut self, earliest: u64) {
        while self.records.front().is_some_and(|first| first.position < earliest) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        self.bytes -= self.records.pop_front().map_or(0, |first| first.event.len());
    }
}

/// One that can't be read was never taken.
fn record(logged: LoggedEvent) -> Option<Record> {
    let LoggedEvent { position, kept_at_ms, event } = logged;
    let topic = CloudEvent::from_json(&event).ok()?.topic().to_owned();
    Some(Record { position, kept_at_ms, topic, event })
}

fn size(waiting: &Waiting) -> (usize, usize) {
    (waiting.events.len(), waiting.events.iter().map(|event| event.json.len()).sum())
}
