//! Every limit and deadline of the public server, by name: as written in a configuration, then checked and
//! resolved.

use std::time::Duration;

use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};

/// The limits as they stand in `protoplex.toml` (a section such as `[proxy.http]`) and as a parent hands them
/// to its children. Every key may be missing; the comment of each tells its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// Connections that one child holds at a time; at the limit it stops accepting. Default 8192.
    pub max_connections: usize,
    /// The longest request head, and the longest trailer section. Default 32768.
    pub max_head_bytes: usize,
    /// The most header fields of a request, and the most trailer fields. Default 100.
    pub max_headers: usize,
    /// From the first byte of a head to its last. Default 10000.
    pub head_timeout_ms: u64,
    /// Without a request, until the connection is closed without a word. Default 75000.
    pub idle_timeout_ms: u64,
    /// Without a byte of a request's body while the handler waits for it. Default 30000.
    pub body_idle_timeout_ms: u64,
    /// Without the client taking a byte while there is something to send. Default 30000.
    pub write_timeout_ms: u64,
    /// From the connection to the end of the TLS handshake. Default 10000.
    pub tls_handshake_timeout_ms: u64,
    /// After an answer that left a request unread: how long what still comes is read and thrown away, so that
    /// the client gets to read the answer. Default 5000.
    pub linger_timeout_ms: u64,
    /// The same, in bytes. Default 33554432.
    pub linger_bytes: u64,
    /// How long requests may still take once a drain has started, but for the next two. Default: as long as the drain,
    /// `drain.drain_timeout_ms`, which bounds those, too.
    pub request_drain_timeout_ms: Option<u64>,
    /// How long event streams of upstreams may still go on then. In this time each is ended behind an event, with a
    /// `retry:`. One that is compressed or of known length counts as a request. Default 5000.
    pub event_stream_drain_timeout_ms: u64,
    /// How long upgraded connections may still live then. In this time each WebSocket is closed with 1001; 0 cuts
    /// them at once. Default 5000.
    pub tunnel_drain_timeout_ms: u64,
    /// With less memory than this left, of the machine or of a control group, a child answers every request with 503
    /// and accepts hardly any connection; 0 for never. Default 67108864.
    pub shed_below_available_bytes: u64,
    /// The same while the child has more than this in memory itself. Default: no such limit.
    pub max_resident_bytes: Option<u64>,
    /// What holds for HTTP/2 alone.
    pub http2: RawHttp2Limits,
}

/// The limits of HTTP/2 as they stand in a configuration, section `http2` of [`RawLimits`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHttp2Limits {
    /// Streams that a connection may have open at a time. Default 128.
    pub max_concurrent_streams: u32,
    /// The longest decoded list of header fields (RFC 9113 section 6.5.2). Default 32768.
    pub max_header_list_bytes: u32,
    /// Without a frame from the client, until it is asked for a sign of life. Default 20000.
    pub keep_alive_interval_ms: u64,
    /// From that question to the end of the connection. Default 10000.
    pub keep_alive_timeout_ms: u64,
    /// Streams that a client may reset before their answer, beyond as many as it let be answered ("rapid
    /// reset", CVE-2023-44487). Default 100.
    pub max_resets: u32,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            max_head_bytes: 32 * 1024,
            max_headers: 100,
            head_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            body_idle_timeout_ms: 30_000,
            write_timeout_ms: 30_000,
            tls_handshake_timeout_ms: 10_000,
            linger_timeout_ms: 5_000,
            linger_bytes: 32 * 1024 * 1024,
            request_drain_timeout_ms: None,
            event_stream_drain_timeout_ms: 5_000,
            tunnel_drain_timeout_ms: 5_000,
            shed_below_available_bytes: 64 * 1024 * 1024,
            max_resident_bytes: None,
            http2: RawHttp2Limits::default(),
        }
    }
}

impl Default for RawHttp2Limits {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 128,
            max_header_list_bytes: 32 * 1024,
            keep_alive_interval_ms: 20_000,
            keep_alive_timeout_ms: 10_000,
            max_resets: 100,
        }
    }
}

/// The limits of the public server, checked. [`RawLimits`] tells what each one means.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented where it is configured, in RawLimits")]
pub struct Limits {
    pub max_connections: usize,
    pub max_head_bytes: usize,
    pub max_headers: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub write_timeout: Duration,
    pub tls_handshake_timeout: Duration,
    pub linger_timeout: Duration,
    pub linger_bytes: u64,
    pub request_drain_timeout: Option<Duration>,
    pub event_stream_drain_timeout: Duration,
    pub tunnel_drain_timeout: Duration,
    pub shed_below_available_bytes: u64,
    pub max_resident_bytes: Option<u64>,
    pub http2: Http2Limits,
}

/// The limits of HTTP/2, checked. [`RawHttp2Limits`] tells what each one means.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented where it is configured, in RawHttp2Limits")]
pub struct Http2Limits {
    pub max_concurrent_streams: u32,
    pub max_header_list_bytes: u32,
    pub keep_alive_interval: Duration,
    pub keep_alive_timeout: Duration,
    pub max_resets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        RawLimits::default().resolved()
    }
}

