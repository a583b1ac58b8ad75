//! Which nodes there are, on this machine and elsewhere, and how an operator names them and their children.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use protoplex_runtime::config::connectable;
use protoplex_runtime::running::{self, META, Running};
use protoplex_wire::proto::{JoinHello, NodeStatus, PoolStatus};

use crate::cli::{Common, Usage};
use crate::cluster::{Cluster, Unreachable};
use crate::settings::Settings;

/// A node, or one child of it: `proxy-1`, `proxy-1:0`, as `status` prints them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) node: String,
    pub(crate) child: Option<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, child) = match text.split_once(':') {
            Some((node, child)) => (node, Some(child)),
            None => (text, None),
        };
        let child = child.map(str::parse).transpose();
        match child {
            Ok(child) if !node.is_empty() => Ok(Self { node: node.to_owned(), child }),
            _ => Err("write NODE or NODE:CHILD, as in proxy-1 or proxy-1:0".to_owned()),
        }
    }
}

/// A node, and how it is reached.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// `proxy`.
    pub(crate) kind: String,
    pub(crate) version: String,
    /// Of its parent.
    pub(crate) pid: u32,
    /// How many it has.
    pub(crate) children: u32,
    /// Empty where it is not known.
    pub(crate) zone: String,
    /// Where its meta port is reached.
    pub(crate) meta: SocketAddr,
    /// Whether that port is for its machine alone.
    pub(crate) is_local: bool,
}

impl Found {
    /// One of this data directory.
    fn local(node: Running) -> Option<(String, Self)> {
        let meta = node.address(META)?;
        let Running { node, kind, version, pid, children, .. } = node;
        let found = Self { kind, version, pid, children, zone: String::new(), meta, is_local: false };
        Some((node, found.reached(meta)))
    }

    /// One that the seed knows.
    fn joined(hello: JoinHello) -> Option<(String, Self)> {
        let meta = hello.meta.parse().ok()?;
        let JoinHello { node, kind, version, pid, children, zone, .. } = hello;
        Some((node, Self { kind, version, pid, children, zone, meta, is_local: false }.reached(meta)))
    }

    fn reached(self, meta: SocketAddr) -> Self {
        Self { meta: connectable(meta), is_local: meta.ip().is_loopback(), ..self }
    }

    /// Seed and datastore are one process each: they have no children to command.
    pub(crate) fn is_solo(&self) -> bool {
        matches!(self.kind.as_str(), "seed" | "datastore")
    }
}

/// A node that the seed has lost.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    pub(crate) found: Found,
    pub(crate) ago: Duration,
}

/// What the seed that leads tells.
#[derive(Default)]
struct Told {
    term: u64,
    found: BTreeMap<String, Found>,
    lost: BTreeMap<String, Lost>,
    pools: Vec<PoolStatus>,
}

/// The nodes that there are.
#[derive(Default)]
pub(crate) struct Nodes {
    found: BTreeMap<String, Found>,
    /// Those whose links have ended although they did not drain.
    pub(crate) lost: BTreeMap<String, Lost>,
    /// As the seed knows them.
    pub(crate) pools: Vec<PoolStatus>,
    /// Of the seed that leads, if one does.
    pub(crate) term: Option<u64>,
    /// Why those that don't run on this data directory are not among them.
    without_seed: Option<anyhow::Error>,
}

impl Nodes {
    /// Those that run on this data directory, for which no seed is needed, and those that the seed knows.
    pub(crate) async fn find(common: &Common) -> anyhow::Result<Self> {
        let mut nodes = match told(common).await {
            Ok(Told { term, found, lost, pools }) => {
                Self { found, lost, pools, term: Some(term), without_seed: None }
            }
            Err(error) => Self { without_seed: Some(error), ..Self::default() },
        };
        for (name, found) in local(common)? {
            nodes.lost.remove(&name);
            let zone = nodes.found.get(&name).map(|known| known.zone.clone()).unwrap_or_default();
            nodes.found.insert(name, Found { zone, ..found });
        }
        if nodes.found.is_empty()
            && let Some(error) = nodes.without_seed
        {
            return Err(error);
        }
        Ok(nodes)
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Found)> {
        self.found.iter().map(|(node, found)| (node.as_str(), found))
    }

    /// Whether there is a node of this name.
    pub(crate) fn has(&self, node: &str) -> bool {
        self.found.contains_key(node)
    }

    /// The node of this name; the error names those that there are.
    pub(crate) fn named(&self, node: &str) -> anyhow::Result<&Found> {
        if let Some(found) = self.found.get(node) {
            return Ok(found);
        }
        Err(self.unknown(node))
    }

    /// The error that names those that there are.
    pub(crate) fn unknown(&self, node: &str) -> anyhow::Error {
        if let Some(error) = &self.without_seed {
            let why =
                format!("{node} does not run here, and whether it runs elsewhere can't be told: {error}");
            return if error.is::<Unreachable>() {
                Unreachable::new(why).into()
            } else {
                anyhow::anyhow!(why)
            };
        }
        let names: Vec<_> = self.found.keys().map(String::as_str).collect();
        anyhow::anyhow!("there is no node {node:?}; there are {}", names.join(", "))
    }

