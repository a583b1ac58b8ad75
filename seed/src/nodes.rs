//! The nodes that have joined, as they describe themselves: for operators.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::identity::Kind;
use protoplex_wire::proto::{JoinHello, Member, NodeState, NodeStatus};

/// A machine is overloaded once so many tasks for each of its processors want to run, averaged over a minute, and until
/// there are fewer than the second of these.
const OVERLOADED_FROM: f64 = 2.0;
const OVERLOADED_UNTIL: f64 = 1.5;

/// Names one join link for as long as the process lives.
pub(crate) type JoinId = u64;

/// Nodes that were lost are shown for so long, and so many of them.
const LOST_SHOWN: Duration = Duration::from_secs(3600);
const MAX_LOST: usize = 256;
/// Names whose kind is known.
const MAX_KNOWN: usize = 65_536;

#[derive(Default)]
pub(crate) struct Nodes {
    by_name: BTreeMap<String, Node>,
    /// Those whose link ended although they did not drain, the last one at the end.
    lost: VecDeque<Node>,
    /// The name of each link's node; none of a link in whose place there is a newer one.
    by_link: HashMap<JoinId, String>,
    /// Who has been here, be it here now or away.
    known: HashMap<String, Kind>,
}

struct Node {
    link: JoinId,
    hello: JoinHello,
    state: NodeState,
    joined: BootTime,
    seen: BootTime,
    overloaded: bool,
}

/// How a node is now, where that is another way than before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turn<'a> {
    pub(crate) node: &'a str,
    pub(crate) draining: bool,
    pub(crate) overloaded: bool,
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
        // It is as it was until it says otherwise: whoever was told of a turn hears of the next one.
        let before = self.by_name.remove(&name);
        if let Some(before) = &before {
            self.by_link.remove(&before.link);
        }
        let (state, overloaded) = before.map(|node| (node.state, node.overloaded)).unwrap_or_default();
        self.lost.retain(|node| node.hello.node != name);
        let node = Node { link, hello, state, joined: now, seen: now, overloaded };
        self.by_link.insert(link, name.clone());
        if let Ok(kind) = node.hello.kind.parse() {
            self.know(&name, kind);
        }
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

    /// A node's state; tells of it where it has begun or ceased to drain, or to be overloaded.
    pub(crate) fn told(&mut self, link: JoinId, state: NodeState, now: BootTime) -> Option<Turn<'_>> {
        let name = self.by_link.get(&link)?;
        let node = self.by_name.get_mut(name)?;
        node.seen = now;
        let most = if node.overloaded { OVERLOADED_UNTIL } else { OVERLOADED_FROM };
        let overloaded = state.processors > 0 && state.load >= most * f64::from(state.processors);
        let turned = node.state.draining != state.draining || node.overloaded != overloaded;
        (node.state, node.overloaded) = (state, overloaded);
        turned.then_some(Turn { node: name, draining: node.state.draining, overloaded })
    }

    /// Somebody of this name has come, or is expected, whose kind is sure. The first one stays.
    pub(crate) fn know(&mut self, name: &str, kind: Kind) {
        if self.known.len() < MAX_KNOWN && !self.known.contains_key(name) {
            self.known.insert(name.to_owned(), kind);
        }
    }

    /// These members were there in the term before: those of nodes' own pools are their children, NODE:CHILD.
    pub(crate) fn expect(&mut self, members: &[Member]) {
        for member in members {
            let kind = Kind::ALL.into_iter().find(|kind| kind.pool() == Some(&member.pool));
            if let (Some(kind), Some((node, _))) = (kind, member.id.rsplit_once(':')) {
                self.know(node, kind);
            }
        }
    }

    /// As what a name is known, be its owner here or away.
    pub(crate) fn known_as(&self, name: &str) -> Option<Kind> {
        self.known.get(name).copied()
    }

    /// Whether a node of this name is here.
    pub(crate) fn has(&self, node: &str) -> bool {
        self.by_name.contains_key(node)
    }

    /// The node of a link, and whether it drains.
    pub(crate) fn of(&self, link: JoinId) -> Option<(&JoinHello, bool)> {
        let node = self.by_name.get(self.by_link.get(&link)?)?;
        Some((&node.hello, node.state.draining))
    }

    /// A link is gone, and its node with it unless that is there on another one. Tells the name of who is gone.
    pub(crate) fn left(&mut self, link: JoinId, now: BootTime) -> Option<String> {
        let name = self.by_link.remove(&link)?;
        if let Some(node) = self.by_name.remove(&name).filter(|node| !node.state.draining) {
            self.lost.push_back(Node { seen: now, ..node });
            if self.lost.len() > MAX_LOST {
                self.lost.pop_front();
            }
        }
        Some(name)
    }

    /// Those that were lost and have not come back; they were seen last when their links ended.
    pub(crate) fn lost(&self, now: BootTime) -> Vec<NodeStatus> {
        let lately = self.lost.iter().filter(|node| now.since(node.seen) < LOST_SHOWN);
        lately.map(|node| node.status(now)).collect()
    }

    /// What was lost is told no longer.
    pub(crate) fn forget_lost(&mut self) {
        self.lost.clear();
    }

    /// The seeds among them, this one, too.
    pub(crate) fn of_kind_seed(&self) -> impl Iterator<Item = (&JoinHello, &NodeState)> {
        let seeds = self.by_name.values().filter(|node| node.hello.kind == "seed");
        seeds.map(|node| (&node.hello, &node.state))
    }

    /// Where they are reached.
    pub(crate) fn seeds(&self) -> impl Iterator<Item = &str> {
        self.of_kind_seed().map(|(hello, _)| hello.reached.as_str())
    }

    /// Where those are reached that could lead in the place of this one.
    pub(crate) fn understudies(&self, myself: &str) -> Vec<String> {
        let others =
            self.of_kind_seed().filter(|(hello, _)| hello.node != myself && !hello.reached.is_empty());
        let ready = others.filter(|(_, state)| state.ready && !state.draining);
        ready.map(|(hello, _)| hello.reached.clone()).collect()
    }

    pub(crate) fn status(&self, now: BootTime) -> Vec<NodeStatus> {
        self.by_name.values().map(|node| node.status(now)).collect()
    }
}

