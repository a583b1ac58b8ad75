//! `protoplex status`: what runs where, in supervisord's words.

pub(crate) mod local;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protoplex_wire::proto::{
    Build, ChildState, ClusterStatus, JoinHello, NodeStatus, PoolStatus, SeedStatus,
};
use serde::Serialize;

use crate::cli::Common;
use crate::cluster::{Cluster, Unreachable};
use crate::output::{columns, plural, print};
use crate::state::Condition;
use crate::units::{show_size, show_uptime};

#[derive(Serialize)]
struct Report {
    seed: String,
    term: u64,
    leading: bool,
    recovering: bool,
    table_version: u64,
    keys: u64,
    nodes: Vec<NodeReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost: Vec<LostReport>,
    pools: Vec<PoolReport>,
    builds: Vec<BuildReport>,
    seeds: Vec<SeedReport>,
}

#[derive(Serialize)]
struct SeedReport {
    node: String,
    address: String,
    leading: bool,
    /// It leads, or could take over.
    ready: bool,
}

/// A node says how it is each second. One that says nothing for so long stands still, or its network does.
const SILENT_AFTER: Duration = Duration::from_secs(4);

/// What can be told where no seed leads: by the nodes of this data directory, and the seeds that answer.
#[derive(Serialize)]
struct WithoutSeed {
    leading: bool,
    seed_error: String,
    nodes: Vec<NodeReport>,
    seeds: Vec<SeedReport>,
}

#[derive(Serialize)]
struct NodeReport {
    node: String,
    kind: String,
    version: String,
    pid: u32,
    ready: bool,
    draining: bool,
    /// Why it isn't ready, where it knows.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Whether it has been heard of just now.
    answers: bool,
    meta: String,
    listens: Vec<String>,
    /// How many files each of its processes may have open, and how many its parent has.
    file_limit: u64,
    open_files: u64,
    uptime_ms: u64,
    seen_ms_ago: u64,
    /// For how long it has reached no seed that leads, and why; by its own word, where no seed tells of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed_lost_ms: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    seed_reason: String,
    children: Vec<ChildReport>,
}

/// A node whose link has ended although it did not drain.
#[derive(Serialize)]
struct LostReport {
    node: String,
    kind: String,
    meta: String,
    lost_ms_ago: u64,
}

#[derive(Serialize)]
struct ChildReport {
    child: u32,
    state: String,
    pid: u32,
    uptime_ms: u64,
    restarts: u32,
    open_files: u64,
}

#[derive(Serialize)]
struct PoolReport {
    pool: String,
    members: Vec<MemberReport>,
}

#[derive(Serialize)]
struct MemberReport {
    member: String,
    address: String,
    zone: String,
    keys: u64,
    lease_left_ms: u64,
    /// Its share of the pool's keys, beside the others'.
    capacity: u32,
    /// It gets no new keys.
    draining: bool,
    /// Its machine has more to do than it can.
    overloaded: bool,
    /// Keys that are still to be moved to it.
    moving_in: u64,
}

impl MemberReport {
    /// What makes it other than the rest.
    fn in_words(&self) -> String {
        let moving = format!("{} are to be moved to it", plural(self.moving_in as usize, "key"));
        let all =
            [(self.draining, "draining"), (self.overloaded, "overloaded"), (self.moving_in > 0, &moving)];
        all.into_iter().filter(|(is, _)| *is).map(|(_, words)| words).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Serialize)]
struct BuildReport {
    host: String,
    version: u64,
    assets: u32,
    bytes: u64,
    digest: String,
}

/// Runs the command.
pub(crate) async fn run(common: &Common) -> anyhow::Result<()> {
    let (error, said) = match Cluster::find(common) {
        Ok(cluster) => match cluster.status().await {
            Ok(status) => return Ok(print(common.json, &Report::new(&cluster.seed(), status), text)?),
            Err(error) => (error, cluster.every_status().await),
        },
        Err(error) => (error, Vec::new()),
    };
    if error.is::<Unreachable>() {
        let report = WithoutSeed::new(error.to_string(), local::nodes(common).await?, said);
        if !report.nodes.is_empty() || !report.seeds.is_empty() {
            print(common.json, &report, WithoutSeed::text)?;
        }
    }
    Err(error)
}

