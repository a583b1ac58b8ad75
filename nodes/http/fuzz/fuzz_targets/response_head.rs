//! An answer's head, cut where the first bytes say: the same verdict, the same head once it is rewritten, and httparse
//! reads no other.

#![no_main]

use http::Method;
use libfuzzer_sys::fuzz_target;
use protoplex_http::fuzzing;

fuzz_target!(|input: &[u8]| {
    let Some((cuts, bytes)) = input.split_at_checked(4) else { return };
    let method = if cuts[0] & 1 == 0 { Method::GET } else { Method::HEAD };
    let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
    let Some(head) = fuzzing::response_head(bytes, &cuts, &method) else { return };
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Response::new(&mut headers);
    assert_eq!(other.parse(bytes), Ok(httparse::Status::Complete(head.length)));
    assert_eq!(other.code.map(|code| code.to_string()), Some(head.start));
    assert_eq!(other.version, Some(u8::from(!head.is_http_10)));
    let fields: Vec<_> = head.fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let others: Vec<_> = other.headers.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
    assert_eq!(fields, others);
});
