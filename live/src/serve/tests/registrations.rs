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
    async fn connect(cluster: &Cluster, node: &Node, epoch: u64) -> Self {
        let mut connection = TcpStream::connect(&node.address).await.unwrap();
        let request = format!(
            "GET /.well-known/protoplex/registrations HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
             Upgrade: protoplex-registrations\r\nProtoplex-Key: {SHARD}\r\nProtoplex-Epoch: {epoch}\r\n{}\r\n\r\n",
            cluster.node_token()
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
    node.send(&target, SHARD, epoch, &["-X", "POST", "-H", &cluster.node_token()]).await
}

#[tokio::test]
async fn an_invalidation_is_answered_when_every_registrant_has_acknowledged() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let (mut one, mut two) = (
            Registrant::connect(cluster, &node, epoch).await,
            Registrant::connect(cluster, &node, epoch).await,
        );
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
        let mut silent = Registrant::connect(cluster, &node, epoch).await;
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
            let mut registrant = Registrant::connect(cluster, &node, epoch).await;
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
        let mut registrant = Registrant::connect(cluster, &node, epoch).await;
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
        let mut registrant = Registrant::connect(cluster, &node, epoch).await;
        registrant.register("x").await;
        let target = "/.well-known/protoplex/invalidate?name=x";
        let registrations = "/.well-known/protoplex/registrations";
        let of_a_node = cluster.node_token();
        let table: &[(&str, &[&str], u16, &str)] = &[
            ("/.well-known/protoplex/invalidate", &["-X", "POST", "-H", &of_a_node], 400, "malformed"),
            (target, &["-H", &of_a_node], 405, "method"),
            (registrations, &["-X", "POST", "-H", &of_a_node], 405, "method"),
        ];
        for (target, arguments, status, problem) in table {
            let answer = node.send(target, SHARD, epoch, arguments).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (*status, *problem),
                "{target} {arguments:?}"
            );
        }
        let answer = node.send(registrations, SHARD, epoch, &["-H", &of_a_node]).await;
        assert_eq!(answer.status, 426);
        // None of it came to the registrant: the next word that it gets is the true one.
        let (answer, ()) = tokio::join!(invalidate(cluster, &node, epoch, "x"), async {
            let id = registrant.told("x").await;
            registrant.say(&json!({ "ack": id }).to_string()).await;
        });
        assert_eq!(counts(&answer.body), json!({"acked": 1, "registrants": 1}));
    })
    .await;
}

#[tokio::test]
async fn row_registrations_and_invalidations_without_a_nodes_token_are_refused() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign(SHARD, "live-1:0");
        let subscriber = format!("Authorization: Bearer {}", cluster.token(json!({ "subscribe": ["*"] })));
        let of_an_app = cluster.all();
        let of_a_node = cluster.node_token();
        let (_, bare) = of_a_node.split_once("Bearer ").unwrap();
        let (signed, signature) = bare.rsplit_once('.').unwrap();
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        let changed = format!("Authorization: Bearer {signed}.{first}{}", &signature[1..]);
        let cookie = format!("Cookie: mercureAuthorization={bare}");
        let upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: protoplex-registrations"];
        let in_query = |target: &str| {
            let separator = if target.contains('?') { '&' } else { '?' };
            format!("{target}{separator}authorization={bare}")
        };
        let places: [(&str, &[&str]); 2] = [
            ("/.well-known/protoplex/invalidate?name=x", &["-X", "POST"]),
            ("/.well-known/protoplex/registrations", &upgrade),
        ];
        for (target, arguments) in places {
            let table: &[(&str, &str, &[&str], &str)] = &[
                ("none", target, &[], "token-missing"),
                ("in a cookie", target, &["-H", &cookie], "token-missing"),
                ("in the query", &in_query(target), &[], "token-missing"),
                ("a subscriber's", target, &["-H", &subscriber], "token-forged"),
                ("an app's that may publish everything", target, &["-H", &of_an_app], "token-forged"),
                ("a changed one", target, &["-H", &changed], "token-forged"),
                ("no token", target, &["-H", "Authorization: Bearer x"], "token-malformed"),
            ];
            for (case, target, more, problem) in table {
                let answer = node.send(target, SHARD, epoch, &[arguments, *more].concat()).await;
                assert_eq!((answer.status, answer.problem().as_str()), (401, *problem), "{case} {target}");
                assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{case}");
            }
        }
        // And a node's token opens nothing else.
        let form = ["-H", &of_a_node, "-d", "topic=x&data=y"];
        let answer = node.send("/.well-known/mercure", SHARD, epoch, &form).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "token-forged"));
    })
    .await;
}
