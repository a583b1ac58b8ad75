//! Publishing and subscribing.

use std::time::{Instant, SystemTime};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cluster::{PARTING, until, with_cluster};
use super::{Curl, DEADLINE, curl};
use crate::config::Raw;

const HUB: &str = "/.well-known/mercure";

#[tokio::test]
async fn what_is_published_reaches_every_subscriber() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("upload/1", "live-1:0");
        let target = format!("{HUB}?topic=upload/1");
        let mut one = node.follow(&target, "upload/1", epoch, &[]).await;
        let mut other = node.follow(&target, "upload/1", epoch, &[]).await;
        let id = node.publish(cluster, "upload/1", epoch, "data=a%0Ab&type=upload.progress").await;
        assert_eq!(id, format!("#{epoch:x}.1"));
        for stream in [&mut one, &mut other] {
            let block = stream.block().await.unwrap();
            assert_eq!(block, format!("id: {id}\nevent: upload.progress\ndata: a\ndata: b\n"));
        }
    })
    .await;
}

#[tokio::test]
async fn the_stream_says_that_it_is_one_and_must_not_be_held_back() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let answer = node.send(&format!("{HUB}?topic=t"), "t", epoch, &["--head"]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert_eq!(answer.header("x-accel-buffering"), Some("no"));
        assert_eq!(answer.header("last-event-id"), None);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_or_is_told_that_it_cannot() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let target = format!("{HUB}?topic=t");
        let id = node.publish(cluster, "t", epoch, "data=1").await;
        for number in 2..=3 {
            node.publish(cluster, "t", epoch, &format!("data={number}")).await;
        }
        let mut stream = node.follow(&target, "t", epoch, &["-H", &format!("Last-Event-ID: {id}")]).await;
        assert_eq!((stream.data().await, stream.data().await), ("2".into(), "3".into()));

        let header = async |last: &str| {
            let last = format!("Last-Event-ID: {last}");
            let answer = node.send(&target, "t", epoch, &["--head", "-H", &last]).await;
            answer.header("last-event-id").map(str::to_owned)
        };
        assert_eq!(header(&id).await, Some(id));
        assert_eq!(header("#1234.1").await.as_deref(), Some("earliest"), "of another owner");
        assert_eq!(header("urn:unknown").await.as_deref(), Some("earliest"));

        let all = format!("{target}&lastEventID=earliest");
        assert_eq!(node.follow(&all, "t", epoch, &[]).await.data().await, "1");
    })
    .await;
}

#[tokio::test]
async fn private_updates_are_for_those_whose_token_covers_the_topic() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("a/1", "live-1:0");
        let target = format!("{HUB}?topic=a/1");
        let header = |topics: &[&str]| {
            format!("Authorization: Bearer {}", cluster.token(json!({ "subscribe": topics })))
        };
        let mut anonymous = node.follow(&target, "a/1", epoch, &[]).await;
        let mut stranger = node.follow(&target, "a/1", epoch, &["-H", &header(&["b/1"])]).await;
        let mut covered = node.follow(&target, "a/1", epoch, &["-H", &header(&["a/{id}"])]).await;
        let by_query = format!("{target}&authorization={}", cluster.token(json!({ "subscribe": ["*"] })));
        let mut by_query = node.follow(&by_query, "a/1", epoch, &[]).await;
        let cookie = format!("x=y; mercureAuthorization={}", cluster.token(json!({ "subscribe": ["a/1"] })));
        let mut by_cookie = node.follow(&target, "a/1", epoch, &["-b", &cookie]).await;

        node.publish(cluster, "a/1", epoch, "data=secret&private=on").await;
        node.publish(cluster, "a/1", epoch, "data=open").await;
        for stream in [&mut covered, &mut by_query, &mut by_cookie] {
            assert_eq!((stream.data().await, stream.data().await), ("secret".into(), "open".into()));
        }
        for stream in [&mut anonymous, &mut stranger] {
            assert_eq!(stream.data().await, "open");
        }
    })
    .await;
}

