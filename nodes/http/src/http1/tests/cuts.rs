//! What goes in comes out, however it is cut: the corpus at every byte, and messages made by chance.

use super::corpus::{BODIES, REQUESTS, RESPONSES};
use super::*;
use crate::http1::checks::{Head, chunked_body, request_head, response_head};
use crate::http1::grammar::trimmed;

/// Every way to cut bytes in two, and some to cut them in more.
fn every_cut(bytes: &[u8], check: impl Fn(&[usize])) {
    check(&[]);
    for at in 0..=bytes.len() {
        check(&[at]);
        check(&[at, at + 1]);
        check(&[at / 2, at]);
    }
    check(&(0..bytes.len()).collect::<Vec<_>>());
}

#[test]
fn every_cut_of_the_corpus_has_the_same_verdict_and_the_same_message() {
    for (sound, bytes) in REQUESTS {
        let text = bytes.escape_ascii();
        every_cut(bytes, |cuts| assert_eq!(request_head(bytes, cuts).is_some(), *sound, "{text} {cuts:?}"));
    }
    for (sound, bytes) in RESPONSES {
        let text = bytes.escape_ascii();
        for method in [Method::GET, Method::HEAD] {
            every_cut(bytes, |cuts| {
                assert_eq!(response_head(bytes, cuts, &method).is_some(), *sound, "{text} {cuts:?}");
            });
        }
    }
    for (sound, bytes, data) in BODIES {
        every_cut(bytes, |cuts| {
            let read = chunked_body(bytes, cuts);
            assert_eq!(
                (read.end.is_some(), &read.data[..]),
                (*sound, *data),
                "{} {cuts:?}",
                bytes.escape_ascii()
            );
        });
    }
}

#[test]
fn a_whole_url_is_asked_of_its_own_host_in_origin_form() {
    let rows: [(&[u8], &str, &[u8]); 6] = [
        (b"GET http://a.example:80/x?y HTTP/1.1\r\nHost: b\r\n\r\n", "/x?y", b"a.example:80"),
        (b"GET https://a HTTP/1.1\r\nHost: b\r\n\r\n", "/", b"a"),
        (b"GET http://a?x HTTP/1.1\r\nHost: b\r\n\r\n", "/?x", b"a"),
        (b"GET HTTP://A/ HTTP/1.1\r\nHost: b\r\n\r\n", "/", b"A"),
        (b"OPTIONS http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "/", b"a"),
        // RFC 9112 section 3.2.4.
        (b"OPTIONS http://a HTTP/1.1\r\nHost: b\r\n\r\n", "*", b"a"),
    ];
    for (bytes, target, host) in rows {
        let head = request_head(bytes, &[]).expect("a sound head");
        assert_eq!(head.target, target, "{}", bytes.escape_ascii());
        assert_eq!(head.fields, [(b"host".to_vec(), host.to_vec())]);
    }
}

/// A token.
pub(super) fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,12}"
}

/// A value without blanks around it.
pub(super) fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        prop_oneof![8 => 0x21..0x7F_u8, 2 => 0x80..=0xFF_u8, 2 => Just(b' '), 1 => Just(b'\t')],
        0..20,
    )
    .prop_map(|value| trimmed(&value).to_vec())
}

/// Fields that frame and route nothing.
pub(super) fn fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let field = (name(), value()).prop_filter("a field that means something", |(name, _)| {
        !matches!(
            Known::of(name.as_bytes()),
            Known::Host | Known::ContentLength | Known::TransferEncoding | Known::Connection
        )
    });
    prop::collection::vec(field, 0..10)
}

/// How a head says that its body is framed.
pub(super) fn framing() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![
        None,
        Some("Content-Length: 0\r\n"),
        Some("Content-Length:12345\r\n"),
        Some("Transfer-Encoding: chunked\r\n"),
    ])
}

