//! A datastore and a seed on free ports, each of which can die as by SIGKILL and come back on its port.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use protoplex_datastore::postgres::{PgStore, Target};
use protoplex_datastore::sqlite::SqliteStore;
use protoplex_testkit::{nats, postgres};
use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::events::{Bus, Notice, PublishError, Start, Subscriber, Subscription};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::proto::{EventDelivery, KeptEvent};
use protoplex_wire::seeds::Seeds;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::events::config::{Config, Raw};
use crate::serve;

pub(super) const DEADLINE: Duration = Duration::from_secs(30);
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

/// Goes with all its tasks and sockets.
struct Process(Option<Runtime>);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

pub(super) struct Rig {
    pub(super) bus: Bus,
    pub(super) identity: Identity,
    pub(super) nats: Option<nats::Server>,
    pub(super) seed_address: SocketAddr,
    seed: Option<Process>,
    _datastore: Process,
    config: Config,
    data: TempDir,
    datastore_address: SocketAddr,
    _postgres: Option<Arc<postgres::Server>>,
}

impl Rig {
    pub(super) async fn start(keeper: Keeper) -> Self {
        Self::start_with(keeper, |_| {}).await
    }

    pub(super) async fn start_with(keeper: Keeper, change: impl FnOnce(&mut Raw)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (datastore_address, seed_address) = (free(), free());
        let nats = matches!(keeper, Keeper::Nats).then(nats::Server::start);
        let postgres = matches!(keeper, Keeper::Postgres).then(postgres::Server::shared);
        let mut raw = Raw {
            nats: nats.as_ref().map(nats::Server::url),
            ack_timeout_ms: u32::try_from(ACK_TIMEOUT.as_millis()).unwrap(),
            max_attempts: MAX_ATTEMPTS,
            ..Raw::default()
        };
        change(&mut raw);

        let listener = bind(datastore_address).await;
        let (file, trust) =
            (data.path().join("protoplex.db"), identity.issue(Kind::Datastore, "datastore-1").unwrap());
        let url = postgres.as_ref().map(|server| server.database());
        let datastore = process(async move {
            let forever = std::future::pending();
            match url {
                Some(url) => {
                    let store = PgStore::open(&Target::parse(&url, None).unwrap()).await.unwrap();
                    protoplex_datastore::serve::serve(Arc::new(store), listener, &trust, forever)
                        .await
                        .unwrap();
                }
                None => {
                    let store = SqliteStore::open(&file).await.unwrap();
                    protoplex_datastore::serve::serve(Arc::new(store), listener, &trust, forever)
                        .await
                        .unwrap();
                }
            }
        });
        let bus = Bus::new(&identity, vec![seed_address.to_string()]).unwrap();
        let mut rig = Self {
            bus,
            identity,
            nats,
            seed_address,
            seed: None,
            _datastore: datastore,
            config: Config(raw),
            data,
            datastore_address,
            _postgres: postgres,
        };
        rig.start_seed().await;
        rig
    }

    /// Ends the seed at once, mid-sentence.
    pub(super) fn kill_seed(&mut self) {
        self.seed = None;
    }

    pub(super) async fn start_seed(&mut self) {
        let listener = bind(self.seed_address).await;
        let start = serve::Start {
            node: "seed-1".to_owned(),
            instance: "i".to_owned(),
            address: self.seed_address.to_string(),
            datastores: vec![self.datastore_address.to_string()],
            seeds: Seeds::default(),
            snapshot: self.data.path().join("seed").join("owners"),
            max_keys: 1000,
            member_networks: Default::default(),
            events: self.config.clone(),
            idle: Default::default(),
        };
        let identity = self.identity.issue(Kind::Seed, "seed-1").unwrap();
        self.seed = Some(process(async move {
            serve::serve(start, listener, &identity, |_| {}, std::future::pending()).await.unwrap();
        }));
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

fn process(main: impl Future<Output = ()> + Send + 'static) -> Process {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(main);
    Process(Some(runtime))
}

/// The port of one that has just died may take a moment to be free.
async fn bind(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match TcpListener::bind(address) {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(DEADLINE, bound).await.unwrap()
}

/// Without a name, from now on.
pub(super) fn alone(pattern: &str) -> Subscription {
    Subscription {
        patterns: vec![pattern.to_owned()],
        name: String::new(),
        exclusive: false,
        start: Start::Newest,
        window: 100,
    }
}

/// Under a name, from the first event on.
pub(super) fn named(name: &str, pattern: &str) -> Subscription {
    Subscription { name: name.to_owned(), start: Start::Earliest, ..alone(pattern) }
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

/// Asks until there is an answer.
pub(super) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("still not so: {what}"))
}
