//! The way to the bus: what a node or a command publishes, and what it has subscribed to, over any loss of the seed.
//!
//! Nothing here runs by itself: it is driven by whoever awaits it, on one thread or on many.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::backoff::Backoff;
use crate::cloud_event::{CloudEvent, EventError, MAX_EVENT_BYTES};
use crate::identity::{Identity, TrustedChannel};
use crate::pattern::MAX_NAME_BYTES;
use crate::proto::events_client::EventsClient;
use crate::proto::subscribe_hello::Start as WireStart;
use crate::proto::{
    AckEvents, EventDelivery, KeptEvent, LostEvents, NackEvent, PublishRequest, SubscribeHello,
    SubscribeReply, SubscribeRequest, subscribe_reply, subscribe_request,
};
use crate::seeds::Redirect;

/// The most events in one call.
pub const MAX_BATCH: usize = 1024;
/// The most bytes of events in one call; one event of any size is always taken.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// The largest message of the service: a batch that ends with the largest event.
pub const MAX_MESSAGE_BYTES: usize = MAX_BATCH_BYTES + MAX_EVENT_BYTES + (64 << 10);
/// The most events that a subscriber may have to answer.
pub const MAX_WINDOW: u32 = 1024;
/// The longest delay of an event: a year.
pub const MAX_DELAY: Duration = Duration::from_secs(365 * 86_400);
/// An event whose source and id were kept within this time is not kept again.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(300);
/// How long one call may take: longer than the seed waits for what keeps events.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the seed may take to hear of the end of a subscription.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the seed may take to take up a subscription.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why events were not published.
#[derive(Debug, Error)]
pub enum PublishError {
    /// It breaks a rule. The caller's fault.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The seed refuses, or it can't be reached: then they may be published all the same.
    #[error("{}", .0.message())]
    Refused(#[from] Box<Status>),
}

/// Checks the name of a subscription: 1 to 63 of letters, digits, `-` and `_`.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    match (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(format!(
            "subscription name {name:?}: use 1 to {MAX_NAME_BYTES} of a-z, A-Z, 0-9, '-' and '_'"
        )),
    }
}

/// The bus, as its users see it: at the seed that leads, and at whichever leads later. Clones share a connection.
#[derive(Clone)]
pub struct Bus {
    identity: Identity,
    seeds: Arc<[String]>,
    at: Arc<Mutex<At>>,
}

/// The seed that is asked at present.
#[derive(Clone)]
struct At {
    seed: String,
    client: EventsClient<TrustedChannel>,
    /// The one of the seeds that is asked when this one can't help.
    next: usize,
}

impl Bus {
    /// The bus of a cluster with these seeds ("host:port"), of which the first is asked first. Connects when it is first
    /// used.
    pub fn new(identity: &Identity, seeds: Vec<String>) -> Result<Self, tonic::transport::Error> {
        let seed = seeds.first().cloned().unwrap_or_default();
        let at = At { client: client(identity, &seed)?, seed, next: 1 };
        Ok(Self { identity: identity.clone(), seeds: seeds.into(), at: Arc::new(Mutex::new(at)) })
    }

    fn at(&self) -> At {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A seed could not help: the one that it names as leading is asked from here on, else the next. Others may have
    /// noticed before.
    fn give_up(&self, failed: &str, status: &Status) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.seed != failed {
            return;
        }
        let seed = match Redirect::of(status) {
            Some(leader) => leader.address,
            None => {
                let seed = self.seeds.get(at.next % self.seeds.len().max(1)).cloned().unwrap_or_default();
                at.next += 1;
                seed
            }
        };
        if seed != at.seed
            && let Ok(client) = client(&self.identity, &seed)
        {
            (at.seed, at.client) = (seed, client);
        }
    }

    /// Publishes events, in their order, and tells when they are kept. A seed that is away is tried again for as long as
    /// `patience`; to do so is safe, for an event is known by its source and id.
    pub async fn publish(
        &self,
        events: &[CloudEvent],
        delay: Duration,
        patience: Duration,
    ) -> Result<Vec<KeptEvent>, PublishError> {
        let events = events.iter().map(CloudEvent::to_json).collect::<Result<Vec<_>, _>>()?;
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let mut kept = Vec::with_capacity(events.len());
        for events in batches(events) {
            kept.extend(self.publish_batch(PublishRequest { events, delay_ms }, patience).await?);
        }
        Ok(kept)
    }

