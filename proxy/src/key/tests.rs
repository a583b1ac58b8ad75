//! What becomes a key, and what is refused.

use http::header::{HeaderMap, HeaderValue};
use matchit::Router;
use proptest::prelude::*;
use protoplex_wire::pattern::{MAX_KEY_BYTES, PathPattern};

use super::*;

const PATTERN: &str = "/room/{room}/{*rest}";

struct Sent<'a> {
    path: &'a str,
    query: &'a str,
    form: &'a str,
    headers: &'a [(&'static str, &'a [u8])],
}

const PLAIN: Sent<'static> = Sent { path: "/room/lobby/a/b", query: "", form: "", headers: &[] };

fn key(template: &str, sent: &Sent<'_>) -> Result<String, KeyError> {
    let mut router = Router::new();
    router.insert(PATTERN, ()).unwrap();
    router.insert("/room/{room}/", ()).unwrap();
    let found = router.at(sent.path).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in sent.headers {
        headers.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    let facts = Facts {
        host: "example.com",
        path: sent.path,
        captures: &found.params,
        query: sent.query,
        form: sent.form.as_bytes(),
        headers: &Fields::from(&headers),
        client_ip: "::ffff:192.0.2.7".parse().unwrap(),
    };
    super::key(&parse(template), &facts, MAX_KEY_BYTES)
}

fn parse(template: &str) -> KeyTemplate {
    KeyTemplate::parse(template, &PathPattern::parse(PATTERN).unwrap()).unwrap()
}

#[test]
fn each_source_gives_its_part() {
    let sent = Sent {
        query: "a=1&topic=upload%2F7+8&topic=second",
        form: "topic=from-form&who=me",
        headers: &[("x-room", b"blue"), ("cookie", b"a=b; sid=\"s1\""), ("cookie", b"room=red")],
        ..PLAIN
    };
    for (template, expected) in [
        ("fixed", "fixed"),
        ("room:{room}", "room:lobby"),
        ("{room}/{rest}!", "lobby/a/b!"),
        ("{path}", "/room/lobby/a/b"),
        ("{host} {client_ip}", "example.com 192.0.2.7"),
        ("{query.topic}", "upload/7 8"),
        ("{form.who}", "me"),
        ("{header.X-Room}", "blue"),
        ("{cookie.sid}-{cookie.room}", "s1-red"),
        ("{query.absent|header.absent|form.topic}", "from-form"),
        ("{query.topic|form.topic}", "upload/7 8"),
    ] {
        assert_eq!(key(template, &sent).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn a_source_that_is_absent_or_empty_is_named() {
    let sent =
        Sent { query: "topic=&x", form: "topic", headers: &[("x-room", b""), ("cookie", b"sid=")], ..PLAIN };
    for (template, named) in [
        ("{query.topic}", "query.topic"),
        ("{query.topic|form.topic}", "query.topic and no form.topic"),
        ("a{header.x-room}", "header.x-room"),
        ("{cookie.sid}", "cookie.sid"),
        ("{cookie.si}", "cookie.si"),
    ] {
        assert_eq!(key(template, &sent), Err(KeyError::Missing(named.into())), "{template}");
    }
}

#[test]
fn encodings_of_one_path_give_one_key() {
    for path in ["/room/zo%C3%AB/", "/room/%7ao%c3%ab/", "/room/%7Ao%C3%AB/"] {
        assert_eq!(key("room:{room}", &Sent { path, ..PLAIN }).as_deref(), Ok("room:zoë"));
    }
    assert_eq!(key("room:{rest}", &Sent { path: "/room/x/", ..PLAIN }).as_deref(), Ok("room:"));
}

#[test]
fn an_encoded_slash_stays_one() {
    for (path, expected) in [
        ("/room/a%2Fb/c", "a%2Fb+c+/room/a%2Fb/c"),
        ("/room/a%2fb/%2f", "a%2Fb+%2F+/room/a%2Fb/%2F"),
        ("/room/%c3%ab%2f%C3%AB/c%252F", "ë%2Fë+c%252F+/room/ë%2Fë/c%252F"),
    ] {
        assert_eq!(key("{room}+{rest}+{path}", &Sent { path, ..PLAIN }).as_deref(), Ok(expected));
    }
    let many = format!("/room/{}/", "%2F".repeat(300));
    assert_eq!(key("{room}", &Sent { path: &many, ..PLAIN }).as_deref(), Ok("%2F".repeat(300).as_str()));
    assert_eq!(
        key("{room}", &Sent { path: "/room/%c3%2f%ab/", ..PLAIN }),
        Err(KeyError::NotText("room".into()))
    );
}

#[test]
fn a_key_is_text_that_a_header_can_carry() {
    let not_text = |name: &str| Err(KeyError::NotText(name.into()));
    assert_eq!(key("{room}", &Sent { path: "/room/%ff/", ..PLAIN }), not_text("room"));
    assert_eq!(key("{room}", &Sent { path: "/room/a%00b/", ..PLAIN }), not_text("room"));
    assert_eq!(key("{path}", &Sent { path: "/room/a%0d%0ab/", ..PLAIN }), not_text("path"));
    assert_eq!(key("{query.q}", &Sent { query: "q=a%0aProtoplex-Epoch:1", ..PLAIN }), not_text("query.q"));
    assert_eq!(key("{header.x}", &Sent { headers: &[("x", b"\xff")], ..PLAIN }), not_text("header.x"));
    assert_eq!(key("{room}", &Sent { path: "/room/%20a/", ..PLAIN }), Err(KeyError::Blank));
    assert_eq!(key("{rest}", &Sent { path: "/room/x/", ..PLAIN }), Err(KeyError::Blank));
    let long = format!("/room/{}/", "x".repeat(MAX_KEY_BYTES));
    assert!(key("{room}", &Sent { path: &long, ..PLAIN }).is_ok());
    assert_eq!(
        key("{room}+", &Sent { path: &long, ..PLAIN }),
        Err(KeyError::TooLong { max_bytes: MAX_KEY_BYTES })
    );
}

#[test]
fn only_templates_with_form_sources_read_the_body() {
    assert!(reads_form(&parse("x{query.a|form.a}")));
    assert!(!reads_form(&parse("x{query.form}")));
}

proptest! {
    #[test]
    fn whatever_comes_is_a_fit_key_or_refused(query in "[ -~]{0,60}", header in proptest::collection::vec(0x80u8.., 0..40)) {
        let sent = Sent { query: &query, headers: &[("x", &header)], ..PLAIN };
        if let Ok(key) = key("{query.a|header.x|path}", &sent) {
            prop_assert!(HeaderValue::from_str(&key).is_ok() || !key.is_ascii());
            prop_assert!(HeaderValue::from_bytes(key.as_bytes()).is_ok());
            prop_assert_eq!(key.trim_matches(' '), &key);
        }
    }
}
