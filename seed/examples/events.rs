//! What the bus carries a second: `cargo run --release --workspace --example events`.
//!
//! A seed and its datastore with real links (gRPC, TLS), all in this process; the carriers are SQLite, a real PostgreSQL
//! server and a real NATS server, which the last two need installed (scripts/install-test-tools).

use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protoplex_datastore::postgres::{PgStore, Target};
use protoplex_datastore::sqlite::SqliteStore;
use protoplex_seed::events::config::Raw;
use protoplex_seed::serve::{Start as SeedStart, serve};
use protoplex_testkit::{nats, postgres};
use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::events::{Bus, Notice, Start, Subscriber, Subscription};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::seeds::Seeds;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

/// Events of each measurement.
const SINGLE: usize = 4_000;
const BATCHED: usize = 40_000;
const BATCH: usize = 256;
/// Publishers that publish one event after the other, each when the last one is kept.
const PUBLISHERS: usize = 32;
/// Subscribers that have every event, and members of one group.
const BROADCAST: usize = 8;
const GROUP: usize = 4;
const DATA_BYTES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Copy, Debug)]
enum Keeper {
    Sqlite,
    Postgres,
    Nats,
}

fn main() -> Result<(), Failure> {
    println!("events of {DATA_BYTES} bytes of data, events a second:");
    println!(
        "{:10} {:>12} {:>12} {:>12} {:>12}",
        "", "one by one", "in batches", "to each of 8", "to a group"
    );
    for keeper in [Keeper::Sqlite, Keeper::Postgres, Keeper::Nats] {
        measure(keeper)?;
    }
    Ok(())
}

fn measure(keeper: Keeper) -> Result<(), Failure> {
    let data = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&data.path().join("cluster"))?;
    let (datastore, seed) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (datastore_address, seed_address) = (datastore.local_addr()?, seed.local_addr()?);
    let nats = matches!(keeper, Keeper::Nats).then(nats::Server::start);
    let postgres = matches!(keeper, Keeper::Postgres).then(postgres::Server::start);
    let raw = Raw { nats: nats.as_ref().map(nats::Server::url), ..Raw::default() };
    let start = SeedStart {
        node: "seed-1".to_owned(),
        instance: "i".to_owned(),
        address: seed_address.to_string(),
        datastores: vec![datastore_address.to_string()],
        seeds: Seeds::default(),
        snapshot: data.path().join("owners"),
        max_keys: 1000,
        member_networks: Default::default(),
        events: raw.resolve(&mut Default::default()),
        idle: Default::default(),
    };
    let nodes = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let trust = identity.issue(Kind::Datastore, "datastore-1")?;
    let url = postgres.as_ref().map(postgres::Server::database);
    let file = data.path().join("protoplex.db");
    nodes.spawn(async move {
        let forever = std::future::pending();
        match url {
            Some(url) => {
                let store = PgStore::open(&Target::parse(&url, None)?).await?;
                protoplex_datastore::serve::serve(Arc::new(store), datastore, &trust, forever).await?;
            }
            None => {
                let store = SqliteStore::open(&file).await?;
                protoplex_datastore::serve::serve(Arc::new(store), datastore, &trust, forever).await?;
            }
        }
        Ok::<_, Failure>(())
    });
    let trust = identity.issue(Kind::Seed, "seed-1")?;
    nodes.spawn(async move { serve(start, seed, &trust, |_| {}, std::future::pending()).await });

    let clients = Builder::new_current_thread().enable_all().build()?;
    let [one_by_one, in_batches, broadcast, group] =
        clients.block_on(async { rates(&Bus::new(&identity, vec![seed_address.to_string()])?).await })?;
    let name = format!("{keeper:?}");
    println!("{name:10} {one_by_one:>12.0} {in_batches:>12.0} {broadcast:>12.0} {group:>12.0}");
    nodes.shutdown_background();
    Ok(())
}

async fn rates(bus: &Bus) -> Result<[f64; 4], Failure> {
    bus.publish(&[event("warm")?], Duration::ZERO, PATIENCE).await?;

    let begun = Instant::now();
    let mut publishers = JoinSet::new();
    for _ in 0..PUBLISHERS {
        let bus = bus.clone();
        publishers.spawn(async move {
            for _ in 0..SINGLE / PUBLISHERS {
                bus.publish(&[event("single")?], Duration::ZERO, PATIENCE).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    publishers.join_all().await.into_iter().collect::<Result<(), _>>()?;
    let one_by_one = SINGLE as f64 / begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    for _ in 0..BATCHED / BATCH {
        let events = (0..BATCH).map(|_| event("batched")).collect::<Result<Vec<_>, _>>()?;
        bus.publish(&events, Duration::ZERO, PATIENCE).await?;
    }
    let published = BATCHED / BATCH * BATCH;
    let in_batches = published as f64 / begun.elapsed().as_secs_f64();

    let broadcast = read(bus, BROADCAST, published, "").await? * BROADCAST as f64;
    let group = read(bus, GROUP, published / GROUP, "group").await? * GROUP as f64;
    Ok([one_by_one, in_batches, broadcast, group])
}

/// How many events a second each of these subscribers has, all of what is kept.
async fn read(bus: &Bus, subscribers: usize, each: usize, name: &str) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut reading = JoinSet::new();
    for _ in 0..subscribers {
        let subscriber = bus.subscribe(Subscription {
            patterns: vec!["batched".to_owned()],
            name: name.to_owned(),
            exclusive: false,
            start: Start::Earliest,
            window: 512,
        });
        // A group shares as its members are fast: three quarters of a fair share are reached by each.
        let count = if name.is_empty() { each } else { each * 3 / 4 };
        reading.spawn(take(subscriber, count));
    }
    let mut taken = 0;
    for outcome in reading.join_all().await {
        taken += outcome?;
    }
    Ok(taken as f64 / subscribers as f64 / begun.elapsed().as_secs_f64())
}

async fn take(mut subscriber: Subscriber, count: usize) -> Result<usize, Failure> {
    let mut taken = 0;
    while taken < count {
        if let Notice::Event(delivery) = subscriber.next().await? {
            subscriber.ack(&delivery).await;
            taken += 1;
        }
    }
    Ok(taken)
}

fn event(topic: &str) -> Result<CloudEvent, Failure> {
    let data = EventData::json(&"x".repeat(DATA_BYTES))?;
    Ok(CloudEvent::new("/example", topic).with_data("application/json", data))
}
