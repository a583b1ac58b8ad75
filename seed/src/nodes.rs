//! The nodes that have joined, as they describe themselves: for operators.

use std::collections::BTreeMap;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{JoinHello, NodeState, NodeStatus};

/// Names one join link for as long as the process lives.
pub(crate) type JoinId = u64;

#[derive(Default)]
pub(crate) struct Nodes {
    by_name: BTreeMap<String, Node>,
}

struct Node {
    link: JoinId,
    hello: JoinHello,
    state: NodeState,
    joined: BootTime,
    seen: BootTime,
}

impl Nodes {
    /// A node says who it is; a newer link takes the place of an older one of the same name.
    pub(crate) fn joined(&mut self, link: JoinId, hello: JoinHello, now: BootTime) {
        let name = hello.node.clone();
        let node = Node { link, hello, state: NodeState::default(), joined: now, seen: now };
        self.by_name.insert(name, node);
    }

    /// A node's state; tells its name where it has begun or ceased to drain.
    pub(crate) fn told(&mut self, link: JoinId, state: NodeState, now: BootTime) -> Option<(&str, bool)> {
        let (name, node) = self.by_name.iter_mut().find(|(_, node)| node.link == link)?;
        node.seen = now;
        let turned = node.state.draining != state.draining;
        node.state = state;
        turned.then_some((name.as_str(), node.state.draining))
    }

    /// A link is gone, and its node with it unless that is there on another one. Tells the name of who is gone.
    pub(crate) fn left(&mut self, link: JoinId) -> Option<String> {
        let name = self.by_name.iter().find(|(_, node)| node.link == link)?.0.clone();
        self.by_name.remove(&name);
        Some(name)
    }

    pub(crate) fn status(&self, now: BootTime) -> Vec<NodeStatus> {
        let ms = |since: BootTime| u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        let status = |node: &Node| NodeStatus {
            node: Some(node.hello.clone()),
            state: Some(node.state.clone()),
            joined_ms_ago: ms(node.joined),
            seen_ms_ago: ms(node.seen),
        };
        self.by_name.values().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_link_that_ends_late_takes_nothing_with_it() {
        let now = BootTime::now();
        let hello = JoinHello { node: "proxy-1".to_owned(), ..JoinHello::default() };
        let mut nodes = Nodes::default();
        nodes.joined(1, hello.clone(), now);
        nodes.joined(2, hello, now);
        assert_eq!(nodes.left(1), None);
        assert_eq!(nodes.status(now).len(), 1);
        let draining = NodeState { draining: true, ..NodeState::default() };
        assert_eq!(nodes.told(2, draining.clone(), now), Some(("proxy-1", true)));
        assert_eq!(nodes.told(2, draining, now), None);
        assert_eq!(nodes.left(2).as_deref(), Some("proxy-1"));
    }
}
