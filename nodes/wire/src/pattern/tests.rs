//! What is a pattern and what is not, with the words that its author is told.

use super::*;

#[test]
fn hosts() {
    let parse = |text| HostPattern::parse(text).unwrap();
    assert_eq!(parse("*"), HostPattern::Any);
    assert_eq!(parse("Example.COM"), HostPattern::Exact("example.com".into()));
    assert_eq!(parse("127.0.0.1"), HostPattern::Exact("127.0.0.1".into()));
    assert_eq!(parse("[::1]"), HostPattern::Exact("[::1]".into()));
    let below = parse("*.live.example.com");
    assert!(below.matches("a.live.example.com") && below.matches("a.b.live.example.com"));
    assert!(!below.matches("live.example.com") && !below.matches(".live.example.com"));
    assert!(parse("zz") < below && below < parse("*.example.com") && parse("*.z") < HostPattern::Any);
}

#[test]
fn no_hosts() {
    for (text, word) in [
        ("", "empty"),
        ("*.", "empty"),
        ("example.com:80", "port"),
        ("http://example.com", "scheme"),
        ("a.*.com", "star"),
        ("*com", "star"),
        ("bücher.example", "xn--"),
        ("a..b", "label"),
        ("-a.b", "label"),
        ("a/b", "label"),
        ("*.127.0.0.1", "sub-domains"),
        ("[::g]", "IPv6"),
        (&"a.".repeat(200), "253"),
    ] {
        let error = HostPattern::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn paths() {
    for (text, captures) in [
        ("/", &[][..]),
        ("/{*rest}", &["rest"]),
        ("/room/{room}/{*rest}", &["room", "rest"]),
        ("/img/pre-{name}.png", &["name"]),
        ("/a//b/", &[]),
    ] {
        let path = PathPattern::parse(text).unwrap();
        assert_eq!(path.captures(), captures);
        assert_eq!(path.as_str(), text);
    }
}

#[test]
fn no_paths() {
    for (text, word) in [
        ("", "slash"),
        ("room", "slash"),
        ("/a?b", "percent-encode"),
        ("/ä", "percent-encode"),
        ("/a b", "percent-encode"),
        ("/{", "'{' without '}'"),
        ("/}", "'}' without '{'"),
        ("/{{a}}", "unbalanced"),
        ("/{a}{b}", "one capture"),
        ("/{}", "capture name"),
        ("/{1a}", "capture name"),
        ("/{a-b}", "capture name"),
        ("/{a}/{a}", "twice"),
        ("/{host}", "already means"),
        ("/{*rest}/x", "last segment"),
        ("/x{*rest}", "last segment"),
        ("/{*}", "capture name"),
        (&"/a".repeat(600), "longer"),
    ] {
        let error = PathPattern::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn keys() {
    let path = PathPattern::parse("/room/{room}/{*rest}").unwrap();
    let key = KeyTemplate::parse(
        "{host}/{room}:{header.X-User}{cookie.sid}{query.q}{form.f}{client_ip}{path}",
        &path,
    );
    assert_eq!(
        key.unwrap().parts(),
        [
            KeyPart::Host,
            KeyPart::Text("/".into()),
            KeyPart::Capture("room".into()),
            KeyPart::Text(":".into()),
            KeyPart::Header("x-user".into()),
            KeyPart::Cookie("sid".into()),
            KeyPart::Query("q".into()),
            KeyPart::Form("f".into()),
            KeyPart::ClientIp,
            KeyPart::Path,
        ]
    );
}

#[test]
fn a_part_of_a_key_may_have_alternatives() {
    let path = PathPattern::parse("/hub").unwrap();
    let key = KeyTemplate::parse("{query.topic|form.topic}!", &path).unwrap();
    let alternatives = vec![KeyPart::Query("topic".into()), KeyPart::Form("topic".into())];
    assert_eq!(key.parts(), [KeyPart::FirstOf(alternatives), KeyPart::Text("!".into())]);
}

#[test]
fn no_keys() {
    let path = PathPattern::parse("/room/{room}/{*rest}").unwrap();
    for (text, word) in [
        ("", "empty"),
        ("{rom}", "{room} {rest}"),
        ("{*rest}", "no capture"),
        ("{room", "'{' without '}'"),
        ("room}", "'}' without '{'"),
        ("{header.}", "names no header"),
        ("{header.a b}", "names no header"),
        ("{head.x}", "{header.…}"),
        ("{query.a|}", "no capture"),
        ("{query.a|head.x}", "{header.…}"),
        ("a\nb", "control"),
        (&"a".repeat(2000), "longer"),
    ] {
        let error = KeyTemplate::parse(text, &path).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn names() {
    for good in ["rooms", "a", "9-a_b.c"] {
        check_name("pool", good).unwrap();
    }
    for bad in ["", "-a", "A", "a b", "ä", &"a".repeat(64)] {
        assert!(check_name("pool", bad).unwrap_err().to_string().starts_with("pool "), "{bad}");
    }
}
