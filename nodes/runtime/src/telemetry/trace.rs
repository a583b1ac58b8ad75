//! Which requests are exported to a collector of traces, what is told of them, and the section `[trace]` that says so.

mod exporter;

use std::hash::{DefaultHasher, Hasher};
use std::sync::OnceLock;
use std::time::SystemTime;

use protoplex_wire::identity;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::TelemetryError;
use crate::config::{Common, Problems};
pub use exporter::Exporter;

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// Where traces go and which. Also the section `[trace]` of a configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where an OpenTelemetry collector takes OTLP over HTTP, `http://127.0.0.1:4318`; without it nothing is exported.
    pub otlp: Option<String>,
    /// How many of all traces are exported: from 0 to 1, by chance, and by all nodes the same.
    pub sample: f64,
    /// Besides, those of which the client says that it exports them (the flag of `traceparent`).
    pub trust_parent: bool,
    /// What the collector knows the whole cluster by.
    pub service_name: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { otlp: None, sample: 0.01, trust_parent: false, service_name: "protoplex".to_owned() }
    }
}

impl Settings {
    /// Checks the section `[trace]`; what is wrong goes to `problems`.
    pub fn check(&self, problems: &mut Problems) {
        if let Some(otlp) = &self.otlp {
            match Url::parse(otlp) {
                Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => {}
                Ok(_) => problems.add("trace.otlp", "must be a URL as http://127.0.0.1:4318"),
                Err(error) => problems.add("trace.otlp", error),
            }
        }
        if !(0.0..=1.0).contains(&self.sample) {
            problems.add("trace.sample", "must be from 0 to 1");
        }
        if self.service_name.is_empty() {
            problems.add("trace.service_name", "must not be empty");
        }
    }
}

/// Decides which traces are exported: by their ids together with a secret of the cluster, so that all nodes choose the
/// same ones, and no client can make an id that is chosen.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Of the 2^64 values that an id may hash to, so many have its trace exported: the lowest ones.
    chosen: u128,
    /// Has taken the secret.
    keyed: DefaultHasher,
    trust_parent: bool,
}

impl Sampling {
    /// As it is configured, with the cluster's secret.
    pub fn of(settings: &Settings, secret: &[u8]) -> Self {
        let chosen = (settings.sample * (u64::MAX as f64 + 1.0)) as u128;
        let mut keyed = DefaultHasher::new();
        keyed.write(secret);
        Self { chosen, keyed, trust_parent: settings.trust_parent }
    }

    /// Whether a request of this trace, whose client exports it or not, is exported.
    pub fn takes(&self, trace: &[u8; 32], by_parent: bool) -> bool {
        let mut hasher = self.keyed.clone();
        hasher.write(trace);
        u128::from(hasher.finish()) < self.chosen || (by_parent && self.trust_parent)
    }
}

/// A part of a request's way that has ended.
#[derive(Debug)]
pub struct Span {
    /// The trace's id: 32 hexadecimal digits.
    pub trace: [u8; 32],
    /// Its own id: 16 hexadecimal digits.
    pub id: [u8; 16],
    /// The span within which it was.
    pub parent: Option<[u8; 16]>,
    /// Whose side it is.
    pub kind: Kind,
    /// What it is called in lists.
    pub name: &'static str,
    /// Its start.
    pub start: SystemTime,
    /// Its end.
    pub end: SystemTime,
    /// Whether it came to a bad end.
    pub failed: bool,
    /// What else is known, by the semantic conventions of OpenTelemetry.
    pub attributes: Vec<(&'static str, Value)>,
}

/// Whose side a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That of whoever is asked; its parent is elsewhere.
    Server,
    /// That of whoever asks.
    Client,
}

/// The value of an attribute.
#[derive(Debug)]
pub enum Value {
    /// One of our words.
    Word(&'static str),
    /// Anything.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// Lets the spans of this process go to the configured collector, if there is one. The `secret` is the cluster's, and told
/// nobody. The first call of a process counts.
///
/// # Errors
/// There can be no exporter.
pub fn start(settings: &Settings, node: &str, child: u32, secret: &[u8]) -> Result<(), TelemetryError> {
    if let Some(exporter) = Exporter::start(settings, node, child, secret)? {
        // It fails where this is not the first call.
        let _ = EXPORTER.set(exporter);
    }
    Ok(())
}

/// The same for a child of a node, which finds the cluster's secret in the data directory.
pub(crate) fn start_child(common: &Common, child: u32) -> Result<(), TelemetryError> {
    let Some(collector) = &common.trace.otlp else { return Ok(()) };
    let key = identity::node_key(&common.data.join("cluster"))
        .map_err(|error| TelemetryError::Trace { collector: collector.clone(), reason: error.to_string() })?;
    start(&common.trace, &common.node, child, &key)
}

/// Where this process's spans go, if anywhere.
pub fn exporter() -> Option<&'static Exporter> {
    EXPORTER.get()
}

/// Has everything exported that waits, as far as that is possible within a second. Blocking; for the end of the process.
pub(crate) fn finish() {
    if let Some(exporter) = exporter() {
        exporter.finish();
    }
}

#[cfg(test)]
mod tests;
