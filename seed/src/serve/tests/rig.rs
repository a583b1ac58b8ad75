//! A datastore and a seed on free ports, each of which can die as by SIGKILL and come back on its port.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use protoplex_datastore::sqlite::SqliteStore;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, TrustedChannel};
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::{ClusterStatus, Handler, HandlerChanges, Member, Placement, StatusRequest};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::serve::{RunError, Start, serve};

const DEADLINE: Duration = Duration::from_secs(20);

/// A node in a runtime of its own, so that it can be dropped with all its tasks and sockets.
pub(super) struct Process {
    runtime: Option<Runtime>,
    drain: Arc<Notify>,
    served: Option<JoinHandle<Result<(), RunError>>>,
    pub(super) ready: watch::Receiver<bool>,
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
}

impl Rig {
    pub(super) fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { data, identity, datastore: free(), seed: free() }
    }

    pub(super) async fn start_datastore(&self) -> Process {
        let listener = bind(self.datastore).await;
        let (file, identity) = (self.data.path().join("protoplex.db"), self.identity.clone());
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
        let listener = bind(self.seed).await;
        let identity = self.identity.clone();
        let start = Start {
            node: "seed-1".to_owned(),
            datastore: self.datastore.to_string(),
            snapshot: self.data.path().join("seed").join("owners"),
            max_keys: 1000,
        };
        process(|drain, ready| async move {
            serve(
                start,
                listener,
                &identity,
                |leads| {
                    let _ = ready.send_replace(leads);
                },
                drain.notified(),
            )
            .await
        })
    }

    pub(super) fn operator(&self) -> OperatorClient<TrustedChannel> {
        OperatorClient::new(self.identity.channel(&self.seed.to_string()).unwrap())
    }

    pub(super) async fn status(&self) -> ClusterStatus {
        self.operator().status(StatusRequest {}).await.unwrap().into_inner()
    }

    /// A child's link; with an id it is a member of `rooms`.
    pub(super) fn follow(&self, node: &str, member: bool) -> Link {
        self.follow_as(node, node, member)
    }

    /// As [`Self::follow`], of this instance of the node.
    pub(super) fn follow_as(&self, node: &str, instance: &str, member: bool) -> Link {
        let member = member.then(|| Member {
            id: format!("{node}:0"),
            pool: "rooms".to_owned(),
            address: "127.0.0.1:9".to_owned(),
            zone: String::new(),
            instance: instance.to_owned(),
        });
        let (node, kind) = (node.to_owned(), "live".to_owned());
        let who = Follower { node, child: 0, kind, zone: String::new(), member };
        Link::open(&self.identity, &self.seed.to_string(), who).unwrap()
    }
}

fn process<F, R>(main: F) -> Process
where
    F: FnOnce(Arc<Notify>, watch::Sender<bool>) -> R,
    R: Future<Output = Result<(), RunError>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let drain = Arc::new(Notify::new());
    let (tell_ready, ready) = watch::channel(false);
    let served = runtime.spawn(main(Arc::clone(&drain), tell_ready));
    Process { runtime: Some(runtime), drain, served: Some(served), ready }
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
    let mut ready = seed.ready.clone();
    timeout(DEADLINE, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
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
