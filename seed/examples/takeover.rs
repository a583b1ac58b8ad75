//! How long nothing can be assigned when the leading seed is killed, and when it is drained:
//! `cargo run --release -p protoplex-seed --example takeover`.
//!
//! Three seeds and a datastore in this process, each with a runtime of its own, so that one can be dropped mid-sentence; real
//! TLS and gRPC; members that hold keys, and one follower that asks for a new key all the time. The tests of the whole
//! (`nodes/protoplex/tests/cluster/seeds.rs`) measure the same with processes and PostgreSQL.

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use protoplex_datastore::sqlite::SqliteStore;
use protoplex_seed::role::Role;
use protoplex_seed::serve::{Start, serve};
use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::join::{self, Standing};
use protoplex_wire::proto::{JoinHello, Member, NodeState};
use protoplex_wire::seeds::Seeds;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

type Failure = Box<dyn Error + Send + Sync>;

const SEEDS: usize = 3;
const MEMBERS: usize = 4;
/// Keys that are owned all the while.
const KEYS: usize = 2_000;
/// Of each kind.
const ROUNDS: usize = 5;
const PAUSE: Duration = Duration::from_millis(1);

struct Seed {
    runtime: Runtime,
    drain: Arc<Notify>,
    role: watch::Receiver<Role>,
}

struct Cluster {
    data: TempDir,
    identity: Identity,
    datastore: SocketAddr,
    addresses: Vec<SocketAddr>,
    seeds: Vec<Option<Seed>>,
}

impl Cluster {
    fn seeds(&self) -> Seeds {
        let all = self.addresses.iter().map(ToString::to_string).collect();
        Seeds::new(all, &self.data.path().join("none"))
    }

    /// Starts the seed of this number, with its node's own link to whichever leads.
    fn start(&mut self, index: usize) -> Result<(), Failure> {
        let listener = TcpListener::bind(self.addresses[index])?;
        let (node, reached) = (format!("seed-{}", index + 1), self.addresses[index].to_string());
        let start = Start {
            node: node.clone(),
            instance: node.clone(),
            address: reached.clone(),
            datastores: vec![self.datastore.to_string()],
            seeds: Seeds::default(),
            snapshot: self.data.path().join(&node).join("owners"),
            max_keys: 1_000_000,
            member_networks: Default::default(),
            events: Default::default(),
            idle: protoplex_seed::ownership::Idle::default(),
        };
        let (kind, instance, name) = ("seed".to_owned(), node.clone(), node.clone());
        let hello = watch::Sender::new(JoinHello { node, kind, instance, reached, ..JoinHello::default() });
        let state = watch::Sender::new(NodeState::default());
        let standing = watch::Sender::new(Standing::new(BootTime::now()));
        let joined = join::hold(
            self.identity.issue(Kind::Seed, &name)?,
            self.seeds(),
            hello.subscribe(),
            state.subscribe(),
            standing,
        );
        let (tell, role) = watch::channel(Role::Waiting);
        let (drain, identity) = (Arc::new(Notify::new()), self.identity.issue(Kind::Seed, &name)?);
        let draining = Arc::clone(&drain);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(joined);
        runtime.spawn(async move {
            // Dropped with the seed's runtime.
            let _hello = hello;
            let tell = |now: &Role| {
                tell.send_replace(now.clone());
                state.send_replace(NodeState { ready: now.is_ready(), ..NodeState::default() });
            };
            serve(start, listener, &identity, tell, draining.notified()).await
        });
        self.seeds[index] = Some(Seed { runtime, drain, role });
        Ok(())
    }

    /// Which one leads, once one does and all others stand by.
    async fn settled(&self) -> usize {
        loop {
            let roles = self.seeds.iter().map(|seed| seed.as_ref().map(|seed| seed.role.borrow().clone()));
            let roles: Vec<_> = roles.collect();
            let leader = roles.iter().position(|role| matches!(role, Some(Role::Leading(_))));
            if let Some(leader) = leader.filter(|_| roles.iter().flatten().all(Role::is_ready)) {
                return leader;
            }
            sleep(PAUSE).await;
        }
    }

    fn follow(&self, node: &str, member: bool) -> Result<Link, Failure> {
        let member = member.then(|| Member {
            id: format!("{node}:0"),
            pool: "rooms".to_owned(),
            address: "127.0.0.1:9".to_owned(),
            zone: String::new(),
            instance: node.to_owned(),
        });
        let (node, kind) = (node.to_owned(), "backend".to_owned());
        Ok(Link::open(
            &self.identity,
            self.seeds(),
            Follower { node, kind, zone: String::new(), membership: member.map(Into::into) },
        )?)
    }
}

/// Waits for the answer that tells of the term.
async fn assigned_in(asker: &Link, term: u64, next: &mut usize) {
    loop {
        *next += 1;
        match asker.locate("rooms", &next.to_string()).await {
            Ok(owner) if owner.epoch >> 40 >= term => return,
            Ok(_) => {}
            // Where no seed leads the answer comes at once.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

fn main() -> Result<(), Failure> {
    let data = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&data.path().join("cluster"))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let mut cluster = Cluster {
        datastore: listener.local_addr()?,
        addresses: [(); SEEDS].iter().map(|()| free()).collect::<Result<_, _>>()?,
        seeds: (0..SEEDS).map(|_| None).collect(),
        identity: identity.clone(),
        data,
    };
    let of_datastore = identity.issue(Kind::Datastore, "datastore-1")?;
    let store = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let file = cluster.data.path().join("protoplex.db");
    store.spawn(async move {
        let store = Arc::new(SqliteStore::open(&file).await?);
        protoplex_datastore::serve::serve(store, listener, &of_datastore, std::future::pending()).await?;
        Ok::<_, Failure>(())
    });
    (0..SEEDS).try_for_each(|index| cluster.start(index))?;
    let measured = Builder::new_current_thread().enable_all().build()?;
    measured.block_on(LocalSet::new().run_until(measure(&mut cluster)))?;
    cluster.seeds.into_iter().flatten().for_each(|seed| seed.runtime.shutdown_background());
    store.shutdown_background();
    Ok(())
}

async fn measure(cluster: &mut Cluster) -> Result<(), Failure> {
    let members: Vec<_> =
        (0..MEMBERS).map(|n| cluster.follow(&format!("live-{n}"), true)).collect::<Result<_, _>>()?;
    let asker = cluster.follow("proxy-1", false)?;
    let mut next = 0;
    while next < KEYS {
        assigned_in(&asker, 1, &mut next).await;
    }
    for (what, kill) in [("killed", true), ("drained", false)] {
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            let leader = cluster.settled().await;
            // Beyond its recovery, in which its row is short.
            sleep(Duration::from_secs(4)).await;
            let Some(Seed { runtime, drain, role }) = cluster.seeds[leader].take() else { continue };
            let Role::Leading(term) = *role.borrow() else { continue };
            let began = Instant::now();
            if kill {
                runtime.shutdown_background();
                assigned_in(&asker, term + 1, &mut next).await;
                took.push(began.elapsed());
            } else {
                drain.notify_one();
                assigned_in(&asker, term + 1, &mut next).await;
                took.push(began.elapsed());
                runtime.shutdown_background();
            }
            while cluster.start(leader).is_err() {
                sleep(PAUSE).await;
            }
        }
        took.sort();
        println!(
            "leader {what}: the first assignment of the next term after {:?} (median), {:?} (worst of {})",
            took[took.len() / 2],
            took[took.len() - 1],
            took.len()
        );
    }
    println!("{} keys, {} members, {SEEDS} seeds", next, members.len());
    Ok(())
}