#[tokio::test]
async fn bad_requests_are_answered_with_what_is_wrong_and_publish_nothing() {
    with_cluster(async |cluster| {
        let config = Raw { anonymous: false, max_update_bytes: 1000, ..Raw::default() };
        let node = cluster.node("live-1:0", config).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let expired = cluster.sign(&json!({ "mercure": { "publish": ["*"], "subscribe": ["*"] }, "exp": 1 }));
        let bearer = |token: &str| format!("Authorization: Bearer {token}");
        let (expired, forged) = (bearer(&expired), bearer("eyJhbGciOiJIUzI1NiJ9.e30.c2ln"));
        let none = bearer("eyJhbGciOiJub25lIn0.e30.");
        let elsewhere = bearer(&cluster.token(json!({ "publish": ["x"], "subscribe": ["x"] })));
        let cookie = format!("mercureAuthorization={}", cluster.token(json!({ "publish": ["*"] })));
        let all = cluster.all();
        let long = format!("topic=t&data={}", "x".repeat(1000));
        let (t, no_topic) = (format!("{HUB}?topic=t"), HUB.to_owned());
        let table: &[(&str, &[&str], u16, &str)] = &[
            (&t, &[], 401, "token-missing"),
            (&t, &["-H", &forged], 401, "token-forged"),
            (&t, &["-H", &expired], 401, "token-expired"),
            (&t, &["-H", &none], 401, "token-algorithm"),
            (&t, &["-H", "Authorization: Basic eDp5"], 401, "token-malformed"),
            (&t, &["-H", &elsewhere], 403, "token-scope"),
            (&no_topic, &["-H", &all], 400, "malformed"),
            (&no_topic, &["-d", "topic=t&data=x"], 401, "token-missing"),
            (&no_topic, &["-H", &expired, "-d", "topic=t&data=x"], 401, "token-expired"),
            (&no_topic, &["-H", &elsewhere, "-d", "topic=t&data=x"], 403, "token-scope"),
            (&no_topic, &["-H", &all, "-d", "data=x"], 400, "malformed"),
            (&no_topic, &["-H", &all, "-d", "topic=u&data=x"], 421, "other-topic"),
            (&no_topic, &["-H", &all, "-d", "topic=t&id=%23x"], 400, "malformed"),
            (&no_topic, &["-H", &all, "-d", &long], 413, "body"),
            (&no_topic, &["-H", &all, "-H", "Content-Type: text/plain", "-d", "topic=t"], 415, "not-a-form"),
            (
                &no_topic,
                &["-b", &cookie, "-H", "Origin: https://evil.example", "-d", "topic=t"],
                403,
                "origin",
            ),
            (&t, &["-H", &all, "-X", "PUT"], 405, "method"),
            ("/else", &["-H", &all], 404, "not-found"),
        ];
        for (target, arguments, status, problem) in table {
            let answer = node.send(target, "t", epoch, arguments).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (*status, *problem),
                "{arguments:?} {answer:?}"
            );
        }
        assert_eq!(node.publish(cluster, "t", epoch, "data=first").await, format!("#{epoch:x}.1"));
    })
    .await;
}

#[tokio::test]
async fn only_the_owner_at_the_requests_epoch_serves() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let url = format!("http://{}{HUB}?topic=t", node.address);
        for headers in
            [&[][..], &["-H", "Protoplex-Key: t"], &["-H", "Protoplex-Key: t", "-H", "Protoplex-Epoch: x"]]
        {
            let answer = curl(&[&[url.as_str()], headers].concat()).await;
            assert_eq!((answer.status, answer.problem().as_str()), (421, "not-routed"), "{headers:?}");
        }
        let target = format!("{HUB}?topic=t");
        for (key, epoch) in [("t", epoch - 1), ("t", epoch + 1), ("other", epoch)] {
            let answer = node.send(&target, key, epoch, &[]).await;
            assert_eq!((answer.status, answer.problem().as_str()), (421, "misdirected"), "{key} {epoch}");
            assert_eq!(answer.header("protoplex-misdirected"), Some("not-owner"));
        }
        let answer = node.send(&format!("{HUB}?topic=u"), "t", epoch, &[]).await;
        assert_eq!((answer.status, answer.problem().as_str()), (421, "other-topic"));
        assert_eq!(answer.header("protoplex-misdirected"), None, "to ask for the owner anew would not help");
    })
    .await;
}

