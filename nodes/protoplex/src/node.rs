//! One node: its parent process, and what each of its children runs.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::thread::available_parallelism;

use protoplex_runtime::child::Child;
use protoplex_runtime::commands::Reload;
use protoplex_runtime::config::Common as NodeCommon;
use protoplex_runtime::parent::{Bound, Spec};
use protoplex_runtime::running::{META, Running};
use protoplex_runtime::signals;
use protoplex_runtime::solo;
use protoplex_runtime::upgrade::Succession;
use protoplex_wire::clock::BootTime;
use protoplex_wire::enrolment::keep_renewed;
use protoplex_wire::identity::{self, Identity};
use protoplex_wire::join::{self, Standing};
use protoplex_wire::proto::JoinHello;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::cli::{Common, Single};
use crate::cluster::CLUSTER;
use crate::enrol;
use crate::output;
use crate::settings::Settings;

/// The kinds of node that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Seed,
    Datastore,
    Proxy,
    Fileserver,
    Live,
}

impl Kind {
    /// As in commands, sections and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::Datastore => "datastore",
            Self::Proxy => "proxy",
            Self::Fileserver => "fileserver",
            Self::Live => "live",
        }
    }

    /// As in certificates.
    fn of_wire(self) -> identity::Kind {
        match self {
            Self::Seed => identity::Kind::Seed,
            Self::Datastore => identity::Kind::Datastore,
            Self::Proxy => identity::Kind::Proxy,
            Self::Fileserver => identity::Kind::Fileserver,
            Self::Live => identity::Kind::Live,
        }
    }

    /// The node's name where none is given.
    pub(crate) fn node(self) -> String {
        format!("{}-1", self.name())
    }

    /// The node, for the runtime.
    pub(crate) fn spec(self, settings: &Settings, common: &NodeCommon) -> anyhow::Result<Spec> {
        Ok(match self {
            Self::Seed => protoplex_seed::config::spec(&settings.seed, common),
            Self::Datastore => protoplex_datastore::config::spec(&settings.datastore, common),
            Self::Proxy => protoplex_proxy::serve::spec(&settings.proxy, common)?,
            Self::Fileserver => protoplex_fileserver::serve::spec(&settings.fileserver, common)?,
            Self::Live => protoplex_live::spec(&settings.live, common),
        })
    }
}

/// A node that is about to run.
struct Prepared {
    settings: Settings,
    told: NodeCommon,
    bound: Bound,
    identity: Identity,
}

/// Runs the parent of a node until it has drained. Of one that another program hands over and that can't run it goes back.
pub(crate) fn run(
    kind: Kind,
    common: &Common,
    node: &Single,
    succession: Option<Succession>,
) -> anyhow::Result<ExitCode> {
    signals::hold()?;
    let prepared = match (prepare(kind, common, node, succession.as_ref()), succession) {
        (Ok(_), Some(succession)) if succession.is_rehearsal() => {
            succession.consent()?;
            return Ok(ExitCode::SUCCESS);
        }
        (Err(error), Some(succession)) => {
            succession.go_back(&output::whole(&error));
            return Err(error);
        }
        (prepared, _) => prepared?,
    };
    let Prepared { settings, told, mut bound, identity } = prepared;
    let (common, node) = (common.clone(), node.clone());
    let reload: Reload = Box::new(move || match configured(kind, &common, &node) {
        Ok((_, _, spec)) => Ok(spec),
        Err(error) => Err(output::whole(&error)),
    });
    // Before anything runs: a name server may take its time.
    let own =
        if told.meta.ip().is_unspecified() { told.seeds.iter().find_map(|seed| towards(seed)) } else { None };
    runtime(kind)?.block_on(async {
        let (mut running, state, instance) = (bound.running(), bound.state(), bound.instance().to_owned());
        let reached = if kind == Kind::Seed { settings.seed.address() } else { "" };
        let hello = |running: &Running| JoinHello {
            reached: reached.to_owned(),
            ..hello(running, &told, &instance, own)
        };
        let hellos = watch::Sender::new(hello(&running.borrow_and_update()));
        let standing = watch::Sender::new(Standing::new(BootTime::now()));
        bound.watch_seeds(standing.subscribe());
        let own = identity::node_folder(&settings.data.join(CLUSTER), &told.node);
        let renewed = keep_renewed(identity.clone(), &own, told.seeds());
        let joined = join::hold(identity.clone(), told.seeds(), hellos.subscribe(), state, standing);
        let telling = async {
            while running.changed().await.is_ok() {
                hellos.send_replace(hello(&running.borrow_and_update()));
            }
            // The node is about to end.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = telling => Ok(ExitCode::FAILURE),
            () = renewed => Ok(ExitCode::FAILURE),
            code = serve(kind, bound, reload, &settings, &told, identity) => Ok(code),
            Err(error) = joined => Err(anyhow::anyhow!("seed_address {:?} can't be used: {error}", told.seeds)),
        }
    })
}

