//! Which bytes of a representation a request asks for (RFC 9110 section 14).

use std::ops::Range;

/// Ranges of one request that are served; a request with more gets the whole.
const RANGES_MAX: usize = 16;

/// What a `Range` field asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// Another unit, malformed, too many, or nothing that could be named: the field is ignored, the whole is served.
    Ignored,
    /// None of them lies within the representation: 416.
    Unsatisfiable,
    /// At least one; ascending, apart from each other, none empty.
    Satisfiable(Vec<Range<u64>>),
}

/// Reads a `Range` field for a representation of `size` bytes.
///
/// Ranges come back sorted; those that overlap or touch are made one, which RFC 9110 section 15.3.7.2 allows: so a
/// request can't ask for the same bytes many times over.
pub(crate) fn parse(field: &str, size: u64) -> Ranges {
    let Some((unit, set)) = field.split_once('=') else { return Ranges::Ignored };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ranges::Ignored;
    }
    let mut ranges = Vec::new();
    let mut asked = 0;
    for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        asked += 1;
        match one(spec, size) {
            None => return Ranges::Ignored,
            Some(range) if range.is_empty() => {}
            Some(range) => ranges.push(range),
        }
    }
    match (asked, ranges.is_empty()) {
        (0, _) => Ranges::Ignored,
        (asked, _) if asked > RANGES_MAX => Ranges::Ignored,
        // A suffix of an empty representation is satisfiable, but no Content-Range could say so.
        (_, true) if size == 0 && set.trim_start().starts_with('-') => Ranges::Ignored,
        (_, true) => Ranges::Unsatisfiable,
        (_, false) => Ranges::Satisfiable(coalesce(ranges)),
    }
}

/// One range; empty where it lies beyond the end, none where it is malformed.
fn one(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        return Some(size.saturating_sub(number(last)?)..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() { size } else { number(last)?.saturating_add(1).max(1) };
    if end <= first && !last.is_empty() {
        return None;
    }
    Some(first.min(size)..end.min(size))
}

/// Digits alone; a number beyond 64 bits is beyond every end.
fn number(digits: &str) -> Option<u64> {
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(u64::MAX))
}

fn coalesce(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut apart: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match apart.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field, the size of the representation, and the start and end of each range.
    type Row = (&'static str, u64, &'static [(u64, u64)]);

    #[test]
    fn ranges_as_the_rfc_has_them() {
        let table: [Row; 12] = [
            ("bytes=0-499", 10_000, &[(0, 500)]),
            ("bytes=500-999", 10_000, &[(500, 1_000)]),
            ("bytes=-500", 10_000, &[(9_500, 10_000)]),
            ("bytes=9500-", 10_000, &[(9_500, 10_000)]),
            ("bytes=0-0,-1", 10_000, &[(0, 1), (9_999, 10_000)]),
            ("bytes= 0-0, ,4-6 ", 10_000, &[(0, 1), (4, 7)]),
            ("bytes=500-700,601-999", 10_000, &[(500, 1_000)]),
            ("bytes=5-6,0-2", 10, &[(0, 3), (5, 7)]),
            ("bytes=0-99999", 10, &[(0, 10)]),
            ("bytes=-99999", 10, &[(0, 10)]),
            ("BYTES=3-99999999999999999999999", 10, &[(3, 10)]),
            ("bytes=2-3,50-60", 10, &[(2, 4)]),
        ];
        for (field, size, ranges) in table {
            assert_eq!(
                parse(field, size),
                Ranges::Satisfiable(ranges.iter().map(|&(start, end)| start..end).collect()),
                "{field}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for field in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "lines=1-2",
            "bytes=1",
            "bytes=0x1-2",
            "bytes=+1-2",
        ] {
            assert_eq!(parse(field, 10), Ranges::Ignored, "{field}");
        }
        assert_eq!(parse("bytes=-5", 0), Ranges::Ignored);
        let many = format!(
            "bytes={}",
            (0..17).map(|n| format!("{}-{}", n * 2, n * 2)).collect::<Vec<_>>().join(",")
        );
        assert_eq!(parse(&many, 100), Ranges::Ignored);
    }

    #[test]
    fn what_lies_beyond_the_end_is_unsatisfiable() {
        for (field, size) in [
            ("bytes=10-", 10),
            ("bytes=10-20", 10),
            ("bytes=-0", 10),
            ("bytes=0-", 0),
            ("bytes=99999999999999999999-", 10),
        ] {
            assert_eq!(parse(field, size), Ranges::Unsatisfiable, "{field}");
        }
    }

    proptest! {
        #[test]
        fn served_bytes_are_exactly_those_asked_for(
            asked in prop::collection::vec((0_u64..60, 0_u64..20), 1..16), size in 1_u64..60,
        ) {
            let field = asked.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect::<Vec<_>>();
            let wanted: std::collections::BTreeSet<u64> =
                asked.iter().flat_map(|&(first, more)| first..=first + more).filter(|byte| *byte < size).collect();
            match parse(&format!("bytes={}", field.join(",")), size) {
                Ranges::Satisfiable(ranges) => {
                    prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
                    prop_assert!(ranges.iter().all(|range| !range.is_empty()));
                    prop_assert_eq!(ranges.into_iter().flatten().collect::<std::collections::BTreeSet<_>>(), wanted);
                }
                Ranges::Unsatisfiable => prop_assert!(wanted.is_empty()),
                Ranges::Ignored => prop_assert!(false, "a valid field was ignored"),
            }
        }

        #[test]
        fn no_field_leads_beyond_the_end(field in "bytes=[-0-9, a]{0,30}", size in 0_u64..100) {
            if let Ranges::Satisfiable(ranges) = parse(&field, size) {
                prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size));
            }
        }
    }
}