impl Node {
    fn status(&self, now: BootTime) -> NodeStatus {
        let ms = |since: BootTime| u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        NodeStatus {
            node: Some(self.hello.clone()),
            state: Some(self.state.clone()),
            joined_ms_ago: ms(self.joined),
            seen_ms_ago: ms(self.seen),
        }
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
        assert_eq!(nodes.left(1, now), None);
        assert_eq!(nodes.status(now).len(), 1);
        let draining = NodeState { draining: true, ..NodeState::default() };
        let turn = Turn { node: "proxy-1", draining: true, overloaded: false };
        assert_eq!(nodes.told(2, draining.clone(), now), Some(turn));
        assert_eq!(nodes.told(2, draining, now), None);
        assert_eq!(nodes.of(1), None);
        assert_eq!(nodes.of(2).map(|(hello, draining)| (&*hello.node, draining)), Some(("proxy-1", true)));
        assert_eq!(nodes.left(2, now).as_deref(), Some("proxy-1"));
        assert!(nodes.by_link.is_empty() && nodes.by_name.is_empty());
    }

    #[test]
    fn a_machine_is_overloaded_until_it_has_clearly_less_to_do() {
        let now = BootTime::now();
        let mut nodes = Nodes::default();
        nodes.join(1, JoinHello { node: "live-1".to_owned(), ..JoinHello::default() }, now).unwrap();
        let mut told = |load, processors| {
            let turn = nodes.told(1, NodeState { load, processors, ..NodeState::default() }, now);
            turn.map(|turn| turn.overloaded)
        };
        assert_eq!(told(100.0, 0), None, "nobody knows how much that is");
        assert_eq!(told(7.9, 4), None);
        assert_eq!(told(8.0, 4), Some(true));
        assert_eq!(told(6.1, 4), None);
        assert_eq!(told(5.9, 4), Some(false));
        assert_eq!(told(8.0, 4), Some(true));
        // Its next link comes before the end of the old one is noticed.
        nodes.join(2, JoinHello { node: "live-1".to_owned(), ..JoinHello::default() }, now).unwrap();
        assert_eq!(nodes.left(1, now), None);
        let calm = NodeState { load: 0.1, processors: 4, ..NodeState::default() };
        assert_eq!(nodes.told(2, calm, now).map(|turn| turn.overloaded), Some(false));
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
        nodes.left(1, now);
        nodes.join(3, hello("bb"), now).unwrap();
    }

    #[test]
    fn who_is_lost_is_told_until_it_is_back_or_long_gone_and_who_drained_is_not() {
        let now = BootTime::now();
        let hello = |node: &str| JoinHello { node: node.to_owned(), ..JoinHello::default() };
        let names = |nodes: &Nodes, now| -> Vec<String> {
            nodes.lost(now).into_iter().map(|lost| lost.node.unwrap().node).collect()
        };
        let mut nodes = Nodes::default();
        for (link, node) in [(1, "a"), (2, "b"), (3, "c")] {
            nodes.join(link, hello(node), now).unwrap();
        }
        nodes.told(2, NodeState { draining: true, ..NodeState::default() }, now);
        (1..=3).for_each(|link| drop(nodes.left(link, now)));
        assert_eq!(names(&nodes, now), ["a", "c"]);
        nodes.join(4, hello("a"), now).unwrap();
        assert_eq!(names(&nodes, now), ["c"]);
        assert_eq!(nodes.lost(now + Duration::from_secs(60))[0].seen_ms_ago, 60_000);
        assert!(names(&nodes, now + LOST_SHOWN).is_empty());
        for link in 5..5 + 2 * MAX_LOST as u64 {
            nodes.join(link, hello(&format!("n{link}")), now).unwrap();
            nodes.left(link, now);
        }
        assert_eq!(nodes.lost(now).len(), MAX_LOST);
    }
}
