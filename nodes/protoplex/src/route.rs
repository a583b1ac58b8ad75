//! `protoplex route`: where a request would go, step by step, by the proxy's own rules.

use anyhow::Context;
use http::HeaderMap;
use protoplex_proxy::key::{self, Facts, Fields};
use protoplex_proxy::placement;
use protoplex_proxy::table::{Placement, Table};
use protoplex_proxy::target;
use protoplex_wire::proto::{self, ExplainRequest, ListHandlersRequest};
use serde::Serialize;

use crate::cli::{Common, Route};
use crate::cluster::Cluster;
use crate::output::print;

/// Each step is empty where the way ends before it.
#[derive(Default, Serialize)]
struct Way {
    host: String,
    path: String,
    handler: String,
    placement: &'static str,
    key: String,
    pool: String,
    members: Vec<String>,
    /// Who would answer now; for an owned key without an owner it is chosen by the first request.
    member: String,
    address: String,
    epoch: u64,
    why: String,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Route) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let way = explain(&cluster, command).await?;
    print(common.json, &way, text)?;
    Ok(())
}

async fn explain(cluster: &Cluster, request: Route) -> anyhow::Result<Way> {
    let Route { url, headers, client_ip } = request;
    let headers = Fields::from(&headers.into_iter().collect::<HeaderMap>());
    let mut way = Way {
        host: url.host().context("the URL has no host")?.to_ascii_lowercase(),
        path: url.path().to_owned(),
        ..Way::default()
    };
    if let Err(error) = target::check(&way.path) {
        way.why = format!("{error}: the answer is 400");
        return Ok(way);
    }
    let sent = sent_table(cluster).await?;
    let (table, _) = Table::compile(&sent, &Table::default());
    let Some((handler, captures)) = table.find(&way.host, &way.path) else {
        way.why = "no handler matches this host and path: the answer is 404".to_owned();
        return Ok(way);
    };
    way.handler = handler.name.to_string();
    way.pool = handler.pool.name.to_string();
    way.members = handler.pool.members.iter().map(|member| member.id.to_string()).collect();
    let (placement, template) = match &handler.placement {
        Placement::Owned(template) => ("owned", Some(template)),
        Placement::Hash(template) => ("hash", Some(template)),
        Placement::Spread => ("spread", None),
    };
    way.placement = placement;
    let facts = Facts {
        host: &way.host,
        path: &way.path,
        captures: &captures,
        query: url.query().unwrap_or_default(),
        form: &[],
        headers: &headers,
        client_ip,
    };
    if let Some(template) = template {
        match key::key(template, &facts, handler.placement.max_key_bytes()) {
            Ok(key) => way.key = key,
            Err(error) => {
                way.why = format!("{error}: the answer is 400");
                return Ok(way);
            }
        }
    }
    if way.members.is_empty() {
        way.why = "the pool has no member now: the answer is 503".to_owned();
        return Ok(way);
    }
    match &handler.placement {
        Placement::Owned(_) => owner(cluster, &mut way).await?,
        Placement::Hash(_) => {
            if let Some(member) = placement::hash(&handler.pool.members, &way.key, None) {
                way.member = member.id.to_string();
                way.address = member.address.to_string();
                way.why = "the key's hash falls on this member".to_owned();
            }
        }
        Placement::Spread => way.why = "each request goes to the less busy of two members".to_owned(),
    }
    Ok(way)
}

async fn owner(cluster: &Cluster, way: &mut Way) -> anyhow::Result<()> {
    let question = ExplainRequest { pool: way.pool.clone(), key: way.key.clone() };
    let told = cluster.answer(cluster.operator()?.explain(question)).await?;
    way.why = match told.owner {
        Some(owner) => {
            way.member = owner.member;
            way.address = owner.address;
            way.epoch = owner.epoch;
            format!("it owns the key since epoch {}", owner.epoch)
        }
        None if told.recovering => "the seed is recovering: it waits for the last owner's report".to_owned(),
        None if told.last_member.is_empty() => {
            "nobody owns the key yet: the first request decides".to_owned()
        }
        None => format!("nobody owns the key now; {} had it last", told.last_member),
    };
    Ok(())
}

/// The routing table as a proxy gets it.
async fn sent_table(cluster: &Cluster) -> anyhow::Result<proto::Table> {
    let handlers = cluster.answer(cluster.operator()?.list_handlers(ListHandlersRequest {})).await?;
    let pools = cluster.status().await?.pools.into_iter().map(|pool| proto::Pool {
        name: pool.name,
        members: pool.members.into_iter().filter_map(|status| status.member).collect(),
    });
    Ok(proto::Table { version: handlers.table_version, handlers: handlers.handlers, pools: pools.collect() })
}

fn text(way: &Way) -> String {
    let steps = [
        ("host", way.host.clone()),
        ("path", way.path.clone()),
        ("handler", way.handler.clone()),
        ("placement", way.placement.to_owned()),
        ("key", way.key.clone()),
        ("pool", format!("{} ({})", way.pool, way.members.join(", "))),
        ("member", format!("{} at {}", way.member, way.address)),
    ];
    let empty = |text: &str| text.is_empty() || text.starts_with(' ');
    let lines = steps.into_iter().filter(|(_, text)| !empty(text));
    let mut text: String = lines.map(|(name, text)| format!("{name:<10} {text}\n")).collect();
    text.push_str(&format!("{:<10} {}", "why", way.why));
    text
}