    async fn publish_batch(
        &self,
        request: PublishRequest,
        patience: Duration,
    ) -> Result<Vec<KeptEvent>, Box<Status>> {
        let end = Instant::now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let At { seed, mut client, .. } = self.at();
            let late = |_| Err(Status::deadline_exceeded("the seed does not answer"));
            let status =
                match timeout(CALL_TIMEOUT, client.publish(request.clone())).await.unwrap_or_else(late) {
                    Ok(reply) => return Ok(reply.into_inner().kept),
                    Err(status) => status,
                };
            self.give_up(&seed, &status);
            let left = end.saturating_duration_since(Instant::now());
            if !is_passing(&status) || left.is_zero() {
                return Err(Box::new(status));
            }
            // The last time at the end, however long the pauses are by then.
            sleep(backoff.next_delay().min(left)).await;
        }
    }

    /// Subscribes. Nothing is asked for until [`Subscriber::next`] is.
    #[must_use]
    pub fn subscribe(&self, subscription: Subscription) -> Subscriber {
        let Subscription { patterns, name, exclusive, start, window } = subscription;
        let start = match start {
            Start::Newest => WireStart::Newest(true),
            Start::Earliest => WireStart::Earliest(true),
            Start::After(position) => WireStart::After(position),
        };
        let hello = SubscribeHello { patterns, name, exclusive, start: Some(start), window };
        Subscriber { bus: self.clone(), hello, link: None, backoff: Backoff::default(), was_open: false }
    }

    /// The service itself, for what is asked seldom.
    pub fn client(&self) -> EventsClient<TrustedChannel> {
        self.at().client
    }
}