    /// The node of this name, or all of this kind; the error names those that there are.
    pub(crate) fn alike(&self, name: &str) -> anyhow::Result<Vec<(&str, &Found)>> {
        if let Some((name, found)) = self.found.get_key_value(name) {
            return Ok(vec![(name, found)]);
        }
        let of_kind: Vec<_> = self.all().filter(|(_, found)| found.kind == name).collect();
        if of_kind.is_empty() { Err(self.unknown(name)) } else { Ok(of_kind) }
    }

    /// Why those that don't run on this data directory are not among them, where that is so.
    pub(crate) fn without_seed(&self) -> Option<&anyhow::Error> {
        self.without_seed.as_ref()
    }

    /// The same, to fail with.
    pub(crate) fn into_error(self) -> Option<anyhow::Error> {
        self.without_seed
    }

    /// The nodes that are wanted, each with the children that are; none are all.
    pub(crate) fn choose(&self, targets: &[Target]) -> anyhow::Result<BTreeMap<String, Vec<u32>>> {
        for target in targets {
            self.named(&target.node)?;
        }
        let is_whole = |node: &String| targets.iter().any(|one| one.node == *node && one.child.is_none());
        let mut wanted: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        if targets.is_empty() {
            wanted.extend(self.found.keys().map(|node| (node.clone(), Vec::new())));
        }
        for Target { node, child } in targets {
            let children = wanted.entry(node.clone()).or_default();
            children.extend(child.filter(|child| !is_whole(node) && !children.contains(child)));
        }
        Ok(wanted)
    }
}

/// The meta port of a node, as far as that is known now: one that was started again may have another.
pub(crate) async fn meta(common: &Common, node: &str) -> Option<Found> {
    match local(common).ok()?.remove(node) {
        Some(found) => Some(found),
        None => told(common).await.ok()?.found.remove(node),
    }
}

/// Those that run on this data directory.
pub(crate) fn local(common: &Common) -> anyhow::Result<BTreeMap<String, Found>> {
    let data = Settings::load(common)?.data;
    let nodes = running::list(&data)
        .map_err(|error| Usage(format!("can't tell what runs in {}: {error}", data.display())))?;
    Ok(nodes.into_iter().filter_map(Found::local).collect())
}

async fn told(common: &Common) -> anyhow::Result<Told> {
    let status = Cluster::find(common)?.status().await?;
    let joined = |status: NodeStatus| Found::joined(status.node?);
    let lost = status.lost.into_iter().filter_map(|status| {
        let ago = Duration::from_millis(status.seen_ms_ago);
        joined(status).map(|(name, found)| (name, Lost { found, ago }))
    });
    Ok(Told {
        term: status.term,
        lost: lost.collect(),
        found: status.nodes.into_iter().filter_map(joined).collect(),
        pools: status.pools,
    })
}

#[cfg(test)]
impl Nodes {
    /// Nodes of these kinds, the first of each, by a seed that leads in this term, or without one.
    pub(crate) fn of_kinds(kinds: &[&str], term: Option<u64>) -> Self {
        let hello = |kind: &str| JoinHello {
            node: format!("{kind}-1"),
            kind: kind.to_owned(),
            meta: "127.0.0.1:1".to_owned(),
            ..Default::default()
        };
        let found = kinds.iter().filter_map(|kind| Found::joined(hello(kind)));
        Self { found: found.collect(), term, ..Self::default() }
    }

    /// A seed, a live node and a proxy.
    pub(crate) fn sample() -> Self {
        Self::of_kinds(&["live", "proxy", "seed"], Some(1))
    }

    /// With this one lost so long ago.
    pub(crate) fn without(mut self, name: &str, ago: Duration) -> Self {
        let found = self.found.remove(name).unwrap();
        self.lost.insert(name.to_owned(), Lost { found, ago });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn row_what_names_no_node_is_refused() {
        for wrong in ["", ":1", "proxy-1:", "proxy-1:x", "proxy-1:-1", "a:0:1"] {
            assert!(wrong.parse::<Target>().unwrap_err().contains("NODE:CHILD"), "{wrong}");
        }
        let refusal = Nodes::sample().choose(&targets(&["proxy-2"])).unwrap_err();
        assert!(!refusal.is::<Usage>(), "only the cluster knows that");
        assert_eq!(refusal.to_string(), "there is no node \"proxy-2\"; there are live-1, proxy-1, seed-1");
        let nodes = Nodes { without_seed: Some(Unreachable::new("no seed").into()), ..Nodes::sample() };
        let refusal = nodes.choose(&targets(&["proxy-2"])).unwrap_err();
        assert!(refusal.is::<Unreachable>(), "a script tries again");
        let refusal = refusal.to_string();
        assert!(
            refusal.starts_with("proxy-2 does not run here") && refusal.ends_with("no seed"),
            "{refusal}"
        );
    }

    #[test]
    fn each_node_is_asked_once_for_what_is_wanted_of_it() {
        let chosen = |texts: &[&str]| {
            let chosen = Nodes::sample().choose(&targets(texts)).unwrap();
            chosen.into_iter().map(|(node, children)| format!("{node}{children:?}")).collect::<String>()
        };
        assert_eq!(chosen(&[]), "live-1[]proxy-1[]seed-1[]");
        assert_eq!(chosen(&["proxy-1:1", "proxy-1:0", "proxy-1:1"]), "proxy-1[1, 0]");
        assert_eq!(chosen(&["proxy-1:1", "proxy-1", "live-1:0"]), "live-1[0]proxy-1[]");
    }
}
