//! What a database keeps of events: the log, what is to be published later, and where subscriptions have come to.
//!
//! The messages are those of `event_log.proto`. What is decided of them, whatever the database, is decided here.

pub(crate) mod ageing;
#[cfg(test)]
pub(crate) mod contract;

use std::collections::{HashMap, HashSet};
use std::future::Future;

use protoplex_wire::events::REPEAT_WINDOW;
use protoplex_wire::proto::{
    AppendEventsReply, AppendEventsRequest, DeadEvent, DueEventsReply, DueEventsRequest,
    ListDeadEventsRequest, NewEvent, PostponeEventsReply, PostponeEventsRequest, PutSubscriptionRequest,
    ReadEventsReply, ReadEventsRequest, Subscription, SubscriptionList, SubscriptionMove, TrimEventsReply,
    TrimEventsRequest,
};

use crate::store::{StoreError, StoreResult, integer};

/// The most rows of one page, and of one call that drops.
pub(crate) const MAX_PAGE: u32 = 1024;
/// A page ends behind so many bytes, but has one event in any case.
pub(crate) const PAGE_BYTES: i64 = 4 << 20;
/// Dropped in one call, so that others have their turn.
pub(crate) const DROPPED_AT_ONCE: i64 = 4096;
/// Events that may wait for their time on behalf of publishers.
pub(crate) const MAX_POSTPONED: i64 = 100_000;
/// Subscriptions of a cluster.
pub(crate) const MAX_SUBSCRIPTIONS: i64 = 1000;
/// Dead events that are kept for each subscription.
pub(crate) const MAX_DEAD: i64 = 1000;
/// Listed where nobody says how many.
const DEFAULT_LISTED: u32 = 100;

/// The events of a cluster. Every change is durable when its future is ready, and is made whole or not at all; to repeat
/// one is safe.
pub trait EventLog: Send + Sync + 'static {
    /// Keeps events behind all others, in their order.
    ///
    /// [`StoreError::Fenced`]: a later term of the seeds' lease has begun; [`StoreError::Invalid`]: a key has not 32
    /// bytes.
    fn append_events(
        &self,
        request: AppendEventsRequest,
    ) -> impl Future<Output = StoreResult<AppendEventsReply>> + Send;

    /// One page behind a position.
    fn read_events(
        &self,
        request: ReadEventsRequest,
    ) -> impl Future<Output = StoreResult<ReadEventsReply>> + Send;

    /// Drops what is over a limit, the oldest first, and keys that are too old to be known again, at this Unix time.
    fn trim_events(
        &self,
        request: TrimEventsRequest,
        now_ms: i64,
    ) -> impl Future<Output = StoreResult<TrimEventsReply>> + Send;

    /// Keeps events until their time has come. [`StoreError::TooMany`]: too many wait.
    fn postpone_events(
        &self,
        request: PostponeEventsRequest,
    ) -> impl Future<Output = StoreResult<PostponeEventsReply>> + Send;

    /// Those whose time has come, the first due first; also no more than some megabytes, but one at least. Those that are
    /// larger than was asked for hold none of the others up: they are only counted.
    fn due_events(
        &self,
        request: DueEventsRequest,
    ) -> impl Future<Output = StoreResult<DueEventsReply>> + Send;

    /// Forgets those that were published.
    fn drop_due(&self, numbers: Vec<u64>) -> impl Future<Output = StoreResult<()>> + Send;

    /// Makes a subscription, or answers the one that has the name, as it is. [`StoreError::TooMany`]: there are too many.
    fn put_subscription(
        &self,
        request: PutSubscriptionRequest,
    ) -> impl Future<Output = StoreResult<Subscription>> + Send;

    /// All subscriptions by name, each with the number of its dead events.
    fn list_subscriptions(&self) -> impl Future<Output = StoreResult<SubscriptionList>> + Send;

    /// Moves positions onwards.
    fn move_subscriptions(
        &self,
        moves: Vec<SubscriptionMove>,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// Forgets a subscription and its dead events. [`StoreError::NotFound`]: there is nothing of it.
    fn remove_subscription(&self, name: &str) -> impl Future<Output = StoreResult<()>> + Send;

    /// Keeps an event that a subscription gives up.
    fn bury_event(&self, event: DeadEvent) -> impl Future<Output = StoreResult<()>> + Send;

    /// Dead events of a subscription, the oldest first; no more than some megabytes, but one at least.
    fn list_buried(
        &self,
        request: ListDeadEventsRequest,
    ) -> impl Future<Output = StoreResult<Vec<DeadEvent>>> + Send;

    /// How many dead events each subscription has that has any.
    fn count_buried(&self) -> impl Future<Output = StoreResult<HashMap<String, u64>>> + Send;
}

