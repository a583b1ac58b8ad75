//! What a seed's core and its links cost at a million keys: `cargo run --release --workspace --example scale`.
//!
//! The core alone, then through real links (gRPC, TLS) to a seed whose threads are all called `seed`, so that their processor
//! time can be told from the askers'.

use std::error::Error;
use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protoplex_datastore::sqlite::SqliteStore;
use protoplex_seed::ownership::{Action, Idle, Joining, Limits, Ownership, Question, Timing};
use protoplex_seed::serve::{Start, serve};
use protoplex_wire::clock::BootTime;
use protoplex_wire::identity::{Identity, Kind, TrustedChannel};
use protoplex_wire::owners::{Owner, Owners};
use protoplex_wire::proto::seed_client::SeedClient;
use protoplex_wire::proto::{
    FollowHello, FollowReply, FollowRequest, Locate, Member, Owned, OwnedKey, Renew, follow_reply,
    follow_request, located,
};
use protoplex_wire::seeds::Seeds;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const KEYS: u32 = 1_000_000;
const MEMBERS: u32 = 200;
const CACHED: u32 = 250_000;
const POOL: &str = "rooms";
/// What an operator may be under any name.
const SIDE_CAR: &str = "backend";
/// Links that ask, and questions that each of them has on the way.
const ASKERS: u32 = 4;
const WINDOW: u32 = 512;
const LINK_KEYS: u32 = 1_000_000;
/// Of x86-64, and of most others.
const PAGE_BYTES: f64 = 4096.0;
const NODE_THREADS: &str = "datastore";
const SEED_THREADS: &str = "seed";

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    core();
    report();
    cache()?;
    links()
}

/// What a proxy's child knows by itself: keys one after the other, none of which was just asked for.
fn cache() -> Result<(), Failure> {
    let mut owners = Owners::default();
    let keys: Vec<_> = (0..CACHED).map(key).collect();
    let owner = Owner { member: "live-1:0".into(), address: "127.0.0.1:9".parse()?, epoch: 1 };
    let fresh = Duration::from_mins(10);
    keys.iter().for_each(|key| owners.learn(POOL, key, &owner, BootTime::now(), fresh));
    let begun = Instant::now();
    // A prime number of steps on, so that the next one is nowhere near.
    let strides = (0..keys.len()).map(|turn| &keys[turn * 65_537 % keys.len()]);
    let known = strides.filter(|key| owners.known(POOL, key, BootTime::now()).is_some()).count();
    let each_ns = begun.elapsed().as_secs_f64() * 1e9 / f64::from(CACHED);
    println!("cache: {each_ns:>8.0} ns for a cached answer ({known} of {CACHED} known)");
    Ok(())
}

fn key(number: u32) -> String {
    format!("room:{number:07}")
}

fn member(number: u32) -> Member {
    let (id, instance) = (format!("live-{number}:0"), number.to_string());
    Member { id, pool: POOL.to_owned(), address: "127.0.0.1:9".to_owned(), zone: "a".to_owned(), instance }
}

/// Of this process, in bytes.
fn resident() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or_default();
    pages * PAGE_BYTES
}

/// A core that leads, with its members.
fn core() {
    let mut core = Ownership::new(Timing::default(), Limits::default())
        .with_idle(Idle { default: Some(Duration::from_mins(10)), ..Idle::default() });
    let now = BootTime::now();
    core.lead(1, now + Duration::from_hours(1), Vec::new(), now);
    for number in 0..MEMBERS {
        let (member, node) = (member(number), format!("live-{number}"));
        core.hello(
            number.into(),
            Joining { node, member, incarnation: 1, attempt: 1, keys: Vec::new(), capacity: 1, yields: true },
            now,
        );
        core.recorded(number.into(), true, now);
    }
    while core.next_action().is_some() {}
    let before = resident();
    for what in ["first-time assignments", "repeat answers"] {
        let begun = Instant::now();
        let mut answered = 0;
        for number in 0..KEYS {
            let (zone, pool) = ("a".to_owned(), POOL.to_owned());
            let question = Question { link: 999, id: 1, zone, pool, key: key(number), refuted_epoch: 0 };
            core.locate(question, now);
            while let Some(action) = core.next_action() {
                answered += u32::from(matches!(action, Action::Send(999, _)));
            }
        }
        assert_eq!(answered, KEYS);
        println!("core: {:>9.0} {what} a second", f64::from(KEYS) / begun.elapsed().as_secs_f64());
    }
    println!(
        "core: {:>9.0} bytes a key ({KEYS} keys, {MEMBERS} members)",
        (resident() - before) / f64::from(KEYS)
    );
}

/// How long nobody else is answered when one member reports all keys, at the beginning of a term and later on.
fn report() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    let now = BootTime::now();
    let expected = [member(0), member(1)];
    core.lead(1, now + Duration::from_hours(1), expected.to_vec(), now);
    for (attempt, when) in [(1, "in a new term"), (2, "again")] {
        let keys = (0..KEYS).map(|number| OwnedKey { key: key(number), epoch: u64::from(number) }).collect();
        let (member, node) = (member(0), "live-0".to_owned());
        let joining = Joining { node, member, incarnation: 1, attempt, keys, capacity: 1, yields: true };
        let begun = Instant::now();
        core.hello(attempt, joining, now);
        core.recorded(attempt, true, now);
        let took = begun.elapsed().as_millis();
        assert_eq!(core.keys(), KEYS as usize);
        while core.next_action().is_some() {}
        println!("core: {took:>9} ms for a report of {KEYS} keys {when}");
    }
}

