//! A seed whose events are kept by one thing or another, and what is asked of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protoplex_datastore::postgres::{PgStore, Target};
use protoplex_testkit::ports::Port;
use protoplex_testkit::{nats, postgres};
use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::events::{self, Bus, Notice, PublishError, Subscriber, Subscription};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::proto::{EventDelivery, KeptEvent};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::datastores::Datastores;
use crate::events::config::{Config, Raw};
use crate::events::nats::Nats;
pub(super) use crate::rig::{DEADLINE, until};
use crate::rig::{Process, address, bind};
use crate::role::Role;
use crate::serve::{Start, serve};

/// Of the configuration of these tests.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_millis(1000);
pub(super) const MAX_ATTEMPTS: u32 = 3;

/// What keeps the events.
#[derive(Clone, Copy)]
pub(super) enum Keeper {
    Sqlite,
    Postgres,
    Nats,
}

pub(super) struct Rig {
    pub(super) bus: Bus,
    pub(super) identity: Identity,
    pub(super) nats: Option<nats::Server>,
    pub(super) seed_address: SocketAddr,
    seed: Option<Process>,
    datastore: Option<Process>,
    config: Config,
    data: TempDir,
    datastore_address: SocketAddr,
    _postgres: Option<Arc<postgres::Server>>,
    _ports: [Port; 2],
}

impl Rig {
    pub(super) async fn start(keeper: Keeper) -> Self {
        Self::start_with(keeper, |_| {}).await
    }

    pub(super) async fn start_with(keeper: Keeper, change: impl FnOnce(&mut Raw)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let ports = [Port::take(), Port::take()];
        let [datastore_address, seed_address] = ports.each_ref().map(address);
        let nats = matches!(keeper, Keeper::Nats).then(nats::Server::start);
        let postgres = matches!(keeper, Keeper::Postgres).then(postgres::Server::shared);
        let mut raw = Raw {
            nats: nats.as_ref().map(nats::Server::url),
            ack_timeout_ms: u32::try_from(ACK_TIMEOUT.as_millis()).unwrap(),
            max_attempts: MAX_ATTEMPTS,
            ..Raw::default()
        };
        change(&mut raw);

        let datastore = match &postgres {
            None => Process::datastore(datastore_address, data.path(), &identity).await,
            Some(server) => {
                let listener = bind(datastore_address).await;
                let trust = identity.issue(Kind::Datastore, "datastore-1").unwrap();
                let url = server.database();
                Process::start(|drain, _| async move {
                    let store = PgStore::open(&Target::parse(&url, None).unwrap()).await.unwrap();
                    let store = Arc::new(store);
                    protoplex_datastore::serve::serve(store, listener, &trust, drain.notified())
                        .await
                        .unwrap();
                    Ok(())
                })
            }
        };
        let bus = Bus::new(&identity, vec![seed_address.to_string()]).unwrap();
        let mut rig = Self {
            bus,
            identity,
            nats,
            seed_address,
            seed: None,
            datastore: Some(datastore),
            config: Config(raw),
            data,
            datastore_address,
            _postgres: postgres,
            _ports: ports,
        };
        rig.start_seed().await;
        rig
    }

    /// The seed's own way to NATS, once more.
    pub(super) async fn nats_carrier(&self) -> Arc<Nats> {
        let seed = self.identity.issue(Kind::Seed, "seed-1").unwrap();
        let addresses = [self.datastore_address.to_string()];
        let datastores = Arc::new(Datastores::new(&seed, &addresses).unwrap());
        Nats::connect(&self.config, datastores).await.unwrap()
    }

    /// Ends the seed at once, mid-sentence.
    pub(super) fn kill_seed(&mut self) {
        self.seed = None;
    }

    /// As [`Self::kill_seed`].
    pub(super) fn kill_datastore(&mut self) {
        self.datastore = None;
    }

    pub(super) async fn start_seed(&mut self) {
        let listener = bind(self.seed_address).await;
        let start = Start {
            events: self.config.clone(),
            ..crate::rig::start("seed-1", self.seed_address, self.datastore_address, self.data.path())
        };
        let identity = self.identity.issue(Kind::Seed, "seed-1").unwrap();
        let seed = Process::start(|drain, role| async move {
            let tell = |now: &Role| drop(role.send_replace(now.clone()));
            serve(start, listener, &identity, tell, drain.notified()).await
        });
        self.seed = Some(seed);
    }

    /// Publishes, however long the seed takes to be there.
    pub(super) async fn publish(&self, events: &[CloudEvent]) -> Vec<KeptEvent> {
        self.bus.publish(events, Duration::ZERO, DEADLINE).await.unwrap()
    }

    /// Publishes once.
    pub(super) async fn try_publish(&self, events: &[CloudEvent]) -> Result<Vec<KeptEvent>, PublishError> {
        self.bus.publish(events, Duration::ZERO, Duration::ZERO).await
    }

    /// A subscriber that is taken up.
    pub(super) async fn subscribe(&self, subscription: Subscription) -> Subscriber {
        let mut subscriber = self.bus.subscribe(subscription);
        subscriber.connect(tokio::time::Instant::now() + DEADLINE).await.unwrap();
        subscriber
    }
}

/// Without a name, from now on.
pub(super) fn alone(pattern: &str) -> Subscription {
    Subscription {
        patterns: vec![pattern.to_owned()],
        name: String::new(),
        exclusive: false,
        start: events::Start::Newest,
        window: 100,
    }
}

/// Under a name, from the first event on.
pub(super) fn named(name: &str, pattern: &str) -> Subscription {
    Subscription { name: name.to_owned(), start: events::Start::Earliest, ..alone(pattern) }
}

pub(super) fn event(topic: &str, id: &str) -> CloudEvent {
    CloudEvent::new("/test", topic).with_id(id).with_data("application/json", EventData::json(&id).unwrap())
}

/// So many of one type, with numbers for ids.
pub(super) fn events(topic: &str, numbers: std::ops::Range<u32>) -> Vec<CloudEvent> {
    numbers.map(|n| event(topic, &n.to_string())).collect()
}

/// The next event, which has to come.
pub(super) async fn delivery(subscriber: &mut Subscriber) -> EventDelivery {
    let next = async {
        loop {
            match subscriber.next().await.unwrap() {
                Notice::Event(delivery) => return delivery,
                Notice::Lost(lost) => panic!("lost: {lost:?}"),
                Notice::Away(_) => {}
            }
        }
    };
    timeout(DEADLINE, next).await.expect("an event comes")
}

/// The ids of the next events, each acknowledged.
pub(super) async fn take(subscriber: &mut Subscriber, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let delivery = delivery(subscriber).await;
        ids.push(id(&delivery));
        subscriber.ack(&delivery).await;
    }
    ids
}

pub(super) fn id(delivery: &EventDelivery) -> String {
    CloudEvent::from_json(&delivery.event).unwrap().id().to_owned()
}

/// Whether nothing comes for a while.
pub(super) async fn is_quiet(subscriber: &mut Subscriber) -> bool {
    timeout(Duration::from_millis(300), subscriber.next()).await.is_err()
}
