//! The service of the bus: checks what comes, and brings it to the carrier.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::events::{MAX_BATCH, MAX_BATCH_BYTES, MAX_DELAY, MAX_WINDOW, check_name};
use protoplex_wire::proto::events_server::Events;
use protoplex_wire::proto::subscribe_hello::Start as WireStart;
use protoplex_wire::proto::{
    AckEvents, DeadEventList, KeptEvent, ListDeadEventsRequest, ListSubscriptionsRequest, NackEvent,
    NewEvent, PostponeEventsRequest, PublishReply, PublishRequest, RemoveSubscriptionReply,
    RemoveSubscriptionRequest, SubscribeHello, SubscribeReply, SubscribeRequest, Subscribed,
    SubscriptionList, subscribe_reply, subscribe_request,
};
use protoplex_wire::topic::{MAX_PATTERNS, TopicError};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::carrier::{
    Answer, AnyCarrier, Carrier, CarrierError, Interest, Membership, Outgoing, Start, Told,
};
use crate::datastores::{Datastores, call, limited};
use crate::role::Role;

/// Subscribers of one seed.
const MAX_SUBSCRIBERS: usize = 2000;
/// How long a subscriber may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages between a subscriber's task and its connection, which has a buffer of its own.
const MAX_WAITING_REPLIES: usize = 4;
/// How long the carrier may take for a publication, in all.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(8);

/// Clones share all of it.
#[derive(Clone)]
pub(crate) struct EventBus {
    carrier: AnyCarrier,
    datastores: Arc<Datastores>,
    subscribers: Arc<Semaphore>,
    names: Names,
    role: watch::Receiver<Role>,
    ending: watch::Receiver<bool>,
}

impl EventBus {
    /// Subscribers are told to come again later when `ending` becomes true.
    pub(crate) fn new(
        carrier: AnyCarrier,
        datastores: Arc<Datastores>,
        role: watch::Receiver<Role>,
        ending: watch::Receiver<bool>,
    ) -> Self {
        let subscribers = Arc::new(Semaphore::new(MAX_SUBSCRIBERS));
        Self { carrier, datastores, subscribers, names: Names::default(), role, ending }
    }

    /// See [`Carrier::end`].
    pub(crate) async fn end(&self) {
        self.carrier.end().await;
    }

    /// One that knows who leads says so at once: subscribers of one name meet there.
    fn not_led(&self) -> Result<(), Status> {
        match &*self.role.borrow() {
            role @ Role::Understudy { .. } => role.refusal().map_or(Ok(()), Err),
            Role::Waiting | Role::Leading(_) => Ok(()),
        }
    }

    async fn postpone(&self, events: Vec<Outgoing>, delay_ms: u64) -> Result<Vec<KeptEvent>, Status> {
        if Duration::from_millis(delay_ms) > MAX_DELAY {
            return Err(Status::invalid_argument("an event is delayed for a year at most"));
        }
        let most = self.carrier.max_event_bytes();
        if events.iter().any(|event| event.json.len() > most) {
            let reason = format!("NATS takes no event as large as that: {most} bytes at most (max_payload)");
            return Err(Status::resource_exhausted(reason));
        }
        let new = |event: Outgoing| NewEvent { key: event.key.to_vec(), event: event.json };
        let request = PostponeEventsRequest { events: events.into_iter().map(new).collect(), delay_ms };
        let mut datastore = self.datastores.events();
        let reply = call(datastore.postpone_events(limited(request))).await.map_err(CarrierError::from)?;
        let due_at_ms = reply.due_at_ms;
        Ok(reply
            .repeated
            .into_iter()
            .map(|repeated| KeptEvent { position: 0, repeated, due_at_ms })
            .collect())
    }

