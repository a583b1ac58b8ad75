//! What Prometheus reads.

use super::*;

fn family(name: &str, kind: Kind, samples: &[(&str, &str, &str)]) -> Family {
    let mut family = Family::new(name, kind, "Help \\ with\nlines.");
    for (suffix, labels, value) in samples {
        family.push(suffix, (*labels).to_owned(), value);
    }
    family
}

#[test]
fn series_of_all_processes_stand_under_one_heading() {
    let mut exposition = Exposition::default();
    exposition.add(vec![family("b_total", Kind::Counter, &[("", "", "1")])], None);
    for child in [0, 1] {
        let histogram = [("_bucket", "le=\"+Inf\"", "2"), ("_sum", "", "0.5"), ("_count", "", "2")];
        let families = [
            family("b_total", Kind::Counter, &[("", "way=\"in\"", "2"), ("", "", "3")]),
            family("a_seconds", Kind::Histogram, &histogram),
        ];
        exposition.add(families.to_vec(), Some(child));
    }
    let expected = r#"# HELP a_seconds Help \\ with\nlines.
# TYPE a_seconds histogram
a_seconds_bucket{child="0",le="+Inf"} 2
a_seconds_sum{child="0"} 0.5
a_seconds_count{child="0"} 2
a_seconds_bucket{child="1",le="+Inf"} 2
a_seconds_sum{child="1"} 0.5
a_seconds_count{child="1"} 2
# HELP b_total Help \\ with\nlines.
# TYPE b_total counter
b_total 1
b_total{child="0",way="in"} 2
b_total{child="0"} 3
b_total{child="1",way="in"} 2
b_total{child="1"} 3
"#;
    assert_eq!(exposition.render(), expected);
}

#[test]
fn a_process_that_disagrees_about_a_kind_is_left_out() {
    let mut exposition = Exposition::default();
    exposition.add(vec![family("a", Kind::Gauge, &[("", "", "1")])], Some(0));
    exposition.add(vec![family("a", Kind::Counter, &[("", "", "2")])], Some(1));
    exposition.add(vec![family("empty", Kind::Counter, &[])], Some(1));
    assert_eq!(exposition.render(), "# HELP a Help \\\\ with\\nlines.\n# TYPE a gauge\na{child=\"0\"} 1\n");
}

#[test]
fn values_of_labels_are_escaped() {
    assert_eq!(labels([("a", "\\\"\n"), ("b", "")]), r#"a="\\\"\n",b="""#);
}

#[test]
fn values_are_told_with_the_labels_that_they_were_given() {
    let awkward = [("path", "a\"b\\c\nd,e=\"f"), ("method", "GET"), ("empty", "")];
    let mut family = Family::new("requests", Kind::Histogram, "");
    family.push("_sum", labels(awkward), 1.5);
    family.push("_bucket", String::new(), "+Inf");
    let mut exposition = Exposition::default();
    exposition.add(vec![family, Family::new("other", Kind::Gauge, "")], Some(1));
    let measures = exposition.measures(&["req"]);
    let expected = awkward.iter().copied().chain([("child", "1")]);
    assert_eq!(
        measures[0].labels,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    );
    assert_eq!((measures[0].name.as_str(), &measures[0].value), ("requests_sum", &1.5.into()));
    assert_eq!(measures[1].value, "+Inf");
    assert!(exposition.measures(&["x", "requests_s"]).len() == 1 && exposition.measures(&["x"]).is_empty());
    assert_eq!(exposition.measures(&[]).len(), 2);
}
