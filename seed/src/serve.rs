//! Serves the seed to the other nodes: gRPC over mutual TLS.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protoplex_runtime::context::Context;
use protoplex_runtime::network::Networks;
use protoplex_wire::events::MAX_MESSAGE_BYTES as MAX_EVENTS_MESSAGE_BYTES;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{Identity, IdentityError};
use protoplex_wire::proto::enrolment_server::EnrolmentServer;
use protoplex_wire::proto::events_server::EventsServer;
use protoplex_wire::proto::operator_server::OperatorServer;
use protoplex_wire::proto::seed_server::SeedServer;
use protoplex_wire::proto::understudy_server::UnderstudyServer;
use protoplex_wire::seeds::{self, Seeds};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tonic::service::Routes;

use crate::cluster::{Cluster, Handle, Myself};
use crate::config::{self, Config};
use crate::datastores::Datastores;
use crate::enrolment::{self, Registrar};
use crate::errands;
use crate::events::{self, EventBus, NatsError};
use crate::handover::hand_over;
use crate::leader::{Candidate, STUCK};
use crate::link::Links;
use crate::operator::Console;
use crate::outside;
use crate::ownership::{Idle, Limits, Ownership, PARTS, Timing};
use crate::role::Role;
use crate::snapshot::{self, Writer};
use crate::understudy::Standby;

