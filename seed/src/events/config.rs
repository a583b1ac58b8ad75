//! The section `[events]` of `protoplex.toml`.

use std::path::PathBuf;
use std::time::Duration;

use protoplex_runtime::config::Problems;
use serde::{Deserialize, Serialize};

/// JetStream's names are made of these.
const MAX_STREAM_BYTES: usize = 32;

/// The section as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// NATS servers, `nats://host:4222` or `tls://…`, with commas between them; without one the cluster keeps its events.
    pub nats: Option<String>,
    /// By which NATS knows the cluster.
    pub nats_token: Option<String>,
    /// Likewise, with a password.
    pub nats_user: Option<String>,
    /// Of that user.
    pub nats_password: Option<String>,
    /// Likewise, a file of JWT and seed.
    pub nats_credentials: Option<PathBuf>,
    /// Whose certificates NATS may have, as PEM; the system's where it is left out.
    pub nats_ca: Option<PathBuf>,
    /// The certificate that NATS asks for, as PEM.
    pub nats_certificate: Option<PathBuf>,
    /// Its key.
    pub nats_key: Option<PathBuf>,
    /// Name of the stream, and first word of its subjects: two clusters of one NATS need two.
    pub nats_stream: String,
    /// Servers of NATS that keep each event.
    pub nats_replicas: u8,
    /// Events are dropped when they are older.
    pub max_age_hours: u32,
    /// And the oldest where there are more.
    pub max_events: u64,
    /// And where they have more bytes together.
    pub max_bytes: u64,
    /// A subscriber has so long to answer an event before another one gets it.
    pub ack_timeout_ms: u32,
    /// An event that was delivered so often without success is put aside.
    pub max_attempts: u32,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            nats: None,
            nats_token: None,
            nats_user: None,
            nats_password: None,
            nats_credentials: None,
            nats_ca: None,
            nats_certificate: None,
            nats_key: None,
            nats_stream: "protoplex".to_owned(),
            nats_replicas: 1,
            max_age_hours: 7 * 24,
            max_events: 1_000_000,
            max_bytes: 1 << 30,
            ack_timeout_ms: 30_000,
            max_attempts: 10,
        }
    }
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`.
    pub fn resolve(self, problems: &mut Problems) -> Config {
        let alone = |value: bool| self.nats.is_none() && value;
        for (key, given) in [
            ("nats_token", self.nats_token.is_some()),
            ("nats_user", self.nats_user.is_some()),
            ("nats_password", self.nats_password.is_some()),
            ("nats_credentials", self.nats_credentials.is_some()),
            ("nats_ca", self.nats_ca.is_some()),
            ("nats_certificate", self.nats_certificate.is_some()),
            ("nats_key", self.nats_key.is_some()),
        ] {
            if alone(given) {
                problems.add(&format!("events.{key}"), "is only for `nats`, which is not given");
            }
        }
        for server in self.nats.iter().flat_map(|servers| servers.split(',')) {
            let rest = server.trim().strip_prefix("nats://").or_else(|| server.trim().strip_prefix("tls://"));
            if !rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', ' '])) {
                problems.add(
                    "events.nats",
                    "write nats://HOST:4222 or tls://HOST:4222, with commas between several",
                );
            }
        }
        let known = [self.nats_token.is_some(), self.nats_user.is_some(), self.nats_credentials.is_some()];
        if known.into_iter().filter(|known| *known).count() > 1 {
            problems.add("events.nats_token", "token, user and credentials: NATS is told one of them");
        }
        if self.nats_user.is_some() != self.nats_password.is_some() {
            problems.add("events.nats_user", "user and password come together");
        }
        if self.nats_certificate.is_some() != self.nats_key.is_some() {
            problems.add("events.nats_certificate", "certificate and key come together");
        }
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        if !(1..=MAX_STREAM_BYTES).contains(&self.nats_stream.len()) || !self.nats_stream.bytes().all(plain) {
            problems.add("events.nats_stream", "use 1 to 32 of a-z, A-Z, 0-9, '-' and '_'");
        }
        if !(1..=5).contains(&self.nats_replicas) {
            problems.add("events.nats_replicas", "must be from 1 to 5");
        }
        for (key, value) in [
            ("max_age_hours", self.max_age_hours.into()),
            ("max_events", self.max_events),
            ("max_bytes", self.max_bytes),
            ("max_attempts", self.max_attempts.into()),
        ] {
            if value == 0 {
                problems.add(&format!("events.{key}"), "must be more than 0");
            }
        }
        if self.ack_timeout_ms < 100 {
            problems.add("events.ack_timeout_ms", "must be at least 100");
        }
        Config(self)
    }
}

/// The section, checked. It may hold secrets; the runtime masks them where it shows what a node goes by.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Config(pub(crate) Raw);

impl Config {
    pub(crate) fn max_age(&self) -> Duration {
        Duration::from_secs(3600) * self.0.max_age_hours
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.0.ack_timeout_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_together() {
        let refusal = |json: &str| {
            let mut problems = Problems::default();
            serde_json::from_str::<Raw>(json).unwrap().resolve(&mut problems);
            problems.finish().map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(refusal("{}"), "");
        assert_eq!(refusal(r#"{"nats": "nats://a:4222, tls://b", "nats_token": "x"}"#), "");
        for (json, text) in [
            (r#"{"nats": "http://a"}"#, "events.nats: write nats://"),
            (r#"{"nats_token": "hush"}"#, "events.nats_token: is only for `nats`"),
            (r#"{"nats": "nats://a", "nats_user": "u"}"#, "come together"),
            (r#"{"nats": "nats://a", "nats_token": "t", "nats_credentials": "f"}"#, "one of them"),
            (r#"{"nats_stream": "a.b"}"#, "events.nats_stream"),
            (r#"{"max_events": 0, "ack_timeout_ms": 5}"#, "events.max_events: must be more than 0"),
            (r#"{"max_events": 0, "ack_timeout_ms": 5}"#, "events.ack_timeout_ms: must be at least 100"),
        ] {
            let told = refusal(json);
            assert!(told.contains(text) && !told.contains("hush"), "{json}: {told}");
        }
    }
}
