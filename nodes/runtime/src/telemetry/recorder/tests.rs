//! What is recorded is gathered.

use metrics::{counter, gauge, histogram, with_local_recorder};

use super::*;
use crate::exposition::Exposition;

fn text(recorder: &Recorder) -> String {
    let mut exposition = Exposition::default();
    exposition.add(recorder.gather(), None);
    exposition.render()
}

#[test]
fn each_kind_is_shown_as_it_was_recorded() {
    let recorder = Recorder::default();
    with_local_recorder(&recorder, || {
        metrics::describe_counter!("hits_total", "Hits.");
        counter!("hits_total", "way" => "in").increment(2);
        counter!("hits_total", "way" => "in").increment(1);
        gauge!("heat").set(-1.5);
        gauge!("cold").set(f64::NEG_INFINITY);
        for value in [0.0001, 0.00011, 70.0] {
            histogram!("wait_seconds").record(value);
        }
        histogram!("body_bytes").record(1e9);
    });
    let text = text(&recorder);
    for line in [
        "# HELP hits_total Hits.",
        "# TYPE hits_total counter",
        "hits_total{way=\"in\"} 3",
        "# TYPE heat gauge",
        "heat -1.5",
        "cold -Inf",
        "# TYPE wait_seconds histogram",
        "wait_seconds_bucket{le=\"0.0001\"} 1",
        "wait_seconds_bucket{le=\"0.00025\"} 2",
        "wait_seconds_bucket{le=\"60\"} 2",
        "wait_seconds_bucket{le=\"+Inf\"} 3",
        "wait_seconds_sum 70.00021",
        "wait_seconds_count 3",
        "body_bytes_bucket{le=\"268435456\"} 0",
        "body_bytes_bucket{le=\"1073741824\"} 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
}

#[test]
fn labels_without_bound_are_bounded() {
    let recorder = Recorder::default();
    with_local_recorder(&recorder, || {
        for client in 0..SERIES + 10 {
            counter!("clients_total", "client" => client.to_string()).increment(1);
        }
        counter!("clients_total", "client" => "0").increment(1);
        gauge!("clients_total", "client" => "0").set(7);
    });
    let gathered = recorder.gather();
    assert_eq!(gathered[0].samples.len(), SERIES);
    assert!(text(&recorder).contains("clients_total{client=\"0\"} 2\n"), "those that are kept go on");
}
