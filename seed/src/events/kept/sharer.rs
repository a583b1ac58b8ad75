//! Serves one subscription: reads the log for it, gives events to its members and hears their answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{DeadEvent, EventDelivery, LostEvents};
use protoplex_wire::topic::TopicPattern;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Positions;
use super::log::Log;
use super::sharing::{MemberId, Sharing};
use crate::datastores::{Datastores, call, limited};
use crate::events::carrier::{Answer, CarrierError, Seat, Told};

/// Calls that wait for the task.
pub(super) const MAX_WAITING_CALLS: usize = 256;
/// Answered in one go, before more is given out.
const BATCH: usize = 256;
/// Wait after the datastore has failed.
const RETRY: Duration = Duration::from_millis(250);
/// So long a subscription is served that nobody has: who comes back finds what it knows of failed attempts.
const LINGER: Duration = Duration::from_secs(30);

/// What the task is told.
pub(super) enum Call {
    Join {
        seat: Seat,
        window: usize,
        joined: oneshot::Sender<()>,
    },
    Answer(MemberId, Answer),
    Leave(MemberId),
    /// It was removed.
    Remove,
}

pub(super) struct Sharer {
    /// Empty where it belongs to its only member.
    pub(super) name: String,
    pub(super) patterns: Vec<TopicPattern>,
    pub(super) sharing: Sharing,
    pub(super) log: Arc<Log>,
    pub(super) datastores: Arc<Datastores>,
    pub(super) positions: Positions,
}

/// The task's members.
#[derive(Default)]
struct Seats {
    told: HashMap<MemberId, mpsc::Sender<Told>>,
    last: MemberId,
    listeners: JoinSet<()>,
}