#[tokio::test]
async fn a_lost_key_ends_its_streams_at_once_and_only_its() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let (lost_epoch, kept_epoch) =
            (cluster.seed.assign("lost", "live-1:0"), cluster.seed.assign("kept", "live-1:0"));
        let mut lost = node.follow(&format!("{HUB}?topic=lost"), "lost", lost_epoch, &[]).await;
        let mut kept = node.follow(&format!("{HUB}?topic=kept"), "kept", kept_epoch, &[]).await;
        let id = node.publish(cluster, "lost", lost_epoch, "data=1").await;
        cluster.seed.revoke("lost");
        assert_eq!(lost.data().await, "1");
        assert!(lost.block().await.unwrap().starts_with("retry: "));
        assert_eq!(lost.block().await, None);
        node.publish(cluster, "kept", kept_epoch, "data=2").await;
        assert_eq!(kept.data().await, "2");

        let again = cluster.seed.assign("lost", "live-1:0");
        let last = format!("Last-Event-ID: {id}");
        let answer = node.send(&format!("{HUB}?topic=lost"), "lost", again, &["--head", "-H", &last]).await;
        assert_eq!(answer.header("last-event-id"), Some("earliest"), "its history went with it");
    })
    .await;
}

#[tokio::test]
async fn a_lost_lease_ends_every_stream() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let mut stream = node.follow(&format!("{HUB}?topic=t"), "t", epoch, &[]).await;
        cluster.seed.end_lease("live-1:0");
        assert!(stream.block().await.unwrap().starts_with("retry: "));
        assert_eq!(stream.block().await, None);
    })
    .await;
}

#[tokio::test]
async fn a_drain_sends_its_subscribers_away_and_leaves() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let mut stream = node.follow(&format!("{HUB}?topic=t"), "t", epoch, &[]).await;
        node.publish(cluster, "t", epoch, "data=last").await;
        node.drain.pull();
        assert_eq!(stream.data().await, "last");
        let retry = stream.block().await.unwrap();
        let retry_ms: u64 = retry.strip_prefix("retry: ").unwrap().trim().parse().unwrap();
        assert!((200..2_000).contains(&retry_ms));
        assert_eq!(stream.block().await, None);
        timeout(DEADLINE, node.served).await.expect("drained").unwrap();
        until("it left", || !cluster.seed.has_member("live-1:0")).await;
    })
    .await;
}

/// Who owns a key until it is given up serves it until then, to newcomers, too.
#[tokio::test]
async fn a_drain_gives_its_keys_up_bit_by_bit_and_serves_each_until_then() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let _heir = cluster.node("live-1:1", Raw::default()).await;
        cluster.seed.tell_members("live-1:0");
        let topics: Vec<_> = (0..8).map(|number| format!("t{number}")).collect();
        let mut streams = Vec::new();
        for topic in &topics {
            let epoch = cluster.seed.assign(topic, "live-1:0");
            streams.push(node.follow(&format!("{HUB}?topic={topic}"), topic, epoch, &[]).await);
        }
        let begun = Instant::now();
        node.drain.pull();
        until("it gets no new keys", || cluster.seed.is_draining("live-1:0")).await;
        until("some are given up", || !cluster.seed.released().is_empty()).await;
        let given_up = cluster.seed.released().len();
        assert!(given_up < topics.len(), "all at once");
        assert!(cluster.seed.has_member("live-1:0"));
        for stream in &mut streams {
            let retry = stream.block().await.unwrap();
            assert!(retry.starts_with("retry: "), "{retry}");
            assert_eq!(stream.block().await, None);
        }
        assert!(begun.elapsed() >= PARTING / 2, "they have the time for it");
        timeout(DEADLINE, node.served).await.expect("drained").unwrap();
        let mut released = cluster.seed.released();
        released.sort_unstable();
        assert_eq!(released, topics);
        until("it left", || !cluster.seed.has_member("live-1:0")).await;
    })
    .await;
}

