//! `protoplex hot-keys`: which keys have the most requests, as proxies tell.

use protoplex_wire::proto::{HotKeyStatus, ListHotKeysRequest};
use serde::Serialize;

use crate::cli::Common;
use crate::cluster::Cluster;
use crate::output::{columns, print};

#[derive(Serialize)]
struct Row {
    pool: String,
    key: String,
    /// Empty where it has none now.
    owner: String,
    requests_per_second: f64,
}

/// Runs the command.
pub(crate) async fn run(common: &Common) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let list = cluster.answer(cluster.operator().await?.list_hot_keys(ListHotKeysRequest {})).await?;
    let rows: Vec<_> = list.keys.into_iter().map(Row::from).collect();
    Ok(print(common.json, &rows, |rows| table(rows))?)
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No key stands out.\n".to_owned();
    }
    let head = ["REQUESTS/S", "POOL", "KEY", "OWNER"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        [format!("{:.1}", row.requests_per_second), row.pool.clone(), row.key.clone(), row.owner.clone()]
    });
    columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
}

impl From<HotKeyStatus> for Row {
    fn from(hot: HotKeyStatus) -> Self {
        let HotKeyStatus { pool, key, owner, requests_per_second } = hot;
        Self { pool, key, owner, requests_per_second }
    }
}
