//! The service of the log of events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protoplex_wire::clock::{BootTime, unix_ms_now};
use protoplex_wire::proto::event_log_server::EventLog as Service;
use protoplex_wire::proto::{
    AppendEventsReply, AppendEventsRequest, BuriedCounts, BuryEventReply, CountBuriedRequest, DeadEvent,
    DeadEventList, DropDueReply, DropDueRequest, DueEventsReply, DueEventsRequest, ListDeadEventsRequest,
    ListSubscriptionsRequest, MoveSubscriptionsReply, MoveSubscriptionsRequest, PostponeEventsReply,
    PostponeEventsRequest, PutSubscriptionRequest, ReadEventsReply, ReadEventsRequest,
    RemoveSubscriptionReply, RemoveSubscriptionRequest, Subscription, SubscriptionList, TrimEventsReply,
    TrimEventsRequest,
};
use tonic::Request;

use super::{Answer, answer};
use crate::event_log::EventLog;
use crate::event_log::ageing::Ageing;

pub(super) struct EventService<S> {
    store: Arc<S>,
    ageing: Mutex<Ageing>,
}

impl<S> EventService<S> {
    pub(super) fn new(store: Arc<S>) -> Self {
        Self { store, ageing: Mutex::new(Ageing::new(unix_ms_now(), BootTime::now())) }
    }

    /// By which time events are too old.
    fn now_ms(&self, max_age: Duration) -> i64 {
        // No code panics while it holds this lock.
        let mut ageing = self.ageing.lock().unwrap_or_else(PoisonError::into_inner);
        let (now_ms, step_ms) = ageing.now(unix_ms_now(), BootTime::now(), max_age);
        if let Some(step_ms) = step_ms {
            tracing::warn!(step_ms, "the clock was set ahead: no event goes earlier for that");
        }
        now_ms
    }
}

#[tonic::async_trait]
impl<S: EventLog> Service for EventService<S> {
    async fn append_events(&self, request: Request<AppendEventsRequest>) -> Answer<AppendEventsReply> {
        answer(self.store.append_events(request.into_inner()).await)
    }

    async fn read_events(&self, request: Request<ReadEventsRequest>) -> Answer<ReadEventsReply> {
        answer(self.store.read_events(request.into_inner()).await)
    }

    async fn trim_events(&self, request: Request<TrimEventsRequest>) -> Answer<TrimEventsReply> {
        let request = request.into_inner();
        let now_ms = self.now_ms(Duration::from_millis(request.max_age_ms));
        answer(self.store.trim_events(request, now_ms).await)
    }

    async fn postpone_events(&self, request: Request<PostponeEventsRequest>) -> Answer<PostponeEventsReply> {
        answer(self.store.postpone_events(request.into_inner()).await)
    }

    async fn due_events(&self, request: Request<DueEventsRequest>) -> Answer<DueEventsReply> {
        answer(self.store.due_events(request.into_inner()).await)
    }

    async fn drop_due(&self, request: Request<DropDueRequest>) -> Answer<DropDueReply> {
        answer(self.store.drop_due(request.into_inner().numbers).await.map(|()| DropDueReply {}))
    }

    async fn put_subscription(&self, request: Request<PutSubscriptionRequest>) -> Answer<Subscription> {
        answer(self.store.put_subscription(request.into_inner()).await)
    }

    async fn list_kept_subscriptions(
        &self,
        _: Request<ListSubscriptionsRequest>,
    ) -> Answer<SubscriptionList> {
        answer(self.store.list_subscriptions().await)
    }

    async fn move_subscriptions(
        &self,
        request: Request<MoveSubscriptionsRequest>,
    ) -> Answer<MoveSubscriptionsReply> {
        let moved = self.store.move_subscriptions(request.into_inner().moves).await;
        answer(moved.map(|()| MoveSubscriptionsReply {}))
    }

    async fn remove_kept_subscription(
        &self,
        request: Request<RemoveSubscriptionRequest>,
    ) -> Answer<RemoveSubscriptionReply> {
        let removed = self.store.remove_subscription(&request.into_inner().name).await;
        answer(removed.map(|()| RemoveSubscriptionReply {}))
    }

    async fn bury_event(&self, request: Request<DeadEvent>) -> Answer<BuryEventReply> {
        answer(self.store.bury_event(request.into_inner()).await.map(|()| BuryEventReply {}))
    }

    async fn list_buried(&self, request: Request<ListDeadEventsRequest>) -> Answer<DeadEventList> {
        answer(self.store.list_buried(request.into_inner()).await.map(|events| DeadEventList { events }))
    }

    async fn count_buried(&self, _: Request<CountBuriedRequest>) -> Answer<BuriedCounts> {
        answer(self.store.count_buried().await.map(|counts| BuriedCounts { counts }))
    }
}
