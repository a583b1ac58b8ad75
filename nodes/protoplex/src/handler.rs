//! `protoplex handler …`: the rules that send requests to pools.

mod change;
pub(crate) mod diff;
pub(crate) mod first;
mod history;
pub(crate) mod operator;
pub(crate) mod pools;
mod rollback;
mod show;

use std::process::ExitCode;

use protoplex_seed::handlers::placement_name;
use protoplex_wire::proto::{self, HandlerChanges, HandlerList, HandlersChanged, ListHandlersRequest};
use serde::Serialize;

use crate::cli::{Common, Handler, Placement};
use crate::cluster::Cluster;

/// A name that is so like another is taken for a slip, where 1 is the same.
const SIMILAR: f64 = 0.6;

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Handler) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::find(common)?;
    match command {
        Handler::Add(new) => change::add(common, &cluster, new).await?,
        Handler::List => show::list(common, &cluster).await?,
        Handler::Show { name } => show::one(common, &cluster, &name).await?,
        Handler::Edit(edit) => change::edit(common, &cluster, edit).await?,
        Handler::Remove { name } => change::remove(common, &cluster, &name).await?,
        Handler::Enable { name } => change::switch(common, &cluster, &name, true).await?,
        Handler::Disable { name } => change::switch(common, &cluster, &name, false).await?,
        Handler::History { version: None } => history::all(common, &cluster).await?,
        Handler::History { version: Some(version) } => history::one(common, &cluster, version).await?,
        Handler::Rollback { version, dry_run } => {
            return rollback::run(common, &cluster, version, dry_run).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A handler as scripts read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct HandlerRow {
    pub name: String,
    host: String,
    path: String,
    key: String,
    pool: String,
    placement: &'static str,
    enabled: bool,
    /// The version that it came with as it is.
    since: u64,
}

impl From<&proto::Handler> for HandlerRow {
    fn from(handler: &proto::Handler) -> Self {
        let placement = placement_name(handler.placement());
        let proto::Handler { name, host, path, key, pool, disabled, since, .. } = handler.clone();
        Self { name, host, path, key, pool, placement, enabled: !disabled, since }
    }
}

impl From<Placement> for proto::Placement {
    fn from(placement: Placement) -> Self {
        match placement {
            Placement::Owned => Self::Owned,
            Placement::Hash => Self::Hash,
            Placement::Spread => Self::Spread,
        }
    }
}

/// The handlers as they are now.
pub(crate) async fn now(cluster: &Cluster) -> anyhow::Result<HandlerList> {
    cluster.answer(cluster.operator().await?.list_handlers(ListHandlersRequest {})).await
}

/// The handler of this name, or advice.
fn named<'a>(handlers: &'a [proto::Handler], name: &str) -> anyhow::Result<&'a proto::Handler> {
    handlers.iter().find(|handler| handler.name == name).ok_or_else(|| {
        let names = handlers.iter().map(|handler| handler.name.as_str());
        match similar(name, names) {
            Some(similar) => anyhow::anyhow!("there is no handler {name:?}, did you mean {similar:?}?"),
            None => anyhow::anyhow!(
                "there is no handler {name:?}; `protoplex handler list` tells those that there are"
            ),
        }
    })
}

/// Which of these may have been meant.
pub(crate) fn similar<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |other: &str| strsim::normalized_damerau_levenshtein(name, other);
    let nearest = known.max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(nearest) >= SIMILAR).then_some(nearest)
}

/// Has the seed change handlers, in the name of who runs this.
pub(crate) async fn send(cluster: &Cluster, changes: HandlerChanges) -> anyhow::Result<HandlersChanged> {
    let changes = HandlerChanges { operator: operator::name(), ..changes };
    cluster.answer(cluster.operator().await?.change_handlers(changes)).await
}
