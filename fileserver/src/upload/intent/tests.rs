//! What is read from a request's head, and what is refused there.

use http::Request;

use super::*;

fn head(target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::put(target).header("host", "Example.com:8080");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

const TOKEN: (&str, &str) = ("authorization", "Bearer secret");

#[test]
fn an_intent_is_read_from_the_head() {
    let head = head("/files/a%20b.txt?x=1", &[TOKEN, ("content-length", "12"), ("upload-id", "my-id")]);
    let intent = Intent::of(&head, Scheme::Https).unwrap();
    assert_eq!(intent.sender.token, "secret");
    assert_eq!(intent.sender.host.as_str(), "example.com");
    assert_eq!(intent.sender.origin, "https://Example.com:8080");
    assert_eq!(intent.sender.watch, "my-id");
    assert_eq!(intent.path.as_str(), "/files/a b.txt");
    assert_eq!(intent.content_type, "text/plain");
    assert_eq!(intent.declared, Some(12));
}

#[test]
fn without_an_id_every_upload_has_its_own() {
    let ids = [(); 2].map(|()| Intent::of(&head("/a", &[TOKEN]), Scheme::Http).unwrap().sender.watch);
    assert!(ids[0] != ids[1] && ids.iter().all(|id| valid_id(id)));
}

#[test]
fn the_proxy_says_how_the_client_reached_it() {
    let origin = |forwarded| {
        let head = head("/a", &[TOKEN, ("x-forwarded-proto", forwarded)]);
        Intent::of(&head, Scheme::Http).unwrap().sender.origin
    };
    assert_eq!(origin("https"), "https://Example.com:8080");
    assert_eq!(origin("javascript"), "http://Example.com:8080");
}

#[test]
fn the_type_is_the_declared_one_or_that_of_the_ending() {
    let declared = |content_type| {
        let head = head("/a.html", &[TOKEN, ("content-type", content_type)]);
        Intent::of(&head, Scheme::Http).map(|intent| intent.content_type)
    };
    assert_eq!(declared("image/png").unwrap(), "image/png");
    assert_eq!(declared("application/x-www-form-urlencoded").unwrap(), "text/html");
    assert!(matches!(declared(&"x".repeat(256)), Err(Refusal::BadRequest(_))));
}

#[test]
fn an_upload_id_is_short_and_may_stand_in_a_topic() {
    let taken = |id: &str| {
        let head = head("/a", &[TOKEN, ("upload-id", id)]);
        Intent::of(&head, Scheme::Http).map(|intent| intent.sender.watch)
    };
    let longest = "a".repeat(64);
    for good in ["x", "A-Z_0-9", "0190e6a4-7a0c-7c2e-9b1d-3f0a5c6d7e8f", &longest] {
        assert_eq!(taken(good).unwrap(), good);
    }
    for bad in ["", " ", "a b", "a/b", "a.b", "*", "{id}", "a#b", "%41", &"a".repeat(65)] {
        assert!(matches!(taken(bad), Err(Refusal::BadRequest(_))), "{bad:?}");
    }
}

#[test]
fn heads_that_make_no_sense_are_refused() {
    let long = format!("/{}", "a".repeat(10_000));
    let table = [
        ("/a/../b", vec![TOKEN], "bad-upload"),
        ("/a%2fb", vec![TOKEN], "bad-upload"),
        ("/a%00b", vec![TOKEN], "bad-upload"),
        (&long, vec![TOKEN], "bad-upload"),
        ("/folder/", vec![TOKEN], "bad-upload"),
        ("/a", vec![TOKEN, ("upload-id", "a/b")], "bad-upload"),
        ("/a", vec![TOKEN, ("content-range", "bytes 0-1/3")], "bad-upload"),
        ("/a", vec![TOKEN, ("content-encoding", "gzip")], "unsupported-upload"),
        ("/a", vec![], "token-missing"),
        ("/a", vec![("authorization", "Basic abc")], "token-missing"),
        ("/a", vec![("authorization", "Bearer ")], "token-missing"),
    ];
    for (target, headers, kind) in table {
        assert_eq!(
            Intent::of(&head(target, &headers), Scheme::Http).unwrap_err().kind(),
            kind,
            "{target} {headers:?}"
        );
    }
}

#[test]
fn a_file_name_is_one_segment() {
    assert_eq!(file_path("/in/", Some("100% é.txt")).unwrap().as_str(), "/in/100% é.txt");
    assert_eq!(file_path("/in/x", Some("a")).unwrap().as_str(), "/in/x");
    for bad in ["", ".", "..", "a/b", "a\\b", "a\0b"] {
        assert!(file_path("/in/", Some(bad)).is_err(), "{bad:?}");
    }
}