fn prepare(
    kind: Kind,
    common: &Common,
    node: &Single,
    succession: Option<&Succession>,
) -> anyhow::Result<Prepared> {
    Settings::load(common)?.assume_account()?;
    let (settings, told, spec) = configured(kind, common, node)?;
    let mut bound = match succession {
        Some(succession) => spec.succeed(succession)?,
        None => spec.bind()?,
    };
    let folder = settings.data.join(CLUSTER);
    let identity = enrol::of_node(&folder, kind.of_wire(), &told.node, &node.joining, &told.seeds())?;
    bound.trust(&identity)?;
    Ok(Prepared { settings, told, bound, identity })
}

/// Reads and checks the configuration, whole.
fn configured(kind: Kind, common: &Common, node: &Single) -> anyhow::Result<(Settings, NodeCommon, Spec)> {
    let settings = Settings::load(common)?;
    let told = settings.common(kind, node.node.as_deref())?;
    let spec = kind.spec(&settings, &told)?;
    Ok((settings, told, spec))
}

/// Runs a child, which was told everything by its parent.
pub(crate) fn child(child: Child) -> ExitCode {
    match child.kind() {
        "proxy" => child.run(protoplex_proxy::serve::child),
        "fileserver" => child.run(protoplex_fileserver::serve::child),
        "live" => child.run(protoplex_live::child),
        other => {
            eprintln!("protoplex: no kind of node is called {other:?}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(
    kind: Kind,
    bound: Bound,
    reload: Reload,
    settings: &Settings,
    told: &NodeCommon,
    identity: Identity,
) -> ExitCode {
    match kind {
        Kind::Seed => {
            let main = |context| protoplex_seed::serve::run(settings.seed.clone(), identity, context);
            solo::run(bound, reload, main).await
        }
        Kind::Datastore => {
            let main = async |context| {
                protoplex_datastore::serve::run(&settings.datastore, &identity, &context).await
            };
            solo::run(bound, reload, main).await
        }
        Kind::Fileserver => {
            let (config, reconfigured) = (settings.fileserver.clone(), bound.reconfigured());
            tokio::select! {
                code = bound.run(reload) => code,
                () = protoplex_fileserver::serve::look_after(config, told, reconfigured) => ExitCode::FAILURE,
            }
        }
        Kind::Proxy | Kind::Live => bound.run(reload).await,
    }
}

/// Parents only watch their children; the nodes of one process use every core.
fn runtime(kind: Kind) -> std::io::Result<Runtime> {
    let mut builder = match kind {
        Kind::Seed | Kind::Datastore => {
            // Two at least: on one, a seed that has much in hand could not renew its lead.
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(available_parallelism().map_or(2, |cores| cores.get().max(2)));
            builder
        }
        Kind::Proxy | Kind::Fileserver | Kind::Live => Builder::new_current_thread(),
    };
    // Signals are the first thread's.
    builder.enable_all().on_thread_start(|| signals::hold_all().unwrap_or_default()).build()
}

/// The address by which this machine reaches the seed, where that is another machine. Blocking.
fn towards(seed: &str) -> Option<IpAddr> {
    let any =
        |address: &SocketAddr| if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let towards = |address: SocketAddr| {
        let socket = UdpSocket::bind((any(&address), 0))?;
        // Sends nothing.
        socket.connect(address)?;
        socket.local_addr()
    };
    let ip = seed.to_socket_addrs().ok()?.find_map(|address| towards(address).ok())?.ip().to_canonical();
    (!ip.is_loopback()).then_some(ip)
}

/// How a node introduces itself to the seed. Where its meta port is at any address of this machine, it is `own` to others.
fn hello(running: &Running, told: &NodeCommon, instance: &str, own: Option<IpAddr>) -> JoinHello {
    let mut listens = Vec::new();
    let mut meta = String::new();
    for address in running.addresses.iter().filter(|address| address.child.is_none()) {
        let listen = format!("{} {}", address.name, address.address);
        if address.name == META {
            let any = address.address.ip().is_unspecified();
            let ip = own.filter(|_| any).unwrap_or(address.address.ip());
            meta = SocketAddr::new(ip, address.address.port()).to_string();
        } else if !listens.contains(&listen) {
            listens.push(listen);
        }
    }
    JoinHello {
        node: running.node.clone(),
        kind: running.kind.clone(),
        version: running.version.clone(),
        pid: running.pid,
        region: told.region.clone(),
        zone: told.zone.clone(),
        meta,
        listens,
        children: running.children,
        started_at_ms: running.started_at_ms as i64,
        instance: instance.to_owned(),
        ..JoinHello::default()
    }
}