    async fn take_up(
        &self,
        requests: &mut Streaming<SubscribeRequest>,
    ) -> Result<(Membership, Name), Status> {
        let silent = |_| Status::deadline_exceeded("no hello came");
        let first = timeout(HELLO_TIMEOUT, requests.message()).await.map_err(silent)??;
        let Some(subscribe_request::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("a subscriber's first message is its hello"));
        };
        let exclusive = hello.exclusive;
        let interest = interest(hello)?;
        let name = self.names.take(&interest.name, exclusive)?;
        Ok((self.carrier.subscribe(interest).await?, name))
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<SubscribeReply, Status>> + Send>>;

#[tonic::async_trait]
impl Events for EventBus {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishReply>, Status> {
        self.not_led()?;
        let PublishRequest { events, delay_ms } = request.into_inner();
        let bytes: usize = events.iter().map(Vec::len).sum();
        if events.len() > MAX_BATCH || (events.len() > 1 && bytes > MAX_BATCH_BYTES) {
            let text = format!("one call has at most {MAX_BATCH} events and {MAX_BATCH_BYTES} bytes");
            return Err(Status::invalid_argument(text));
        }
        let outgoing = |(n, json): (usize, Vec<u8>)| match CloudEvent::from_json(&json) {
            Ok(event) => Ok(Outgoing::new(&event, json)),
            Err(error) => Err(Status::invalid_argument(format!("event {}: {error}", n + 1))),
        };
        let events = events.into_iter().enumerate().map(outgoing).collect::<Result<Vec<_>, _>>()?;
        if events.is_empty() {
            return Ok(Response::new(PublishReply::default()));
        }
        metrics::counter!("protoplex_seed_events_published_total").increment(events.len() as u64);
        let kept = if delay_ms > 0 {
            self.postpone(events, delay_ms).await?
        } else {
            let late = |_| {
                Status::unavailable(
                    "the events were not kept in time, but may be later: where they are published again, then by the same id",
                )
            };
            timeout(PUBLISH_TIMEOUT, self.carrier.publish(events)).await.map_err(late)??
        };
        Ok(Response::new(PublishReply { kept }))
    }

