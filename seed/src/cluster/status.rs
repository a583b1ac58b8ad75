//! What operators are shown of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{ClusterStatus, HotKeyList, HotKeyStatus, MemberStatus, PoolStatus, SeedStatus};

use super::{Cluster, Myself};
use crate::hot_keys::HotKey;

impl Cluster {
    /// The keys that have the most requests, with their owners.
    pub(crate) fn list_hot_keys(&self, now: BootTime) -> HotKeyList {
        let status = |HotKey { pool, key, requests_per_second }| {
            let owner = self.core.explain(&pool, &key, "").owner.map(|owner| owner.member);
            HotKeyStatus { pool, key, owner: owner.unwrap_or_default(), requests_per_second }
        };
        HotKeyList { keys: self.hot_keys.list(now).into_iter().map(status).collect() }
    }

    pub(crate) fn status(&self, now: BootTime) -> ClusterStatus {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        // In the order of their ids.
        let mut pools: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for view in self.core.members(now) {
            let status = MemberStatus {
                member: Some(view.member.clone()),
                keys: view.keys as u64,
                lease_left_ms: millis(view.lease_left),
                capacity: view.capacity,
                draining: view.draining,
                overloaded: view.overloaded,
                moving_in: view.moving_in as u64,
            };
            pools.entry(&view.member.pool).or_default().insert(&view.member.id, status);
        }
        let pools = pools.into_iter().map(|(name, members)| PoolStatus {
            name: name.clone(),
            members: members.into_values().collect(),
        });
        ClusterStatus {
            term: self.core.position().term,
            leading: self.core.leads().is_some(),
            recovering: self.core.recovering(),
            table_version: self.table.version,
            keys: self.core.keys() as u64,
            nodes: self.nodes.status(now),
            // To one that leads no more they have gone because of that.
            lost: if self.core.leads().is_some() { self.nodes.lost(now) } else { Vec::new() },
            not_leading: String::new(),
            pools: pools.collect(),
            builds: self.routes.builds.clone(),
            datastore: self.datastores.first().cloned().unwrap_or_default(),
            seeds: self.seeds(),
        }
    }

    /// This seed, and those that have joined it.
    fn seeds(&self) -> Vec<SeedStatus> {
        let Myself { node, address } = self.myself.clone();
        let role = self.role.borrow();
        let own = SeedStatus { node, address, leading: self.core.leads().is_some(), ready: role.is_ready() };
        let others = self.nodes.of_kind_seed().filter(|(hello, _)| hello.node != self.myself.node);
        let others = others.map(|(hello, state)| SeedStatus {
            node: hello.node.clone(),
            address: hello.reached.clone(),
            leading: false,
            ready: state.ready && !state.draining,
        });
        std::iter::once(own).chain(others).collect()
    }
}