#[tokio::test]
async fn what_the_seed_asks_for_is_given_up_but_what_is_in_use_is_not_idle() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        for topic in ["used", "moved", "unused"] {
            cluster.seed.assign(topic, "live-1:0");
        }
        let mut used =
            node.follow(&format!("{HUB}?topic=used"), "used", cluster.seed.owner("used").1, &[]).await;
        let moving = cluster.seed.owner("moved").1;
        let mut moved = node.follow(&format!("{HUB}?topic=moved"), "moved", moving, &[]).await;
        cluster.seed.ask_for("used", true);
        cluster.seed.ask_for("unused", true);
        cluster.seed.ask_for("moved", false);
        assert!(moved.block().await.unwrap().starts_with("retry: "), "its users are told to come back");
        assert_eq!(moved.block().await, None);
        until("both are released", || cluster.seed.released().len() == 2).await;
        let mut released = cluster.seed.released();
        released.sort_unstable();
        assert_eq!(released, ["moved", "unused"]);
        assert_eq!(node.send(&format!("{HUB}?topic=moved"), "moved", moving, &[]).await.status, 421);
        node.publish(cluster, "used", cluster.seed.owner("used").1, "data=on").await;
        assert_eq!(used.data().await, "on");
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    with_cluster(async |cluster| {
        let node = cluster.node("live-1:0", Raw::default()).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let token = cluster.sign(&json!({ "mercure": { "subscribe": ["*"] }, "exp": now + 2 }));
        let header = format!("Authorization: Bearer {token}");
        let mut stream = node.follow(&format!("{HUB}?topic=t"), "t", epoch, &["-H", &header]).await;
        assert_eq!(stream.block().await, None);
    })
    .await;
}

#[tokio::test]
async fn a_slow_consumer_is_dropped_and_told_while_others_get_everything() {
    with_cluster(async |cluster| {
        let config = Raw { history_count: 16, ..Raw::default() };
        let node = cluster.node("live-1:0", config).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let target = format!("{HUB}?topic=t");
        let mut slow = TcpStream::connect(&node.address).await.unwrap();
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nProtoplex-Key: t\r\nProtoplex-Epoch: {epoch}\r\n\r\n"
        );
        slow.write_all(request.as_bytes()).await.unwrap();
        slow.readable().await.unwrap();

        let mut quick = node.follow(&target, "t", epoch, &[]).await;
        // More than the kernel's buffers hold of what is not read, in events that the history holds 16 of.
        let data = "x".repeat(200 << 10);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("topic=t&data={data}")).unwrap();
        let body = format!("@{}", file.path().display());
        for _ in 0..96 {
            let answer = node.send(HUB, "t", epoch, &["-H", &cluster.all(), "-d", &body]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(quick.data().await.len(), data.len());
        }
        let mut text = Vec::new();
        timeout(DEADLINE, slow.read_to_end(&mut text)).await.expect("its stream ends").unwrap();
        let text = String::from_utf8(text).unwrap();
        let end = &text[text.len() - 200..];
        assert!(
            end.contains("event: protoplex.lagged\nretry: ") && end.contains("data: {\"missed\":"),
            "{end}"
        );
        node.publish(cluster, "t", epoch, "data=after").await;
        assert_eq!(quick.data().await, "after");
    })
    .await;
}

#[tokio::test]
async fn pages_of_other_origins_are_answered_as_configured() {
    with_cluster(async |cluster| {
        let page = "https://app.example";
        let config = Raw { allow_origins: vec![page.to_owned()], ..Raw::default() };
        let node = cluster.node("live-1:0", config).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let target = format!("{HUB}?topic=t");
        let origin = format!("Origin: {page}");
        let preflight = node.send(&target, "t", epoch, &["-X", "OPTIONS", "-H", &origin]).await;
        assert_eq!(preflight.status, 204);
        assert_eq!(preflight.header("access-control-allow-origin"), Some(page));
        assert!(preflight.header("access-control-allow-headers").unwrap().contains("Last-Event-ID"));
        let refused = node.send(HUB, "t", epoch, &["-H", &origin]).await;
        assert_eq!(refused.status, 400);
        assert_eq!(refused.header("access-control-allow-origin"), Some(page), "pages may read what is wrong");
        let stranger =
            node.send(&target, "t", epoch, &["--head", "-H", "Origin: https://evil.example"]).await;
        assert_eq!(stranger.header("access-control-allow-origin"), None);
    })
    .await;
}