/// Processor time of all threads of this name, in seconds.
fn used(threads: &str) -> f64 {
    let mut ticks = 0.0;
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        if name.ends_with(&format!("({threads}")) {
            let times = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
            ticks += times.sum::<f64>();
        }
    }
    ticks / 100.0
}

fn links() -> Result<(), Failure> {
    let data = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&data.path().join("cluster"))?;
    let [datastore, seed] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0"));
    let (datastore, seed) = (datastore?, seed?);
    let [store_at, seed_at] =
        [datastore.local_addr()?, seed.local_addr()?].map(|address| address.to_string());
    let runtime =
        |name: &str| Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();

    let nodes = runtime(NODE_THREADS)?;
    let (file, of_datastore) =
        (data.path().join("protoplex.db"), identity.issue(Kind::Datastore, "datastore-1")?);
    nodes.spawn(async move {
        let store = Arc::new(SqliteStore::open(&file).await?);
        protoplex_datastore::serve::serve(store, datastore, &of_datastore, std::future::pending()).await?;
        Ok::<_, Failure>(())
    });
    let seeds = runtime(SEED_THREADS)?;
    let snapshot = data.path().join("seed").join("owners");
    let start = Start {
        node: "seed-1".to_owned(),
        instance: "i".to_owned(),
        address: seed_at.clone(),
        datastores: vec![store_at],
        seeds: Seeds::default(),
        snapshot,
        max_keys: KEYS as usize,
        member_networks: Default::default(),
        events: Default::default(),
        idle: Idle::default(),
    };
    let of_seed = identity.issue(Kind::Seed, "seed-1")?;
    seeds.spawn(async move { serve(start, seed, &of_seed, |_| {}, std::future::pending()).await });

    let result = Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = SeedClient::new(identity.channel(&seed_at)?);
        let _members = join(&client).await?;
        for what in ["first-time assignments", "repeat answers"] {
            let (begun, before) = (Instant::now(), used(SEED_THREADS));
            let mut askers = Vec::new();
            for asker in 0..ASKERS {
                askers.push(ask_all(SeedClient::new(identity.channel(&seed_at)?), asker));
            }
            futures_util::future::try_join_all(askers).await?;
            let (took, busy) = (begun.elapsed().as_secs_f64(), used(SEED_THREADS) - before);
            let count = f64::from(LINK_KEYS);
            println!(
                "links: {:>8.0} {what} a second of the seed's processor ({:.0} a second)",
                count / busy,
                count / took
            );
        }
        Ok::<_, Failure>(())
    });
    seeds.shutdown_background();
    nodes.shutdown_background();
    result
}

fn request(message: follow_request::Message) -> FollowRequest {
    FollowRequest { message: Some(message) }
}

async fn follow(
    mut client: SeedClient<TrustedChannel>,
    hello: FollowHello,
) -> Result<(mpsc::Sender<FollowRequest>, Streaming<FollowReply>), Failure> {
    let (sender, requests) = mpsc::channel(WINDOW as usize);
    let is_member = hello.member.is_some();
    sender.send(request(follow_request::Message::Hello(hello))).await?;
    if is_member {
        sender.send(request(follow_request::Message::Owned(Owned { keys: Vec::new(), last: true }))).await?;
    }
    let replies = client.follow(ReceiverStream::new(requests)).await?.into_inner();
    Ok((sender, replies))
}

/// Two members, which renew their leases and take what they are given.
async fn join(client: &SeedClient<TrustedChannel>) -> Result<Vec<tokio::task::AbortHandle>, Failure> {
    let mut members = Vec::new();
    for number in 0..2 {
        let hello = FollowHello {
            node: format!("live-{number}"),
            kind: SIDE_CAR.to_owned(),
            member: Some(member(number)),
            incarnation: 1,
            attempt: 1,
            ..FollowHello::default()
        };
        let (sender, mut replies) = loop {
            // Until the seed leads.
            if let Ok((sender, mut replies)) = follow(client.clone(), hello.clone()).await
                && let Ok(Some(_)) = replies.message().await
            {
                break (sender, replies);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let renewing = async move {
            for sequence in 1.. {
                let renew = follow_request::Message::Renew(Renew { sequence });
                if sender.send(request(renew)).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        members.push(tokio::spawn(renewing).abort_handle());
        members.push(
            tokio::spawn(async move { while let Ok(Some(_)) = replies.message().await {} }).abort_handle(),
        );
    }
    Ok(members)
}

/// Asks for this asker's part of the keys, and waits for all answers.
async fn ask_all(client: SeedClient<TrustedChannel>, asker: u32) -> Result<(), Failure> {
    let hello =
        FollowHello { node: format!("proxy-{asker}"), kind: SIDE_CAR.to_owned(), ..FollowHello::default() };
    let (sender, mut replies) = follow(client, hello).await?;
    let mine = (0..LINK_KEYS).filter(|number| number % ASKERS == asker);
    let mut left = 0;
    let questions: Vec<_> = mine.collect();
    let mut next = questions.iter();
    let ask = |number: &u32| {
        let locate =
            Locate { id: u64::from(*number), pool: POOL.to_owned(), key: key(*number), refuted_epoch: 0 };
        request(follow_request::Message::Locate(locate))
    };
    for number in next.by_ref().take(WINDOW as usize / 2) {
        sender.send(ask(number)).await?;
        left += 1;
    }
    while left > 0 {
        let reply = replies.message().await?.and_then(|reply| reply.message);
        if let Some(follow_reply::Message::Located(located)) = reply {
            if !matches!(located.result, Some(located::Result::Owner(_))) {
                return Err(format!("no owner: {located:?}").into());
            }
            left -= 1;
            if let Some(number) = next.next() {
                sender.send(ask(number)).await?;
                left += 1;
            }
        }
    }
    Ok(())
}
