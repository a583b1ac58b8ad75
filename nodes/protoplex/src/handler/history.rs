//! `protoplex handler history`: what was changed, when and by whom.

use protoplex_wire::proto::{Handler, HandlerHistoryRequest, HandlersAtRequest};
use serde::Serialize;

use super::diff::Diff;
use crate::cli::Common;
use crate::cluster::Cluster;
use crate::output::{columns, print};
use crate::units::show_time;

#[derive(Serialize)]
struct VersionRow {
    version: u64,
    /// Unix time; 0 where it isn't known.
    changed_at_ms: i64,
    operator: String,
    what: String,
}

/// All versions that are kept.
pub(super) async fn all(common: &Common, cluster: &Cluster) -> anyhow::Result<()> {
    let rows = versions(cluster).await?;
    print(common.json, &rows, |rows| {
        let head = ["VERSION", "TIME", "OPERATOR", "WHAT"].map(str::to_owned);
        let cells = rows.iter().map(|row| {
            let time = if row.changed_at_ms == 0 { "-".to_owned() } else { show_time(row.changed_at_ms) };
            let operator = if row.operator.is_empty() { "-" } else { &row.operator };
            [row.version.to_string(), time, operator.to_owned(), row.what.clone()]
        });
        columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
    })?;
    Ok(())
}

/// What changed with one version.
pub(super) async fn one(common: &Common, cluster: &Cluster, version: u64) -> anyhow::Result<()> {
    let after = at(cluster, version).await?;
    if versions(cluster).await?.last().is_some_and(|oldest| oldest.version == version) {
        anyhow::bail!("version {version} is the oldest that is kept: what it changed is not known any more");
    }
    let before = at(cluster, version.saturating_sub(1)).await?;
    let diff = Diff::between(&before, &after, true);
    print(common.json, &diff.json(), |_| diff.text())?;
    Ok(())
}

/// The number of the version before the present one, where it is kept.
pub(super) async fn previous(cluster: &Cluster) -> anyhow::Result<Option<u64>> {
    Ok(versions(cluster).await?.get(1).map(|row| row.version))
}

/// The handlers of a version.
pub(super) async fn at(cluster: &Cluster, version: u64) -> anyhow::Result<Vec<Handler>> {
    let request = HandlersAtRequest { version };
    Ok(cluster.answer(cluster.operator().await?.handlers_at(request)).await?.handlers)
}

async fn versions(cluster: &Cluster) -> anyhow::Result<Vec<VersionRow>> {
    let history = cluster.answer(cluster.operator().await?.handler_history(HandlerHistoryRequest {})).await?;
    let row = |it: protoplex_wire::proto::HandlerVersion| VersionRow {
        version: it.version,
        changed_at_ms: it.changed_at_ms,
        operator: it.operator,
        what: it.what,
    };
    Ok(history.versions.into_iter().map(row).collect())
}
