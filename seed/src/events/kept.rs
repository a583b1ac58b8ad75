//! The carrier that needs nothing else: the datastore keeps the log, the seed that leads shares it out from memory.

mod log;
mod sharer;
mod sharing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protoplex_wire::proto::{
    KeptEvent, ListSubscriptionsRequest, MoveSubscriptionsRequest, PutSubscriptionRequest,
    RemoveSubscriptionRequest, SubscriptionList, SubscriptionMove, TrimEventsRequest,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::carrier::{Carrier, CarrierError, Interest, Membership, Outgoing, Reign, Start, membership};
use super::config::Config;
use crate::cluster::Handle;
use crate::datastores::{CALL_TIMEOUT, Datastores, call, limited};
use log::Log;
use sharer::{Call, MAX_WAITING_CALLS, Sharer};
use sharing::{Sharing, Terms};

/// How long a call waits for this seed to lead.
const LEADING_TIMEOUT: Duration = Duration::from_secs(3);
/// Wait after the log could not be opened.
const RETRY: Duration = Duration::from_millis(250);
/// How often positions are written: what was acknowledged later may come again after a crash of the seed.
const KEEP_POSITIONS_EVERY: Duration = Duration::from_millis(200);
/// How often the log is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(2);
/// Attempts to reach the task of a subscription that ends at the same moment.
const ATTEMPTS: usize = 5;

/// Events kept by the cluster itself.
pub(crate) struct Kept {
    datastores: Arc<Datastores>,
    terms: Terms,
    reign: watch::Receiver<Option<Arc<Term>>>,
}

/// What there is for as long as this seed leads.
struct Term {
    log: Arc<Log>,
    positions: Positions,
    /// The tasks of subscriptions that have a name.
    named: Mutex<HashMap<String, mpsc::Sender<Call>>>,
    /// All tasks: they end with the term.
    tasks: Mutex<JoinSet<()>>,
}

/// Positions that are to be written, by name. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Positions(Arc<Mutex<HashMap<String, (u64, bool)>>>);

impl Kept {
    /// The carrier, and the task that opens the log whenever this seed leads.
    pub(crate) fn new(
        datastores: Arc<Datastores>,
        cluster: Handle,
        mut leads: Reign,
        config: &Config,
    ) -> (Arc<Self>, impl Future<Output = ()> + use<>) {
        let (tell, reign) = watch::channel(None);
        let terms = Terms { ack_timeout: Some(config.ack_timeout()), max_attempts: config.0.max_attempts };
        let kept = Arc::new(Self { datastores: Arc::clone(&datastores), terms, reign });
        let retention = TrimEventsRequest {
            max_age_ms: u64::try_from(config.max_age().as_millis()).unwrap_or(u64::MAX),
            max_events: config.0.max_events,
            max_bytes: config.0.max_bytes,
        };
        let run = async move {
            loop {
                let present = *leads.borrow_and_update();
                let term = async {
                    let Some(present) = present else { return };
                    loop {
                        match Term::begin(present, cluster.clone(), Arc::clone(&datastores), retention).await
                        {
                            Ok(term) => break drop(tell.send_replace(Some(Arc::new(term)))),
                            Err(error) => tracing::debug!(%error, "the log of events can't be opened"),
                        }
                        sleep(RETRY).await;
                    }
                    std::future::pending::<()>().await;
                };
                // Both arms are cancel-safe: a term that is half begun leaves nothing.
                tokio::select! {
                    changed = leads.changed() => if changed.is_err() { return },
                    () = term => if leads.changed().await.is_err() { return },
                }
                tell.send_replace(None);
            }
        };
        (kept, run)
    }

    async fn term(&self) -> Result<Arc<Term>, CarrierError> {
        let mut reign = self.reign.clone();
        let led = timeout(LEADING_TIMEOUT, reign.wait_for(Option::is_some)).await;
        let term = led.ok().and_then(Result::ok).and_then(|term| term.clone());
        term.ok_or_else(|| CarrierError::Away(self.datastores.not_leading()))
    }

    async fn begin(&self, term: &Term, interest: &Interest) -> Result<u64, CarrierError> {
        let (earliest, head) = term.log.ends().await?;
        let after = match interest.start {
            Start::Newest => None,
            Start::Earliest => Some(earliest.saturating_sub(1)),
            // One of another log, perhaps, that was longer.
            Start::After(position) => Some(position.min(head)),
        };
        if interest.name.is_empty() {
            return Ok(after.unwrap_or(head));
        }
        let request =
            PutSubscriptionRequest { name: interest.name.clone(), patterns: interest.pattern_texts(), after };
        let mut datastore = self.datastores.events();
        let known = call(datastore.put_subscription(limited(request))).await?;
        if known.patterns != interest.pattern_texts() {
            let patterns = known.patterns.join(" ");
            return Err(CarrierError::OtherPatterns { name: interest.name.clone(), patterns });
        }
        Ok(known.position)
    }