pub(super) fn written(start: &str, fields: &[(String, Vec<u8>)], framing: Option<&str>) -> Vec<u8> {
    let mut head = format!("{start}\r\n").into_bytes();
    for (at, (name, value)) in fields.iter().enumerate() {
        let (before, behind) = [("", ""), (" ", ""), ("\t ", " \t")][at % 3];
        head.extend_from_slice(format!("{name}:{before}").as_bytes());
        head.extend_from_slice(value);
        head.extend_from_slice(format!("{behind}\r\n").as_bytes());
    }
    head.extend_from_slice(framing.unwrap_or_default().as_bytes());
    head.extend_from_slice(b"\r\n");
    head
}

fn own(head: &Head) -> Vec<(String, Vec<u8>)> {
    let meant = |name: &[u8]| matches!(Known::of(name), Known::ContentLength | Known::TransferEncoding);
    let fields = head.fields.iter().filter(|(name, _)| !meant(name));
    fields.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone())).collect()
}

pub(super) fn target() -> impl Strategy<Value = String> {
    "/[a-zA-Z0-9!$&-;=@_~/%|{}]{0,20}(\\?[a-zA-Z0-9!$&-;=?@_~/%|{}]{0,10})?"
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..400_usize, 0..6)
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(
        method in name(), target in target(), fields in fields(), framing in framing(), cuts in cuts(),
    ) {
        prop_assume!(method != "CONNECT");
        let mut fields = fields;
        fields.push(("Host".into(), b"a.example:80".to_vec()));
        let bytes = written(&format!("{method} {target} HTTP/1.1"), &fields, framing);
        let head = request_head(&bytes, &cuts).expect("a sound head");
        prop_assert_eq!((&head.start, &head.target, head.length), (&method, &target, bytes.len()));
        prop_assert_eq!(own(&head), fields);
    }

    #[test]
    fn an_answer_is_read_as_it_was_written(
        status in 100..600_u16, reason in "( [ -~\t]{0,20})?", fields in fields(), framing in framing(),
        head_only in any::<bool>(), cuts in cuts(),
    ) {
        let method = if head_only { Method::HEAD } else { Method::GET };
        let bytes = written(&format!("HTTP/1.1 {status}{reason}"), &fields, framing);
        let head = response_head(&bytes, &cuts, &method).expect("a sound head");
        prop_assert_eq!((head.start.clone(), head.length), (status.to_string(), bytes.len()));
        prop_assert_eq!(own(&head), fields);
    }

    #[test]
    fn a_chunked_body_is_read_as_it_was_written(
        chunks in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 1..40), "(;[a-z]{1,3}(=([a-z]{1,3}|\"([ !a-z;=]|\\\\[\"\\\\])*\"))?){0,2}", 0..3_usize),
            0..6,
        ),
        trailers in fields(),
        behind in prop::collection::vec(any::<u8>(), 0..5),
        cuts in cuts(),
    ) {
        let trailers: Vec<_> =
            trailers.into_iter().filter(|(name, _)| may_trail(name.as_bytes())).collect();
        let (mut bytes, mut data) = (Vec::new(), Vec::new());
        for (chunk, extension, zeros) in &chunks {
            bytes.extend_from_slice(format!("{}{:X}{extension}\r\n", "0".repeat(*zeros), chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
            data.extend_from_slice(chunk);
        }
        bytes.extend_from_slice(&written("0", &trailers, None));
        let length = bytes.len();
        bytes.extend_from_slice(&behind);
        let read = chunked_body(&bytes, &cuts);
        prop_assert_eq!(read.data, data);
        let (kept, end) = read.end.expect("a sound body");
        prop_assert_eq!(end, length);
        let kept: Vec<_> =
            kept.into_iter().map(|(name, value)| (String::from_utf8(name).unwrap(), value)).collect();
        prop_assert_eq!(kept, trailers);
    }

    #[test]
    fn fragments_are_told_alike_however_they_are_cut(
        fragments in prop::collection::vec(fragment(), 0..12), cuts in cuts(),
    ) {
        let bytes = fragments.concat();
        request_head(&bytes, &cuts);
        response_head(&bytes, &cuts, &Method::GET);
        response_head(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat(), &cuts, &Method::GET);
        chunked_body(&bytes, &cuts);
    }
}
