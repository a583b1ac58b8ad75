//! Live children in this process, each with a link of its own to the test's seed.

use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use protoplex_http::{AccessLog, Fronts, Limits, Listener, serve};
use protoplex_runtime::config::Problems;
use protoplex_runtime::drain::{Drain, Trigger};
use protoplex_wire::follow::{Follower, Link, Membership};
use protoplex_wire::identity::{Identity, LIVE_POOL, REGISTRATIONS_AUDIENCE};
use protoplex_wire::proto::Member;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;

use super::seed::Seed;
use super::{Answer, Curl, DEADLINE, curl};
use crate::config::Raw;
use crate::request::Live;
use crate::serve::{judge, keep_tenures};

/// Over how long a child that drains gives up its keys.
pub(super) const PARTING: Duration = Duration::from_millis(600);

pub(super) struct Cluster {
    pub(super) seed: Seed,
    identity: Identity,
    seed_address: String,
    _folder: TempDir,
}

/// One child.
pub(super) struct Node {
    pub(super) member: String,
    pub(super) address: String,
    pub(super) drain: Trigger,
    pub(super) served: JoinHandle<()>,
}

/// Runs a test as a child's code runs.
pub(super) async fn with_cluster(test: impl AsyncFnOnce(&Cluster)) {
    let run = async {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&folder.path().join("cluster")).unwrap();
        let seed = Seed::default();
        let seed_address = seed.serve(&identity).await;
        test(&Cluster { seed, identity, seed_address, _folder: folder }).await;
    };
    LocalSet::new().run_until(run).await;
}

/// Waits for a condition, which other tasks bring about.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.expect(what);
}

impl Cluster {
    /// A child with an own port that has joined.
    pub(super) async fn node(&self, member: &str, config: Raw) -> Node {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let joining = Member {
            id: member.to_owned(),
            pool: LIVE_POOL.to_owned(),
            address: address.clone(),
            zone: String::new(),
            instance: member.to_owned(),
        };
        let judged = Rc::default();
        let who = Follower {
            node: member.to_owned(),
            kind: "live".to_owned(),
            zone: String::new(),
            membership: Some(Membership { judge: Some(judge(&judged)), ..joining.into() }),
        };
        let link = Link::open(&self.identity, &self.seed_address, who).unwrap();
        let lost_keys = link.lost_keys().unwrap();
        link.connection().wait_for(|connected| *connected).await.unwrap();

        let mut problems = Problems::default();
        let config = config.resolve(&mut problems);
        problems.finish().unwrap();
        let live = Rc::new(Live::new(config, link, &self.identity));
        judged.replace(Rc::downgrade(&live));
        let (trigger, drain) = Drain::new();
        let tenures = keep_tenures(Rc::clone(&live), lost_keys, drain, PARTING);
        let (given_up, server_drain) = Drain::new();
        tokio::task::spawn_local(async move {
            tenures.await;
            given_up.pull();
        });
        let listeners = vec![Listener { socket, tls: None, fronts: Fronts::default() }];
        let served = tokio::task::spawn_local(async move {
            serve(listeners, Limits::default(), AccessLog::off(), server_drain, live).await.unwrap();
        });
        Node { member: member.to_owned(), address, drain: trigger, served }
    }

    /// A token with this `mercure` claim, good for a minute.
    pub(super) fn token(&self, mercure: Value) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        self.sign(&json!({ "mercure": mercure, "exp": now + 60 }))
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        let key = EncodingKey::from_secret(self.identity.live_key());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
    }

    /// An `Authorization` header of a node.
    pub(super) fn node_token(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({ "aud": REGISTRATIONS_AUDIENCE, "exp": now + 60 });
        let key = EncodingKey::from_secret(&self.identity.node_key());
        format!(
            "Authorization: Bearer {}",
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
        )
    }

    /// An `Authorization` header that publishes and subscribes everywhere.
    pub(super) fn all(&self) -> String {
        format!("Authorization: Bearer {}", self.token(json!({ "publish": ["*"], "subscribe": ["*"] })))
    }
}

impl Node {
    /// Sends a request as a proxy that knows the key's epoch.
    pub(super) async fn send(&self, target: &str, key: &str, epoch: u64, arguments: &[&str]) -> Answer {
        let (url, routing) = self.routed(target, key, epoch);
        curl(&[&[url.as_str(), "-H", &routing[0], "-H", &routing[1]], arguments].concat()).await
    }

    /// Follows an event stream likewise.
    pub(super) async fn follow(&self, target: &str, key: &str, epoch: u64, arguments: &[&str]) -> Curl {
        let (url, routing) = self.routed(target, key, epoch);
        Curl::follow(&[&[url.as_str(), "-H", &routing[0], "-H", &routing[1]], arguments].concat()).await
    }

    /// Publishes one update to a topic that is the key, and returns its id.
    pub(super) async fn publish(&self, cluster: &Cluster, topic: &str, epoch: u64, fields: &str) -> String {
        let form = format!("topic={topic}&{fields}");
        let answer =
            self.send("/.well-known/mercure", topic, epoch, &["-H", &cluster.all(), "-d", &form]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    fn routed(&self, target: &str, key: &str, epoch: u64) -> (String, [String; 2]) {
        let url = format!("http://{}{target}", self.address);
        (url, [format!("Protoplex-Key: {key}"), format!("Protoplex-Epoch: {epoch}")])
    }
}
