//! What many followers are told in time: `cargo run --release --workspace --example followers`.
//!
//! Through real links (gRPC over TLS) to a seed and a datastore in this process: 2,000 followers get another routing table,
//! and a member with 100,000 keys dies, all of which 100 followers ask for until each has another owner. The limit of open
//! files must allow 5,000.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use protoplex_datastore::sqlite::SqliteStore;
use protoplex_seed::ownership::Idle;
use protoplex_seed::serve::{Start, serve};
use protoplex_wire::identity::{Identity, Kind, TrustedChannel};
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::seed_client::SeedClient;
use protoplex_wire::proto::{
    FollowHello, FollowReply, FollowRequest, Handler, HandlerChanges, Locate, Member, Owned, Placement,
    Renew, follow_reply, follow_request, located,
};
use protoplex_wire::seeds::Seeds;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const FOLLOWERS: usize = 2_000;
/// Links that are opened at once.
const OPENING: usize = 50;
const HANDLERS: usize = 500;
const KEYS: usize = 100_000;
const ASKERS: usize = 100;
/// Questions that an asker has on the way.
const WINDOW: usize = 64;
const LEASE: Duration = Duration::from_secs(5);
const POOL: &str = "rooms";
/// What an operator may be under any name.
const SIDE_CAR: &str = "backend";
const DEADLINE: Duration = Duration::from_secs(120);

type Failure = Box<dyn Error + Send + Sync>;
type Replies = Streaming<FollowReply>;
type Requests = mpsc::Sender<FollowRequest>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let data = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&data.path().join("cluster"))?;
    let [datastore, seed] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0"));
    let (datastore, seed) = (datastore?, seed?);
    let (store_at, seed_at) = (datastore.local_addr()?.to_string(), seed.local_addr()?.to_string());
    let (file, of_datastore) =
        (data.path().join("protoplex.db"), identity.issue(Kind::Datastore, "datastore-1")?);
    tokio::spawn(async move {
        let store = Arc::new(SqliteStore::open(&file).await?);
        protoplex_datastore::serve::serve(store, datastore, &of_datastore, std::future::pending()).await?;
        Ok::<_, Failure>(())
    });
    let start = Start {
        node: "seed-1".to_owned(),
        instance: "i".to_owned(),
        address: seed_at.clone(),
        datastores: vec![store_at],
        seeds: Seeds::default(),
        snapshot: data.path().join("seed").join("owners"),
        max_keys: 4 * KEYS,
        member_networks: Default::default(),
        idle: Idle { default: Some(Duration::from_mins(10)), ..Idle::default() },
        events: Default::default(),
    };
    let of_seed = identity.issue(Kind::Seed, "seed-1")?;
    tokio::spawn(async move { serve(start, seed, &of_seed, |_| {}, std::future::pending()).await });

    let victim = join(&identity, &seed_at, "victim").await?;
    timeout(DEADLINE, tables(&identity, &seed_at)).await??;
    timeout(DEADLINE, death(&identity, &seed_at, victim)).await?
}

fn request(message: follow_request::Message) -> FollowRequest {
    FollowRequest { message: Some(message) }
}

/// A link of its own connection, and a proxy's of its own certificate: a seed gives no name the places of so many.
async fn follow(identity: &Identity, seed: &str, hello: FollowHello) -> Result<(Requests, Replies), Failure> {
    let own = match hello.member {
        None => identity.issue(Kind::Proxy, &hello.node)?,
        Some(_) => identity.clone(),
    };
    let mut client: SeedClient<TrustedChannel> = SeedClient::new(own.channel(seed)?);
    let (sender, requests) = mpsc::channel(2 * WINDOW);
    let is_member = hello.member.is_some();
    sender.send(request(follow_request::Message::Hello(hello))).await?;
    if is_member {
        sender.send(request(follow_request::Message::Owned(Owned { keys: Vec::new(), last: true }))).await?;
    }
    let replies = client.follow(ReceiverStream::new(requests)).await?.into_inner();
    Ok((sender, replies))
}

fn proxy(number: usize) -> FollowHello {
    FollowHello {
        node: format!("proxy-{number}"),
        kind: Kind::Proxy.name().to_owned(),
        ..FollowHello::default()
    }
}

/// A member that renews its lease until it is aborted, which breaks its link.
async fn join(identity: &Identity, seed: &str, name: &str) -> Result<JoinHandle<()>, Failure> {
    let member = Member {
        id: format!("{name}:0"),
        pool: POOL.to_owned(),
        address: "127.0.0.1:9".to_owned(),
        zone: String::new(),
        instance: name.to_owned(),
    };
    let hello = FollowHello {
        node: name.to_owned(),
        kind: SIDE_CAR.to_owned(),
        member: Some(member),
        incarnation: 1,
        attempt: 1,
        ..FollowHello::default()
    };
    let (sender, mut replies) = loop {
        // Until the seed leads.
        if let Ok((sender, mut replies)) = follow(identity, seed, hello.clone()).await
            && let Ok(Some(_)) = replies.message().await
        {
            break (sender, replies);
        }
        sleep(Duration::from_millis(100)).await;
    };
    Ok(tokio::spawn(async move {
        let mut renewals = tokio::time::interval(Duration::from_secs(1));
        let mut sequence = 0;
        loop {
            tokio::select! {
                reply = replies.message() => if !matches!(reply, Ok(Some(_))) { return },
                _ = renewals.tick() => {
                    sequence += 1;
                    let renew = request(follow_request::Message::Renew(Renew { sequence }));
                    if sender.send(renew).await.is_err() {
                        return;
                    }
                }
            }
        }
    }))
}