impl Sharer {
    /// Serves until it is removed, or nobody is left.
    pub(super) async fn run(mut self, to_self: mpsc::WeakSender<Call>, mut calls: mpsc::Receiver<Call>) {
        let mut head = self.log.head();
        let mut seats = Seats::default();
        // When the datastore is asked again after it has failed, and when a subscription without a member is let go.
        let (mut retry, mut end) = (BootTime::ZERO, None);
        loop {
            let now = BootTime::now();
            let is_behind = self.sharing.has_room() && self.sharing.cursor() < *head.borrow_and_update();
            if retry <= now {
                let read = if is_behind { self.read(&mut seats).await } else { Ok(()) };
                if let Err(error) = read.and(self.bury().await) {
                    tracing::debug!(name = self.name, %error, "a subscription waits");
                    retry = BootTime::now() + RETRY;
                }
            }
            self.offer(&mut seats);
            if !self.name.is_empty() {
                self.positions.note(&self.name, self.sharing.position());
            }
            let now = BootTime::now();
            end = match (self.sharing.has_members(), end) {
                (true, _) => None,
                (false, _) if self.name.is_empty() && seats.last > 0 => return,
                (false, None) => Some(now + LINGER),
                (false, Some(end)) if end <= now => return,
                (false, end) => end,
            };
            let is_behind = self.sharing.has_room() && self.sharing.cursor() < *head.borrow();
            let is_waiting = is_behind || self.sharing.next_dead().is_some();
            let times = [self.sharing.next_time(), end, is_waiting.then_some(retry)];
            let pause = times.into_iter().flatten().min().map_or(LINGER, |time| time.since(now));
            let mut batch = Vec::new();
            // All arms are cancel-safe.
            tokio::select! {
                biased;
                taken = calls.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for call in batch {
                        if !self.hear(call, &mut seats, &to_self) {
                            return;
                        }
                    }
                }
                _ = changed(&mut head), if self.sharing.has_room() => {}
                () = sleep(pause) => self.sharing.expire(BootTime::now()),
            }
        }
    }

    /// `false` where it ends.
    fn hear(&mut self, call: Call, seats: &mut Seats, to_self: &mpsc::WeakSender<Call>) -> bool {
        let now = BootTime::now();
        match call {
            Call::Join { seat, window, joined } => {
                seats.last += 1;
                let (member, Seat { told, mut answers }) = (seats.last, seat);
                seats.told.insert(member, told);
                self.sharing.join(member, window);
                // Who has told it to join holds it until it is told so.
                let to_self = to_self.upgrade();
                let _ = joined.send(());
                while seats.listeners.try_join_next().is_some() {}
                seats.listeners.spawn(async move {
                    let Some(to_self) = to_self else { return };
                    while let Some(answer) = answers.recv().await {
                        let _ = to_self.send(Call::Answer(member, answer)).await;
                    }
                    let _ = to_self.send(Call::Leave(member)).await;
                });
            }
            Call::Answer(member, Answer::Ack(positions)) => {
                if let Some(last) = positions.iter().max() {
                    self.sharing.answered(member, *last, now);
                }
                positions.into_iter().for_each(|position| self.sharing.ack(position));
            }
            // Who is alone, and has no deadline, has nobody else to leave it to.
            Call::Answer(_, Answer::Nack(position, _)) if self.name.is_empty() => self.sharing.ack(position),
            Call::Answer(member, Answer::Nack(position, delay)) => {
                self.sharing.answered(member, position, now);
                self.sharing.nack(member, position, now + delay);
            }
            Call::Leave(member) => self.leave(member, seats, now),
            Call::Remove => {
                for told in seats.told.values() {
                    let _ = told.try_send(Told::Ended(CarrierError::Unknown(self.name.clone())));
                }
                return false;
            }
        }
        true
    }

    fn leave(&mut self, member: MemberId, seats: &mut Seats, now: BootTime) {
        seats.told.remove(&member);
        self.sharing.leave(member, now);
    }

    /// Takes in the next page.
    async fn read(&mut self, seats: &mut Seats) -> Result<(), CarrierError> {
        let page = self.log.read(self.sharing.cursor()).await?;
        if let Some(LostEvents { first, last }) = page.lost {
            tracing::warn!(
                name = self.name,
                first,
                last,
                "a subscription has lost events: they are kept no longer"
            );
            metrics::counter!("protoplex_seed_events_lost_total").increment(last - first + 1);
            for told in seats.told.values() {
                let _ = told.try_send(Told::Lost(LostEvents { first, last }));
            }
        }
        let now = BootTime::now();
        for record in page.records {
            if self.patterns.iter().any(|pattern| pattern.matches(&record.topic)) {
                // What has no room is read again.
                if !self.sharing.has_room() {
                    return Ok(());
                }
                self.sharing.take_in(record, now);
            } else {
                self.sharing.pass(record.position);
            }
        }
        self.sharing.pass(page.up_to);
        Ok(())
    }

    /// Gives out what can be given out.
    fn offer(&mut self, seats: &mut Seats) {
        let now = BootTime::now();
        while let Some(offer) = self.sharing.next_offer(now) {
            let delivery = EventDelivery {
                position: offer.record.position,
                attempt: offer.attempt,
                kept_at_ms: offer.record.kept_at_ms,
                event: offer.record.event.clone(),
            };
            let sent = seats.told.get(&offer.member).map(|told| told.try_send(Told::Event(delivery)));
            if !matches!(sent, Some(Ok(()))) {
                self.leave(offer.member, seats, now);
            }
        }
    }

    /// Puts the dead aside, so that the position can go on.
    async fn bury(&mut self) -> Result<(), CarrierError> {
        while let Some((record, attempts)) = self.sharing.next_dead() {
            let dead = DeadEvent {
                subscription: self.name.clone(),
                position: record.position,
                attempts,
                died_at_ms: 0,
                event: record.event.clone(),
            };
            let mut datastore = self.datastores.events();
            call(datastore.bury_event(limited(dead))).await?;
            tracing::warn!(name = self.name, position = record.position, attempts, "an event was put aside");
            metrics::counter!("protoplex_seed_events_dead_total").increment(1);
            self.sharing.ack(record.position);
        }
        Ok(())
    }
}

/// The log has come further. For ever where it comes no further, for its term is over.
async fn changed(head: &mut watch::Receiver<u64>) {
    if head.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
