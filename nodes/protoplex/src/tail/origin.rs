//! Whose lines are wanted, and where they are to be had.

use std::collections::BTreeMap;
use std::str::FromStr;

use protoplex_runtime::config::connectable;
use protoplex_runtime::running;

use crate::cli::{Common, Usage};
use crate::cluster::Cluster;
use crate::settings::Settings;

/// `proxy-1`, or `proxy-1:0` for one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    node: String,
    child: Option<u32>,
}

impl FromStr for Origin {
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

/// The nodes that there are.
pub(super) struct Known {
    /// Where the meta port of each is.
    metas: BTreeMap<String, String>,
    /// Why those that don't run on this data directory are not among them.
    without_seed: Option<anyhow::Error>,
}

impl Known {
    /// Those that run on this data directory, and those that the seed knows.
    pub(super) async fn find(common: &Common) -> anyhow::Result<Self> {
        let mut known = Self { metas: BTreeMap::new(), without_seed: None };
        match seeds(common).await {
            Ok(metas) => known.metas.extend(metas),
            Err(error) => known.without_seed = Some(error),
        }
        known.metas.extend(local(common)?);
        if known.metas.is_empty()
            && let Some(error) = known.without_seed
        {
            return Err(error);
        }
        Ok(known)
    }

    /// The nodes that are wanted, each with the children that are; none are all.
    pub(super) fn choose(self, origins: &[Origin]) -> anyhow::Result<BTreeMap<String, Vec<u32>>> {
        let unknown = origins.iter().find(|origin| !self.metas.contains_key(&origin.node));
        if let Some(Origin { node, .. }) = unknown {
            let names: Vec<_> = self.metas.keys().map(String::as_str).collect();
            return Err(self.without_seed.unwrap_or_else(|| {
                Usage(format!("there is no node {node:?}; there are {}", names.join(", "))).into()
            }));
        }
        let is_whole = |node: &String| origins.iter().any(|one| one.node == *node && one.child.is_none());
        let mut wanted: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        if origins.is_empty() {
            wanted.extend(self.metas.into_keys().map(|node| (node, Vec::new())));
        }
        for Origin { node, child } in origins {
            let children = wanted.entry(node.clone()).or_default();
            children.extend(child.filter(|child| !is_whole(node) && !children.contains(child)));
        }
        Ok(wanted)
    }
}

/// The meta port of a node, as far as that is known now: one that was started again may have another.
pub(super) async fn meta(common: &Common, node: &str) -> Option<String> {
    match local(common).ok()?.remove(node) {
        Some(meta) => Some(meta),
        None => seeds(common).await.ok()?.remove(node),
    }
}

fn local(common: &Common) -> anyhow::Result<BTreeMap<String, String>> {
    let nodes = running::list(&Settings::load(common)?.data)?;
    let meta = |node: running::Running| {
        let meta = connectable(node.address("meta")?);
        Some((node.node, meta.to_string()))
    };
    Ok(nodes.into_iter().filter_map(meta).collect())
}

async fn seeds(common: &Common) -> anyhow::Result<BTreeMap<String, String>> {
    let nodes = Cluster::find(common)?.status().await?.nodes;
    let hellos = nodes.into_iter().filter_map(|status| status.node);
    Ok(hellos.map(|hello| (hello.node, hello.meta)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        text.parse().unwrap()
    }

    fn known() -> Known {
        let metas = ["live-1", "proxy-1"].map(|node| (node.to_owned(), "127.0.0.1:1".to_owned()));
        Known { metas: metas.into(), without_seed: None }
    }

    #[test]
    fn row_what_names_no_node_is_refused() {
        for wrong in ["", ":1", "proxy-1:", "proxy-1:x", "proxy-1:-1", "a:0:1"] {
            assert!(wrong.parse::<Origin>().unwrap_err().contains("NODE:CHILD"), "{wrong}");
        }
        let refusal = known().choose(&[origin("proxy-2")]).unwrap_err();
        assert!(refusal.is::<Usage>());
        assert_eq!(refusal.to_string(), "there is no node \"proxy-2\"; there are live-1, proxy-1");
        let known = Known { without_seed: Some(anyhow::anyhow!("no seed")), ..known() };
        assert_eq!(known.choose(&[origin("proxy-2")]).unwrap_err().to_string(), "no seed");
    }

    #[test]
    fn each_node_is_asked_once_for_what_is_wanted_of_it() {
        let chosen = |texts: &[&str]| {
            let chosen = known().choose(&texts.iter().map(|text| origin(text)).collect::<Vec<_>>()).unwrap();
            chosen.into_iter().map(|(node, children)| format!("{node}{children:?}")).collect::<String>()
        };
        assert_eq!(chosen(&[]), "live-1[]proxy-1[]");
        assert_eq!(chosen(&["proxy-1:1", "proxy-1:0", "proxy-1:1"]), "proxy-1[1, 0]");
        assert_eq!(chosen(&["proxy-1:1", "proxy-1", "live-1:0"]), "live-1[0]proxy-1[]");
    }
}
