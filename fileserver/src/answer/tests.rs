use http::header::{ACCEPT_ENCODING, IF_MATCH, IF_NONE_MATCH, IF_RANGE};
use proptest::prelude::*;

use super::*;

const GZIP: &[(Coding, u64)] = &[(Coding::Gzip, 40)];

fn offer(coded: &'static [(Coding, u64)]) -> Offer<'static> {
    Offer {
        tag: "abc",
        modified: None,
        content_type: "text/plain",
        cache_control: "public, max-age=31536000, immutable",
        size: 100,
        coded,
        seekable: coded.is_empty(),
        sandboxed: false,
    }
}

fn get(fields: &[(HeaderName, &str)], offer: &Offer) -> (Response<()>, Selection) {
    let headers =
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
    answer(&Method::GET, &headers, offer)
}

fn field<'a>(head: &'a Response<()>, name: &HeaderName) -> &'a str {
    head.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn the_whole_has_length_tag_life_and_no_sniffing() {
    let (head, selection) = get(&[], &offer(&[]));
    assert_eq!((head.status(), selection), (StatusCode::OK, Selection::Whole(Coding::Identity)));
    assert_eq!(field(&head, &CONTENT_LENGTH), "100");
    assert_eq!(field(&head, &ETAG), "\"abc\"");
    assert_eq!(field(&head, &CACHE_CONTROL), "public, max-age=31536000, immutable");
    assert_eq!(field(&head, &X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert_eq!(field(&head, &ACCEPT_RANGES), "bytes");
    assert_eq!(field(&head, &VARY), "");
}

#[test]
fn what_anyone_may_have_uploaded_is_shown_in_a_sandbox() {
    for (content_type, sandboxed, policy) in [
        ("text/html", true, "sandbox"),
        ("text/html", false, ""),
        ("image/svg+xml", true, "sandbox"),
        ("application/xhtml+xml", true, "sandbox"),
        ("application/pdf", true, ""),
        ("Application/PDF; x=y", true, ""),
        ("text/html; application/pdf", true, "sandbox"),
    ] {
        let offer = Offer { content_type, sandboxed, ..offer(GZIP) };
        for fields in [&[][..], &[(RANGE, "bytes=0-1")], &[(IF_NONE_MATCH, "\"abc\"")]] {
            let (head, _) = get(fields, &offer);
            assert_eq!(field(&head, &CONTENT_SECURITY_POLICY), policy, "{content_type} {fields:?}");
            assert_eq!(field(&head, &X_CONTENT_TYPE_OPTIONS), "nosniff");
        }
    }
}

#[test]
fn row_range_that_is_dear_to_reach_gets_the_whole() {
    let far = MAX_SKIP_BYTES + 1;
    let table = [
        (true, format!("bytes={far}-"), StatusCode::PARTIAL_CONTENT),
        (true, format!("bytes=0-0,{far}-{far}"), StatusCode::PARTIAL_CONTENT),
        (false, format!("bytes={far}-"), StatusCode::OK),
        (false, "bytes=-1".to_owned(), StatusCode::OK),
        (false, format!("bytes={MAX_SKIP_BYTES}-"), StatusCode::PARTIAL_CONTENT),
        (false, format!("bytes=0-0,{}-", MAX_GAP_BYTES + 2), StatusCode::OK),
        (false, format!("bytes=0-0,{}-", MAX_GAP_BYTES + 1), StatusCode::PARTIAL_CONTENT),
    ];
    for (seekable, asked, status) in table {
        let coded: &[_] = if seekable { &[] } else { GZIP };
        let offer = Offer { size: 4 << 30, seekable, ..offer(coded) };
        let (head, _) = get(&[(RANGE, &asked)], &offer);
        assert_eq!(head.status(), status, "{asked} {seekable}");
    }
}

#[test]
fn head_says_what_get_would_and_sends_nothing() {
    let headers = [(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))].into_iter().collect();
    let (got, _) = answer(&Method::GET, &headers, &offer(GZIP));
    let (head, selection) = answer(&Method::HEAD, &headers, &offer(GZIP));
    assert_eq!(selection, Selection::Nothing);
    assert_eq!((head.status(), head.headers()), (got.status(), got.headers()));
}

#[test]
fn gzip_goes_to_those_who_accept_it_under_a_tag_of_its_own() {
    let (head, selection) = get(&[(ACCEPT_ENCODING, "gzip")], &offer(GZIP));
    assert_eq!(selection, Selection::Whole(Coding::Gzip));
    assert_eq!(field(&head, &CONTENT_ENCODING), "gzip");
    assert_eq!(field(&head, &CONTENT_LENGTH), "40");
    assert_eq!(field(&head, &ETAG), "\"abc-gzip\"");
    assert_eq!(field(&head, &VARY), "Accept-Encoding");
    let (head, selection) = get(&[], &offer(GZIP));
    assert_eq!(selection, Selection::Whole(Coding::Identity));
    assert_eq!((field(&head, &CONTENT_LENGTH), field(&head, &VARY)), ("100", "Accept-Encoding"));
}

#[test]
fn a_client_that_has_it_is_told_so_with_the_same_fields() {
    let (head, selection) = get(&[(IF_NONE_MATCH, "\"abc-gzip\""), (ACCEPT_ENCODING, "gzip")], &offer(GZIP));
    assert_eq!((head.status(), selection), (StatusCode::NOT_MODIFIED, Selection::Nothing));
    assert_eq!(field(&head, &ETAG), "\"abc-gzip\"");
    assert_eq!(field(&head, &CACHE_CONTROL), "public, max-age=31536000, immutable");
    assert_eq!(field(&head, &VARY), "Accept-Encoding");
}

#[test]
fn refusals_are_not_cached_for_long() {
    let (head, selection) = get(&[(IF_MATCH, "\"other\"")], &offer(&[]));
    assert_eq!((head.status(), selection), (StatusCode::PRECONDITION_FAILED, Selection::Nothing));
    assert_eq!(field(&head, &CACHE_CONTROL), "no-store");
    let (head, selection) = get(&[(RANGE, "bytes=100-")], &offer(&[]));
    assert_eq!((head.status(), selection), (StatusCode::RANGE_NOT_SATISFIABLE, Selection::Nothing));
    assert_eq!((field(&head, &CONTENT_RANGE), field(&head, &CACHE_CONTROL)), ("bytes */100", "no-store"));
}

#[test]
fn one_range_is_served_as_such_and_of_the_raw_bytes() {
    for fields in [&[(RANGE, "bytes=10-19")][..], &[(RANGE, "bytes=10-19"), (ACCEPT_ENCODING, "gzip")]] {
        let (head, selection) = get(fields, &offer(GZIP));
        assert_eq!(head.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(selection, Selection::Pieces(vec![Piece::Span(10..20)]));
        assert_eq!(field(&head, &CONTENT_RANGE), "bytes 10-19/100");
        assert_eq!((field(&head, &CONTENT_LENGTH), field(&head, &ETAG)), ("10", "\"abc\""));
        assert_eq!(field(&head, &CONTENT_ENCODING), "");
    }
}

#[test]
fn several_ranges_are_parts_of_the_announced_length() {
    let (head, selection) = get(&[(RANGE, "bytes=90-,0-4")], &offer(&[]));
    let Selection::Pieces(pieces) = selection else { panic!("{selection:?}") };
    assert!(field(&head, &CONTENT_TYPE).starts_with("multipart/byteranges; boundary="));
    assert_eq!(pieces.iter().map(Piece::length).sum::<u64>().to_string(), field(&head, &CONTENT_LENGTH));
    let spans: Vec<_> = pieces.iter().filter(|piece| matches!(piece, Piece::Span(_))).collect();
    assert_eq!(spans, [&Piece::Span(0..5), &Piece::Span(90..100)]);
    let Piece::Text(first) = &pieces[0] else { panic!("{pieces:?}") };
    assert!(first.ends_with(b"\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-4/100\r\n\r\n"));
}

#[test]
fn a_range_of_what_the_client_no_longer_has_is_the_whole() {
    let (head, selection) = get(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"old\"")], &offer(&[]));
    assert_eq!((head.status(), selection), (StatusCode::OK, Selection::Whole(Coding::Identity)));
    let (head, _) = get(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"abc\"")], &offer(&[]));
    assert_eq!(head.status(), StatusCode::PARTIAL_CONTENT);
    // It has the start of the gzip form: raw bytes would not fit to it.
    let (head, selection) =
        get(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"abc-gzip\""), (ACCEPT_ENCODING, "gzip")], &offer(GZIP));
    assert_eq!((head.status(), selection), (StatusCode::OK, Selection::Whole(Coding::Gzip)));
}

#[test]
fn a_range_of_head_is_ignored() {
    let headers = [(RANGE, HeaderValue::from_static("bytes=0-9"))].into_iter().collect();
    let (head, _) = answer(&Method::HEAD, &headers, &offer(&[]));
    assert_eq!((head.status(), field(&head, &CONTENT_LENGTH)), (StatusCode::OK, "100"));
}

proptest! {
    #[test]
    fn the_announced_length_is_what_is_sent(range in "bytes=[0-9]{0,3}-[0-9]{0,3}(,[0-9]{0,3}-[0-9]{0,3}){0,3}") {
        let (head, selection) = get(&[(RANGE, &range)], &offer(&[]));
        let sent = match &selection {
            Selection::Nothing => 0,
            Selection::Whole(_) => 100,
            Selection::Pieces(pieces) => pieces.iter().map(Piece::length).sum(),
        };
        prop_assert_eq!(field(&head, &CONTENT_LENGTH), sent.to_string());
        prop_assert_eq!(head.status() == StatusCode::PARTIAL_CONTENT, matches!(selection, Selection::Pieces(_)));
    }
}