impl WithoutSeed {
    fn new(seed_error: String, mut nodes: Vec<NodeReport>, said: Vec<ClusterStatus>) -> Self {
        let mut seeds: Vec<SeedReport> = Vec::new();
        for status in said {
            // Itself comes first; whom it has heard of says more of itself.
            let own = status.seeds.into_iter().next().map(SeedReport::from);
            seeds.extend(own.filter(|own| seeds.iter().all(|seed| seed.node != own.node)));
            for node in status.nodes.into_iter().map(NodeReport::from) {
                if nodes.iter().all(|known| known.node != node.node) {
                    nodes.push(node);
                }
            }
        }
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        seeds.sort_by(|a, b| a.node.cmp(&b.node));
        Self { leading: false, seed_error, nodes, seeds }
    }

    fn text(&self) -> String {
        let seeds = self.seeds.iter().map(|seed| {
            let state =
                if seed.ready { "does not lead, could take over" } else { "does not lead, can't take over" };
            [format!("Seed {}", seed.node), seed.address.clone(), state.to_owned()]
        });
        let seeds = columns(&seeds.collect::<Vec<_>>());
        let gap = if self.nodes.is_empty() || seeds.is_empty() { "" } else { "\n" };
        rows(&self.nodes) + &seedless(&self.nodes) + gap + &seeds
    }
}

fn rows(nodes: &[NodeReport]) -> String {
    let mut rows = Vec::new();
    for node in nodes {
        let state = node.state();
        let alive = format!("pid {}, uptime {}", node.pid, uptime(node.uptime_ms));
        let last = match state {
            "WAITING" => node.reason.clone(),
            _ => node.listens.join(", "),
        };
        rows.push([node.node.clone(), state.to_owned(), alive, last]);
        for child in &node.children {
            let restarts = match child.restarts {
                0 => String::new(),
                n => plural(n as usize, "restart"),
            };
            let alive = match child.pid {
                0 => String::new(),
                pid => format!("pid {pid}, uptime {}", uptime(child.uptime_ms)),
            };
            rows.push([format!("{}:{}", node.node, child.child), child.state.clone(), alive, restarts]);
        }
    }
    columns(&rows)
}

/// What those say that have a link to the seeds, where none of them leads. Nobody has lost it for longer than the one who
/// lost it first.
fn seedless(nodes: &[NodeReport]) -> String {
    let lost = nodes.iter().filter_map(|node| Some((node.seed_lost_ms?, node)));
    lost.max_by_key(|(ms, _)| *ms).map_or_else(String::new, |(ms, node)| {
        format!(
            "\nNo seed has led for {}, says {}{}: what is known goes on, and new keys wait\n",
            uptime(ms),
            node.node,
            if node.seed_reason.is_empty() { String::new() } else { format!(" ({})", node.seed_reason) }
        )
    })
}

