//! `protoplex handler add|list|remove`.

use protoplex_wire::proto;
use serde::Serialize;

use crate::cli::{Common, Handler, HandlerAdd, Placement};
use crate::cluster::Cluster;
use crate::output::{columns, print};

#[derive(Serialize)]
struct HandlerRow {
    name: String,
    host: String,
    path: String,
    key: String,
    pool: String,
    placement: &'static str,
}

#[derive(Serialize)]
struct Changed<'a> {
    handler: &'a str,
    table_version: u64,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Handler) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    match command {
        Handler::Add(handler) => add(common, &cluster, handler).await,
        Handler::List => list(common, &cluster).await,
        Handler::Remove { name } => {
            let request = proto::RemoveHandlerRequest { name: name.clone() };
            let changed = cluster.answer(cluster.operator()?.remove_handler(request)).await?;
            let changed = Changed { handler: &name, table_version: changed.table_version };
            print(common.json, &changed, |c| {
                format!("Removed handler {} (table version {})", c.handler, c.table_version)
            })?;
            Ok(())
        }
    }
}

async fn add(common: &Common, cluster: &Cluster, new: HandlerAdd) -> anyhow::Result<()> {
    let placement = match new.placement {
        Placement::Owned => proto::Placement::Owned,
        Placement::Hash => proto::Placement::Hash,
        Placement::Spread => proto::Placement::Spread,
    };
    let handler = proto::Handler {
        name: new.name.clone(),
        host: new.host,
        path: new.path,
        key: new.key,
        pool: new.pool,
        placement: placement.into(),
    };
    let changed = cluster.answer(cluster.operator()?.add_handler(handler)).await?;
    let changed = Changed { handler: &new.name, table_version: changed.table_version };
    print(common.json, &changed, |c| {
        format!("Added handler {} (table version {})", c.handler, c.table_version)
    })?;
    Ok(())
}

async fn list(common: &Common, cluster: &Cluster) -> anyhow::Result<()> {
    let handlers =
        cluster.answer(cluster.operator()?.list_handlers(proto::ListHandlersRequest {})).await?.handlers;
    let rows: Vec<_> = handlers.into_iter().map(HandlerRow::from).collect();
    print(common.json, &rows, |rows| {
        let head = ["NAME", "HOST", "PATH", "KEY", "POOL", "PLACEMENT"].map(str::to_owned);
        let cells = rows.iter().map(|r| {
            [&r.name, &r.host, &r.path, &r.key, &r.pool, r.placement].map(|cell: &str| cell.to_owned())
        });
        columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
    })?;
    Ok(())
}

impl From<proto::Handler> for HandlerRow {
    fn from(handler: proto::Handler) -> Self {
        let placement = match handler.placement() {
            proto::Placement::Hash => "hash",
            proto::Placement::Spread => "spread",
            proto::Placement::Owned | proto::Placement::Unspecified => "owned",
        };
        let proto::Handler { name, host, path, key, pool, .. } = handler;
        Self { name, host, path, key, pool, placement }
    }
}
