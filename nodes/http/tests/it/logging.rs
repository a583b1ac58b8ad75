//! The access log from outside.

use protoplex_http::AccessLog;
use protoplex_http::access_log::{Format, Target};
use protoplex_runtime::log_file::Rotation;

use crate::kit::{Raw, echo, limits, run, start_with, within};

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
        server.trigger.pull();
        within(server.task).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
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
