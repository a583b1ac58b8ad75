//! The carrier by NATS JetStream: one stream keeps the events, a durable pull consumer each subscription of a name.
//!
//! An event of type `a.b` has the subject `STREAM.a.b.event`. The last word lets one filter say what a pattern with `#`
//! says, zero words among it, so that servers before 2.10, which take one filter a consumer, do as well as others. Of
//! several patterns the filter is one that covers them, and what is left over is acknowledged at once.

mod connect;
mod member;

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{ConsumerErrorKind, DiscardPolicy, Stream};
use async_nats::jetstream::{Context, ErrorCode, context, stream};
use futures_util::TryStreamExt;
use protoplex_wire::cloud_event::MAX_EVENT_BYTES;
use protoplex_wire::events::REPEAT_WINDOW;
use protoplex_wire::proto::{
    CountBuriedRequest, KeptEvent, LostEvents, RemoveSubscriptionRequest, Subscription, SubscriptionList,
};
use protoplex_wire::topic::TopicPattern;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::carrier::{Carrier, CarrierError, Interest, Membership, Outgoing, Start, Told, membership};
use super::config::Config;
use crate::datastores::{Datastores, call, limited};
use member::Member;

pub use connect::NatsError;

/// How long a call waits for NATS to be there, and for the stream.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
const CONNECT_LOOK: Duration = Duration::from_millis(50);
/// How long JetStream may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// The last word of every subject.
const LAST_WORD: &str = "event";
/// Subscriptions with a name, and subscribers without one.
const MAX_CONSUMERS: usize = 3000;
/// Events that the subscribers of one name may have out together.
const MAX_OUT: i64 = 8192;
/// A consumer of nobody's name is forgotten when nobody has asked it for so long.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// Beside the event itself a message has subject and headers.
const MAX_HEAD_BYTES: usize = 4096;
/// What of that NATS counts as payload: the header with the message's id.
const MAX_HEADER_BYTES: usize = 128;

/// Events carried by NATS.
pub(crate) struct Nats {
    context: Context,
    config: Config,
    datastores: Arc<Datastores>,
    /// Whether the stream was seen to since NATS was connected so often.
    seen_to: Mutex<Option<u64>>,
    /// Grows when a subscription is removed here.
    removals: watch::Sender<u64>,
    /// Of which subscription which position was given back how often by who had not come to it: JetStream counts that as a
    /// delivery, and it is no attempt.
    excused: std::sync::Mutex<HashMap<(String, u64), u32>>,
    /// Those who serve subscribers.
    members: std::sync::Mutex<JoinSet<()>>,
}

