//! Serves one subscriber out of JetStream: asks for as many messages as it has room for, and hands its answers back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt, StreamExt};
use protoplex_wire::proto::{DeadEvent, EventDelivery, LostEvents};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::{ANSWER_TIMEOUT, Nats, failed, find, in_time, millis};
use crate::datastores::{call, limited};
use crate::events::carrier::{Answer, CarrierError, Interest, Seat, Told};

/// How long JetStream holds a question for messages.
const ASK_FOR: Duration = Duration::from_secs(5);
/// Messages that one question may bring, in bytes.
const ASK_BYTES: usize = 16 << 20;
/// Wait after a failure, and for a message whose burial failed.
const RETRY: Duration = Duration::from_millis(250);
const BURY_AGAIN: Duration = Duration::from_secs(1);
/// What a subscriber leaves is for others so much later: JetStream needs a moment to forget whom it was on its way to, and
/// what it gives to somebody who is gone waits for the whole ack timeout.
const GIVE_BACK_AFTER: Duration = Duration::from_millis(100);
/// Events that were given back untried, of all subscriptions: beyond that they count as attempts.
const MAX_EXCUSED: usize = 65_536;
/// How often it is looked whether the connection is another one.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Of those looks, one in so many also asks whether events were dropped before they were delivered.
const LOST_EVERY: u32 = 20;

/// One subscriber.
pub(super) struct Member {
    nats: Arc<Nats>,
    interest: Interest,
    told: mpsc::Sender<Told>,
    answers: mpsc::Receiver<Answer>,
    /// What has no answer yet, until JetStream gives it to another.
    out: BTreeMap<u64, (Option<Message>, Instant)>,
    /// Of one without a name: all up to here was delivered.
    position: u64,
    /// Up to which event it has answered, and when it did so last.
    answered: Option<(u64, Instant)>,
    /// When JetStream was told last that what waits its turn is not forgotten.
    put_off: Instant,
}

/// A consumer, and the connection that it was found on.
struct Source {
    consumer: PullConsumer,
    connection: u64,
}

impl Member {
    pub(super) fn new(nats: Arc<Nats>, interest: Interest, seat: Seat, position: u64) -> Self {
        let Seat { told, answers } = seat;
        let (answered, put_off) = (None, Instant::now());
        Self { nats, interest, told, answers, out: BTreeMap::new(), position, answered, put_off }
    }

    fn is_named(&self) -> bool {
        !self.interest.name.is_empty()
    }