/// Another routing table for everybody.
async fn tables(identity: &Identity, seed: &str) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut links = Vec::new();
    for first in (0..FOLLOWERS).step_by(OPENING) {
        links.extend(
            try_join_all((first..first + OPENING).map(|number| follow(identity, seed, proxy(number))))
                .await?,
        );
    }
    println!("followers: {FOLLOWERS} links in {:.1} s", begun.elapsed().as_secs_f64());
    let (tell, mut told) = mpsc::unbounded_channel();
    for (requests, mut replies) in links {
        let tell = tell.clone();
        tokio::spawn(async move {
            // The link lasts as long as both ends.
            let _requests = requests;
            while let Ok(Some(reply)) = replies.message().await {
                if let Some(follow_reply::Message::Table(table)) = reply.message {
                    let _ = tell.send((Instant::now(), table.len()));
                }
            }
        });
    }
    // The tables that they are welcomed with.
    while timeout(Duration::from_secs(2), told.recv()).await.is_ok() {}
    let mut operator = OperatorClient::new(identity.channel(seed)?);
    for round in ["many handlers at once", "one more handler"] {
        let count = if round.starts_with("many") { HANDLERS } else { 1 };
        let add = (0..count).map(|number| Handler {
            name: format!("h{}-{number}", count),
            host: "*".to_owned(),
            path: format!("/{count}/{number}/{{room}}"),
            key: "room:{room}".to_owned(),
            pool: POOL.to_owned(),
            placement: Placement::Owned.into(),
            ..Handler::default()
        });
        let changes = HandlerChanges {
            add: add.collect(),
            operator: "loadtest".to_owned(),
            ..HandlerChanges::default()
        };
        let begun = Instant::now();
        operator.change_handlers(changes).await?;
        let answered = begun.elapsed();
        let (mut last, mut bytes) = (begun, 0);
        for _ in 0..FOLLOWERS {
            let (at, length) = told.recv().await.ok_or("the followers have ended")?;
            (last, bytes) = (last.max(at), length);
        }
        let all = (last - begun).as_secs_f64() * 1e3;
        println!(
            "followers: {all:>6.0} ms from the operator's command until {FOLLOWERS} have the table of {bytes} bytes \
             ({round}; the command took {:.0} ms)",
            answered.as_secs_f64() * 1e3
        );
    }
    Ok(())
}

/// A member with all keys dies.
async fn death(identity: &Identity, seed: &str, victim: JoinHandle<()>) -> Result<(), Failure> {
    let mut askers = Vec::new();
    for number in 0..ASKERS {
        askers.push(follow(identity, seed, proxy(FOLLOWERS + number)).await?);
    }
    let asked = try_join_all(askers.into_iter().enumerate().map(|(number, link)| own_all(number, link, "")));
    let askers = asked.await?;
    let _heirs = [join(identity, seed, "heir-1").await?, join(identity, seed, "heir-2").await?];
    victim.abort();
    let begun = Instant::now();
    let all = askers.into_iter().enumerate().map(|(number, (link, _))| own_all(number, link, "victim:0"));
    let owned = try_join_all(all).await?;
    let took = owned.iter().map(|(_, last)| *last).max().unwrap_or(begun) - begun;
    println!(
        "death: {:>6.2} s from the end of a member with {KEYS} keys until {ASKERS} followers know another owner of each \
         ({:.2} s beyond the lease)",
        took.as_secs_f64(),
        took.saturating_sub(LEASE).as_secs_f64()
    );
    Ok(())
}

/// Asks for this asker's keys until each has an owner that is not `before`; tells when the last one had.
async fn own_all(
    asker: usize,
    (requests, mut replies): (Requests, Replies),
    before: &str,
) -> Result<((Requests, Replies), Instant), Failure> {
    let mut open: Vec<usize> = (0..KEYS).filter(|key| key % ASKERS == asker).collect();
    let mut asked = BTreeMap::new();
    let mut again = Vec::new();
    let mut last = Instant::now();
    while !open.is_empty() || !asked.is_empty() || !again.is_empty() {
        if open.is_empty() && asked.is_empty() {
            // All the rest still have their old owner, as a proxy's clients would find out again and again.
            sleep(Duration::from_millis(250)).await;
            open.append(&mut again);
        }
        while asked.len() < WINDOW
            && let Some(key) = open.pop()
        {
            let id = key as u64 + 1;
            asked.insert(id, key);
            let (pool, key) = (POOL.to_owned(), format!("room:{key:07}"));
            let locate = Locate { id, pool, key, refuted_epoch: 0 };
            requests.send(request(follow_request::Message::Locate(locate))).await?;
        }
        let reply = replies.message().await?.and_then(|reply| reply.message);
        let Some(follow_reply::Message::Located(located)) = reply else { continue };
        let Some(key) = asked.remove(&located.id) else { continue };
        match located.result {
            Some(located::Result::Owner(owner)) if owner.member != before => last = Instant::now(),
            _ => again.push(key),
        }
    }
    Ok(((requests, replies), last))
}
