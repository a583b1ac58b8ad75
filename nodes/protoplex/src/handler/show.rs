//! `protoplex handler list|show`.

use protoplex_wire::proto::HandlerHistoryRequest;
use serde::Serialize;

use super::{HandlerRow, named, now};
use crate::cli::Common;
use crate::cluster::Cluster;
use crate::output::{columns, print};
use crate::units::show_time;

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    handler: HandlerRow,
    /// When it became what it is: Unix time in milliseconds; 0 where that is not known any more.
    changed_at_ms: i64,
    /// Who made it so.
    operator: String,
    members: Vec<MemberRow>,
}

#[derive(Serialize)]
struct MemberRow {
    member: String,
    address: String,
    zone: String,
    keys: u64,
}

/// All handlers.
pub(super) async fn list(common: &Common, cluster: &Cluster) -> anyhow::Result<()> {
    let rows: Vec<_> = now(cluster).await?.handlers.iter().map(HandlerRow::from).collect();
    print(common.json, &rows, |rows| {
        let head = ["NAME", "HOST", "PATH", "KEY", "POOL", "PLACEMENT", "STATE"].map(str::to_owned);
        let cells = rows.iter().map(|r| {
            let state = if r.enabled { "enabled" } else { "disabled" };
            [&r.name, &r.host, &r.path, &r.key, &r.pool, r.placement, state].map(|cell: &str| cell.to_owned())
        });
        columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
    })?;
    Ok(())
}

/// One handler.
pub(super) async fn one(common: &Common, cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let list = now(cluster).await?;
    let handler = HandlerRow::from(named(&list.handlers, name)?);
    let history =
        cluster.answer(cluster.operator().await?.handler_history(HandlerHistoryRequest {})).await?.versions;
    let made = history.into_iter().find(|made| made.version == handler.since).unwrap_or_default();
    let pools = cluster.status().await?.pools;
    let members = pools.into_iter().filter(|pool| pool.name == handler.pool).flat_map(|pool| pool.members);
    let members = members.map(|status| {
        let member = status.member.unwrap_or_default();
        MemberRow { member: member.id, address: member.address, zone: member.zone, keys: status.keys }
    });
    let shown = Shown {
        changed_at_ms: made.changed_at_ms,
        operator: made.operator,
        members: members.collect(),
        handler,
    };
    print(common.json, &shown, text)?;
    Ok(())
}

fn text(shown: &Shown) -> String {
    let Shown { handler: it, changed_at_ms, operator, members } = shown;
    let since = match (*changed_at_ms, operator.is_empty()) {
        (0, _) => format!("version {}", it.since),
        (at, true) => format!("version {}, {}", it.since, show_time(at)),
        (at, false) => format!("version {}, {}, by {operator}", it.since, show_time(at)),
    };
    let fields = [
        ("name", it.name.as_str()),
        ("host", &it.host),
        ("path", &it.path),
        ("key", &it.key),
        ("pool", &it.pool),
        ("placement", it.placement),
        ("state", if it.enabled { "enabled" } else { "disabled: no request follows it" }),
        ("since", &since),
    ];
    let mut rows: Vec<[String; 2]> = fields.map(|(name, value)| [name, value].map(str::to_owned)).into();
    if members.is_empty() {
        rows.push(["members".to_owned(), "none now".to_owned()]);
    }
    for (n, member) in members.iter().enumerate() {
        let zone = if member.zone.is_empty() { String::new() } else { format!(", zone {}", member.zone) };
        let name = if n == 0 { "members" } else { "" };
        let row = format!("{} at {}{zone}, {} keys", member.member, member.address, member.keys);
        rows.push([name.to_owned(), row]);
    }
    columns(&rows)
}
