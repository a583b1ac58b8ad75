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

/// How many of 10,000 traces are chosen.
fn chosen(sampling: &Sampling, by_parent: bool) -> usize {
    ids().filter(|id| sampling.takes(id, by_parent)).count()
}

fn ids() -> impl Iterator<Item = [u8; 32]> {
    (0..10_000).map(|number: u32| format!("{number:032x}").into_bytes().try_into().unwrap())
}

#[test]
fn as_many_traces_are_chosen_as_configured_and_by_their_parents_only_if_those_are_trusted() {
    let of = |sample, trust_parent| {
        Sampling::of(&Settings { sample, trust_parent, ..Settings::default() }, b"secret")
    };
    for (sample, least, most) in
        [(0.0, 0, 0), (0.01, 60, 140), (0.25, 2300, 2700), (0.5, 4800, 5200), (1.0, 10_000, 10_000)]
    {
        for by_parent in [false, true] {
            let found = chosen(&of(sample, false), by_parent);
            assert!((least..=most).contains(&found), "{sample}: {found}");
        }
        assert_eq!(chosen(&of(sample, true), false), chosen(&of(sample, false), false), "{sample}");
        assert_eq!(chosen(&of(sample, true), true), 10_000, "{sample}");
    }
}

#[test]
fn all_nodes_of_a_cluster_choose_alike_and_nobody_knows_how_without_its_secret() {
    let settings = Settings { sample: 0.5, ..Settings::default() };
    let of = |secret: &[u8]| Sampling::of(&settings, secret);
    let (ours, sibling, other) = (of(b"secret"), of(b"secret"), of(b"Secret"));
    assert!(ids().all(|id| ours.takes(&id, false) == sibling.takes(&id, false)));
    let alike = ids().filter(|id| ours.takes(id, false) == other.takes(id, false)).count();
    assert!((4800..5200).contains(&alike), "{alike}");
}
