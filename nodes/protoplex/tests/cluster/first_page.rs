//! What the README's first page promises: the commands that `up` prints do what they say, again after a restart.

use std::io::Write;
use std::process::{Command, Stdio};

use protoplex_testkit::curl::Events;
use protoplex_testkit::until;

use crate::{get, put, start};

#[test]
fn a_token_for_a_channel_publishes_to_it_and_to_no_other() {
    let cluster = start();
    let url = format!("{}/.well-known/mercure", cluster.http());
    let events = Events::open(&format!("{url}?topic=news"), &[]);
    let token = String::from_utf8(cluster.run(&["token", "live", "--publish", "news"]).stdout).unwrap();
    let bearer = format!("Authorization: Bearer {}", token.trim());
    assert_eq!(get(&url, &["-H", &bearer, "-d", "topic=news", "-d", "data=hello"]).status, 200);
    assert_eq!(events.next_data(), "hello");
    assert_eq!(get(&url, &["-H", &bearer, "-d", "topic=other", "-d", "data=x"]).status, 403);
    assert_eq!(cluster.run(&["token", "live"]).status.code(), Some(2), "it would open nothing");
}

#[test]
fn the_page_is_served_from_memory_compressed_and_revalidated() {
    let cluster = start();
    let page = get(&format!("{}/", cluster.http()), &[]);
    assert_eq!(page.status, 200);
    assert!(page.text().contains("Drop files here"));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));

    let script = format!("{}/app.js", cluster.http());
    let compressed = get(&script, &["-H", "Accept-Encoding: br"]);
    assert_eq!(compressed.header("content-encoding"), Some("br"));
    let etag = format!("If-None-Match: {}", compressed.header("etag").unwrap());
    assert_eq!(get(&script, &["-H", "Accept-Encoding: br", "-H", &etag]).status, 304);
    let over_tls = get(&format!("{}/app.js", cluster.https()), &["-k", "--http2"]);
    assert_eq!((over_tls.status, over_tls.head[0].starts_with("HTTP/2")), (200, true));
}

#[test]
fn an_upload_is_watched_live_answered_in_full_and_got_back_in_every_way() {
    let cluster = start();
    let events = Events::open(&format!("{}/.well-known/mercure?topic=upload/first", cluster.http()), &[]);
    let text = "All work and no play makes Jack a dull boy.\n".repeat(20_000).into_bytes();
    let answer = put(&cluster, "/files/dull.txt", &text, &["-H", "Upload-Id: first", "--limit-rate", "2M"]);
    assert_eq!(answer.status, 201, "{answer:?}");
    let stored = answer.json();

    let progress = events.next_json(|event| event["type"] == "upload.progress");
    assert!(progress["data"]["received"].as_u64().unwrap() > 0, "{progress}");
    let finished = events.next_json(|event| event["type"] == "upload.finished");
    assert_eq!(finished["data"]["reference"], stored["reference"]);
    events.next_json(|event| event["type"] == "file.stored");

    assert_eq!(stored["size"], text.len());
    assert_eq!(stored["encoding"], "gzip");
    assert!(stored["stored_size"].as_u64().unwrap() < text.len() as u64 / 10);
    assert_eq!(stored["sha256"], digest(&["dgst", "-sha256"], &text));
    let whirlpool = ["dgst", "-provider", "legacy", "-provider", "default", "-whirlpool"];
    assert_eq!(stored["whirlpool"], digest(&whirlpool, &text));

    let by_path = stored["url"].as_str().unwrap();
    let by_reference = format!("{}/{}", cluster.http(), stored["reference"].as_str().unwrap());
    for url in [by_path, &by_reference] {
        let whole = get(url, &[]);
        assert_eq!((whole.status, whole.body == text), (200, true), "{url}");
        let etag = whole.header("etag").unwrap().to_owned();
        assert_eq!(get(url, &["-H", &format!("If-None-Match: {etag}")]).status, 304);
        let head = get(url, &["-I"]);
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some(text.len().to_string().as_str()))
        );
        let range = get(url, &["-r", "100-199"]);
        assert_eq!((range.status, range.body), (206, text[100..200].to_vec()));
        let life = whole.header("cache-control").unwrap();
        let seconds: u64 = life.split("max-age=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(seconds >= 30 * 24 * 3600, "at least a month: {life}");
        let compressed = get(url, &["--compressed"]);
        assert_eq!((compressed.header("content-encoding"), compressed.body == text), (Some("gzip"), true));
        assert_ne!(compressed.header("etag"), Some(etag.as_str()), "another form, another ETag");
    }
}

#[test]
fn a_second_up_finds_files_handlers_and_owners_as_they_were() {
    let mut cluster = start();
    assert_eq!(put(&cluster, "/files/kept", b"kept", &[]).status, 201);
    let add = ["handler", "add", "kept", "--path", "/kept/{id}", "--key", "kept:{id}", "--pool", "live"];
    cluster.json(&add);
    let owners = |cluster: &protoplex_testkit::cluster::Cluster| -> Vec<String> {
        let owner = |n| {
            let url = format!("{}/.well-known/mercure?topic=kept-{n}", cluster.http());
            drop(Events::open(&url, &[]));
            let way = cluster.json(&["route", &url]);
            way["member"].as_str().unwrap().to_owned()
        };
        (0..8).map(owner).collect()
    };
    let before = owners(&cluster);
    assert_eq!(cluster.stop(), Some(0));

    cluster.start();
    assert_eq!(get(&format!("{}/files/kept", cluster.http()), &[]).text(), "kept");
    let handlers = cluster.json(&["handler", "list"]);
    assert!(handlers.as_array().unwrap().iter().any(|handler| handler["name"] == "kept"), "{handlers}");
    assert_eq!(owners(&cluster), before);
    until("the app build is back", || {
        (get(&format!("{}/", cluster.http()), &[]).status == 200).then_some(())
    });
}

/// What openssl makes of these bytes, in hex.
fn digest(arguments: &[&str], bytes: &[u8]) -> String {
    let mut openssl =
        Command::new("openssl").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    openssl.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = openssl.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().rsplit(' ').next().unwrap().to_owned()
}