fn client(identity: &Identity, seed: &str) -> Result<EventsClient<TrustedChannel>, tonic::transport::Error> {
    Ok(EventsClient::new(identity.channel(seed)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// Where a subscription begins that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    Newest,
    /// With the first event that is kept.
    Earliest,
    /// Behind this position.
    After(u64),
}

/// What is subscribed to.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Of [`crate::topic`].
    pub patterns: Vec<String>,
    /// Empty: all events for this subscriber alone, whose position lasts as long as it does. Else they are shared by all
    /// subscribers of this name, and the position is kept.
    pub name: String,
    /// Only one subscriber at a time may have the name.
    pub exclusive: bool,
    /// Where to begin.
    pub start: Start,
    /// How many events may be unanswered at a time, at most [`MAX_WINDOW`].
    pub window: u32,
}

/// What a subscriber is told.
#[derive(Debug)]
pub enum Notice {
    /// An event, to be answered by [`Subscriber::ack`] or [`Subscriber::nack`]. It may come more than once.
    Event(EventDelivery),
    /// Some positions are kept no longer, and what was there was not delivered.
    Lost(LostEvents),
    /// The seed can't be reached for now; what was not answered may come again. The reason.
    Away(String),
}

struct LinkEnds {
    answers: mpsc::Sender<SubscribeRequest>,
    replies: Streaming<SubscribeReply>,
}

/// A subscription as its subscriber holds it. Where the link is lost, it goes on where it was.
pub struct Subscriber {
    bus: Bus,
    hello: SubscribeHello,
    link: Option<LinkEnds>,
    backoff: Backoff,
    was_open: bool,
}

impl Subscriber {
    /// What comes next. To drop the future loses nothing.
    ///
    /// Errors where the seed refuses the subscription for good.
    pub async fn next(&mut self) -> Result<Notice, Box<Status>> {
        loop {
            let status = match &mut self.link {
                None => match self.open().await {
                    Ok(()) => continue,
                    Err(status) => status,
                },
                Some(link) => match link.replies.message().await {
                    Ok(Some(SubscribeReply { message: Some(message) })) => match message {
                        subscribe_reply::Message::Delivery(delivery) => return Ok(Notice::Event(delivery)),
                        subscribe_reply::Message::Lost(lost) => return Ok(Notice::Lost(lost)),
                        subscribe_reply::Message::Subscribed(_) => continue,
                    },
                    Ok(Some(SubscribeReply { message: None })) => continue,
                    Ok(None) => Status::unavailable("the seed closed the link"),
                    Err(status) => status,
                },
            };
            // The seed may not have noticed yet that its end of a link that broke is this subscriber's.
            let is_its_own = self.was_open && status.code() == Code::AlreadyExists;
            if !is_passing(&status) && !is_its_own {
                return Err(Box::new(status));
            }
            if self.link.take().is_some() {
                return Ok(Notice::Away(status.message().to_owned()));
            }
            sleep(self.backoff.next_delay()).await;
        }
    }

    /// As [`Self::next`] for the first time: an error where no attempt that was begun before `end` has come to anything.
    /// One that is `Unavailable` and has no source is the word of a seed, which may have it otherwise later.
    pub async fn connect(&mut self, end: Instant) -> Result<(), Box<Status>> {
        loop {
            match self.open().await {
                Err(status) if is_passing(&status) && Instant::now() < end => {
                    sleep(self.backoff.next_delay()).await;
                }
                opened => return opened.map_err(Box::new),
            }
        }
    }

    async fn open(&mut self) -> Result<(), Status> {
        let At { seed, client, .. } = self.bus.at();
        let opened = self.open_at(client).await;
        if let Err(status) = &opened {
            self.bus.give_up(&seed, status);
        }
        opened
    }

    async fn open_at(&mut self, mut client: EventsClient<TrustedChannel>) -> Result<(), Status> {
        // All answers of a window, and the hello.
        let (answers, requests) = mpsc::channel(self.hello.window as usize + 1);
        let hello = subscribe_request::Message::Hello(self.hello.clone());
        let closed = |_| Status::unavailable("the link broke");
        answers.try_send(SubscribeRequest { message: Some(hello) }).map_err(|_| closed(()))?;
        let open = async {
            let mut replies = client.subscribe(ReceiverStream::new(requests)).await?.into_inner();
            let greeting = replies.message().await?.and_then(|reply| reply.message);
            match greeting {
                Some(subscribe_reply::Message::Subscribed(subscribed)) => Ok((replies, subscribed.after)),
                _ => Err(Status::internal("the seed did not greet")),
            }
        };
        let late = |_| Err(Status::deadline_exceeded("the seed does not answer"));
        let (replies, after) = timeout(GREETING_TIMEOUT, open).await.unwrap_or_else(late)?;
        if self.hello.name.is_empty() {
            self.hello.start = Some(WireStart::After(after));
        }
        self.backoff.reset();
        self.was_open = true;
        self.link = Some(LinkEnds { answers, replies });
        Ok(())
    }

    /// An event is dealt with: it is not delivered again, unless the seed doesn't hear of it.
    pub async fn ack(&mut self, delivery: &EventDelivery) {
        let position = delivery.position;
        if self.hello.name.is_empty() {
            self.hello.start = Some(WireStart::After(position));
        }
        self.answer(subscribe_request::Message::Ack(AckEvents { positions: vec![position] })).await;
    }

    /// An event can't be dealt with now: it is to be delivered again after `delay`, perhaps to somebody else. Of a
    /// subscription without a name it is taken for an ack.
    pub async fn nack(&mut self, delivery: &EventDelivery, delay: Duration) {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.answer(subscribe_request::Message::Nack(NackEvent { position: delivery.position, delay_ms }))
            .await;
    }

    /// Ends the subscription in good order: the seed has heard of all answers then, if it can be reached.
    pub async fn close(self) {
        let Some(LinkEnds { answers, mut replies }) = self.link else { return };
        drop(answers);
        // What comes meanwhile is for others.
        let end = async { while let Ok(Some(_)) = replies.message().await {} };
        let _ = timeout(CLOSE_TIMEOUT, end).await;
    }

    async fn answer(&mut self, message: subscribe_request::Message) {
        // Without a link nobody waits for it: the event comes again.
        if let Some(link) = &self.link {
            let _ = link.answers.send(SubscribeRequest { message: Some(message) }).await;
        }
    }
}

/// Whether a call that failed so may succeed when it is repeated.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
    )
}

/// In pieces that one call may have.
fn batches(events: Vec<Vec<u8>>) -> Vec<Vec<Vec<u8>>> {
    let mut batches: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut bytes = 0;
    for event in events {
        bytes += event.len();
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_BATCH && bytes <= MAX_BATCH_BYTES => batch.push(event),
            _ => {
                bytes = event.len();
                batches.push(vec![event]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_at_most_a_batch() {
        let sizes = |events: Vec<usize>| {
            let events = events.into_iter().map(|size| vec![0; size]).collect();
            batches(events).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(vec![]), [0; 0]);
        assert_eq!(sizes(vec![1; MAX_BATCH + 1]), [MAX_BATCH, 1]);
        assert_eq!(sizes(vec![MAX_EVENT_BYTES; 9]), [4, 4, 1]);
    }

    #[test]
    fn names_are_those_that_every_carrier_takes() {
        check_name("billing-2_X").unwrap();
        for name in ["", "a.b", "a b", "ü", &"x".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
