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
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.headers_mut().insert("traceparent", HeaderValue::from_static(trace));
    let exchange = Exchange::of(&client, RequestHead::of_parts(&request.into_parts().0));
    exchange.status.set(StatusCode::OK);
    exchange.bytes_out.set(7);
    exchange
}

fn line(exchange: &Exchange, format: Format) -> String {
    let mut line = Vec::new();
    format.write(&mut line, exchange, crate::clock::now());
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
    assert_eq!(fields["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert!(fields["duration_us"].is_u64() && fields["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_line_tells_the_time_of_each_phase_that_is_known() {
    let exchange = exchange("a", "/");
    let phases = ["head_us", "upstream_connect_us", "upstream_first_byte_us"];
    let (json, text) = (line(&exchange, Format::Json), line(&exchange, Format::Text));
    for phase in phases {
        assert!(!json.contains(phase) && !text.contains(phase), "{phase} in {json} {text}");
    }
    exchange.head_took.set(Some(Duration::ZERO));
    exchange.asked.connect.set(Some(Duration::from_nanos(1_999)));
    exchange.asked.first_byte.set(Some(Duration::from_secs(2)));
    let json: serde_json::Value = serde_json::from_str(&line(&exchange, Format::Json)).unwrap();
    assert_eq!(phases.map(|phase| json[phase].as_u64().unwrap()), [0, 1, 2_000_000]);
    let text = line(&exchange, Format::Text);
    assert!(text.contains(" head_us=0 upstream_connect_us=1 upstream_first_byte_us=2000000 "), "{text}");
}

/// Without its time.
fn combined(exchange: &Exchange) -> String {
    let line = line(exchange, Format::Combined);
    let (start, rest) = line.split_once('[').unwrap();
    let (time, end) = rest.split_once(']').unwrap();
    assert!(time.len() == 26 && time.ends_with(" +0000"), "{time}");
    format!("{start}[]{end}")
}

#[test]
fn combined_is_what_nginx_writes() {
    let client = Client::new("[::ffff:192.0.2.1]:4000".parse().unwrap(), Scheme::Http);
    let written = |version, target: &str, fields: &[(&str, &[u8])]| {
        let mut head = RequestHead::new(http::Method::GET, version, target.as_bytes());
        fields.iter().for_each(|(name, value)| head.fields.push(name.as_bytes(), value));
        let exchange = Exchange::of(&client, head);
        exchange.status.set(StatusCode::OK);
        exchange.bytes_out.set(123);
        combined(&exchange)
    };
    let browser: &[(&str, &[u8])] = &[("User-Agent", b"curl/8"), ("referer", b"http://a/")];
    assert_eq!(
        written(http::Version::HTTP_11, "/path?q=1", browser),
        r#"192.0.2.1 - - [] "GET /path?q=1 HTTP/1.1" 200 123 "http://a/" "curl/8""#
    );
    assert_eq!(
        written(http::Version::HTTP_2, "/", &[("referer", b"")]),
        r#"192.0.2.1 - - [] "GET / HTTP/2.0" 200 123 "" "-""#
    );
    assert_eq!(
        written(http::Version::HTTP_10, "/\"x\\", &[("user-agent", b"\"\\\t\x7f\xc3\xa9 ~")]),
        r#"192.0.2.1 - - [] "GET /\x22x\x5C HTTP/1.0" 200 123 "-" "\x22\x5C\x09\x7F\xC3\xA9 ~""#
    );
    let refused = Exchange::refused(&client, crate::http1::Rule::BareLf);
    refused.status.set(StatusCode::BAD_REQUEST);
    assert_eq!(combined(&refused), r#"192.0.2.1 - - [] "-" 400 0 "-" "-""#);
}

#[test]
fn control_characters_and_quotes_cannot_forge_a_line_or_a_field() {
    let exchange = exchange("a", "/");
    exchange.note_key("evil\r\n2026-01-01 status=200 \"x\" \u{85}\u{2028}\u{1b}[2J\\");
    for format in [Format::Json, Format::Text, Format::Combined] {
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
