//! A chunked body, cut where the first bytes say: the same data, trailers and verdict, and the same once it is rewritten.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protoplex_http::fuzzing;

fuzz_target!(|input: &[u8]| {
    let Some((cuts, bytes)) = input.split_at_checked(4) else { return };
    let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
    let read = fuzzing::chunked_body(bytes, &cuts);
    let Some((_, length)) = read.end else { return };
    assert!(length <= bytes.len() && read.data.len() <= length);
    // What is behind the end plays no part.
    let again = fuzzing::chunked_body(&bytes[..length], &cuts);
    assert_eq!((again.data, again.end.map(|(_, length)| length)), (read.data, Some(length)));
});