#[tokio::test]
async fn subscribers_and_channels_are_bounded() {
    with_cluster(async |cluster| {
        let config = Raw { max_subscribers: 1, max_channels: 1, ..Raw::default() };
        let node = cluster.node("live-1:0", config).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        let target = format!("{HUB}?topic=t");
        let stream = node.follow(&target, "t", epoch, &[]).await;
        let answer = node.send(&target, "t", epoch, &[]).await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "busy"));
        assert_eq!(answer.header("retry-after"), Some("2"));
        let epoch = cluster.seed.assign("u", "live-1:0");
        assert_eq!(node.send(&format!("{HUB}?topic=u"), "u", epoch, &[]).await.problem(), "busy");
        drop(stream);
    })
    .await;
}

#[tokio::test]
async fn an_idle_key_goes_back_to_the_seed() {
    with_cluster(async |cluster| {
        let config = Raw { history_age_ms: 1, ..Raw::default() };
        let node = cluster.node("live-1:0", config).await;
        let epoch = cluster.seed.assign("t", "live-1:0");
        node.publish(cluster, "t", epoch, "data=x").await;
        until("the key is released", || cluster.seed.released() == ["t"]).await;
        let answer = node.send(&format!("{HUB}?topic=t"), "t", epoch, &[]).await;
        assert_eq!(answer.problem(), "misdirected");
    })
    .await;
}

/// The streams of `topics`, of which only the first is owned by the node that is asked.
async fn follow_two(node: &super::cluster::Node, epoch: u64, since: &str) -> Curl {
    let last = format!("Last-Event-ID: {since}");
    let arguments: &[&str] = if since.is_empty() { &[] } else { &["-H", &last] };
    node.follow(&format!("{HUB}?topic=a&topic=b"), "a", epoch, arguments).await
}

fn id_of(block: &str) -> String {
    block.lines().next().unwrap().strip_prefix("id: ").unwrap().to_owned()
}

#[tokio::test]
async fn one_stream_of_topics_that_different_nodes_own() {
    with_cluster(async |cluster| {
        let (one, two) =
            (cluster.node("live-1:0", Raw::default()).await, cluster.node("live-1:1", Raw::default()).await);
        let (a, b) = (cluster.seed.assign("a", &one.member), cluster.seed.assign("b", &two.member));
        let mut stream = follow_two(&one, a, "").await;
        one.publish(cluster, "a", a, "data=1").await;
        assert_eq!(stream.data().await, "1");
        two.publish(cluster, "b", b, "data=2").await;
        let block = stream.block().await.unwrap();
        assert_eq!(block, format!("id: #{a:x}.1,{b:x}.1\ndata: 2\n"));
        drop(stream);

        // Recovery goes on in each of them where it was.
        two.publish(cluster, "b", b, "data=3").await;
        one.publish(cluster, "a", a, "data=4").await;
        let mut stream = follow_two(&one, a, &id_of(&block)).await;
        let mut missed = [stream.data().await, stream.data().await];
        missed.sort();
        assert_eq!(missed, ["3", "4"]);

        // The other topic's owner changes: it is found again, and that its history is gone is told.
        cluster.seed.revoke("b");
        cluster.seed.wish("b", &one.member);
        let gap = stream.block().await.unwrap();
        assert_eq!(gap, "event: protoplex.gap\ndata: {\"topic\":\"b\"}\n");
        let (_, moved) = cluster.seed.owner("b");
        one.publish(cluster, "b", moved, "data=5").await;
        assert_eq!(stream.data().await, "5");
    })
    .await;
}

#[tokio::test]
async fn one_update_of_several_topics_reaches_each_and_a_follower_of_both_once() {
    with_cluster(async |cluster| {
        let (one, two) =
            (cluster.node("live-1:0", Raw::default()).await, cluster.node("live-1:1", Raw::default()).await);
        let (a, b) = (cluster.seed.assign("a", &one.member), cluster.seed.assign("b", &two.member));
        let mut both = follow_two(&one, a, "").await;
        let mut only_b = two.follow(&format!("{HUB}?topic=b"), "b", b, &[]).await;
        let id = one.publish(cluster, "a", a, "topic=b&data=x").await;
        assert!(id.starts_with("urn:uuid:"), "{id}");
        let block = only_b.block().await.unwrap();
        assert_eq!(block, format!("id: {id}\n:#{b:x}.1\ndata: x\n"));
        assert_eq!(both.data().await, "x");
        one.publish(cluster, "a", a, "data=next").await;
        assert_eq!(both.data().await, "next");
    })
    .await;
}
