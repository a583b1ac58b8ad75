//! `protoplex discover`: which kinds of node there are and how many of each, and whose servers have joined.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use protoplex_wire::proto::PoolStatus;
use serde::Serialize;

use crate::cli::{Common, Discover};
use crate::nodes::{Found, Nodes};
use crate::output::{columns, harmless, print, whole};

#[derive(Serialize)]
struct Report {
    kinds: Vec<Kind>,
    pools: Vec<Pool>,
    /// Why only those of this machine are told, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed_error: Option<String>,
}

#[derive(Serialize)]
struct Kind {
    kind: String,
    count: usize,
    /// How many run each version.
    versions: BTreeMap<String, usize>,
    instances: Vec<Instance>,
}

#[derive(Serialize)]
struct Instance {
    node: String,
    version: String,
    pid: u32,
    children: u32,
    zone: String,
    /// Where it answers.
    meta: SocketAddr,
}

/// One that others have joined.
#[derive(Serialize)]
struct Pool {
    pool: String,
    count: usize,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    member: String,
    address: String,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Discover) -> anyhow::Result<()> {
    let nodes = Nodes::find(common).await?;
    let report = Report::new(&nodes, &command.kinds);
    if let Some(slip) = command.kinds.iter().find(|kind| !report.has(kind)) {
        if nodes.without_seed().is_some() {
            return Err(nodes.unknown(slip));
        }
        let there = Report::new(&nodes, &[]);
        let names: Vec<_> = there.names().collect();
        anyhow::bail!("there is no {slip:?}; there are {}", names.join(", "));
    }
    print(common.json, &report, |report| text(report, &command))?;
    match nodes.into_error() {
        Some(error) => Err(error.context("only nodes of this data directory are known")),
        None => Ok(()),
    }
}

impl Report {
    fn new(nodes: &Nodes, wanted: &[String]) -> Self {
        let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
        let mut kinds: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for (node, found) in nodes.all().filter(|(_, found)| is_wanted(&found.kind)) {
            let Found { kind, version, pid, children, zone, meta, .. } = found.clone();
            let instance = Instance { node: node.to_owned(), version, pid, children, zone, meta };
            kinds.entry(kind).or_default().push(instance);
        }
        let kind = |(kind, instances): (String, Vec<Instance>)| {
            let mut versions = BTreeMap::new();
            for instance in &instances {
                *versions.entry(instance.version.clone()).or_default() += 1;
            }
            Kind { kind, count: instances.len(), versions, instances }
        };
        let pools = nodes.pools.iter().filter(|pool| is_wanted(&pool.name));
        Self {
            kinds: kinds.into_iter().map(kind).collect(),
            seed_error: nodes.without_seed().map(whole),
            pools: pools.filter_map(|pool| joined(nodes, pool)).collect(),
        }
    }

    /// Of the kinds of node, and of the pools that others have joined.
    fn names(&self) -> impl Iterator<Item = &str> {
        let pools = self.pools.iter().map(|pool| pool.pool.as_str());
        self.kinds.iter().map(|kind| kind.kind.as_str()).chain(pools)
    }

    fn has(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }
}

/// The members that are no node's child: those are called NODE:CHILD.
fn joined(nodes: &Nodes, pool: &PoolStatus) -> Option<Pool> {
    let is_child = |id: &str| id.rsplit_once(':').is_some_and(|(node, _)| nodes.has(node));
    let members = pool.members.iter().filter_map(|status| status.member.clone());
    let members: Vec<_> = members
        .filter(|member| !is_child(&member.id))
        .map(|member| Member { member: member.id, address: member.address })
        .collect();
    (!members.is_empty()).then(|| Pool { pool: pool.name.clone(), count: members.len(), members })
}

fn text(report: &Report, command: &Discover) -> String {
    let mut text = String::new();
    for kind in &report.kinds {
        text.push_str(&format!("{} [{}]", kind.kind, kind.count));
        if command.versions {
            let versions: Vec<_> = match kind.versions.len() {
                1 => kind.versions.keys().map(|version| harmless(version)).collect(),
                _ => {
                    let version =
                        |(version, count): (&String, &usize)| format!("{} ({count})", harmless(version));
                    kind.versions.iter().map(version).collect()
                }
            };
            text.push_str(&format!("  {}", versions.join(", ")));
        }
        text.push('\n');
        if command.instances {
            let rows: Vec<_> = kind.instances.iter().map(|instance| row(instance, command)).collect();
            text.push_str(&columns(&rows));
        }
    }
    for pool in &report.pools {
        text.push_str(&format!("{} [{}]  joined\n", pool.pool, pool.count));
        if command.instances {
            let rows: Vec<_> =
                pool.members.iter().map(|one| [format!("  {}", one.member), one.address.clone()]).collect();
            text.push_str(&columns(&rows));
        }
    }
    text
}

fn row(instance: &Instance, command: &Discover) -> [String; 5] {
    let children = match instance.children {
        0 => String::new(),
        1 => "1 child".to_owned(),
        count => format!("{count} children"),
    };
    let version = if command.versions { instance.version.clone() } else { String::new() };
    [
        format!("  {}", instance.node),
        instance.meta.to_string(),
        format!("pid {}", instance.pid),
        children,
        version,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_would_move_the_cursor_is_escaped() {
        let kind = |versions: &[&str]| Kind {
            kind: "proxy".to_owned(),
            count: versions.len(),
            versions: versions.iter().map(|version| ((*version).to_owned(), 1)).collect(),
            instances: Vec::new(),
        };
        let command = Discover { kinds: Vec::new(), instances: false, versions: true };
        for versions in [&["1\u{1b}[2J"][..], &["1\u{1b}[2J", "2\n"]] {
            let report = Report { kinds: vec![kind(versions)], pools: Vec::new(), seed_error: None };
            let text = text(&report, &command);
            assert!(text.contains("1\\u{1b}[2J") && !text.trim_end().contains(char::is_control), "{text:?}");
        }
    }
}
