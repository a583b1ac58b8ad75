use std::time::Instant;

use serde_json::json;

use super::*;

fn sample(at: Instant, pid: u32, cpu: f64, requests: u64) -> Sample {
    let status = json!({"pid": 1, "uptime_ms": 61_000, "ready": true, "draining": false, "children": [
        {"index": 0, "state": "RUNNING", "pid": pid, "uptime_ms": 60_000, "restarts": 2}]});
    let of = |child: &str, name: &str, value: serde_json::Value| {
        let labels = if child.is_empty() { json!({}) } else { json!({"child": child}) };
        json!({"name": name, "labels": labels, "value": value})
    };
    let measures = json!([
        of("", "process_cpu_seconds_total", json!(1.0)),
        of("", "protoplex_seed_leading", json!(1)),
        of("", "protoplex_seed_keys", json!(12)),
        of("0", "process_cpu_seconds_total", json!(cpu)),
        of("0", "process_resident_memory_bytes", json!(3 << 20)),
        of("0", "process_open_fds", json!(20)),
        of("0", "protoplex_http_connections", json!(7)),
        of("0", "protoplex_http_requests_total", json!(requests)),
    ]);
    Sample::read(status, measures, at).unwrap()
}

#[test]
fn rates_are_of_the_time_between_two_looks_at_one_process() {
    let began = Instant::now();
    let before = sample(began, 2, 10.0, 1000);
    let now = sample(began + Duration::from_secs(2), 2, 11.0, 1500);
    let rows = rows("proxy-1", "proxy", &now, Some(&before));
    assert_eq!(rows[0].cells()[..5], ["proxy-1", "RUNNING", "1", "0:01:01", "0.0"]);
    let child = ["proxy-1:0", "RUNNING", "2", "0:01:00", "50.0", "3.0 MiB", "20", "7", "250", "2 restarts"];
    assert_eq!(rows[1].cells(), child);

    let anew = sample(began + Duration::from_secs(2), 3, 0.1, 5);
    let rows = super::rows("proxy-1", "proxy", &anew, Some(&before));
    assert_eq!((rows[1].cpu, rows[1].requests), (None, None), "another process");
    let first = super::rows("proxy-1", "proxy", &now, None);
    assert_eq!((first[1].cpu, first[1].requests), (None, None));
}

fn away(standing: Standing, seconds: u64) -> Row {
    absent("live-1", "live", Absence { standing, time: Duration::from_secs(seconds) })
}

#[test]
fn a_node_that_does_not_answer_is_shown_with_since_when() {
    let cells = ["live-1", "SILENT", "-", "-", "-", "-", "-", "-", "-", "no answer for 0:00:02"];
    assert_eq!(away(Standing::Here, 2).cells(), cells);
    let row = away(Standing::Unknown, 75);
    assert_eq!(
        (row.state.as_str(), row.note.as_str(), row.silent_ms),
        ("UNKNOWN", "not heard of for 0:01:15", Some(75_000))
    );
    assert_eq!(away(Standing::Lost, 1).state, "LOST");
}

#[test]
fn a_node_that_waits_is_shown_as_in_status_and_an_old_leader_without_its_keys() {
    let status = json!({"pid": 1, "uptime_ms": 1, "ready": false, "draining": false, "children": [],
        "reason": "it has not joined a seed"});
    let measures = json!([
        {"name": "protoplex_seed_leading", "labels": {}, "value": 0},
        {"name": "protoplex_seed_keys", "labels": {}, "value": 12}]);
    let sample = Sample::read(status, measures, Instant::now()).unwrap();
    let rows = rows("seed-2", "seed", &sample, None);
    assert_eq!(rows[0].state, "WAITING");
    assert_eq!(rows[0].note, "it has not joined a seed, waits to lead");
}

#[test]
fn the_overview_adds_up_and_names_the_leader() {
    let began = Instant::now();
    let (before, now) = (sample(began, 2, 0.0, 0), sample(began + Duration::from_secs(1), 2, 0.5, 10));
    let mut all = rows("seed-1", "seed", &now, Some(&before));
    all.push(away(Standing::Here, 1));
    let overview = Overview::of(&all, 2, &[("seed-1".to_owned(), now)].into(), Some(7));
    let text = "seed-1 leads, 12 keys · 1 of 2 nodes ready · 10 req/s · 7 connections · CPU 50 % · 3.0 MiB";
    assert_eq!(overview.text(), text);
    let other = Overview::of(&[], 1, &BTreeMap::new(), Some(7));
    assert!(other.text().starts_with("a seed leads, in term 7 · 0 of 1 node ready"));
    let nobody = Overview::of(&[], 1, &BTreeMap::new(), None);
    assert!(nobody.text().starts_with("no seed leads · 0 of 1 node ready · 0 req/s"));
}

#[test]
fn rows_are_sorted_by_what_is_asked_for() {
    let row = |node: &str, child, cpu, memory_bytes| Row {
        child,
        cpu,
        memory_bytes,
        node: node.to_owned(),
        ..Row::default()
    };
    let rows = vec![row("b", None, None, 3), row("a", Some(10), Some(1.0), 2), row("a", None, Some(2.0), 2)];
    let mut table = Table { overview: Overview::default(), rows };
    let mut order = |by, is_reversed| {
        table.sort(by, is_reversed);
        table.rows.iter().map(Row::name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(order(Sort::Name, false), "a a:10 b");
    assert_eq!(order(Sort::Name, true), "b a:10 a");
    assert_eq!(order(Sort::Cpu, false), "a a:10 b");
    assert_eq!(order(Sort::Memory, false), "b a a:10");
    assert_eq!(order(Sort::Memory, true), "a:10 a b");
}
