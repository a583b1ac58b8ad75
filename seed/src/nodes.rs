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
    /// A node says who it is; a newer link takes the place of an older one of the same instance.
    ///
    /// Errors, with a text for the operator, where another instance has the name.
    pub(crate) fn join(&mut self, link: JoinId, hello: JoinHello, now: BootTime) -> Result<(), String> {
        let name = hello.node.clone();
        let other = self.by_name.get(&name).filter(|node| node.hello.instance != hello.instance);
        if let Some(Node { hello: JoinHello { pid, meta, .. }, .. }) = other {
            return Err(format!(
                "the name {name:?} is taken by another instance (pid {pid}, meta port at {meta}): give this node \
                 another name with --node"
            ));
        }
        let node = Node { link, hello, state: NodeState::default(), joined: now, seen: now };
        self.by_name.insert(name, node);
        Ok(())
    }

    /// A node that has joined is another one in part: other addresses, say.
    ///
    /// Errors, with a text for the operator, where it has another name.
    pub(crate) fn renew(&mut self, link: JoinId, hello: JoinHello) -> Result<(), String> {
        let node = self.by_name.get_mut(&hello.node).filter(|node| node.link == link);
        let node = node.filter(|node| node.hello.instance == hello.instance);
        let node = node.ok_or("a node that has joined keeps its name and instance")?;
        node.hello = hello;
        Ok(())
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
        nodes.join(1, hello.clone(), now).unwrap();
        nodes.join(2, hello, now).unwrap();
        assert_eq!(nodes.left(1), None);
        assert_eq!(nodes.status(now).len(), 1);
        let draining = NodeState { draining: true, ..NodeState::default() };
        assert_eq!(nodes.told(2, draining.clone(), now), Some(("proxy-1", true)));
        assert_eq!(nodes.told(2, draining, now), None);
        assert_eq!(nodes.left(2).as_deref(), Some("proxy-1"));
    }

    #[test]
    fn a_node_may_change_all_but_who_it_is() {
        let now = BootTime::now();
        let hello = |node: &str, instance: &str, port: u16| JoinHello {
            node: node.to_owned(),
            instance: instance.to_owned(),
            listens: vec![format!("http 127.0.0.1:{port}")],
            ..JoinHello::default()
        };
        let mut nodes = Nodes::default();
        nodes.join(1, hello("a", "x", 1), now).unwrap();
        nodes.join(2, hello("b", "y", 2), now).unwrap();
        nodes.told(1, NodeState { ready: true, ..NodeState::default() }, now);
        nodes.renew(1, hello("a", "x", 3)).unwrap();
        for (link, other) in [
            (1, hello("b", "y", 4)),
            (1, hello("a", "z", 4)),
            (1, hello("c", "x", 4)),
            (3, hello("a", "x", 4)),
        ] {
            nodes.renew(link, other).unwrap_err();
        }
        let status = nodes.status(now);
        let listens: Vec<_> =
            status.iter().map(|node| node.node.as_ref().unwrap().listens[0].as_str()).collect();
        assert_eq!(listens, ["http 127.0.0.1:3", "http 127.0.0.1:2"]);
        assert!(status[0].state.as_ref().unwrap().ready, "how it is has not changed");
    }

    #[test]
    fn a_name_is_had_by_one_instance_at_a_time() {
        let now = BootTime::now();
        let hello = |instance: &str| JoinHello {
            node: "live-1".to_owned(),
            instance: instance.to_owned(),
            meta: format!("127.0.0.1:{}", instance.len()),
            ..JoinHello::default()
        };
        let mut nodes = Nodes::default();
        nodes.join(1, hello("a"), now).unwrap();
        let why = nodes.join(2, hello("bb"), now).unwrap_err();
        assert!(why.contains("127.0.0.1:1") && why.contains("--node"), "{why}");
        let draining = NodeState { draining: true, ..NodeState::default() };
        assert_eq!(nodes.told(2, draining, now), None, "it drains nobody else");
        nodes.left(1);
        nodes.join(3, hello("bb"), now).unwrap();
    }
}