impl Nats {
    /// Connects, now or whenever the server is there.
    pub(crate) async fn connect(
        config: &Config,
        datastores: Arc<Datastores>,
    ) -> Result<Arc<Self>, NatsError> {
        let client = connect::connect(config).await?;
        let context = context::ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client);
        Ok(Arc::new(Self {
            context,
            config: config.clone(),
            datastores,
            seen_to: Mutex::new(None),
            removals: watch::Sender::new(0),
            excused: std::sync::Mutex::default(),
            members: std::sync::Mutex::default(),
        }))
    }

    fn excused(&self) -> MutexGuard<'_, HashMap<(String, u64), u32>> {
        self.excused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        while members.try_join_next().is_some() {}
        members
    }

    /// How often it was connected; nothing while it isn't.
    pub(super) fn connection(&self) -> Option<u64> {
        let client = self.context.client();
        let connects = client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
        (client.connection_state() == State::Connected).then_some(connects)
    }

    /// NATS is there, and the stream is as it is configured.
    async fn ready(&self) -> Result<Stream<()>, CarrierError> {
        let away = |_| CarrierError::Away("NATS is away (events.nats); try again when it is back".to_owned());
        // Whoever comes meanwhile waits for the same answer, so all of it counts.
        timeout(CONNECT_PATIENCE, self.see_to_stream()).await.map_err(away)?
    }

    async fn see_to_stream(&self) -> Result<Stream<()>, CarrierError> {
        let connection = loop {
            match self.connection() {
                Some(connection) => break connection,
                None => sleep(CONNECT_LOOK).await,
            }
        };
        let mut seen_to = self.seen_to.lock().await;
        if *seen_to != Some(connection) {
            let made = self.context.create_or_update_stream(self.stream_config()).await;
            made.map_err(|error| CarrierError::Away(format!("NATS can't keep events: {error}")))?;
            *seen_to = Some(connection);
        }
        drop(seen_to);
        self.context.get_stream_no_info(self.name()).await.map_err(|error| failed(&error))
    }

    fn name(&self) -> &str {
        &self.config.0.nats_stream
    }

    fn stream_config(&self) -> stream::Config {
        let limit = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        stream::Config {
            name: self.name().to_owned(),
            description: Some("events of a Protoplex cluster".to_owned()),
            subjects: vec![format!("{}.>", self.name())],
            max_age: self.config.max_age(),
            max_messages: limit(self.config.0.max_events),
            max_bytes: limit(self.config.0.max_bytes),
            max_message_size: i32::try_from(MAX_EVENT_BYTES + MAX_HEAD_BYTES).unwrap_or(i32::MAX),
            discard: DiscardPolicy::Old,
            duplicate_window: REPEAT_WINDOW.min(self.config.max_age()),
            num_replicas: self.config.0.nats_replicas.into(),
            ..Default::default()
        }
    }

    fn subject(&self, topic: &str) -> String {
        format!("{}.{topic}.{LAST_WORD}", self.name())
    }

    /// What a subject was made of.
    fn topic<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let rest = subject.strip_prefix(self.name())?.strip_prefix('.')?;
        rest.strip_suffix(LAST_WORD)?.strip_suffix('.')
    }

    fn filter(&self, patterns: &[TopicPattern]) -> String {
        let cover = TopicPattern::cover(patterns).to_string();
        match cover.strip_suffix('#') {
            Some(begin) => format!("{}.{begin}>", self.name()),
            None => self.subject(&cover),
        }
    }

    /// A consumer, but for its name.
    fn consumer(&self, interest: &Interest, deliver_policy: DeliverPolicy) -> pull::Config {
        let config = pull::Config {
            description: Some(interest.pattern_texts().join(" ")),
            deliver_policy,
            filter_subject: self.filter(&interest.patterns),
            ..Default::default()
        };
        if interest.name.is_empty() {
            return pull::Config {
                ack_policy: AckPolicy::None,
                inactive_threshold: FORGET_AFTER,
                memory_storage: true,
                num_replicas: 1,
                ..config
            };
        }
        pull::Config {
            durable_name: Some(interest.name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.config.ack_timeout(),
            max_deliver: -1,
            max_ack_pending: MAX_OUT,
            ..config
        }
    }

    /// The consumer of a subscription, as it is, or a new one.
    async fn named(
        &self,
        stream: &Stream<()>,
        state: &stream::State,
        interest: &Interest,
    ) -> Result<Info, CarrierError> {
        if let Some(known) = find(stream, &interest.name).await? {
            let patterns = known.config.description.clone().unwrap_or_default();
            if patterns != interest.pattern_texts().join(" ") {
                return Err(CarrierError::OtherPatterns { name: interest.name.clone(), patterns });
            }
            return Ok(known);
        }
        // In numbers, so that it is known later where it has begun.
        let after = match interest.start {
            Start::Newest => state.last_sequence,
            Start::Earliest => state.first_sequence.saturating_sub(1),
            Start::After(position) => position.min(state.last_sequence),
        };
        let begin = DeliverPolicy::ByStartSequence { start_sequence: after + 1 };
        let made =
            stream.create_consumer(self.consumer(interest, begin)).await.map_err(|error| failed(&error))?;
        Ok(made.cached_info().clone())
    }
}

/// Up to where a consumer has done all: where it has begun, until JetStream has an acknowledgement to go by.
fn done(info: &Info) -> u64 {
    let begun = match info.config.deliver_policy {
        DeliverPolicy::ByStartSequence { start_sequence } => start_sequence.saturating_sub(1),
        _ => 0,
    };
    info.ack_floor.stream_sequence.max(begun)
}

impl Carrier for Arc<Nats> {
    async fn publish(&self, events: Vec<Outgoing>) -> Result<Vec<KeptEvent>, CarrierError> {
        self.ready().await?;
        let mut answers = Vec::with_capacity(events.len());
        for event in events {
            let id: String = event.key.iter().map(|byte| format!("{byte:02x}")).collect();
            let message = PublishMessage::build().payload(event.json.into()).message_id(id);
            let sent = self.context.send_publish(self.subject(&event.topic), message).await;
            answers.push(sent.map_err(|error| unpublished(&error))?);
        }
        let mut kept = Vec::with_capacity(answers.len());
        for answer in answers {
            match answer.await {
                Ok(ack) => {
                    let position = if ack.duplicate { 0 } else { ack.sequence };
                    kept.push(KeptEvent { position, repeated: ack.duplicate, due_at_ms: 0 });
                }
                Err(error) => {
                    // Somebody may have removed the stream.
                    *self.seen_to.lock().await = None;
                    return Err(unpublished(&error));
                }
            }
        }
        Ok(kept)
    }

    fn max_event_bytes(&self) -> usize {
        match self.context.client().server_info().max_payload {
            // It has not been there yet.
            0 => usize::MAX,
            most => most.saturating_sub(MAX_HEADER_BYTES),
        }
    }

