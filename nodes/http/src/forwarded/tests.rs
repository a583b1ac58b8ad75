//! What goes and what comes in a relayed head.

use http::Method;
use http::header::{CONNECTION, FORWARDED, HeaderMap, HeaderName, TE, UPGRADE, VIA};
use protoplex_runtime::config::Problems;

use super::*;
use crate::Body;
use crate::exchange::{Client, Request, Response, Scheme};
use crate::fronts::Fronts;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn exchange(request: &Request, trusted: bool) -> Exchange {
    let proxies: &[String] = if trusted { &["192.0.2.0/24".to_owned()] } else { &[] };
    let fronts = Fronts::resolve(None, proxies, "proxy", &mut Problems::default());
    let client = Client::behind(&fronts, "192.0.2.7:4000".parse().unwrap(), Scheme::Https);
    let (head, ()) = {
        let mut copy = http::Request::new(());
        *copy.headers_mut() = request.headers().clone();
        copy.into_parts()
    };
    Exchange::of(&client, RequestHead::of_parts(&head))
}

fn with(fields: &[(&str, &str)]) -> Request {
    let mut request = http::Request::builder().method(Method::GET).uri("/");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

fn relayed(fields: &[(&str, &str)], trusted: bool) -> HeaderMap {
    request_head(&exchange(&with(fields), trusted)).fields().to_map()
}

#[test]
fn hop_by_hop_fields_go_and_so_do_those_that_connection_names() {
    let headers = relayed(
        &[
            ("host", "a"),
            ("connection", "close, X-Secret, Host, X-Forwarded-For"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip"),
            ("upgrade", "websocket"),
            ("forwarded", "for=1.2.3.4"),
            ("trailer", "Digest"),
            ("x-kept", "yes"),
        ],
        false,
    );
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "forwarded",
        "host",
        "traceparent",
        "trailer",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-kept",
        "x-request-id",
    ];
    assert_eq!(names, expected);
    assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(headers[X_FORWARDED_PROTO], "https");
    assert_eq!(headers[X_FORWARDED_HOST], "a");
    assert_eq!(headers[FORWARDED], "for=192.0.2.7;proto=https;host=a");
    assert_eq!(headers[VIA], "1.1 protoplex");
}

#[test]
fn te_trailers_and_a_requested_upgrade_go_on() {
    let headers = relayed(&[("host", "a"), ("connection", "TE"), ("te", "trailers, deflate;q=0.5")], false);
    assert_eq!(headers[TE], "trailers");
    assert_eq!(headers[CONNECTION], "te");
    let headers =
        relayed(&[("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], false);
    assert_eq!(headers[UPGRADE], "websocket");
    assert_eq!(headers[CONNECTION], "upgrade");
}

#[test]
fn an_upgrade_to_h2c_is_not_relayed() {
    let headers = relayed(
        &[
            ("host", "a"),
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQ"),
        ],
        false,
    );
    assert!(!headers.contains_key(UPGRADE) && !headers.contains_key(CONNECTION));
    assert!(!headers.contains_key("http2-settings"));
}

#[test]
fn what_a_client_says_of_its_way_counts_only_if_it_is_trusted() {
    let said = [
        ("host", "a"),
        ("x-forwarded-for", "198.51.100.1"),
        ("x-forwarded-for", "198.51.100.2"),
        ("x-forwarded-proto", "http"),
    ];
    let headers = relayed(&said, false);
    assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(headers[X_FORWARDED_PROTO], "https");
    let headers = relayed(&said, true);
    assert_eq!(headers[X_FORWARDED_FOR], "198.51.100.1, 198.51.100.2, 192.0.2.7");
    assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().count(), 1);
    assert_eq!(headers[X_FORWARDED_PROTO], "http");
}

#[test]
fn what_only_we_may_say_is_dropped_in_every_spelling() {
    let forged = [
        ("host", "a"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("x_real_ip", "10.0.0.1"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "/admin"),
        ("x_forwarded_for", "10.0.0.1"),
        ("x-forwarded_proto", "https"),
        ("protoplex-key", "k"),
        ("protoplex_epoch", "9"),
        ("protoplex-else", "1"),
        ("x_request_id", "forged"),
        ("content_length", "9"),
        ("x_own", "kept"),
    ];
    let headers = relayed(&forged, false);
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "forwarded",
        "host",
        "traceparent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
        "x_own",
    ];
    assert_eq!(names, expected);
    assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(headers[FORWARDED], "for=192.0.2.7;proto=https;host=a");
    // A trusted proxy may have passed on what its client said.
    let headers = relayed(&forged, true);
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let mut with_real_ip = expected.to_vec();
    with_real_ip.insert(7, "x-real-ip");
    assert_eq!(names, with_real_ip);
    assert_eq!(headers[FORWARDED], "for=10.0.0.1, for=192.0.2.7;proto=https;host=a");
    assert_eq!(headers["x-real-ip"], "10.0.0.1");
}

#[test]
fn forwarded_and_x_forwarded_for_tell_the_same_way() {
    let way = |said: &[(&str, &str)]| {
        let headers = relayed(&[&[("host", "a.example:8080")], said].concat(), true);
        let text = |name: HeaderName| headers[name].to_str().unwrap().to_owned();
        (text(X_FORWARDED_FOR), text(FORWARDED))
    };
    let ours = "for=192.0.2.7;proto=https;host=\"a.example:8080\"";
    for (said, for_list, elements) in [
        (&[][..], "", ""),
        (
            &[("x-forwarded-for", "198.51.100.1, 2001:db8::1")],
            "198.51.100.1, 2001:db8::1, ",
            "for=198.51.100.1, for=\"[2001:db8::1]\", ",
        ),
        (
            &[("x-forwarded-for", "198.51.100.1, what, 10.0.0.1:80")],
            "198.51.100.1, what, 10.0.0.1:80, ",
            "for=10.0.0.1, ",
        ),
        (
            &[("forwarded", "for=\"[2001:db8::1]:9\";by=_b"), ("forwarded", "for=10.0.0.1")],
            "2001:db8::1, 10.0.0.1, ",
            "for=\"[2001:db8::1]:9\";by=_b, for=10.0.0.1, ",
        ),
        (&[("forwarded", "for=\"")], "", ""),
        (
            &[("forwarded", "for=198.51.100.9"), ("x-forwarded-for", "198.51.100.1")],
            "198.51.100.1, ",
            "for=198.51.100.9, ",
        ),
        (
            &[("forwarded", "for=\""), ("x-forwarded-for", "198.51.100.1")],
            "198.51.100.1, ",
            "for=198.51.100.1, ",
        ),
    ] {
        assert_eq!(way(said), (format!("{for_list}192.0.2.7"), format!("{elements}{ours}")), "{said:?}");
    }
}

#[test]
fn a_client_of_ipv6_stands_in_quotes_and_one_of_ipv4_never_looks_like_it() {
    for (peer, ip, element) in [
        ("[2001:db8::7]:4000", "2001:db8::7", "for=\"[2001:db8::7]\";proto=http;host=\"[::1]\""),
        ("[::ffff:192.0.2.7]:4000", "192.0.2.7", "for=192.0.2.7;proto=http;host=\"[::1]\""),
    ] {
        let client = Client::new(peer.parse().unwrap(), Scheme::Http);
        let (head, ()) = http::Request::builder().header("host", "[::1]").body(()).unwrap().into_parts();
        let exchange = Exchange::of(&client, RequestHead::of_parts(&head));
        let headers = request_head(&exchange).fields().to_map();
        assert_eq!(headers[X_FORWARDED_FOR], ip);
        assert_eq!(headers[FORWARDED], element);
        assert_eq!(exchange.addresses.peer(), peer);
    }
}

#[test]
fn the_client_is_the_one_that_a_trusted_proxy_tells_of() {
    let said = [("host", "a"), ("x-forwarded-for", "203.0.113.9, 198.51.100.1, 192.0.2.8")];
    let ip = |trusted| exchange(&with(&said), trusted).client_ip().to_string();
    assert_eq!((ip(true).as_str(), ip(false).as_str()), ("198.51.100.1", "192.0.2.7"));
}

#[test]
fn a_request_id_is_kept_if_it_is_sound_and_made_otherwise() {
    let id = |fields: &[(&str, &str)]| relayed(fields, false)[X_REQUEST_ID].to_str().unwrap().to_owned();
    assert_eq!(id(&[("x-request-id", "abc-1.2_X")]), "abc-1.2_X");
    let long = "x".repeat(65);
    for bad in ["", "a b", "a\"b", "ä", &long] {
        let made = id(&[("x-request-id", bad)]);
        assert!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{bad}: {made}");
    }
    assert_eq!(id(&[("x-request-id", "a"), ("x-request-id", "b")]).len(), 32);
    assert_ne!(id(&[]), id(&[]));
}

#[test]
fn a_request_that_has_no_name_has_that_of_its_trace_if_it_begins_here() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    let told = |fields: &[(&str, &str)]| {
        let headers = relayed(fields, false);
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        (text("traceparent"), text("x-request-id"))
    };
    let (made, id) = told(&[]);
    assert_eq!(made[3..35], id);
    let (made, id) = told(&[("x-request-id", "a")]);
    assert!(id == "a" && made.len() == 55, "{made}");
    let (taken, id) = told(&[("traceparent", &given)]);
    assert!(taken[3..35] == *trace && id.len() == 32 && id != trace, "{taken} {id}");
    assert!(taken.ends_with("-01"), "{taken}");
}

#[test]
fn the_state_of_a_trace_goes_on_with_it_and_without_it_nowhere() {
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let told = |fields: &[(&str, &str)]| {
        let headers = relayed(fields, false);
        assert_eq!(headers.get_all("traceparent").iter().count(), 1);
        let states = headers.get_all("tracestate").iter().map(|state| state.to_str().unwrap().to_owned());
        states.collect::<Vec<_>>()
    };
    let long = "a=1,".repeat(129);
    assert_eq!(told(&[("traceparent", given), ("tracestate", "a=1"), ("tracestate", "b=2")]), ["a=1", "b=2"]);
    for dropped in [
        &[("tracestate", "a=1")][..],
        &[("traceparent", "00-0-0-0"), ("tracestate", "a=1")],
        &[("traceparent", given), ("traceparent", given), ("tracestate", "a=1")],
        &[("traceparent", given), ("tracestate", &long)],
        &[("traceparent", given), ("tracestate", "a=1"), ("tracestate", &long)],
    ] {
        assert_eq!(told(dropped), [""; 0], "{dropped:?}");
    }
}

#[test]
fn an_answer_loses_its_hop_by_hop_fields_but_not_a_granted_upgrade() {
    let passed_on = |response: Response| {
        let mut head = ResponseHead::of_parts(&response.into_parts().0);
        answer_head(&mut head);
        head.fields().to_map()
    };
    let plain = http::Response::builder()
        .header("connection", "keep-alive, upgrade")
        .header("upgrade", "h2c")
        .header("content-length", "3")
        .body(Body::empty())
        .unwrap();
    let plain = passed_on(plain);
    assert!(!plain.contains_key(CONNECTION) && !plain.contains_key(UPGRADE));
    assert_eq!(plain["content-length"], "3");
    let switched = http::Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Body::empty())
        .unwrap();
    let switched = passed_on(switched);
    assert_eq!(switched[UPGRADE], "websocket");
    assert_eq!(switched[CONNECTION], "upgrade");
}