fn text(report: &Report) -> String {
    let mut text = rows(&report.nodes);
    let lost = report.lost.iter().map(|lost| {
        let ago = format!("{} ago, without a drain", uptime(lost.lost_ms_ago));
        [lost.node.clone(), "LOST".to_owned(), ago, format!("meta {}", lost.meta)]
    });
    text.push_str(&columns(&lost.collect::<Vec<_>>()));
    let members = report.pools.iter().flat_map(|pool| {
        pool.members.iter().map(|member| {
            [
                pool.pool.clone(),
                member.member.clone(),
                member.address.clone(),
                // Members of a pool by hash own none, ever.
                if member.keys == 0 { String::new() } else { plural(member.keys as usize, "key") },
                member.in_words(),
            ]
        })
    });
    text.push_str("\nPools\n");
    text.push_str(&columns(&members.collect::<Vec<_>>()));
    if !report.builds.is_empty() {
        text.push_str("\nApp builds\n");
        let rows = report.builds.iter().map(|build| {
            let size = format!("{}, {}", plural(build.assets as usize, "asset"), show_size(build.bytes));
            [build.host.clone(), format!("build {}", build.version), size]
        });
        text.push_str(&columns(&rows.collect::<Vec<_>>()));
    }
    let role = match (report.leading, report.recovering) {
        (false, _) => "waiting to lead",
        (true, true) => "recovering: keys that no member reported wait for the lease to end",
        (true, false) => "leading",
    };
    text.push_str(&format!(
        "\nSeed {} {role}, term {}, {}\n",
        report.seed,
        report.term,
        plural(report.keys as usize, "key")
    ));
    let others = report.seeds.iter().filter(|seed| !seed.leading && seed.address != report.seed);
    let understudies = others.map(|seed| {
        let state = if seed.ready { "could take over" } else { "can't take over" };
        [format!("Understudy {}", seed.node), seed.address.clone(), state.to_owned()]
    });
    text.push_str(&columns(&understudies.collect::<Vec<_>>()));
    text
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// By this machine's clock.
fn uptime_ms(started_at_ms: i64) -> u64 {
    let started = u64::try_from(started_at_ms).ok().filter(|started| *started > 0);
    started.map_or(0, |started| unix_ms().saturating_sub(started))
}

fn uptime(ms: u64) -> String {
    show_uptime(Duration::from_millis(ms))
}

impl From<NodeStatus> for LostReport {
    fn from(status: NodeStatus) -> Self {
        let JoinHello { node, kind, meta, .. } = status.node.unwrap_or_default();
        Self { node, kind, meta, lost_ms_ago: status.seen_ms_ago }
    }
}

impl Report {
    fn new(seed: &str, status: ClusterStatus) -> Self {
        let mut nodes: Vec<_> = status.nodes.into_iter().map(NodeReport::from).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        Self {
            seed: seed.to_owned(),
            term: status.term,
            leading: status.leading,
            recovering: status.recovering,
            table_version: status.table_version,
            keys: status.keys,
            nodes,
            lost: status.lost.into_iter().map(LostReport::from).collect(),
            pools: status.pools.into_iter().map(PoolReport::from).collect(),
            builds: status.builds.into_iter().map(BuildReport::from).collect(),
            seeds: status.seeds.into_iter().map(SeedReport::from).collect(),
        }
    }
}

impl NodeReport {
    fn state(&self) -> &str {
        let Self { answers, draining, ready, reason, .. } = self;
        let condition = Condition { answers: *answers, draining: *draining, ready: *ready, reason };
        condition.word(self.children.iter().map(|child| child.state.as_str()))
    }
}

impl From<NodeStatus> for NodeReport {
    fn from(status: NodeStatus) -> Self {
        let hello = status.node.unwrap_or_default();
        let state = status.state.unwrap_or_default();
        Self {
            node: hello.node,
            kind: hello.kind,
            version: hello.version,
            pid: hello.pid,
            ready: state.ready,
            draining: state.draining,
            reason: state.reason,
            answers: Duration::from_millis(status.seen_ms_ago) < SILENT_AFTER,
            meta: hello.meta,
            listens: hello.listens,
            file_limit: state.file_limit,
            open_files: state.open_files,
            uptime_ms: uptime_ms(hello.started_at_ms),
            seen_ms_ago: status.seen_ms_ago,
            seed_lost_ms: None,
            seed_reason: String::new(),
            children: state.children.into_iter().map(ChildReport::from).collect(),
        }
    }
}

impl From<ChildState> for ChildReport {
    fn from(child: ChildState) -> Self {
        let ChildState { index, state, pid, started_at_ms, restarts, open_files } = child;
        Self { child: index, state, pid, uptime_ms: uptime_ms(started_at_ms), restarts, open_files }
    }
}

impl From<PoolStatus> for PoolReport {
    fn from(pool: PoolStatus) -> Self {
        let members = pool.members.into_iter().map(|status| {
            let member = status.member.unwrap_or_default();
            MemberReport {
                member: member.id,
                address: member.address,
                zone: member.zone,
                keys: status.keys,
                lease_left_ms: status.lease_left_ms,
                capacity: status.capacity,
                draining: status.draining,
                overloaded: status.overloaded,
                moving_in: status.moving_in,
            }
        });
        Self { pool: pool.name, members: members.collect() }
    }
}

impl From<SeedStatus> for SeedReport {
    fn from(status: SeedStatus) -> Self {
        let SeedStatus { node, address, leading, ready } = status;
        Self { node, address, leading, ready }
    }
}

impl From<Build> for BuildReport {
    fn from(build: Build) -> Self {
        let Build { host, version, assets, bytes, digest, .. } = build;
        Self { host, version, assets, bytes, digest }
    }
}