    async fn subscribe(&self, interest: Interest) -> Result<Membership, CarrierError> {
        let stream = self.ready().await?;
        let state = stream.get_info().await.map_err(|error| failed(&error))?.state;
        if state.consumer_count >= MAX_CONSUMERS {
            return Err(CarrierError::Full(format!(
                "there are {MAX_CONSUMERS} subscriptions, and no more are taken"
            )));
        }
        // Whether there is something between here and what is kept that it has not had.
        let (after, is_behind) = match interest.start {
            _ if !interest.name.is_empty() => {
                let known = self.named(&stream, &state, &interest).await?;
                let has_begun = known.delivered.stream_sequence > 0;
                (done(&known), has_begun && known.num_pending > 0)
            }
            Start::Newest => (state.last_sequence, false),
            Start::Earliest => (state.first_sequence.saturating_sub(1), false),
            Start::After(position) => (position.min(state.last_sequence), true),
        };
        let lost = (is_behind && after + 1 < state.first_sequence)
            .then(|| LostEvents { first: after + 1, last: state.first_sequence - 1 });
        let (membership, seat) = membership(after, interest.window);
        if let Some(lost) = lost {
            let _ = seat.told.try_send(Told::Lost(lost));
        }
        let position = lost.map_or(after, |lost| lost.last);
        self.members().spawn(Member::new(Arc::clone(self), interest, seat, position).run());
        Ok(membership)
    }

    async fn subscriptions(&self) -> Result<SubscriptionList, CarrierError> {
        let stream = self.ready().await?;
        let state = stream.get_info().await.map_err(|error| failed(&error))?.state;
        let mut datastore = self.datastores.events();
        let buried = datastore.count_buried(limited(CountBuriedRequest {}));
        let dead = call(buried).await?.counts;
        let consumers: Vec<Info> = stream.consumers().try_collect().await.map_err(|error| failed(&error))?;
        let mut subscriptions = Vec::new();
        for info in consumers.into_iter().filter(|info| info.config.durable_name.is_some()) {
            let is_done = info.num_pending == 0 && info.num_ack_pending == 0;
            let done = if is_done { state.last_sequence } else { done(&info) };
            subscriptions.push(Subscription {
                patterns: info.config.description.unwrap_or_default().split(' ').map(str::to_owned).collect(),
                position: done,
                dead: dead.get(&info.name).copied().unwrap_or_default(),
                subscribers: 0,
                created_at_ms: millis(info.created),
                name: info.name,
            });
        }
        subscriptions.sort_by(|a, b| a.name.cmp(&b.name));
        let (head, earliest) = (state.last_sequence, state.first_sequence);
        Ok(SubscriptionList { subscriptions, head, earliest, ..Default::default() })
    }

    async fn remove(&self, name: &str) -> Result<(), CarrierError> {
        let stream = self.ready().await?;
        // The dead are the datastore's, which may be away: then they stay, and go when the name is removed again.
        let request = RemoveSubscriptionRequest { name: name.to_owned() };
        let mut datastore = self.datastores.events();
        let had_dead = call(datastore.remove_kept_subscription(limited(request))).await.is_ok();
        let deleted = stream.delete_consumer(name).await;
        self.removals.send_modify(|removals| *removals += 1);
        match deleted {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                ConsumerErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND =>
                {
                    if had_dead {
                        Ok(())
                    } else {
                        Err(CarrierError::Unknown(name.to_owned()))
                    }
                }
                _ => Err(failed(&error)),
            },
        }
    }

    async fn end(&self) {
        let mut members = std::mem::take(&mut *self.members());
        while members.join_next().await.is_some() {}
        // What they have said may be on its way still.
        if let Err(error) = self.context.client().flush().await {
            tracing::debug!(%error, "NATS was not told what subscribers have left");
        }
    }
}

/// A consumer by its name.
async fn find(stream: &Stream<()>, name: &str) -> Result<Option<Info>, CarrierError> {
    match stream.consumer_info(name).await {
        Ok(info) => Ok(Some(info)),
        Err(error) => match error.kind() {
            ConsumerInfoErrorKind::NotFound => Ok(None),
            ConsumerInfoErrorKind::JetStream(of) if of.error_code() == ErrorCode::CONSUMER_NOT_FOUND => {
                Ok(None)
            }
            _ => Err(failed(&error)),
        },
    }
}

fn failed(error: &impl std::fmt::Display) -> CarrierError {
    CarrierError::Away(format!("NATS: {error}"))
}

fn unpublished(error: &context::PublishError) -> CarrierError {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            CarrierError::Full(format!("NATS takes no event as large as that (max_payload): {error}"))
        }
        PublishErrorKind::MaxAckPending => {
            CarrierError::Full("too many events wait for NATS: publish more slowly".to_owned())
        }
        PublishErrorKind::TimedOut => CarrierError::Away(format!(
            "NATS did not say in time that it keeps the events ({error}), and may do so all the same: where they are \
             published again, then by the same id"
        )),
        _ => CarrierError::Away(format!("NATS did not keep the events: {error}; try again")),
    }
}

fn millis(time: async_nats::datetime::DateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
}

/// Ends of waits by the clock of tokio.
fn in_time(patience: Duration) -> Instant {
    Instant::now() + patience
}
