//! Serves the seed to the other nodes: gRPC over TLS with the cluster's certificate, for those that have its token.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use protoplex_runtime::context::Context;
use protoplex_wire::identity::Identity;
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::operator_server::OperatorServer;
use protoplex_wire::proto::seed_server::SeedServer;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::cluster::{Cluster, Handle, MAX_ERRANDS};
use crate::config::{self, Config};
use crate::leader;
use crate::link::Links;
use crate::operator::Console;
use crate::ownership::{Ending, Limits, Ownership, PARTS, Timing};
use crate::snapshot::{self, Writer};

/// What a follower may send at once: a chunk of a thousand keys of the longest kind.
const MAX_LINK_MESSAGE_BYTES: usize = 2 << 20;
/// What an operator's tools and the datastore may send at once: one asset in its three forms, or all routes.
const MAX_ASSET_MESSAGE_BYTES: usize = 64 << 20;
/// A peer that doesn't answer a ping in this time is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Wait between two snapshots, at least; and at least this often as long as one takes.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(5);
const SNAPSHOT_SHARE: u32 = 20;
/// How often readiness is looked at.
const READY_PAUSE: Duration = Duration::from_millis(50);

/// Why the seed can't run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The socket can't be used.
    #[error("the seed's socket: {0}")]
    Socket(#[from] io::Error),
    /// The runtime has bound no socket of the name: a mistake of ours.
    #[error("the seed was given no socket named {:?}", config::SOCKET)]
    NoSocket,
    /// The datastore's address is none, the certificate is unusable, or the server failed.
    #[error("serving the seed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What a seed is started with.
pub struct Start {
    /// Its name in the leader's row, of which there is only one process: it takes its own row anew at once.
    pub node: String,
    /// The datastore, "host:port".
    pub datastore: String,
    /// Where owners are remembered.
    pub snapshot: PathBuf,
    /// Keys that it knows at once, owned or remembered.
    pub max_keys: usize,
}

/// The seed node: serves until it has drained. Without its datastore it serves what it knows, and is not ready.
pub async fn run(config: Config, identity: Identity, context: Context) -> Result<(), RunError> {
    let listener = context.listeners(config::SOCKET).pop().ok_or(RunError::NoSocket)?;
    let start = Start {
        node: format!("{}/{}", context.node(), context.instance()),
        datastore: config.datastore,
        snapshot: snapshot::file(&context.common().data),
        max_keys: config.max_keys,
    };
    let drain = context.drain();
    serve(start, listener, &identity, |ready| context.ready(ready), drain.started()).await
}

/// Serves until `drain` is ready; tells `ready` whether this seed leads.
pub async fn serve(
    start: Start,
    listener: TcpListener,
    identity: &Identity,
    ready: impl Fn(bool),
    drain: impl Future<Output = ()>,
) -> Result<(), RunError> {
    listener.set_nonblocking(true)?;
    let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
    let datastore = DatastoreClient::new(identity.channel(&start.datastore)?)
        .max_decoding_message_size(MAX_ASSET_MESSAGE_BYTES);
    let timing = Timing::default();
    let (errands, errands_to_run) = tokio::sync::mpsc::channel(MAX_ERRANDS);
    let core = remember(&start).await;
    let (cluster, task) = Cluster::new(core, timing, start.datastore.clone(), errands).task();
    let task = tokio::spawn(task);

    let mut tasks = JoinSet::new();
    tasks.spawn(leader::lead(start.node, start.datastore, datastore.clone(), cluster.clone()));
    tasks.spawn(leader::run_errands(errands_to_run, datastore.clone(), cluster.clone()));
    tasks.spawn(keep_snapshot(start.snapshot.clone(), cluster.clone()));

    let ending = watch::Sender::new(false);
    let seed = SeedServer::new(Links::new(cluster.clone(), datastore.clone(), timing, ending.subscribe()))
        .max_decoding_message_size(MAX_LINK_MESSAGE_BYTES);
    let operator = OperatorServer::new(Console::new(cluster.clone(), datastore))
        .max_decoding_message_size(MAX_ASSET_MESSAGE_BYTES);
    let ended = async {
        drain.await;
        ending.send_replace(true);
        cluster.tell(|cluster, _| cluster.followers.close_all(&Ending::Away("the seed is ending"))).await;
    };
    let server = Server::builder()
        .tls_config(identity.server_tls())?
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(InterceptedService::new(seed, identity.guard()))
        .add_service(InterceptedService::new(operator, identity.guard()))
        .serve_with_incoming_shutdown(incoming, ended);
    tokio::select! {
        served = server => served?,
        () = watch_readiness(&cluster, ready) => {}
    }

    tasks.shutdown().await;
    if let Err(error) = save(start.snapshot, &cluster).await {
        tracing::warn!(%error, "owners are not remembered");
    }
    task.abort();
    Ok(())
}

/// The core, with what an earlier process remembered.
async fn remember(start: &Start) -> Ownership {
    let limits = Limits { max_keys: start.max_keys, ..Limits::default() };
    let mut core = Ownership::new(Timing::default(), limits);
    let file = start.snapshot.clone();
    match spawn_blocking(move || snapshot::read(&file)).await.map_err(io::Error::other).flatten() {
        Ok(hints) => core.restore(hints),
        Err(error) => {
            tracing::warn!(file = %start.snapshot.display(), %error, "who had which key is forgotten")
        }
    }
    core
}

async fn watch_readiness(cluster: &Handle, ready: impl Fn(bool)) {
    while let Some(leads) = cluster.ask(|cluster, _| cluster.core.leads().is_some()).await {
        ready(leads);
        sleep(READY_PAUSE).await;
    }
}

/// Writes a snapshot, part by part: the cluster goes on meanwhile, and what changes is in the next one.
async fn save(file: PathBuf, cluster: &Handle) -> io::Result<()> {
    async fn blocking<T: Send + 'static>(
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        spawn_blocking(act).await.map_err(io::Error::other).flatten()
    }
    let mut writer = blocking(|| Writer::begin(file)).await?;
    for part in 0..PARTS {
        let hints = cluster.ask(move |cluster, _| cluster.core.hints(part).collect::<Vec<_>>()).await;
        let hints = hints.ok_or_else(|| io::Error::other("the seed has ended"))?;
        writer = blocking(move || writer.add(&hints).map(|()| writer)).await?;
    }
    blocking(|| writer.finish()).await
}

/// Writes the snapshot whenever owners have changed.
async fn keep_snapshot(file: PathBuf, cluster: Handle) {
    let mut saved = 0;
    let mut pause = SNAPSHOT_PAUSE;
    loop {
        sleep(pause).await;
        let Some(changes) = cluster.ask(|cluster, _| cluster.core.changes()).await else { return };
        if changes == saved {
            continue;
        }
        let began = tokio::time::Instant::now();
        match save(file.clone(), &cluster).await {
            Ok(()) => saved = changes,
            Err(error) => tracing::warn!(file = %file.display(), %error, "owners are not remembered"),
        }
        pause = SNAPSHOT_PAUSE.max(began.elapsed() * SNAPSHOT_SHARE);
    }
}
