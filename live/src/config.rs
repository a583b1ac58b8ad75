//! The section `[live]` of the configuration: as written ([`Raw`]), and checked ([`Config`]).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use protoplex_http::RawLimits;
use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};

use crate::channel::Retention;
use crate::selector::covers;

/// `[live]`, as written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Child processes.
    pub children: u32,
    /// Where each child has a port of its own, which proxies and nodes must reach and nobody else should.
    pub address: IpAddr,
    /// Whether public updates are for everyone, or for holders of a token that covers the topic.
    pub anonymous: bool,
    /// Origins whose pages may subscribe and publish (CORS): `https://example.com`, or `*` for all, without cookies.
    pub allow_origins: Vec<String>,
    /// Streams a child serves at once.
    pub max_subscribers: usize,
    /// Topics a child owns at once.
    pub max_channels: usize,
    /// The body of one publishing request, in bytes.
    pub max_update_bytes: usize,
    /// How often a quiet stream says something, so that nobody takes it for dead.
    pub heartbeat_ms: u64,
    /// Events kept of a topic.
    pub history_count: usize,
    /// Bytes kept of a topic.
    pub history_bytes: usize,
    /// How long they are kept.
    pub history_age_ms: u64,
    /// `[[live.history]]`: other limits for some topics; the first that covers a topic counts.
    pub history: Vec<RawHistory>,
    /// `[live.http]`: of the internal port.
    pub http: RawLimits,
}

/// `[[live.history]]`, as written. What is left out is as in `[live]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawHistory {
    /// A topic, `*`, or a URI template: `upload/{id}`.
    pub topics: String,
    /// Events kept.
    pub count: Option<usize>,
    /// Bytes kept.
    pub bytes: Option<usize>,
    /// How long they are kept.
    pub age_ms: Option<u64>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            children: 2,
            address: Ipv4Addr::LOCALHOST.into(),
            anonymous: true,
            allow_origins: Vec::new(),
            max_subscribers: 8_000,
            max_channels: 100_000,
            max_update_bytes: 256 << 10,
            heartbeat_ms: 15_000,
            history_count: 256,
            history_bytes: 1 << 20,
            history_age_ms: 5 * 60_000,
            history: Vec::new(),
            http: RawLimits::default(),
        }
    }
}

/// What a live node goes by.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub(crate) children: u32,
    pub(crate) address: IpAddr,
    pub(crate) anonymous: bool,
    pub(crate) allow_origins: Vec<String>,
    pub(crate) max_subscribers: usize,
    pub(crate) max_channels: usize,
    pub(crate) max_update_bytes: usize,
    pub(crate) heartbeat: Duration,
    /// Selectors and what they keep; the last one covers all.
    history: Vec<(String, Retention)>,
    /// Checked already; each child resolves it again.
    pub(crate) http: RawLimits,
}

/// A history is also the queue of each of its subscribers, so it can't be much shorter than a burst.
const MIN_HISTORY_COUNT: usize = 16;

impl Raw {
    /// Checks the section; what is wrong goes to `problems`.
    pub fn resolve(self, problems: &mut Problems) -> Config {
        if self.children == 0 {
            problems.add("live.children", "at least one child has to serve");
        }
        if self.heartbeat_ms == 0 {
            problems.add("live.heartbeat_ms", "must be more than 0");
        }
        for origin in &self.allow_origins {
            if origin != "*" && !is_origin(origin) {
                problems.add(
                    "live.allow_origins",
                    format_args!("{origin:?} is no origin: write https://example.com, or *"),
                );
            }
        }
        let mut history = Vec::new();
        for (index, rule) in self.history.iter().enumerate() {
            let retention = Retention {
                count: rule.count.unwrap_or(self.history_count),
                bytes: rule.bytes.unwrap_or(self.history_bytes),
                age: Duration::from_millis(rule.age_ms.unwrap_or(self.history_age_ms)),
            };
            check_count(problems, &format!("live.history.{index}.count"), retention.count);
            history.push((rule.topics.clone(), retention));
        }
        self.http.resolve("live.http", problems);
        if self.max_subscribers > self.http.max_connections {
            let reason = format!("more than live.http.max_connections, {}", self.http.max_connections);
            problems.add("live.max_subscribers", reason);
        }
        check_count(problems, "live.history_count", self.history_count);
        let age = Duration::from_millis(self.history_age_ms);
        history
            .push(("*".to_owned(), Retention { count: self.history_count, bytes: self.history_bytes, age }));
        Config {
            children: self.children,
            address: self.address,
            anonymous: self.anonymous,
            allow_origins: self.allow_origins,
            max_subscribers: self.max_subscribers,
            max_channels: self.max_channels,
            max_update_bytes: self.max_update_bytes,
            heartbeat: Duration::from_millis(self.heartbeat_ms),
            history,
            http: self.http,
        }
    }
}

impl Config {
    /// Child processes.
    pub fn children(&self) -> u32 {
        self.children
    }

    /// How much of a topic's past is kept.
    pub(crate) fn retention(&self, topic: &str) -> Retention {
        let rule = self.history.iter().find(|(selector, _)| covers(selector, topic));
        rule.expect("the last rule covers all").1
    }

    /// Whether this very origin stands in the list; `*` is no origin, but may stand there too.
    pub(crate) fn names_origin(&self, origin: &str) -> bool {
        self.allow_origins.iter().any(|allowed| allowed == origin)
    }
}

fn check_count(problems: &mut Problems, key: &str, count: usize) {
    if count < MIN_HISTORY_COUNT {
        problems.add(
            key,
            format_args!("{count} is below {MIN_HISTORY_COUNT}: the history is also each subscriber's queue"),
        );
    }
}

/// `scheme://host[:port]` (RFC 6454, section 6.1).
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_survive_the_way_to_the_child() {
        let mut problems = Problems::default();
        let config = Raw::default().resolve(&mut problems);
        problems.finish().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        let told: Config = serde_json::from_str(&text).unwrap();
        assert_eq!(told.retention("any"), config.retention("any"));
    }

    #[test]
    fn all_mistakes_are_told_together() {
        let rule = RawHistory { topics: "upload/{id}".into(), count: Some(1), bytes: None, age_ms: None };
        let raw = Raw {
            children: 0,
            history_count: 0,
            history: vec![rule],
            allow_origins: vec!["example.com".into(), "https://example.com".into()],
            ..Raw::default()
        };
        let mut problems = Problems::default();
        raw.resolve(&mut problems);
        let told = problems.finish().unwrap_err().to_string();
        for key in
            ["live.children", "live.history_count", "live.history.0.count", "\"example.com\" is no origin"]
        {
            assert!(told.contains(key), "{key} in {told}");
        }
        assert_eq!(told.lines().count(), 4, "{told}");
    }

    #[test]
    fn a_topic_keeps_what_the_first_rule_says() {
        let rule = |topics: &str, count| RawHistory {
            topics: topics.into(),
            count: Some(count),
            bytes: None,
            age_ms: Some(9),
        };
        let raw = Raw { history: vec![rule("upload/{id}", 20), rule("upload/1", 30)], ..Raw::default() };
        let config = raw.resolve(&mut Problems::default());
        assert_eq!(config.retention("upload/1").count, 20);
        assert_eq!(config.retention("upload/1").age, Duration::from_millis(9));
        assert_eq!(config.retention("upload/1").bytes, 1 << 20);
        assert_eq!(config.retention("else").count, 256);
    }
}
