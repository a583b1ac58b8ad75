//! A datastore and up to three seeds, and what is asked of them.

use std::net::SocketAddr;

use protoplex_testkit::ports::Port;
use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, Kind, LIVE_POOL, TrustedChannel};
use protoplex_wire::join::{self, Standing};
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::{
    ClusterStatus, Handler, HandlerChanges, JoinHello, Member, NodeState, Placement, StatusRequest,
};
use protoplex_wire::seeds::Seeds;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::ownership::Idle;
use crate::rig::{DEADLINE, address, bind};
pub(super) use crate::rig::{Process, until};
use crate::role::Role;
use crate::serve::{Start, serve};

pub(super) struct Rig {
    pub(super) data: TempDir,
    pub(super) identity: Identity,
    pub(super) datastore: SocketAddr,
    pub(super) seed: SocketAddr,
    /// When keys are idle, of the next seed.
    pub(super) idle: Idle,
    /// Where the second and the third seed are, in the tests of several.
    pub(super) others: [SocketAddr; 2],
    _ports: [Port; 4],
}

impl Rig {
    pub(super) fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let ports = [(); 4].map(|()| Port::take());
        let [datastore, seed, second, third] = ports.each_ref().map(address);
        Self {
            data,
            identity,
            datastore,
            seed,
            others: [second, third],
            idle: Idle::default(),
            _ports: ports,
        }
    }

    pub(super) async fn start_datastore(&self) -> Process {
        Process::datastore(self.datastore, self.data.path(), &self.identity).await
    }

    pub(super) async fn start_seed(&self) -> Process {
        self.start(0, false).await
    }

    /// The first, the second or the third seed, which joins whichever leads as a node's parent does.
    pub(super) async fn start_one_of(&self, index: usize) -> Process {
        self.start(index, true).await
    }

    async fn start(&self, index: usize, joins: bool) -> Process {
        let address = self.seeds()[index];
        let listener = bind(address).await;
        let node = format!("seed-{}", index + 1);
        let identity = self.identity.issue(Kind::Seed, &node).unwrap();
        let start = Start {
            idle: self.idle.clone(),
            ..crate::rig::start(&node, address, self.datastore, self.data.path())
        };
        let hello = JoinHello {
            node,
            kind: "seed".to_owned(),
            instance: "i".to_owned(),
            reached: address.to_string(),
            ..JoinHello::default()
        };
        let seeds =
            Seeds::new(self.seeds().map(|seed| seed.to_string()).into(), &self.data.path().join("none"));
        Process::start(|drain, role| async move {
            let state = watch::Sender::new(NodeState::default());
            let hello = watch::Sender::new(hello);
            let standing = watch::Sender::new(Standing::new(BootTime::now()));
            let joined = join::hold(identity.clone(), seeds, hello.subscribe(), state.subscribe(), standing);
            let tell = |now: &Role| {
                role.send_replace(now.clone());
                state.send_replace(NodeState { ready: now.is_ready(), ..NodeState::default() });
            };
            tokio::select! {
                served = serve(start, listener, &identity, tell, drain.notified()) => served,
                Err(error) = joined, if joins => Err(error.into()),
            }
        })
    }

    pub(super) fn seeds(&self) -> [SocketAddr; 3] {
        [self.seed, self.others[0], self.others[1]]
    }

    /// The datastore, as this seed has it.
    pub(super) fn datastore(&self) -> DatastoreClient<TrustedChannel> {
        let seed = self.identity.issue(Kind::Seed, "seed-1").unwrap();
        DatastoreClient::new(seed.channel(&self.datastore.to_string()).unwrap())
    }

    pub(super) fn operator(&self) -> OperatorClient<TrustedChannel> {
        self.operator_of(self.seed)
    }

    pub(super) fn operator_of(&self, seed: SocketAddr) -> OperatorClient<TrustedChannel> {
        OperatorClient::new(self.identity.channel(&seed.to_string()).unwrap())
    }

    pub(super) async fn status(&self) -> ClusterStatus {
        self.operator().status(StatusRequest {}).await.unwrap().into_inner()
    }

    /// A child's link; it may be a member of the pool `live`.
    pub(super) fn follow(&self, node: &str, member: bool) -> Link {
        self.follow_as(node, node, member)
    }

    /// As [`Self::follow`], of whichever of these seeds leads.
    pub(super) fn follow_any(&self, node: &str, member: bool, seeds: &[SocketAddr]) -> Link {
        let seeds = seeds.iter().map(ToString::to_string).collect();
        self.follow_of(node, node, member, Seeds::new(seeds, &self.data.path().join("none")))
    }

    /// As [`Self::follow`], of this instance of the node.
    pub(super) fn follow_as(&self, node: &str, instance: &str, member: bool) -> Link {
        self.follow_of(node, instance, member, Seeds::from(&self.seed.to_string()))
    }

    fn follow_of(&self, node: &str, instance: &str, member: bool, seeds: Seeds) -> Link {
        let member = member.then(|| Member {
            id: format!("{node}:0"),
            pool: LIVE_POOL.to_owned(),
            address: "127.0.0.1:9".to_owned(),
            zone: String::new(),
            instance: instance.to_owned(),
        });
        let kind = if node.starts_with("fileserver") { Kind::Fileserver } else { Kind::Live };
        let identity = self.identity.issue(kind, node).unwrap();
        let (node, kind) = (node.to_owned(), kind.name().to_owned());
        let membership = member.map(Into::into);
        let who = Follower { node, kind, zone: String::new(), membership };
        Link::open(&identity, seeds, who).unwrap()
    }
}

pub(super) async fn leads(seed: &Process) {
    let mut role = seed.role.clone();
    timeout(DEADLINE, role.wait_for(|role| matches!(role, Role::Leading(_)))).await.unwrap().unwrap();
}

pub(super) fn handler(name: &str, path: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        host: "Rooms.example.com".to_owned(),
        path: path.to_owned(),
        key: "room:{room}".to_owned(),
        pool: "rooms".to_owned(),
        placement: Placement::Owned.into(),
        ..Handler::default()
    }
}

/// A change that adds one handler.
pub(super) fn adding(handler: Handler) -> HandlerChanges {
    HandlerChanges { add: vec![handler], operator: "ada".to_owned(), ..HandlerChanges::default() }
}

/// A change that removes one.
pub(super) fn removing(name: &str) -> HandlerChanges {
    HandlerChanges { remove: vec![name.to_owned()], ..HandlerChanges::default() }
}