    /// Serves until the subscriber is gone, or its subscription is.
    pub(super) async fn run(mut self) {
        let mut looks = interval(LOOK_EVERY);
        let mut removals = self.nats.removals.subscribe();
        let (mut source, mut batch, mut retry, mut look) = (None::<Source>, None, Instant::now(), 0_u32);
        loop {
            if source.is_none() && retry <= Instant::now() {
                match self.source().await {
                    Ok(found) => source = Some(found),
                    Err(error @ CarrierError::Unknown(_)) => {
                        let _ = self.told.try_send(Told::Ended(error));
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(name = self.interest.name, %error, "a subscription waits");
                        retry = in_time(RETRY);
                    }
                }
            }
            let room = self.interest.window.saturating_sub(self.out.len());
            if let Some(Source { consumer, .. }) = &source
                && batch.is_none()
                && room > 0
            {
                let asked =
                    consumer.batch().max_messages(room).max_bytes(ASK_BYTES).expires(ASK_FOR).messages();
                match timeout(ANSWER_TIMEOUT, asked).await {
                    Ok(Ok(asked)) => batch = Some((asked, false)),
                    _ => (source, retry) = (None, in_time(RETRY)),
                }
            }
            let deadline = self.out.values().map(|(_, deadline)| *deadline).min();
            // All arms are cancel-safe.
            tokio::select! {
                biased;
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.answer(answer).await,
                    None => break,
                },
                message = next(&mut batch) => match message {
                    Some(Ok(message)) => {
                        if !self.deliver(message).await {
                            break;
                        }
                    }
                    // Nothing has come for long. JetStream doesn't tell where the subscription was removed at another seed.
                    None if matches!(batch, Some((_, false))) => (batch, source) = (None, None),
                    // An end in good order, or one for the size of what came.
                    None => batch = None,
                    Some(Err(_)) if matches!(batch, Some((_, true))) => batch = None,
                    Some(Err(error)) => {
                        tracing::debug!(name = self.interest.name, %error, "JetStream does not deliver");
                        (batch, source, retry) = (None, None, in_time(RETRY));
                    }
                },
                Ok(()) = removals.changed(), if self.is_named() => (batch, source) = (None, None),
                () = wait_until(deadline) => {
                    let now = Instant::now();
                    // It stands still at the first, and has not come to the rest.
                    let tried = self.tried();
                    let late: Vec<_> =
                        self.out.extract_if(.., |_, (_, deadline)| *deadline <= now).map(|(at, _)| at).collect();
                    late.into_iter().filter(|at| Some(*at) != tried).for_each(|at| self.excuse(at));
                }
                _ = looks.tick() => {
                    look += 1;
                    self.put_off().await;
                    // What was asked on a connection that is lost is not answered.
                    if source.as_ref().is_some_and(|source| self.nats.connection() != Some(source.connection)) {
                        (batch, source) = (None, None);
                    }
                    if let Some(source) = &source
                        && look.is_multiple_of(LOST_EVERY)
                        && !self.is_named()
                    {
                        self.look_for_lost(&source.consumer).await;
                    }
                }
            }
        }
        // The first it may have failed of; the rest it had not come to.
        let tried = self.tried();
        let mut left: Vec<Message> =
            std::mem::take(&mut self.out).into_values().filter_map(|(message, _)| message).collect();
        while let Some(Some(Ok(message))) = next(&mut batch).now_or_never() {
            left.push(message);
        }
        // First the question goes: else what is given back would be its answer.
        drop(batch);
        for message in left.into_iter().filter(|_| !self.interest.name.is_empty()) {
            let position = message.info().map(|info| info.stream_sequence).ok();
            if let Some(position) = position.filter(|position| Some(*position) != tried) {
                self.excuse(position);
            }
            let _ = message.ack_with(AckKind::Nak(Some(GIVE_BACK_AFTER))).await;
        }
    }

    fn answered(&mut self, position: u64) {
        let last = self.answered.map_or(position, |(last, _)| last.max(position));
        self.answered = Some((last, Instant::now()));
        let mut excused = self.nats.excused();
        if !excused.is_empty() {
            excused.remove(&(self.interest.name.clone(), position));
        }
    }

    /// How often it was out and not come to.
    fn excused(&self, position: u64) -> u32 {
        self.nats.excused().get(&(self.interest.name.clone(), position)).copied().unwrap_or_default()
    }

    /// What it is at, as it seems.
    fn tried(&self) -> Option<u64> {
        self.out.keys().next().copied()
    }

    /// JetStream counts one delivery too many of this event.
    fn excuse(&self, position: u64) {
        if !self.is_named() {
            return;
        }
        let mut excused = self.nats.excused();
        if excused.len() >= MAX_EXCUSED {
            excused.clear();
        }
        *excused.entry((self.interest.name.clone(), position)).or_default() += 1;
    }

    /// Gives what waits its turn more time, where the subscriber goes on: as [`super::super::kept`] does.
    async fn put_off(&mut self) {
        let (timeout, now) = (self.nats.config.ack_timeout(), Instant::now());
        let Some((last, at)) = self.answered.filter(|_| self.is_named()) else { return };
        if now > at + timeout || now < self.put_off + timeout / 4 {
            return;
        }
        self.put_off = now;
        for (message, deadline) in self.out.range_mut(last + 1..).map(|(_, waits)| waits) {
            if let Some(message) = message
                && message.ack_with(AckKind::Progress).await.is_ok()
            {
                *deadline = now + timeout;
            }
        }
    }

    async fn source(&self) -> Result<Source, CarrierError> {
        let stream = self.nats.ready().await?;
        let connection =
            self.nats.connection().ok_or_else(|| CarrierError::Away("NATS is away".to_owned()))?;
        let consumer = if self.is_named() {
            let name = &self.interest.name;
            if find(&stream, name).await?.is_none() {
                return Err(CarrierError::Unknown(name.clone()));
            }
            stream.get_consumer::<pull::Config>(name).await.map_err(|error| failed(&error))?
        } else {
            let begin = DeliverPolicy::ByStartSequence { start_sequence: self.position + 1 };
            let config = self.nats.consumer(&self.interest, begin);
            stream.create_consumer(config).await.map_err(|error| failed(&error))?
        };
        Ok(Source { consumer, connection })
    }

    /// `false` where the subscriber is gone.
    async fn deliver(&mut self, message: Message) -> bool {
        let Ok(info) = message.info() else { return true };
        let (position, kept_at_ms) = (info.stream_sequence, millis(info.published));
        let attempt = u32::try_from(info.delivered).unwrap_or(1);
        let attempt = if attempt > 1 { attempt - self.excused(position).min(attempt - 1) } else { attempt };
        let topic = self.nats.topic(&message.subject);
        let is_wanted = topic.is_some_and(|topic| self.interest.patterns.iter().any(|it| it.matches(topic)));
        self.position = self.position.max(position);
        if !is_wanted {
            if self.is_named() {
                let _ = message.ack().await;
            }
            return true;
        }
        if self.is_named() && attempt > self.nats.config.0.max_attempts {
            self.bury(&message, position, attempt - 1).await;
            return true;
        }
        let event = message.payload.to_vec();
        let delivery = EventDelivery { position, attempt, kept_at_ms, event };
        let (message, deadline) = match self.is_named() {
            true => (Some(message), in_time(self.nats.config.ack_timeout())),
            // Who is alone has all the time.
            false => (None, in_time(Duration::from_secs(365 * 86_400))),
        };
        self.out.insert(position, (message, deadline));
        self.told.try_send(Told::Event(delivery)).is_ok()
    }

    async fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Ack(positions) => {
                if let Some(last) = positions.iter().max() {
                    self.answered(*last);
                }
                for position in positions {
                    if let Some((Some(message), _)) = self.out.remove(&position) {
                        let _ = message.ack().await;
                    }
                }
            }
            Answer::Nack(position, delay) => {
                self.answered(position);
                if let Some((Some(message), _)) = self.out.remove(&position) {
                    let _ = message.ack_with(AckKind::Nak(Some(delay))).await;
                }
            }
        }
    }

    /// Puts a message aside that was delivered too often; where that fails it comes again.
    async fn bury(&self, message: &Message, position: u64, attempts: u32) {
        let name = &self.interest.name;
        let event = message.payload.to_vec();
        let dead = DeadEvent { subscription: name.clone(), position, attempts, died_at_ms: 0, event };
        let mut datastore = self.nats.datastores.events();
        let kind = match call(datastore.bury_event(limited(dead))).await {
            Ok(_) => {
                tracing::warn!(name, position, attempts, "an event was put aside");
                metrics::counter!("protoplex_seed_events_dead_total").increment(1);
                AckKind::Term
            }
            Err(_) => AckKind::Nak(Some(BURY_AGAIN)),
        };
        let _ = message.ack_with(kind).await;
    }

    /// Tells a subscriber that is so slow that the stream's limits have overtaken it.
    async fn look_for_lost(&mut self, consumer: &PullConsumer) {
        let Ok(stream) = self.nats.ready().await else { return };
        let (Ok(info), Ok(known)) = (stream.get_info().await, consumer.get_info().await) else { return };
        let (state, delivered) = (info.state, known.delivered.stream_sequence);
        if known.num_pending == 0 && delivered <= self.position {
            // There is nothing between for it.
            self.position = self.position.max(state.last_sequence);
        } else if state.first_sequence > self.position + 1 {
            let lost = LostEvents { first: self.position + 1, last: state.first_sequence - 1 };
            tracing::warn!(
                first = lost.first,
                last = lost.last,
                "a subscriber has lost events: they are kept no longer"
            );
            metrics::counter!("protoplex_seed_events_lost_total").increment(lost.last - lost.first + 1);
            self.position = lost.last;
            let _ = self.told.try_send(Told::Lost(lost));
        }
    }
}

/// The next message of a batch, and whether one has come before; for ever where nothing is asked.
async fn next(batch: &mut Option<(pull::Batch, bool)>) -> Option<Result<Message, async_nats::Error>> {
    match batch {
        Some((batch, has_brought)) => {
            let message = batch.next().await;
            *has_brought |= matches!(message, Some(Ok(_)));
            message
        }
        None => std::future::pending().await,
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
