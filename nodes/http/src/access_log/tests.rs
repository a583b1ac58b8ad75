//! What a line says, and that nothing in a request can forge one.

use http::{HeaderValue, StatusCode};

use super::*;
use crate::exchange::{Client, Scheme};
use crate::head::RequestHead;

fn exchange(host: &str, target: &str) -> Exchange {
    let client = Client::new("[::1]:4000".parse().unwrap(), Scheme::Https);
    let mut request = http::Request::builder().method("GET").uri(target).body(()).unwrap();
    request.headers_mut().insert("host", HeaderValue::from_bytes(host.as_bytes()).unwrap());
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("id-1"));
    let exchange = Exchange::of(&client, RequestHead::of_parts(&request.into_parts().0));
    exchange.status.set(StatusCode::OK);
    exchange.bytes_out.set(7);
    exchange
}

fn line(exchange: &Exchange, format: Format) -> String {
    let mut line = Vec::new();
    line::write(&mut line, exchange, format, crate::clock::now());
    String::from_utf8(line).unwrap()
}

#[test]
fn a_line_in_json_has_every_field() {
    let exchange = exchange("a.example", "/x\"z\"?y");
    exchange.note_key("room:1");
    exchange.note_upstream("live-1:0");
    let text = line(&exchange, Format::Json);
    let fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(fields["client"], "[::1]:4000");
    assert_eq!(fields["method"], "GET");
    assert_eq!(fields["host"], "a.example");
    assert_eq!(fields["path"], "/x\"z\"?y");
    assert_eq!(fields["status"], 200);
    assert_eq!((&fields["bytes_in"], &fields["bytes_out"]), (&0.into(), &7.into()));
    assert_eq!((&fields["key"], &fields["upstream"]), (&"room:1".into(), &"live-1:0".into()));
    assert_eq!(fields["request_id"], "id-1");
    assert!(fields["duration_us"].is_u64() && fields["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn control_characters_and_quotes_cannot_forge_a_line_or_a_field() {
    let exchange = exchange("a", "/");
    exchange.note_key("evil\r\n2026-01-01 status=200 \"x\" \u{85}\u{2028}\u{1b}[2J\\");
    for format in [Format::Json, Format::Text] {
        let text = line(&exchange, format);
        assert!(!text.chars().any(|character| character.is_control() || character == '\u{2028}'), "{text:?}");
    }
    let text = line(&exchange, Format::Json);
    let fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(fields["key"].as_str(), exchange.key.borrow().as_deref());
    let text = line(&exchange, Format::Text);
    assert!(text.contains(r#"key="evil\u000d\u000a2026-01-01 status=200 \"x\" \u0085"#), "{text}");
}

#[test]
fn text_quotes_only_what_needs_it() {
    let text = line(&exchange("a", "/x"), Format::Text);
    assert!(
        text.contains(" client=[::1]:4000 scheme=https protocol=1.1 method=GET host=a path=/x status=200 "),
        "{text}"
    );
}

#[tokio::test]
async fn lines_are_appended_whole_and_the_last_ones_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    std::fs::write(&path, "before\n").unwrap();
    let log = AccessLog::open(&Target::File(path.clone()), Format::Text, Rotation::default()).unwrap();
    for _ in 0..3 {
        log.write(&exchange("a", "/x"), Instant::now());
    }
    let over = Notify::new();
    over.notify_one();
    log.keep_writing(&over).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("before\n") && text.ends_with('\n') && text.lines().count() == 4, "{text}");
}

#[tokio::test]
async fn a_file_that_is_full_is_put_aside_and_no_line_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let rotation = Rotation { max_bytes: 4096, ..Rotation::default() };
    let log = AccessLog::open(&Target::File(dir.path().join("access.log")), Format::Json, rotation).unwrap();
    let exchange = exchange("a", "/x");
    for _ in 0..100 {
        log.write(&exchange, Instant::now());
    }
    let over = Notify::new();
    over.notify_one();
    log.keep_writing(&over).await;
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
    let texts: Vec<_> = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert!(texts.len() > 4 && texts.iter().all(|text| text.len() <= 4096), "{files:?}");
    let lines: Vec<_> = texts.iter().flat_map(|text| text.lines()).collect();
    let is_whole = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    assert!(lines.len() == 100 && lines.iter().all(is_whole), "{} lines", lines.len());
}

#[tokio::test]
async fn a_full_disk_costs_lines_but_never_memory_without_end() {
    let log = AccessLog::open(&Target::File("/dev/full".into()), Format::Text, Rotation::default()).unwrap();
    let exchange = exchange("a", &format!("/{}", "x".repeat(8000)));
    for _ in 0..1000 {
        log.write(&exchange, Instant::now());
    }
    let inner = log.0.as_ref().unwrap();
    assert!(inner.lines.borrow().len() < MAX_WAITING_BYTES + 10_000 && inner.lost.get() > 0);
    let over = Notify::new();
    over.notify_one();
    log.keep_writing(&over).await;
    assert!(inner.lines.borrow().is_empty() && inner.lost.get() == 0);
}
