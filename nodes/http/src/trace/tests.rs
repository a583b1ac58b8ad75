//! What is taken of a client's trace, and what an upstream is told of it.

use http::{HeaderValue, Request};

use super::*;

const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn head(fields: &[(&'static str, &str)]) -> RequestHead {
    let mut request = Request::new(());
    for (name, value) in fields {
        request.headers_mut().append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    RequestHead::of_parts(&request.into_parts().0)
}

fn told(fields: &[(&'static str, &str)]) -> (Trace, String) {
    let trace = Trace::of(&head(fields));
    (trace, String::from_utf8(trace.traceparent().to_vec()).unwrap())
}

#[test]
fn a_sound_trace_goes_on_with_a_new_parent() {
    for (given, flags) in [
        (format!("00-{ID}-{PARENT}-01"), "01"),
        (format!("00-{ID}-{PARENT}-00"), "00"),
        // Flags that nobody knows are not ours to say.
        (format!("00-{ID}-{PARENT}-fe"), "00"),
        (format!("00-{ID}-{PARENT}-ff"), "01"),
        // Later versions.
        (format!("01-{ID}-{PARENT}-01"), "01"),
        (format!("fe-{ID}-{PARENT}-01-and-more"), "01"),
        (format!("cc-{ID}-{PARENT}-01-"), "01"),
    ] {
        let (trace, sent) = told(&[("traceparent", &given)]);
        assert_eq!(trace.id(), ID.as_bytes(), "{given}");
        assert_eq!(trace.parent.unwrap(), PARENT.as_bytes(), "{given}");
        let (start, parent, end) = (&sent[..36], &sent[36..52], &sent[52..]);
        assert_eq!((start, end), (format!("00-{ID}-").as_str(), format!("-{flags}").as_str()), "{given}");
        assert!(is_id(parent.as_bytes()) && parent != PARENT, "{sent}");
        assert_ne!(told(&[("traceparent", &given)]).1, sent);
    }
}

#[test]
fn row_a_broken_trace_is_not_taken() {
    let sound = format!("00-{ID}-{PARENT}-01");
    let rows = [
        String::new(),
        "00".to_owned(),
        sound[..54].to_owned(),
        format!("{sound}0"),
        format!("{sound}-"),
        format!("{sound}-00"),
        format!("ff-{ID}-{PARENT}-01"),
        format!("0-{ID}-{PARENT}-001"),
        format!("0A-{ID}-{PARENT}-01"),
        format!("01-{ID}-{PARENT}-01x"),
        format!("01-{ID}-{PARENT}-011"),
        format!("00_{ID}-{PARENT}-01"),
        format!("00-{ID}_{PARENT}-01"),
        format!("00-{ID}-{PARENT}_01"),
        format!("00-{}-{PARENT}-01", ID.to_uppercase()),
        format!("00-{ID}-{}-01", PARENT.to_uppercase()),
        format!("00-{ID}-{PARENT}-0A"),
        format!("00-{ID}-{PARENT}-0g"),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        format!("00-{ID}-{}-01", "0".repeat(16)),
        format!("00-{}-{PARENT}-01", &ID[1..]),
        format!("00-{ID}0-{PARENT}-01"),
        format!("00-{ID}-{PARENT}-1"),
        format!("00-{}g-{PARENT}-01", &ID[1..]),
        format!("00-é{}-{PARENT}-01", &ID[2..]),
        format!("{sound},{sound}"),
    ];
    for given in rows {
        let (trace, sent) = told(&[("traceparent", &given), ("tracestate", "a=1")]);
        assert!(trace.parent.is_none() && is_id(trace.id()) && !sent.contains(ID), "{given:?}: {sent}");
        assert!(sent.starts_with("00-") && sent.ends_with("-00"), "{given:?}: {sent}");
        assert!(!trace.keeps_state(&head(&[("tracestate", "a=1")]).fields), "{given:?}");
    }
    let (trace, _) = told(&[("traceparent", &sound), ("traceparent", &sound)]);
    assert!(trace.parent.is_none(), "of several none is taken");
}

#[test]
fn a_state_goes_on_with_its_trace_while_it_is_short() {
    let (longest, long) = (format!("a={}", "x".repeat(510)), format!("a={}", "x".repeat(511)));
    let half = format!("a={}", "x".repeat(254));
    let given = format!("00-{ID}-{PARENT}-01");
    let (taken, _) = told(&[("traceparent", &given)]);
    let (made, _) = told(&[]);
    for (states, keeps) in [
        (&[][..], true),
        (&["a=1,b=2"], true),
        (&[&longest], true),
        (&[&long], false),
        // With the comma between them one more than there may be.
        (&[&half, &half], false),
        (&[&half, &half[1..]], true),
    ] {
        let fields: Vec<_> = states.iter().map(|state| ("tracestate", *state)).collect();
        let head = head(&fields);
        assert_eq!(taken.keeps_state(&head.fields), keeps, "{states:?}");
        assert!(!made.keeps_state(&head.fields), "{states:?}");
    }
}

#[test]
fn ids_are_random_and_none_is_of_zeros() {
    let drawn: std::collections::HashSet<_> = (0..1000).map(|_| draw()).collect();
    assert_eq!(drawn.len(), 1000);
    assert!(drawn.iter().all(|digits| is_id(&digits[..SPAN_DIGITS]) && is_id(&digits[SPAN_DIGITS..])));
}

#[test]
fn where_traces_are_exported_the_flag_tells_whether_this_one_is() {
    use protoplex_runtime::telemetry::trace::Settings;
    let flag = |sample, trust_parent, given: &str| {
        let settings = Settings { sample, trust_parent, ..Settings::default() };
        let sampling = Sampling::of(&settings, b"secret");
        let head = head(&[("traceparent", &format!("00-{ID}-{PARENT}-{given}"))]);
        let trace = Trace::sampled(&head, Some(&sampling));
        assert_eq!(trace.traceparent()[54], b'0' + u8::from(trace.is_sampled()));
        trace.is_sampled()
    };
    // A stranger can't have us export.
    assert!(!flag(0.0, false, "01") && flag(0.0, true, "01"));
    assert!(!flag(0.0, true, "00") && flag(1.0, true, "00"));
    assert!(flag(1.0, false, "00") && flag(1.0, false, "01"));
}
