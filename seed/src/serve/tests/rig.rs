//! A datastore and a seed on free ports, each of which can die as by SIGKILL and come back on its port.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use protoplex_datastore::sqlite::SqliteStore;
use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, Kind, LIVE_POOL, TrustedChannel};
use protoplex_wire::join::{self, Standing};
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::{
    ClusterStatus, Handler, HandlerChanges, JoinHello, Member, NodeState, Placement, StatusRequest,
};
use protoplex_wire::seeds::Seeds;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::ownership::Idle;
use crate::role::Role;
use crate::serve::{RunError, Start, serve};

const DEADLINE: Duration = Duration::from_secs(20);

/// A node in a runtime of its own, so that it can be dropped with all its tasks and sockets.
pub(super) struct Process {
    runtime: Option<Runtime>,
    drain: Arc<Notify>,
    served: Option<JoinHandle<Result<(), RunError>>>,
    pub(super) role: watch::Receiver<Role>,
}

impl Process {
    /// Ends it at once, mid-sentence.
    pub(super) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Ends it in good order.
    pub(super) async fn stop(mut self) {
        self.drain.notify_one();
        timeout(DEADLINE, self.served.take().unwrap()).await.unwrap().unwrap().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(super) struct Rig {
    pub(super) data: TempDir,
    pub(super) identity: Identity,
    pub(super) datastore: SocketAddr,
    pub(super) seed: SocketAddr,
    /// When keys are idle, of the next seed.
    pub(super) idle: Idle,
    /// Where the second and the third seed are, in the tests of several.
    pub(super) others: [SocketAddr; 2],
}

impl Rig {
    pub(super) fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self {
            data,
            identity,
            datastore: free(),
            seed: free(),
            others: [free(), free()],
            idle: Idle::default(),
        }
    }

    pub(super) async fn start_datastore(&self) -> Process {
        let listener = bind(self.datastore).await;
        let file = self.data.path().join("protoplex.db");
        let identity = self.identity.issue(Kind::Datastore, "datastore-1").unwrap();
        process(|drain, _| async move {
            let store = Arc::new(SqliteStore::open(&file).await.unwrap());
            let served =
                protoplex_datastore::serve::serve(Arc::clone(&store), listener, &identity, drain.notified())
                    .await;
            store.close().await;
            served.unwrap();
            Ok(())
        })
    }

    pub(super) async fn start_seed(&self) -> Process {
        self.start(0, false).await
    }

    /// The first, the second or the third seed, which joins whichever leads as a node's parent does.
    pub(super) async fn start_one_of(&self, index: usize) -> Process {
        self.start(index, true).await
    }

    async fn start(&self, index: usize, joins: bool) -> Process {
        let address = self.seeds()[index];
        let listener = bind(address).await;
        let node = format!("seed-{}", index + 1);
        let identity = self.identity.issue(Kind::Seed, &node).unwrap();
        let start = Start {
            node: node.clone(),
            instance: "i".to_owned(),
            address: address.to_string(),
            datastores: vec![self.datastore.to_string()],
            seeds: Seeds::new(Vec::new(), &self.data.path().join(&node)),
            snapshot: self.data.path().join(&node).join("owners"),
            max_keys: 1000,
            member_networks: Default::default(),
            events: Default::default(),
            idle: self.idle.clone(),
        };
        let hello = JoinHello {
            node,
            kind: "seed".to_owned(),
            instance: "i".to_owned(),
            reached: address.to_string(),
            ..JoinHello::default()
        };
        let seeds =
            Seeds::new(self.seeds().map(|seed| seed.to_string()).into(), &self.data.path().join("none"));
        process(|drain, role| async move {
            let state = watch::Sender::new(NodeState::default());
            let hello = watch::Sender::new(hello);
            let standing = watch::Sender::new(Standing::new(BootTime::now()));
            let joined = join::hold(identity.clone(), seeds, hello.subscribe(), state.subscribe(), standing);
            let tell = |now: &Role| {
                role.send_replace(now.clone());
                state.send_replace(NodeState { ready: now.is_ready(), ..NodeState::default() });
            };
            tokio::select! {
                served = serve(start, listener, &identity, tell, drain.notified()) => served,
                Err(error) = joined, if joins => Err(error.into()),
            }
        })
    }

    pub(super) fn seeds(&self) -> [SocketAddr; 3] {
        [self.seed, self.others[0], self.others[1]]
    }

    /// The datastore, as this seed has it.
    pub(super) fn datastore(&self) -> DatastoreClient<TrustedChannel> {
        let seed = self.identity.issue(Kind::Seed, "seed-1").unwrap();
        DatastoreClient::new(seed.channel(&self.datastore.to_string()).unwrap())
    }

    pub(super) fn operator(&self) -> OperatorClient<TrustedChannel> {
        self.operator_of(self.seed)
    }

    pub(super) fn operator_of(&self, seed: SocketAddr) -> OperatorClient<TrustedChannel> {
        OperatorClient::new(self.identity.channel(&seed.to_string()).unwrap())
    }

    pub(super) async fn status(&self) -> ClusterStatus {
        self.operator().status(StatusRequest {}).await.unwrap().into_inner()
    }

    /// A child's link; it may be a member of the pool `live`.
    pub(super) fn follow(&self, node: &str, member: bool) -> Link {
        self.follow_as(node, node, member)
    }

    /// As [`Self::follow`], of whichever of these seeds leads.
    pub(super) fn follow_any(&self, node: &str, member: bool, seeds: &[SocketAddr]) -> Link {
        let seeds = seeds.iter().map(ToString::to_string).collect();
        self.follow_of(node, node, member, Seeds::new(seeds, &self.data.path().join("none")))
    }

    /// As [`Self::follow`], of this instance of the node.
    pub(super) fn follow_as(&self, node: &str, instance: &str, member: bool) -> Link {
        self.follow_of(node, instance, member, Seeds::from(&self.seed.to_string()))
    }

    fn follow_of(&self, node: &str, instance: &str, member: bool, seeds: Seeds) -> Link {
        let member = member.then(|| Member {
            id: format!("{node}:0"),
            pool: LIVE_POOL.to_owned(),
            address: "127.0.0.1:9".to_owned(),
            zone: String::new(),
            instance: instance.to_owned(),
        });
        let kind = if node.starts_with("fileserver") { Kind::Fileserver } else { Kind::Live };
        let identity = self.identity.issue(kind, node).unwrap();
        let (node, kind) = (node.to_owned(), kind.name().to_owned());
        let who = Follower { node, child: 0, kind, zone: String::new(), member };
        Link::open(&identity, seeds, who).unwrap()
    }
}

fn process<F, R>(main: F) -> Process
where
    F: FnOnce(Arc<Notify>, watch::Sender<Role>) -> R,
    R: Future<Output = Result<(), RunError>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let drain = Arc::new(Notify::new());
    let (tell_role, role) = watch::channel(Role::Waiting);
    let served = runtime.spawn(main(Arc::clone(&drain), tell_role));
    Process { runtime: Some(runtime), drain, served: Some(served), role }
}

/// The port of one that has just died may take a moment to be free.
async fn bind(address: SocketAddr) -> TcpListener {
    until("the port is free", async || TcpListener::bind(address).ok()).await
}

/// Looks again and again, until there is something.
pub(super) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

pub(super) async fn leads(seed: &Process) {
    let mut role = seed.role.clone();
    timeout(DEADLINE, role.wait_for(|role| matches!(role, Role::Leading(_)))).await.unwrap().unwrap();
}

pub(super) fn handler(name: &str, path: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        host: "Rooms.example.com".to_owned(),
        path: path.to_owned(),
        key: "room:{room}".to_owned(),
        pool: "rooms".to_owned(),
        placement: Placement::Owned.into(),
        ..Handler::default()
    }
}

/// A change that adds one handler.
pub(super) fn adding(handler: Handler) -> HandlerChanges {
    HandlerChanges { add: vec![handler], operator: "ada".to_owned(), ..HandlerChanges::default() }
}

/// A change that removes one.
pub(super) fn removing(name: &str) -> HandlerChanges {
    HandlerChanges { remove: vec![name.to_owned()], ..HandlerChanges::default() }
}