/// Where the log has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) position: i64,
    pub(crate) bytes: i64,
}

/// A row of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: i64,
    pub(crate) end_bytes: i64,
    pub(crate) key: Vec<u8>,
    pub(crate) event: Vec<u8>,
}

/// What an appending comes to.
pub(crate) struct Appending {
    pub(crate) entries: Vec<Entry>,
    /// In the order of the request; 0 for one that is kept already.
    pub(crate) positions: Vec<u64>,
    pub(crate) head: Head,
}

/// Gives positions to all events whose keys aren't known yet.
pub(crate) fn append(events: Vec<NewEvent>, mut known: HashSet<Vec<u8>>, mut head: Head) -> Appending {
    let mut entries = Vec::with_capacity(events.len());
    let mut positions = Vec::with_capacity(events.len());
    for NewEvent { key, event } in events {
        if !known.insert(key.clone()) {
            positions.push(0);
            continue;
        }
        head.position += 1;
        head.bytes += i64::try_from(event.len()).unwrap_or(i64::MAX);
        positions.push(head.position.cast_unsigned());
        entries.push(Entry { position: head.position, end_bytes: head.bytes, key, event });
    }
    Appending { entries, positions, head }
}

/// What can be said of new events by themselves.
pub(crate) fn check(events: &[NewEvent]) -> StoreResult<()> {
    match events.iter().all(|event| event.key.len() == 32) {
        true => Ok(()),
        false => Err(StoreError::Invalid("an event's key has 32 bytes".to_owned())),
    }
}

/// Keys from before this moment are not known any more.
pub(crate) fn keys_since(now_ms: i64) -> i64 {
    now_ms.saturating_sub(i64::try_from(REPEAT_WINDOW.as_millis()).unwrap_or(i64::MAX))
}

/// When events are due that are postponed now.
pub(crate) fn due_at(now_ms: i64, delay_ms: u64) -> i64 {
    now_ms.saturating_add(i64::try_from(delay_ms).unwrap_or(i64::MAX))
}

pub(crate) fn too_many_postponed() -> StoreError {
    StoreError::TooMany(format!("{MAX_POSTPONED} delayed events wait already, and more are not taken"))
}

pub(crate) fn too_many_subscriptions() -> StoreError {
    StoreError::TooMany(format!(
        "there are {MAX_SUBSCRIPTIONS} subscriptions, and no more are taken: remove one that nobody needs"
    ))
}

pub(crate) fn no_subscription(name: &str) -> StoreError {
    StoreError::NotFound(format!("there is no subscription {name:?}"))
}

pub(crate) fn listed(limit: u32) -> u32 {
    if limit == 0 { DEFAULT_LISTED } else { limit.min(MAX_PAGE) }
}

/// How large due events may be, as databases compare it.
pub(crate) fn most_bytes(request: &DueEventsRequest) -> i64 {
    if request.max_event_bytes == 0 { i64::MAX } else { integer(request.max_event_bytes) }
}

/// How much a page may still have. Rows are of any size.
#[derive(Default)]
pub(crate) struct Page {
    bytes: usize,
}

impl Page {
    /// Whether a row of so many bytes is in it: the first is, and what fits behind it.
    pub(crate) fn takes(&mut self, bytes: usize) -> bool {
        let is_first = self.bytes == 0;
        self.bytes += bytes;
        is_first || i64::try_from(self.bytes).is_ok_and(|bytes| bytes <= PAGE_BYTES)
    }
}

/// As a column has them. No pattern has a space.
pub(crate) fn join_patterns(patterns: &[String]) -> String {
    patterns.join(" ")
}

/// As the protocol has them.
pub(crate) fn split_patterns(column: &str) -> Vec<String> {
    column.split_whitespace().map(str::to_owned).collect()
}