    /// A task for this subscription, which ends with the term.
    fn serve(&self, term: &Term, interest: &Interest, after: u64) -> mpsc::Sender<Call> {
        let terms = match interest.name.is_empty() {
            true => Terms { ack_timeout: None, max_attempts: u32::MAX },
            false => self.terms,
        };
        let sharer = Sharer {
            name: interest.name.clone(),
            patterns: interest.patterns.clone(),
            sharing: Sharing::new(after, terms),
            log: Arc::clone(&term.log),
            datastores: Arc::clone(&self.datastores),
            positions: term.positions.clone(),
        };
        let (calls, to_hear) = mpsc::channel(MAX_WAITING_CALLS);
        term.spawn(sharer.run(calls.downgrade(), to_hear));
        calls
    }
}

impl Carrier for Kept {
    async fn publish(&self, events: Vec<Outgoing>) -> Result<Vec<KeptEvent>, CarrierError> {
        self.term().await?.log.append(events).await
    }

    async fn subscribe(&self, interest: Interest) -> Result<Membership, CarrierError> {
        let term = self.term().await?;
        for _ in 0..ATTEMPTS {
            let after = self.begin(&term, &interest).await?;
            let (membership, seat) = membership(after, interest.window);
            let calls = if interest.name.is_empty() {
                self.serve(&term, &interest, after)
            } else {
                let mut named = term.named();
                match named.get(&interest.name).filter(|calls| !calls.is_closed()) {
                    Some(calls) => calls.clone(),
                    None => {
                        let calls = self.serve(&term, &interest, after);
                        named.insert(interest.name.clone(), calls.clone());
                        calls
                    }
                }
            };
            let (joined, is_joined) = oneshot::channel();
            let _ = calls.send(Call::Join { seat, window: interest.window, joined }).await;
            if is_joined.await.is_ok() {
                return Ok(membership);
            }
        }
        Err(CarrierError::Away("the subscription ends at this moment; try again".to_owned()))
    }

    async fn subscriptions(&self) -> Result<SubscriptionList, CarrierError> {
        let mut datastore = self.datastores.events();
        Ok(call(datastore.list_kept_subscriptions(limited(ListSubscriptionsRequest {}))).await?)
    }

    async fn remove(&self, name: &str) -> Result<(), CarrierError> {
        let term = self.term().await?;
        let served = term.named().remove(name);
        if let Some(calls) = served {
            let _ = calls.send(Call::Remove).await;
            let _ = timeout(CALL_TIMEOUT, calls.closed()).await;
        }
        // Else it might be written to another one that has the name later.
        term.positions.forget(name);
        let mut datastore = self.datastores.events();
        let request = limited(RemoveSubscriptionRequest { name: name.to_owned() });
        match call(datastore.remove_kept_subscription(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound => {
                Err(CarrierError::Unknown(name.to_owned()))
            }
            Err(status) => Err(status.into()),
        }
    }
}

impl Term {
    async fn begin(
        term: u64,
        cluster: Handle,
        datastores: Arc<Datastores>,
        retention: TrimEventsRequest,
    ) -> Result<Self, CarrierError> {
        let (log, waiting) = Log::open(term, cluster, Arc::clone(&datastores)).await?;
        let positions = Positions::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&log).append_all(waiting));
        tasks.spawn(Arc::clone(&log).look_again_and_again());
        tasks.spawn(positions.clone().keep(Arc::clone(&datastores)));
        tasks.spawn(trim(datastores, retention));
        Ok(Self { log, positions, named: Mutex::default(), tasks: Mutex::new(tasks) })
    }

    fn named(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Call>>> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, calls| !calls.is_closed());
        named
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl Positions {
    /// All up to here is done.
    pub(super) fn note(&self, name: &str, position: u64) {
        let mut positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match positions.get_mut(name) {
            Some((known, is_new)) => {
                *is_new |= *known != position;
                *known = position;
            }
            None => drop(positions.insert(name.to_owned(), (position, true))),
        }
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    async fn keep(self, datastores: Arc<Datastores>) {
        loop {
            sleep(KEEP_POSITIONS_EVERY).await;
            let take = |(name, (position, is_new)): (&String, &mut (u64, bool))| {
                std::mem::take(is_new).then(|| SubscriptionMove { name: name.clone(), position: *position })
            };
            let moves: Vec<_> = {
                let mut positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                positions.iter_mut().filter_map(take).collect()
            };
            if moves.is_empty() {
                continue;
            }
            let names: Vec<_> = moves.iter().map(|it| it.name.clone()).collect();
            let request = limited(MoveSubscriptionsRequest { moves });
            if let Err(status) = call(datastores.events().move_subscriptions(request)).await {
                tracing::debug!(reason = status.message(), "positions of subscriptions are not kept");
                let mut positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                for name in names {
                    if let Some((_, is_new)) = positions.get_mut(&name) {
                        *is_new = true;
                    }
                }
            }
        }
    }
}

/// Keeps the log within its limits.
async fn trim(datastores: Arc<Datastores>, retention: TrimEventsRequest) {
    loop {
        match call(datastores.events().trim_events(limited(retention))).await {
            Ok(trimmed) if trimmed.more => continue,
            Ok(_) => {}
            Err(status) => tracing::debug!(reason = status.message(), "the log of events is not trimmed"),
        }
        sleep(TRIM_EVERY).await;
    }
}
