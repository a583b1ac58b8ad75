//! Registrants and invalidations.

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cluster::{Cluster, Node, with_cluster};
use super::{Answer, DEADLINE};
use crate::config::Raw;

const SHARD: &str = "invalidate/7";

/// A connection that has been upgraded.
struct Registrant(BufReader<TcpStream>);

impl Registrant {
    async fn connect(node: &Node, epoch: u64) -> Self {
        let mut connection = TcpStream::connect(&node.address).await.unwrap();
        let request = format!(
            "GET /.well-known/protoplex/registrations HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
             Upgrade: protoplex-registrations\r\nProtoplex-Key: {SHARD}\r\nProtoplex-Epoch: {epoch}\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut registrant = Self(BufReader::new(connection));
        assert!(registrant.hear().await.unwrap().starts_with("HTTP/1.1 101"));
        while !registrant.hear().await.unwrap().is_empty() {}
        registrant
    }

    async fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// A line; None at the end of the connection, however it ended.
    async fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(DEADLINE, self.0.read_line(&mut line)).await.expect("nothing was said");
        read.ok().filter(|length| *length > 0).map(|_| line.trim_end().to_owned())
    }

    async fn register(&mut self, name: &str) {
        self.say(&json!({ "register": name }).to_string()).await;
        assert_eq!(self.hear().await.unwrap(), json!({ "registered": name }).to_string());
    }

    /// Is told of an invalidation, and returns its id.
    async fn told(&mut self, name: &str) -> u64 {
        let line: serde_json::Value = serde_json::from_str(&self.hear().await.unwrap()).unwrap();
        assert_eq!(line["invalidate"], name);
        line["id"].as_u64().unwrap()
    }
}

async fn invalidate(cluster: &Cluster, node: &Node, epoch: u64, name: &str) -> Answer {
    let target = format!("/.well-known/protoplex/invalidate?name={name}");
    node.send(&target, SHARD, epoch, &["-X", "POST", "-H", &cluster.all()]).await
}

#[tokio::test]
async fn an_invalidation_is_answered_when_every_registrant_has_acknowledged() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let (mut one, mut two) =
            (Registrant::connect(&node, epoch).await, Registrant::connect(&node, epoch).await);
        one.register("site:h:/p").await;
        two.register("site:h:/p").await;
        two.register("file:x").await;
        let acknowledge = async {
            for registrant in [&mut one, &mut two] {
                let id = registrant.told("site:h:/p").await;
                registrant.say(&json!({ "ack": id }).to_string()).await;
            }
        };
        let (answer, ()) = tokio::join!(invalidate(cluster, &node, epoch, "site:h:/p"), acknowledge);
        assert_eq!((answer.status, counts(&answer.body)), (200, json!({"acked": 2, "registrants": 2})));
        let answer = invalidate(cluster, &node, epoch, "site:h:/other").await;
        assert_eq!(counts(&answer.body), json!({"acked": 0, "registrants": 0}));
    })
    .await;
}

fn counts(body: &str) -> serde_json::Value {
    serde_json::from_str(body).expect("the answer is JSON")
}

#[tokio::test]
async fn a_registrant_that_does_not_acknowledge_is_cut() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let mut silent = Registrant::connect(&node, epoch).await;
        silent.register("x").await;
        let answer = invalidate(cluster, &node, epoch, "x").await;
        assert_eq!(counts(&answer.body), json!({"acked": 0, "registrants": 1}));
        silent.told("x").await;
        assert_eq!(silent.hear().await, None);
        let answer = invalidate(cluster, &node, epoch, "x").await;
        assert_eq!(counts(&answer.body), json!({"acked": 0, "registrants": 0}));
    })
    .await;
}

#[tokio::test]
async fn a_misbehaving_registrant_is_cut() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let long = format!("{{\"register\":\"{}\"}}", "x".repeat(100_000));
        for line in ["not json", "{}", r#"{"register":""}"#, r#"{"ack":99}"#, &long] {
            let mut registrant = Registrant::connect(&node, epoch).await;
            registrant.register("x").await;
            registrant.say(line).await;
            assert_eq!(registrant.hear().await, None, "{}", &line[..line.len().min(40)]);
        }
        let answer = invalidate(cluster, &node, epoch, "x").await;
        assert_eq!(counts(&answer.body), json!({"acked": 0, "registrants": 0}));
    })
    .await;
}

#[tokio::test]
async fn a_lost_shard_cuts_its_registrants() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let mut registrant = Registrant::connect(&node, epoch).await;
        registrant.register("x").await;
        cluster.seed.revoke(SHARD);
        let mut rest = Vec::new();
        timeout(DEADLINE, registrant.0.read_to_end(&mut rest)).await.expect("cut").unwrap();
        assert_eq!(rest, b"");
    })
    .await;
}

#[tokio::test]
async fn who_may_invalidate_and_register() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let target = "/.well-known/protoplex/invalidate?name=x";
        let subscriber = format!("Authorization: Bearer {}", cluster.token(json!({ "subscribe": ["*"] })));
        let table: &[(&str, &[&str], u16, &str)] = &[
            (target, &["-X", "POST"], 401, "token-missing"),
            (target, &["-X", "POST", "-H", &subscriber], 403, "token-scope"),
            ("/.well-known/protoplex/invalidate", &["-X", "POST"], 400, "malformed"),
            (target, &[], 405, "method"),
            ("/.well-known/protoplex/registrations", &["-X", "POST"], 405, "method"),
        ];
        for (target, arguments, status, problem) in table {
            let answer = node.send(target, SHARD, epoch, arguments).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (*status, *problem),
                "{target} {arguments:?}"
            );
        }
        let answer = node.send("/.well-known/protoplex/registrations", SHARD, epoch, &[]).await;
        assert_eq!(answer.status, 426);
    })
    .await;
}
