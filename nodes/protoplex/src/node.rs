//! One node: its parent process, and what each of its children runs.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use protoplex_runtime::child::Child;
use protoplex_runtime::commands::Reload;
use protoplex_runtime::config::Common as NodeCommon;
use protoplex_runtime::parent::{Bound, Spec};
use protoplex_runtime::solo;
use protoplex_wire::identity::Identity;
use protoplex_wire::join;
use protoplex_wire::proto::JoinHello;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Common, Single};
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

/// Runs the parent of a node until it has drained.
pub(crate) fn run(
    kind: Kind,
    common: &Common,
    node: &Single,
    children: Option<u32>,
) -> anyhow::Result<ExitCode> {
    let mut common = common.clone();
    common.set.extend(children.map(|n| (format!("{}.children", kind.name()), i64::from(n).into())));
    Settings::load(&common)?.assume_account()?;
    let (settings, told, spec) = configured(kind, &common, node)?;
    let capacity = spec.children;
    let mut bound = spec.bind()?;
    let identity = identity(kind, &settings)?;
    bound.trust(&identity)?;
    let (common, node) = (common.clone(), node.clone());
    let reload: Reload = Box::new(move || match configured(kind, &common, &node) {
        Ok((_, _, spec)) => Ok(spec),
        Err(error) => Err(format!("{error:#}")),
    });
    runtime(kind)?.block_on(async {
        let (hello, state) = (hello(kind, &bound, &told, capacity), bound.state());
        let joined = join::hold(identity.clone(), told.seed.clone(), hello, state);
        tokio::select! {
            code = serve(kind, bound, reload, &settings, &told, identity) => Ok(code),
            Err(error) = joined => Err(anyhow::anyhow!("seed_address {:?} can't be used: {error}", told.seed)),
        }
    })
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
            let main = async |context| protoplex_datastore::serve::run(&identity, &context).await;
            solo::run(bound, reload, main).await
        }
        Kind::Fileserver => tokio::select! {
            code = bound.run(reload) => code,
            () = protoplex_fileserver::serve::look_after(&settings.fileserver, told) => ExitCode::FAILURE,
        },
        Kind::Proxy | Kind::Live => bound.run(reload).await,
    }
}

/// The seed and the datastore make the cluster's identity where there is none yet; the others need it there.
fn identity(kind: Kind, settings: &Settings) -> anyhow::Result<Identity> {
    let folder = settings.data.join("cluster");
    Ok(match kind {
        Kind::Seed | Kind::Datastore => Identity::open_or_create(&folder)?,
        Kind::Proxy | Kind::Fileserver | Kind::Live => Identity::open(&folder)?,
    })
}

/// Parents only watch their children; the nodes of one process use every core.
fn runtime(kind: Kind) -> std::io::Result<Runtime> {
    match kind {
        Kind::Seed | Kind::Datastore => Builder::new_multi_thread().enable_all().build(),
        Kind::Proxy | Kind::Fileserver | Kind::Live => Builder::new_current_thread().enable_all().build(),
    }
}

fn hello(kind: Kind, bound: &Bound, told: &NodeCommon, capacity: u32) -> JoinHello {
    let mut listens = Vec::new();
    let mut meta = String::new();
    for address in bound.addresses().iter().filter(|address| address.child.is_none()) {
        let listen = format!("{} {}", address.name, address.address);
        if address.name == "meta" {
            meta = address.address.to_string();
        } else if !listens.contains(&listen) {
            listens.push(listen);
        }
    }
    JoinHello {
        node: told.node.clone(),
        kind: kind.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        region: told.region.clone(),
        zone: told.zone.clone(),
        meta,
        listens,
        capacity,
        started_at_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64),
        instance: bound.instance().to_owned(),
    }
}
