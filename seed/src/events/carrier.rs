//! What keeps events and shares them out: one small trait, with two implementations and one suite of tests for both.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::proto::{EventDelivery, KeptEvent, LostEvents, SubscriptionList};
use protoplex_wire::topic::TopicPattern;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use super::kept::Kept;
use super::nats::Nats;

/// The term in which this seed leads, while it does.
pub(crate) type Reign = watch::Receiver<Option<u64>>;

/// Answers of a member that may wait for its carrier.
const MAX_WAITING_ANSWERS: usize = 64;

/// An event that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) topic: String,
    pub(crate) key: [u8; 32],
    pub(crate) json: Vec<u8>,
}

impl Outgoing {
    pub(crate) fn new(event: &CloudEvent, json: Vec<u8>) -> Self {
        Self { topic: event.topic().to_owned(), key: event.key(), json }
    }
}

/// Where a subscription begins that has no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Newest,
    Earliest,
    After(u64),
}

/// What a subscriber asks for.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    /// Empty: for this subscriber alone, and nothing of it is kept.
    pub(crate) name: String,
    pub(crate) patterns: Vec<TopicPattern>,
    pub(crate) start: Start,
    /// At most so many events are unanswered.
    pub(crate) window: usize,
}

impl Interest {
    /// As they are kept and listed.
    pub(crate) fn pattern_texts(&self) -> Vec<String> {
        self.patterns.iter().map(ToString::to_string).collect()
    }
}

/// What a subscriber is told.
#[derive(Debug)]
pub(crate) enum Told {
    Event(EventDelivery),
    Lost(LostEvents),
    /// Nothing follows.
    Ended(CarrierError),
}

/// What a subscriber says of an event.
#[derive(Debug)]
pub(crate) enum Answer {
    Ack(Vec<u64>),
    Nack(u64, Duration),
}

/// A subscriber's way to its carrier. When it is dropped, what was not answered is for others.
pub(crate) struct Membership {
    /// Deliveries come from behind this position.
    pub(crate) after: u64,
    pub(crate) told: mpsc::Receiver<Told>,
    pub(crate) answers: mpsc::Sender<Answer>,
}

/// The carrier's end of it.
pub(crate) struct Seat {
    pub(crate) told: mpsc::Sender<Told>,
    pub(crate) answers: mpsc::Receiver<Answer>,
}

/// Both ends.
pub(crate) fn membership(after: u64, window: usize) -> (Membership, Seat) {
    // With room for more than a window, a member that takes nothing is one that is gone.
    let (tell, told) = mpsc::channel(window + 16);
    let (answers, answered) = mpsc::channel(MAX_WAITING_ANSWERS);
    (Membership { after, told, answers }, Seat { told: tell, answers: answered })
}

/// Why a carrier did not do what it was asked to.
#[derive(Debug, Error)]
pub(crate) enum CarrierError {
    /// The subscription of this name is another. The caller's fault.
    #[error(
        "subscription {name:?} is for {patterns}: subscribe with these patterns, take another name, or remove it first"
    )]
    OtherPatterns { name: String, patterns: String },
    /// There is none of this name. The caller's fault.
    #[error("there is no subscription {0:?}")]
    Unknown(String),
    /// A limit is met.
    #[error("{0}")]
    Full(String),
    /// What keeps events is away, or this seed doesn't lead. Ours; worth repeating.
    #[error("{0}")]
    Away(String),
    /// It makes no sense to repeat this. Ours.
    #[error("{0}")]
    Broken(String),
}

impl From<CarrierError> for Status {
    fn from(error: CarrierError) -> Self {
        let text = error.to_string();
        match error {
            CarrierError::OtherPatterns { .. } => Self::failed_precondition(text),
            CarrierError::Unknown(_) => Self::not_found(text),
            CarrierError::Full(_) => Self::resource_exhausted(text),
            CarrierError::Away(_) => Self::unavailable(text),
            CarrierError::Broken(_) => Self::internal(text),
        }
    }
}

/// What the datastore says.
impl From<Status> for CarrierError {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::ResourceExhausted => Self::Full(text),
            Code::InvalidArgument | Code::Unimplemented => Self::Broken(text),
            // It is the seed that says so.
            Code::DeadlineExceeded => Self::Away(text),
            _ => Self::Away(format!("the datastore: {text}")),
        }
    }
}

/// Keeps events and shares them out.
pub(crate) trait Carrier: Send + Sync + 'static {
    /// Keeps events behind all that were kept before, in their order; one whose source and id was kept within the last
    /// minutes is not kept again. Where it fails, some of them may be kept.
    fn publish(
        &self,
        events: Vec<Outgoing>,
    ) -> impl Future<Output = Result<Vec<KeptEvent>, CarrierError>> + Send;

    /// How long the JSON of an event may be, beside the limit for all.
    fn max_event_bytes(&self) -> usize {
        usize::MAX
    }

    /// Takes a subscriber up. Events come in the order of their positions, but for those that come again; those of a
    /// name go to one of its subscribers each, and the position of the name lasts.
    fn subscribe(&self, interest: Interest) -> impl Future<Output = Result<Membership, CarrierError>> + Send;

    /// The subscriptions that have a name.
    fn subscriptions(&self) -> impl Future<Output = Result<SubscriptionList, CarrierError>> + Send;

    /// Forgets a subscription; its subscribers are told.
    fn remove(&self, name: &str) -> impl Future<Output = Result<(), CarrierError>> + Send;

    /// Gives back what subscribers have left without an answer, once all are told to go: so others have it at once.
    fn end(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The one that is configured. Clones share it.
#[derive(Clone)]
pub(crate) enum AnyCarrier {
    Kept(Arc<Kept>),
    Nats(Arc<Nats>),
}

impl AnyCarrier {
    /// As operators call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kept(_) => "seed",
            Self::Nats(_) => "nats",
        }
    }
}

impl Carrier for AnyCarrier {
    async fn publish(&self, events: Vec<Outgoing>) -> Result<Vec<KeptEvent>, CarrierError> {
        match self {
            Self::Kept(kept) => kept.publish(events).await,
            Self::Nats(nats) => nats.publish(events).await,
        }
    }

    fn max_event_bytes(&self) -> usize {
        match self {
            Self::Kept(kept) => kept.max_event_bytes(),
            Self::Nats(nats) => nats.max_event_bytes(),
        }
    }

    async fn subscribe(&self, interest: Interest) -> Result<Membership, CarrierError> {
        match self {
            Self::Kept(kept) => kept.subscribe(interest).await,
            Self::Nats(nats) => nats.subscribe(interest).await,
        }
    }

    async fn subscriptions(&self) -> Result<SubscriptionList, CarrierError> {
        match self {
            Self::Kept(kept) => kept.subscriptions().await,
            Self::Nats(nats) => nats.subscriptions().await,
        }
    }

    async fn remove(&self, name: &str) -> Result<(), CarrierError> {
        match self {
            Self::Kept(kept) => kept.remove(name).await,
            Self::Nats(nats) => nats.remove(name).await,
        }
    }

    async fn end(&self) {
        match self {
            Self::Kept(kept) => kept.end().await,
            Self::Nats(nats) => nats.end().await,
        }
    }
}