impl RawLimits {
    /// Checks the limits, which stand in section `key` (`proxy.http`) of the configuration. What is wrong is
    /// added to
    /// `problems`; the result is meant for use only where nothing was.
    pub fn resolve(&self, key: &str, problems: &mut Problems) -> Limits {
        let raw = self;
        let mut positive = |name: &str, value: u64| {
            if value == 0 {
                problems.add(&format!("{key}.{name}"), "must be more than 0");
            }
        };
        positive("max_connections", raw.max_connections as u64);
        positive("max_headers", raw.max_headers as u64);
        positive("head_timeout_ms", raw.head_timeout_ms);
        positive("idle_timeout_ms", raw.idle_timeout_ms);
        positive("body_idle_timeout_ms", raw.body_idle_timeout_ms);
        positive("write_timeout_ms", raw.write_timeout_ms);
        positive("tls_handshake_timeout_ms", raw.tls_handshake_timeout_ms);
        positive("linger_timeout_ms", raw.linger_timeout_ms);
        positive("request_drain_timeout_ms", raw.request_drain_timeout_ms.unwrap_or(1));
        positive("http2.max_concurrent_streams", u64::from(raw.http2.max_concurrent_streams));
        positive("http2.max_header_list_bytes", u64::from(raw.http2.max_header_list_bytes));
        positive("http2.keep_alive_interval_ms", raw.http2.keep_alive_interval_ms);
        positive("http2.keep_alive_timeout_ms", raw.http2.keep_alive_timeout_ms);
        if raw.max_resident_bytes.is_some_and(|bytes| bytes < MIN_RESIDENT_BYTES) {
            let reason = format!(
                "must be at least {MIN_RESIDENT_BYTES}: a child that serves nobody has nearly as much"
            );
            problems.add(&format!("{key}.max_resident_bytes"), reason);
        }
        if raw.max_headers > MAX_HEADERS {
            problems.add(&format!("{key}.max_headers"), format!("must be at most {MAX_HEADERS}"));
        }
        if !(HEAD_BYTES.contains(&raw.max_head_bytes)) {
            let reason = format!("must be from {} to {}", HEAD_BYTES.start(), HEAD_BYTES.end());
            problems.add(&format!("{key}.max_head_bytes"), reason);
        }
        raw.resolved()
    }

    fn resolved(&self) -> Limits {
        let raw = self;
        Limits {
            max_connections: raw.max_connections,
            max_head_bytes: raw.max_head_bytes,
            max_headers: raw.max_headers,
            head_timeout: Duration::from_millis(raw.head_timeout_ms),
            idle_timeout: Duration::from_millis(raw.idle_timeout_ms),
            body_idle_timeout: Duration::from_millis(raw.body_idle_timeout_ms),
            write_timeout: Duration::from_millis(raw.write_timeout_ms),
            tls_handshake_timeout: Duration::from_millis(raw.tls_handshake_timeout_ms),
            linger_timeout: Duration::from_millis(raw.linger_timeout_ms),
            linger_bytes: raw.linger_bytes,
            request_drain_timeout: raw.request_drain_timeout_ms.map(Duration::from_millis),
            event_stream_drain_timeout: Duration::from_millis(raw.event_stream_drain_timeout_ms),
            tunnel_drain_timeout: Duration::from_millis(raw.tunnel_drain_timeout_ms),
            shed_below_available_bytes: raw.shed_below_available_bytes,
            max_resident_bytes: raw.max_resident_bytes,
            http2: Http2Limits {
                max_concurrent_streams: raw.http2.max_concurrent_streams,
                max_header_list_bytes: raw.http2.max_header_list_bytes,
                keep_alive_interval: Duration::from_millis(raw.http2.keep_alive_interval_ms),
                keep_alive_timeout: Duration::from_millis(raw.http2.keep_alive_timeout_ms),
                max_resets: raw.http2.max_resets,
            },
        }
    }
}

/// As many as any client has reason to send, and fewer than `http::HeaderMap` can hold.
const MAX_HEADERS: usize = 10_000;
/// With less a child would refuse everything for ever.
const MIN_RESIDENT_BYTES: u64 = 32 * 1024 * 1024;
/// From what a plain browser sends to more than any has reason to.
const HEAD_BYTES: std::ops::RangeInclusive<usize> = 1024..=256 * 1024;

#[cfg(test)]
mod tests {
    //! What a configuration may say.

    use super::*;

    #[test]
    fn every_limit_that_is_wrong_is_named_at_once() {
        let raw: RawLimits = serde_json::from_str(
            r#"{"max_head_bytes": 10, "head_timeout_ms": 0, "request_drain_timeout_ms": 0, "max_resident_bytes": 1, "http2": {"max_concurrent_streams": 0}}"#,
        )
        .unwrap();
        let mut problems = Problems::default();
        raw.resolve("proxy.http", &mut problems);
        let text = problems.finish().unwrap_err().to_string();
        for key in [
            "proxy.http.max_head_bytes",
            "proxy.http.head_timeout_ms",
            "proxy.http.request_drain_timeout_ms",
            "proxy.http.max_resident_bytes",
            "proxy.http.http2.max_concurrent_streams",
        ] {
            assert!(text.contains(key), "{text}");
        }
        let unknown = serde_json::from_str::<RawLimits>(r#"{"head_timeout": 1}"#);
        assert!(unknown.unwrap_err().to_string().contains("unknown field"));
    }

    #[test]
    fn the_defaults_are_sound() {
        let mut problems = Problems::default();
        RawLimits::default().resolve("proxy.http", &mut problems);
        problems.finish().unwrap();
    }
}