    type SubscribeStream = Replies;

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.not_led()?;
        let full = |_| Status::resource_exhausted("the seed has as many subscribers as it may have");
        let slot = Arc::clone(&self.subscribers).try_acquire_owned().map_err(full)?;
        let (replies, stream) = mpsc::channel(MAX_WAITING_REPLIES);
        let (service, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let served = async {
                let (membership, _name) = service.take_up(&mut requests).await?;
                relay(membership, requests, &replies).await
            };
            let mut ending = service.ending.clone();
            let ended = tokio::select! {
                ended = served => ended,
                _ = ending.wait_for(|ending| *ending) => Err(Status::unavailable("the seed is ending")),
            };
            if let Err(status) = ended {
                let _ = replies.send(Err(status)).await;
            }
            drop(slot);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_subscriptions(
        &self,
        _: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<SubscriptionList>, Status> {
        self.not_led()?;
        let mut list = self.carrier.subscriptions().await?;
        list.carrier = self.carrier.name().to_owned();
        let names = self.names.lock();
        for subscription in &mut list.subscriptions {
            subscription.subscribers = names.get(&subscription.name).map_or(0, |holders| holders.count);
        }
        drop(names);
        Ok(Response::new(list))
    }

    async fn remove_subscription(
        &self,
        request: Request<RemoveSubscriptionRequest>,
    ) -> Result<Response<RemoveSubscriptionReply>, Status> {
        let RemoveSubscriptionRequest { name } = request.into_inner();
        self.not_led()?;
        check_name(&name).map_err(Status::invalid_argument)?;
        self.carrier.remove(&name).await?;
        tracing::info!(name, "a subscription was removed");
        Ok(Response::new(RemoveSubscriptionReply {}))
    }

    async fn list_dead_events(
        &self,
        request: Request<ListDeadEventsRequest>,
    ) -> Result<Response<DeadEventList>, Status> {
        let request = request.into_inner();
        self.not_led()?;
        check_name(&request.subscription).map_err(Status::invalid_argument)?;
        let known = self.carrier.subscriptions().await?.subscriptions;
        if !known.iter().any(|subscription| subscription.name == request.subscription) {
            return Err(CarrierError::Unknown(request.subscription).into());
        }
        let buried = call(self.datastores.events().list_buried(limited(request))).await;
        Ok(Response::new(buried.map_err(CarrierError::from)?))
    }
}

/// What a hello asks for, checked.
fn interest(hello: SubscribeHello) -> Result<Interest, Status> {
    let SubscribeHello { patterns, name, exclusive, start, window } = hello;
    if !(1..=MAX_PATTERNS).contains(&patterns.len()) {
        let text = format!("a subscription has 1 to {MAX_PATTERNS} patterns");
        return Err(Status::invalid_argument(text));
    }
    let parsed = patterns.iter().map(|pattern| pattern.parse()).collect::<Result<Vec<_>, TopicError>>();
    let patterns = parsed.map_err(|error| Status::invalid_argument(error.to_string()))?;
    if !name.is_empty() || exclusive {
        check_name(&name).map_err(Status::invalid_argument)?;
    }
    if !(1..=MAX_WINDOW).contains(&window) {
        return Err(Status::invalid_argument(format!("a window is from 1 to {MAX_WINDOW}")));
    }
    let start = match start {
        None | Some(WireStart::Newest(_)) => Start::Newest,
        Some(WireStart::Earliest(_)) => Start::Earliest,
        Some(WireStart::After(position)) => Start::After(position),
    };
    Ok(Interest { name, patterns, start, window: window as usize })
}

/// Brings events one way and answers the other, until either side ends.
async fn relay(
    membership: Membership,
    mut requests: Streaming<SubscribeRequest>,
    replies: &mpsc::Sender<Result<SubscribeReply, Status>>,
) -> Result<(), Status> {
    let Membership { after, mut told, answers } = membership;
    let say = async |message| replies.send(Ok(SubscribeReply { message: Some(message) })).await;
    let gone = |_| Status::cancelled("the subscriber is gone");
    say(subscribe_reply::Message::Subscribed(Subscribed { after })).await.map_err(gone)?;
    let tell = async {
        while let Some(told) = told.recv().await {
            let message = match told {
                Told::Event(delivery) => {
                    metrics::counter!("protoplex_seed_events_delivered_total").increment(1);
                    subscribe_reply::Message::Delivery(delivery)
                }
                Told::Lost(lost) => subscribe_reply::Message::Lost(lost),
                Told::Ended(error) => return Err(Status::from(error)),
            };
            say(message).await.map_err(gone)?;
        }
        Err(Status::unavailable("this seed leads no more"))
    };
    let hear = async {
        loop {
            let answer = match requests.message().await?.map(|request| request.message) {
                None => return Ok(()),
                Some(Some(subscribe_request::Message::Ack(AckEvents { positions }))) => {
                    Answer::Ack(positions)
                }
                Some(Some(subscribe_request::Message::Nack(NackEvent { position, delay_ms }))) => {
                    Answer::Nack(position, Duration::from_millis(delay_ms).min(MAX_DELAY))
                }
                Some(_) => return Err(Status::invalid_argument("after its hello a subscriber only answers")),
            };
            if answers.send(answer).await.is_err() {
                // What it is told says why.
                std::future::pending::<()>().await;
            }
        }
    };
    // Each is polled to its end or dropped with the subscription.
    tokio::select! {
        ended = tell => ended,
        ended = hear => ended,
        () = replies.closed() => Ok(()),
    }
}

/// Who has which name at this seed. Clones share it.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<HashMap<String, Holders>>>);

#[derive(Default)]
struct Holders {
    count: u32,
    exclusive: bool,
}

impl Names {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Holders>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, name: &str, exclusive: bool) -> Result<Name, Status> {
        if !name.is_empty() {
            let mut names = self.lock();
            let holders = names.entry(name.to_owned()).or_default();
            if holders.count > 0 && (exclusive || holders.exclusive) {
                return Err(Status::already_exists(format!(
                    "subscription {name:?} has a subscriber already, and is not shared: end that one, or take --group \
                     with both"
                )));
            }
            holders.count += 1;
            holders.exclusive = exclusive;
        }
        Ok(Name { names: self.clone(), name: name.to_owned() })
    }
}

/// One subscriber's hold on a name.
struct Name {
    names: Names,
    name: String,
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut names = self.names.lock();
        if let Some(holders) = names.get_mut(&self.name) {
            holders.count -= 1;
            if holders.count == 0 {
                names.remove(&self.name);
            }
        }
    }
}
