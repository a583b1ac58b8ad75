//! What the section may say, and which requests it chooses.

use super::*;

#[test]
fn row_bad_configuration_every_mistake_is_told_with_its_key() {
    let told = |settings: Settings| {
        let mut problems = Problems::default();
        settings.check(&mut problems);
        problems.finish().map_err(|error| error.to_string())
    };
    assert_eq!(told(Settings::default()), Ok(()));
    let good = Settings {
        otlp: Some("https://collector.example:4318/base/".to_owned()),
        sample: 1.0,
        ..Settings::default()
    };
    assert_eq!(told(good), Ok(()));
    for otlp in ["", "127.0.0.1:4318", "localhost:4318", "grpc://127.0.0.1:4317", "http://", "file:///x"] {
        let error = told(Settings { otlp: Some(otlp.to_owned()), ..Settings::default() }).unwrap_err();
        assert!(error.starts_with("trace.otlp: ") && error.lines().count() == 1, "{otlp}: {error}");
    }
    for sample in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let error = told(Settings { sample, ..Settings::default() }).unwrap_err();
        assert_eq!(error, "trace.sample: must be from 0 to 1", "{sample}");
    }
    let all =
        Settings { otlp: Some(String::new()), sample: 2.0, service_name: String::new(), trust_parent: true };
    assert_eq!(told(all).unwrap_err().lines().count(), 3);
}

#[test]
fn a_request_is_chosen_by_its_own_number_and_by_its_parent_only_if_that_is_trusted() {
    let takes = |sample, trust_parent, drawn, by_parent| {
        Sampling::of(&Settings { sample, trust_parent, ..Settings::default() }).takes(drawn, by_parent)
    };
    let quarter = 1 << 62;
    for (sample, drawn, chosen) in [
        (0.0, 0, false),
        (1.0, 0, true),
        (1.0, u64::MAX, true),
        (0.25, quarter - 1, true),
        (0.25, quarter, false),
        (0.01, u64::MAX / 101, true),
        (0.01, u64::MAX / 99, false),
    ] {
        for by_parent in [false, true] {
            assert_eq!(takes(sample, false, drawn, by_parent), chosen, "{sample} {drawn}");
            assert_eq!(takes(sample, true, drawn, by_parent), chosen || by_parent, "{sample} {drawn}");
        }
    }
}
