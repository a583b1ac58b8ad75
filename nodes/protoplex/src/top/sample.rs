//! What a node said of itself and its processes at one moment.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

/// Which measures are asked for, by the beginnings of their names.
pub(super) const MEASURES: [&str; 8] = [
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "protoplex_http_requests_total",
    "protoplex_http_connections",
    "protoplex_live_subscribers",
    "protoplex_seed_keys",
    "protoplex_seed_leading",
];

/// One node at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) page: Page,
    /// By child; `None` is the parent, or the one process that there is.
    pub(super) processes: BTreeMap<Option<u32>, Usage>,
}

/// What is of interest of a node's status page.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) pid: u32,
    pub(super) uptime_ms: u64,
    pub(super) ready: bool,
    pub(super) draining: bool,
    /// Why it isn't ready, where it knows.
    #[serde(default)]
    pub(super) reason: String,
    pub(super) children: Vec<Child>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Child {
    pub(super) index: u32,
    pub(super) state: String,
    pub(super) pid: Option<u32>,
    pub(super) uptime_ms: u64,
    pub(super) restarts: u32,
}

/// What one process uses, and what it has done since it was started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) memory_bytes: u64,
    pub(super) files: u64,
    /// Of those that serve HTTP.
    pub(super) connections: Option<u64>,
    pub(super) requests: Option<f64>,
    /// Of a seed that leads, and of a live node.
    pub(super) keys: Option<u64>,
    pub(super) subscribers: Option<u64>,
    pub(super) leads: Option<bool>,
}

#[derive(Deserialize)]
struct Measure {
    name: String,
    labels: BTreeMap<String, String>,
    value: Value,
}

impl Sample {
    /// Of the answers to `status` and `metrics`; none where they are not what they should be.
    pub(super) fn read(status: Value, measures: Value, at: Instant) -> Option<Self> {
        let page = serde_json::from_value(status).ok()?;
        let mut processes: BTreeMap<_, Usage> = BTreeMap::new();
        for measure in serde_json::from_value::<Vec<Measure>>(measures).ok()? {
            let child = measure.labels.get("child").and_then(|child| child.parse().ok());
            let Some(value) = measure.value.as_f64() else { continue };
            processes.entry(child).or_default().add(&measure.name, value);
        }
        Some(Self { at, page, processes })
    }
}

impl Usage {
    fn add(&mut self, name: &str, value: f64) {
        // Counts are whole and never negative.
        let count = value as u64;
        match name {
            "process_cpu_seconds_total" => self.cpu_seconds = value,
            "process_resident_memory_bytes" => self.memory_bytes = count,
            "process_open_fds" => self.files = count,
            "protoplex_http_connections" => *self.connections.get_or_insert_default() += count,
            "protoplex_http_requests_total" => *self.requests.get_or_insert_default() += value,
            "protoplex_live_subscribers" => *self.subscribers.get_or_insert_default() += count,
            "protoplex_seed_keys" => *self.keys.get_or_insert_default() += count,
            "protoplex_seed_leading" => self.leads = Some(value > 0.0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn measures_are_of_their_processes() {
        let status = json!({"pid": 1, "uptime_ms": 5, "ready": true, "draining": false, "children": [
            {"index": 0, "state": "RUNNING", "pid": 2, "uptime_ms": 4, "restarts": 0}], "more": 1});
        let measure = |name: &str, child: Option<&str>, value: Value| {
            let labels = child.map_or(json!({}), |child| json!({"child": child, "method": "GET"}));
            json!({"name": name, "labels": labels, "value": value})
        };
        let measures = json!([
            measure("process_cpu_seconds_total", None, json!(1.5)),
            measure("process_cpu_seconds_total", Some("0"), json!(2.5)),
            measure("protoplex_http_requests_total", Some("0"), json!(3)),
            measure("protoplex_http_requests_total", Some("0"), json!(4)),
            measure("protoplex_http_connections_total", Some("0"), json!(1000)),
            measure("process_open_fds", Some("0"), json!("+Inf")),
        ]);
        let sample = Sample::read(status.clone(), measures, Instant::now()).unwrap();
        assert_eq!(sample.processes[&None], Usage { cpu_seconds: 1.5, ..Usage::default() });
        let child = Usage { cpu_seconds: 2.5, requests: Some(7.0), ..Usage::default() };
        assert_eq!(sample.processes[&Some(0)], child);
        assert!(Sample::read(json!({}), json!([]), Instant::now()).is_none());
        assert!(Sample::read(status, json!({"a": 1}), Instant::now()).is_none());
    }
}
