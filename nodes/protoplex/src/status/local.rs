//! What the nodes of this data directory say of themselves, where no seed tells of them.

use std::time::Duration;

use futures_util::future::join_all;
use protoplex_runtime::running::{Address, META};
use protoplex_wire::identity::Identity;
use reqwest::Client;
use serde::Deserialize;

use super::{ChildReport, NodeReport};
use crate::cli::Common;
use crate::cluster;
use crate::meta::Meta;
use crate::nodes::{self, Found};
use crate::settings::Settings;

/// On one machine an answer is there at once, or never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is of interest of a node's status page.
#[derive(Default, Deserialize)]
struct Page {
    version: String,
    pid: u32,
    uptime_ms: u64,
    ready: bool,
    draining: bool,
    #[serde(default)]
    reason: String,
    addresses: Vec<Address>,
    file_limit: u64,
    open_files: u64,
    children: Vec<Child>,
    seed: Option<Link>,
}

/// Its link to the seeds.
#[derive(Deserialize)]
struct Link {
    lost_ms: Option<u64>,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Child {
    index: u32,
    state: String,
    pid: Option<u32>,
    uptime_ms: u64,
    restarts: u32,
    open_files: u64,
}

/// Why a node that runs isn't ready, where it says so.
pub(crate) async fn reason(common: &Common, node: &str) -> Option<String> {
    let nodes = nodes(common).await.ok()?;
    nodes
        .into_iter()
        .find(|report| report.node == node)
        .map(|report| report.reason)
        .filter(|it| !it.is_empty())
}

/// All that run, by name. One that doesn't answer is told without what only it knows.
pub(super) async fn nodes(common: &Common) -> anyhow::Result<Vec<NodeReport>> {
    let identity = cluster::identity(common, &Settings::load(common)?);
    let found = nodes::local(common)?;
    let asked = found.into_iter().map(async |(node, found)| {
        let page = ask(&found, identity.as_ref()).await;
        report(node, found, page.ok())
    });
    Ok(join_all(asked).await)
}

async fn ask(found: &Found, identity: Option<&Identity>) -> anyhow::Result<Page> {
    let meta = Meta::of(found, identity, Client::builder().timeout(ANSWER_TIMEOUT))?;
    let answer = meta.client.get(meta.url("status", &[])).send().await?;
    Ok(answer.error_for_status()?.json().await?)
}

fn report(node: String, found: Found, page: Option<Page>) -> NodeReport {
    let answers = page.is_some();
    let page = page.unwrap_or_default();
    let mut listens = Vec::new();
    for address in page.addresses.iter().filter(|address| address.child.is_none() && address.name != META) {
        let listen = format!("{} {}", address.name, address.address);
        if !listens.contains(&listen) {
            listens.push(listen);
        }
    }
    NodeReport {
        node,
        kind: found.kind,
        version: page.version,
        pid: page.pid,
        ready: page.ready,
        draining: page.draining,
        reason: page.reason,
        answers,
        meta: found.meta.to_string(),
        listens,
        file_limit: page.file_limit,
        open_files: page.open_files,
        uptime_ms: page.uptime_ms,
        seen_ms_ago: 0,
        seed_lost_ms: page.seed.as_ref().and_then(|link| link.lost_ms),
        seed_reason: page.seed.map(|link| link.reason).unwrap_or_default(),
        children: page.children.into_iter().map(ChildReport::from).collect(),
    }
}

impl From<Child> for ChildReport {
    fn from(child: Child) -> Self {
        let Child { index, state, pid, uptime_ms, restarts, open_files } = child;
        Self { child: index, state, pid: pid.unwrap_or_default(), uptime_ms, restarts, open_files }
    }
}
