//! Which pools of changed handlers have nobody in them now: their servers may come later, or the name is a slip.

use std::collections::BTreeSet;

use protoplex_wire::proto::{Handler, PoolStatus};
use serde::Serialize;

use crate::cluster::Cluster;

/// What to say of pools.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Lonely {
    /// Pools without a member, that handlers which are enabled send requests to.
    pub(crate) memberless_pools: Vec<String>,
    #[serde(skip)]
    with_members: Vec<String>,
}

impl Lonely {
    /// Looks at the pools of these handlers. Nothing is said where nobody answers: it is advice.
    pub(crate) async fn among(cluster: &Cluster, handlers: &[Handler]) -> Self {
        if handlers.is_empty() {
            return Self::default();
        }
        cluster.status().await.map(|status| Self::of(&status.pools, handlers)).unwrap_or_default()
    }

    fn of(pools: &[PoolStatus], handlers: &[Handler]) -> Self {
        let has_members = |pool: &&PoolStatus| !pool.members.is_empty();
        let with_members: BTreeSet<_> =
            pools.iter().filter(has_members).map(|pool| pool.name.clone()).collect();
        let named = handlers.iter().filter(|handler| !handler.disabled).map(|handler| handler.pool.clone());
        let named: BTreeSet<_> = named.collect();
        Self {
            memberless_pools: named.difference(&with_members).cloned().collect(),
            with_members: with_members.into_iter().collect(),
        }
    }

    /// A line each.
    pub(crate) fn text(&self) -> String {
        let others = match self.with_members.join(", ") {
            none if none.is_empty() => "nor has any other pool".to_owned(),
            others => format!("pools with members: {others}"),
        };
        self.memberless_pools
            .iter()
            .map(|pool| format!("pool {pool} has no member now; {others}\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use protoplex_wire::proto::MemberStatus;

    use super::*;

    #[test]
    fn a_pool_without_a_member_is_told_once_with_those_that_have_some() {
        let pool = |name: &str, members: usize| PoolStatus {
            name: name.to_owned(),
            members: vec![MemberStatus::default(); members],
        };
        let pools = [pool("live", 2), pool("files", 1), pool("left", 0)];
        let handler =
            |pool: &str, disabled| Handler { pool: pool.to_owned(), disabled, ..Handler::default() };
        let handlers =
            [handler("lvie", false), handler("lvie", false), handler("files", false), handler("off", true)];
        let told = Lonely::of(&pools, &handlers);
        assert_eq!(told.text(), "pool lvie has no member now; pools with members: files, live\n");
        assert_eq!(serde_json::to_string(&told).unwrap(), r#"{"memberless_pools":["lvie"]}"#);
        let told = Lonely::of(&pools[2..], &handlers[..1]).text();
        assert_eq!(told, "pool lvie has no member now; nor has any other pool\n");
        assert_eq!(Lonely::of(&pools, &handlers[2..]).text(), "");
    }
}
