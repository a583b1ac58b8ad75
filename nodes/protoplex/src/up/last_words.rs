//! The gravest thing that a node has said since `up` was started, for whoever is told that it did not become ready.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use protoplex_runtime::telemetry::Record;
use serde_json::Value;

/// How much of the log's end is looked at, in bytes.
const SEARCHED_BYTES: u64 = 1 << 20;
/// The gravest first.
const GRAVE: [&str; 2] = ["ERROR", "WARN"];
/// By what an event says why.
const WHY: [&str; 3] = ["error", "reason", "panic"];

/// Its last error, or else its last warning, in the log from this byte on.
pub(super) fn of(node: &str, log: &Path, begin: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.metadata().ok()?.len();
    // A log that was put aside meanwhile is another file, all of it new.
    let begin = if end < begin { 0 } else { begin };
    file.seek(SeekFrom::Start(begin.max(end.saturating_sub(SEARCHED_BYTES)))).ok()?;
    let mut text = Vec::new();
    file.take(SEARCHED_BYTES).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    GRAVE.into_iter().find_map(|level| text.lines().rev().find_map(|line| said(line, level, node)))
}

/// What the line says, where it is of this level and node.
fn said(line: &str, level: &str, node: &str) -> Option<String> {
    let is_its = |origin: &str| origin.split(':').next() == Some(node);
    let Ok(record) = serde_json::from_str::<Record>(line) else {
        // As text: time, level, origin.
        let mut words = line.split_whitespace().skip(1);
        let its = words.next() == Some(level) && words.next().is_some_and(is_its);
        return its.then(|| line.to_owned());
    };
    if record.level != level || record.node != node {
        return None;
    }
    let message = record.message.as_str().unwrap_or_default().to_owned();
    let why = WHY.into_iter().find_map(|name| record.fields.get(name)).and_then(Value::as_str);
    Some(why.map_or_else(|| message.clone(), |why| format!("{message}: {why}")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(level: &str, node: &str, message: &str, error: &str) -> String {
        format!(
            "{{\"time\":\"t\",\"level\":\"{level}\",\"node\":\"{node}\",\"target\":\"x\",\"message\":\"{message}\",\
             \"error\":\"{error}\"}}\n"
        )
    }

    #[test]
    fn the_last_error_counts_and_without_one_the_last_warning() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let earlier = line("ERROR", "seed-1", "earlier", "of the last start");
        let rest = [
            line("ERROR", "seed-1", "can't run", "no disk"),
            line("WARN", "seed-1", "later", "but only a warning"),
            line("ERROR", "seed-10", "another", "node"),
            line("WARN", "proxy-1", "slow", "it says"),
            "2026-01-01T00:00:00Z ERROR live-1:0 protoplex_live: broken\n".to_owned(),
        ];
        fs::write(&log, format!("{earlier}{}", rest.concat())).unwrap();
        let begin = earlier.len() as u64;
        let table = [
            ("seed-1", Some("can't run: no disk")),
            ("proxy-1", Some("slow: it says")),
            ("live-1", Some("2026-01-01T00:00:00Z ERROR live-1:0 protoplex_live: broken")),
            ("fileserver-1", None),
        ];
        for (node, words) in table {
            assert_eq!(of(node, &log, begin).as_deref(), words, "{node}");
        }
        fs::write(&log, &earlier).unwrap();
        assert_eq!(of("seed-1", &log, u64::MAX).as_deref(), Some("earlier: of the last start"), "put aside");
        assert_eq!(of("seed-1", &folder.path().join("none"), 0), None);
    }
}
