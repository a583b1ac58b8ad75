//! The access log from outside.

use std::path::Path;

use protoplex_http::AccessLog;
use protoplex_http::access_log::{Format, Target};
use protoplex_runtime::log_file::Rotation;

use crate::kit::{Raw, Server, echo, limits, run, settle, start, start_relay_with, start_with, text, within};

/// What the log says once the server has ended.
async fn lines(server: Server, path: &Path) -> Vec<serde_json::Value> {
    server.trigger.pull();
    within(server.task).await.unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_request_leaves_one_line_even_if_it_was_refused() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&Target::File(path.clone()), Format::Json, Rotation::default()).unwrap();
        let server = start_with(limits(), None, log, |request, exchange| async move {
            exchange.note_key("k");
            echo(request).await
        });
        let mut client = Raw::connect(server.address).await;
        client
            .send("POST /a?b HTTP/1.1\r\nHost: h\r\nX-Request-Id: id-7\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        client.answer().await;
        client.send("GET / HTTP/1.1\r\n\r\n").await;
        client.answer().await;
        client.rest().await;
        drop(client);
        let lines = lines(server, &path).await;
        assert_eq!(lines.len(), 2, "{lines:?}");
        let fields = |line: &serde_json::Value| {
            ["method", "path", "status", "bytes_in", "bytes_out", "key", "refused", "request_id"]
                .map(|name| line[name].clone())
        };
        let expected: [serde_json::Value; 8] = [
            "POST".into(),
            "/a?b".into(),
            200.into(),
            2.into(),
            2.into(),
            "k".into(),
            ().into(),
            "id-7".into(),
        ];
        assert_eq!(fields(&lines[0]), expected);
        assert_eq!((&lines[1]["method"], &lines[1]["status"]), (&"-".into(), &400.into()));
        assert_eq!(lines[1]["refused"], "missing-host");
    });
}

#[test]
fn a_request_that_was_cut_at_the_end_of_a_drain_leaves_its_line_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    run(async {
        let log = AccessLog::open(&Target::File(path.clone()), Format::Json, Rotation::default()).unwrap();
        let server = start_with(limits(), None, log, |request, _| echo(request));
        let mut client = Raw::connect(server.address).await;
        client.send("POST /cut HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nh").await;
        settle().await;
        // As its caller does it where a drain takes too long.
        server.task.abort();
        client.rest().await;
    });
    let text = std::fs::read_to_string(&path).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!((&line["path"], &line["status"]), (&"/cut".into(), &499.into()));
}

#[test]
fn a_line_tells_where_the_time_went_and_of_which_trace_it_is() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&Target::File(path.clone()), Format::Json, Rotation::default()).unwrap();
        let origin =
            start(
                limits(),
                |request, _| async move { text(request.headers()["traceparent"].to_str().unwrap()) },
            );
        let relay = start_relay_with(None, log, origin.address);
        let mut client = Raw::connect(relay.address).await;
        let mut traces = Vec::new();
        for pieces in
            [&["GET /whole HTTP/1.1\r\nHost: a\r\n\r\n"][..], &["GET /cut HT", "TP/1.1\r\nHost: a\r\n\r\n"]]
        {
            for piece in pieces {
                client.send(piece).await;
                settle().await;
            }
            traces.push(client.answer().await.body[3..35].to_owned());
        }
        client.send("GET / HTTP/1.1\r\n\r\n").await;
        client.answer().await;
        drop(client);
        let lines = lines(relay, &path).await;
        let [whole, cut, refused] = &lines[..] else { panic!("{lines:?}") };
        let [head, connect, first_byte] = ["head_us", "upstream_connect_us", "upstream_first_byte_us"];
        assert_eq!(whole[head], 0);
        assert!(cut[head].as_u64().unwrap() > 0, "{cut}");
        // The second goes over the connection of the first.
        assert!(whole[connect].is_u64() && cut[connect].is_null(), "{lines:?}");
        for line in [whole, cut] {
            assert!(line[first_byte].as_u64() <= line["duration_us"].as_u64(), "{line}");
            assert!(line[first_byte].as_u64().unwrap() > 0, "{line}");
        }
        for name in [head, connect, first_byte] {
            assert!(refused[name].is_null(), "{refused}");
        }
        assert_eq!([&whole["trace_id"], &cut["trace_id"]], [traces[0].as_str(), traces[1].as_str()]);
        assert_eq!(whole["trace_id"], whole["request_id"]);
        assert_eq!(refused["trace_id"].as_str().unwrap().len(), 32);
    });
}
