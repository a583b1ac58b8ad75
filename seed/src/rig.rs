//! What tests start: seeds and datastores on ports of their own, each of which can die as by SIGKILL and come back on its port.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protoplex_datastore::sqlite::SqliteStore;
use protoplex_testkit::ports::Port;
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::seeds::Seeds;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::role::Role;
use crate::serve::{RunError, Start};

/// Whatever a test waits for comes in this time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const BETWEEN_TWO_LOOKS: Duration = Duration::from_millis(10);

/// A node in a runtime of its own, so that it can be dropped with all its tasks and sockets.
pub(crate) struct Process {
    runtime: Option<Runtime>,
    drain: Arc<Notify>,
    served: Option<JoinHandle<Result<(), RunError>>>,
    pub(crate) role: watch::Receiver<Role>,
}

impl Process {
    /// Runs what is made of its drain, and of the way to tell its role.
    pub(crate) fn start<F, R>(main: F) -> Self
    where
        F: FnOnce(Arc<Notify>, watch::Sender<Role>) -> R,
        R: Future<Output = Result<(), RunError>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (runtime, drain) = (runtime.unwrap(), Arc::new(Notify::new()));
        let (tell_role, role) = watch::channel(Role::Waiting);
        let served = runtime.spawn(main(Arc::clone(&drain), tell_role));
        Self { runtime: Some(runtime), drain, served: Some(served), role }
    }

    /// A datastore on SQLite, in this folder.
    pub(crate) async fn datastore(address: SocketAddr, folder: &Path, identity: &Identity) -> Self {
        let listener = bind(address).await;
        let file = folder.join("protoplex.db");
        let identity = identity.issue(Kind::Datastore, "datastore-1").unwrap();
        Self::start(|drain, _| async move {
            let store = Arc::new(SqliteStore::open(&file).await.unwrap());
            let served =
                protoplex_datastore::serve::serve(Arc::clone(&store), listener, &identity, drain.notified())
                    .await;
            store.close().await;
            served.unwrap();
            Ok(())
        })
    }

    /// Ends it at once, mid-sentence.
    pub(crate) fn kill(self) {}

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) {
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

/// How a seed of this name is started, with its files in this folder.
pub(crate) fn start(node: &str, address: SocketAddr, datastore: SocketAddr, folder: &Path) -> Start {
    Start {
        node: node.to_owned(),
        instance: "i".to_owned(),
        address: address.to_string(),
        datastores: vec![datastore.to_string()],
        seeds: Seeds::new(Vec::new(), &folder.join(node)),
        snapshot: folder.join(node).join("owners"),
        max_keys: 1000,
        member_networks: Default::default(),
        events: Default::default(),
        idle: Default::default(),
    }
}

/// Where a port is.
pub(crate) fn address(port: &Port) -> SocketAddr {
    port.address().parse().unwrap()
}

/// The port of one that has just died may take a moment to be free.
pub(crate) async fn bind(address: SocketAddr) -> TcpListener {
    until("the port is free", async || TcpListener::bind(address).ok()).await
}

/// Looks again and again, until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(BETWEEN_TWO_LOOKS).await;
        }
    };
    timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}