/// What a follower may send at once: a chunk of a thousand keys of the longest kind.
const MAX_LINK_MESSAGE_BYTES: usize = 2 << 20;
/// What is asked of a seed by those who don't know yet whether it leads, some of whom nobody knows: a token, names, a key.
const MAX_NEWCOMER_BYTES: usize = 4 << 10;
/// What an operator's tools and the datastore may send at once: one asset in its three forms, or all routes.
pub(crate) const MAX_ASSET_MESSAGE_BYTES: usize = 64 << 20;
/// A peer that doesn't answer a ping in this time is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Wait between two snapshots, at least; and at least this often as long as one takes.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(5);
const SNAPSHOT_SHARE: u32 = 20;
/// How long it may take to give back events that subscribers have left.
const EVENTS_END_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the loop that keeps the row may take to end.
const LEAD_END_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the seed can't run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The socket can't be used.
    #[error("the seed's socket: {0}")]
    Socket(#[from] io::Error),
    /// The runtime has bound no socket of the name: a mistake of ours.
    #[error("the seed was given no socket named {:?}", config::SOCKET)]
    NoSocket,
    /// NATS is configured, and can't be used so.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The certificate is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The datastore's address is none, or the server failed.
    #[error("serving the seed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What a seed is started with.
pub struct Start {
    /// The node's name.
    pub node: String,
    /// With the name it is that of one process: it takes its own row anew at once.
    pub instance: String,
    /// Where others reach it, "host:port"; empty where it can't say.
    pub address: String,
    /// Datastores of one database, "host:port".
    pub datastores: Vec<String>,
    /// Where other seeds are remembered.
    pub seeds: Seeds,
    /// Where owners are remembered.
    pub snapshot: PathBuf,
    /// Keys that it knows at once, owned or remembered.
    pub max_keys: usize,
    /// Where members may be.
    pub member_networks: Networks,
    /// How events are kept and carried.
    pub events: events::config::Config,
    /// When keys are idle.
    pub idle: Idle,
}

/// The seed node: serves until it has drained. Without its datastore it serves what it knows, and is not ready.
pub async fn run(config: Config, identity: Identity, context: Context) -> Result<(), RunError> {
    let listener = context.listeners(config::SOCKET).pop().ok_or(RunError::NoSocket)?;
    let (idle, certificate_life) = (config.idle(), config.certificate_life());
    let member_networks = config.member_networks();
    let start = Start {
        idle,
        node: context.node().to_owned(),
        instance: context.instance().to_owned(),
        address: config.address().to_owned(),
        datastores: config.datastore,
        seeds: context.common().seeds(),
        snapshot: snapshot::file(&context.common().data),
        max_keys: config.max_keys,
        member_networks,
        events: config.events,
    };
    let drain = context.drain();
    let tell = |role: &Role| {
        context.detail("role", role.to_string());
        context.ready(role.is_ready());
    };
    serve(start, listener, &identity.issuing_for(certificate_life), tell, drain.started()).await
}

/// Serves until `drain` is ready, then hands the lead over where this seed has it; tells what it is at the beginning and
/// whenever that changes.
pub async fn serve(
    start: Start,
    listener: TcpListener,
    identity: &Identity,
    tell: impl Fn(&Role),
    drain: impl Future<Output = ()>,
) -> Result<(), RunError> {
    listener.set_nonblocking(true)?;
    let gate = Gate::new(identity)?;
    let incoming = gate.incoming(tokio::net::TcpListener::from_std(listener)?);
    let datastores = Arc::new(Datastores::new(identity, &start.datastores)?);
    let timing = Timing::default();
    let (errands, errands_to_run) = tokio::sync::mpsc::channel(errands::MAX_WAITING);
    let core = remember(&start).await;
    let myself = Myself { node: start.node.clone(), address: start.address.clone() };
    let (announcements, to_announce) = events::announcements();
    let cluster = Cluster::new(core, timing, myself, start.datastores.clone(), errands, announcements);
    let (role, directory) = (cluster.role(), cluster.directory());
    let (leading, renewals) = (cluster.leading(), cluster.renewals());
    let (cluster, task) = cluster.task();
    let task = tokio::spawn(task);

    let mut tasks = JoinSet::new();
    let (ending, leads_on, nudge) = (watch::Sender::new(false), watch::Sender::new(false), Arc::default());
    let candidate = Candidate {
        holder: seeds::holder(&start.node, &start.instance, &start.address),
        datastores: Arc::clone(&datastores),
        cluster: cluster.clone(),
        leading,
        renewals,
        seeds: start.seeds,
        nudge: Arc::clone(&nudge),
        ending: leads_on.subscribe(),
        stuck: STUCK,
    };
    let holder = candidate.holder.clone();
    let lead = tokio::spawn(candidate.lead());
    tasks.spawn(errands::run(errands_to_run, Arc::clone(&datastores), cluster.clone()));
    tasks.spawn(keep_snapshot(start.snapshot.clone(), cluster.clone()));

    let bus = EventBus::start(
        &start.events,
        Arc::clone(&datastores),
        cluster.clone(),
        role.clone(),
        to_announce,
        ending.subscribe(),
        &mut tasks,
    );
    let bus = bus.await?;
    let events = EventsServer::new(bus.clone())
        .max_decoding_message_size(MAX_EVENTS_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_EVENTS_MESSAGE_BYTES);
    let links = Links::new(
        cluster.clone(),
        Arc::clone(&datastores),
        timing,
        role.clone(),
        directory.clone(),
        ending.subscribe(),
        start.member_networks,
    );
    let links = Arc::new(links);
    let outside = outside::router(Arc::clone(&links), cluster.clone());
    let seed = SeedServer::from_arc(links).max_decoding_message_size(MAX_LINK_MESSAGE_BYTES);
    let registrar = Registrar::new(
        identity,
        &start.node,
        cluster.clone(),
        Arc::clone(&datastores),
        role.clone(),
        gate.clone(),
    );
    tasks.spawn(registrar.clone().watch_revoked());
    let enrolment = EnrolmentServer::new(registrar.clone()).max_decoding_message_size(MAX_NEWCOMER_BYTES);
    let over_http = enrolment::over_http(registrar.clone());
    let console = Console::new(cluster.clone(), Arc::clone(&datastores), role.clone(), registrar);
    let operator = OperatorServer::new(console).max_decoding_message_size(MAX_ASSET_MESSAGE_BYTES);
    let standby = Standby { role: role.clone(), directory, address: start.address.clone(), nudge };
    let understudy = UnderstudyServer::new(standby).max_decoding_message_size(MAX_NEWCOMER_BYTES);
    let ended = async {
        drain.await;
        // First, so that this seed does not take back what it gives up.
        leads_on.send_replace(true);
        let _ = timeout(LEAD_END_TIMEOUT, lead).await;
        hand_over(holder, identity, &datastores, &cluster).await;
        ending.send_replace(true);
        cluster.tell(|cluster, _| cluster.close_all("the seed is ending")).await;
    };
    let services = Routes::new(seed)
        .add_service(operator)
        .add_service(understudy)
        .add_service(events)
        .add_service(enrolment)
        .into_axum_router();
    let server = gate
        .server()
        // Of those who register from outside; gRPC is HTTP/2 alone.
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_routes(Routes::from(services.merge(over_http).merge(outside)))
        .serve_with_incoming_shutdown(incoming, ended);
    tokio::select! {
        served = server => served?,
        () = watch_role(role, tell) => {}
    }

    let _ = timeout(EVENTS_END_TIMEOUT, bus.end()).await;
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
    let mut core = Ownership::new(Timing::default(), limits).with_idle(start.idle.clone());
    let file = start.snapshot.clone();
    match spawn_blocking(move || snapshot::read(&file)).await.map_err(io::Error::other).flatten() {
        Ok(hints) => core.restore(hints),
        Err(error) => {
            tracing::warn!(file = %start.snapshot.display(), %error, "who had which key is forgotten")
        }
    }
    core
}

async fn watch_role(mut role: watch::Receiver<Role>, tell: impl Fn(&Role)) {
    loop {
        tell(&role.borrow_and_update());
        if role.changed().await.is_err() {
            return;
        }
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
