//! Whether a request's conditions let it through (RFC 9110 section 13).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName};

/// What identifies the representation that is selected for a request.
#[derive(Debug, Clone)]
pub(crate) struct Validators {
    /// The strong entity tag, with its quotes.
    pub(crate) tag: String,
    /// To the second; none where it is not known.
    pub(crate) modified: Option<SystemTime>,
}

/// What the conditions of a GET or HEAD come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The request is answered as if it had none.
    Proceed,
    /// 304: the client has it.
    NotModified,
    /// 412: the client wants another one.
    Failed,
}

/// The conditions in the order of RFC 9110 section 13.2.2.
pub(crate) fn evaluate(headers: &HeaderMap, current: &Validators) -> Verdict {
    if let Some(matches) = any_tag(headers, &IF_MATCH, |tag| tag == current.tag) {
        if !matches {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) =
        (date(headers, &IF_UNMODIFIED_SINCE), seconds(current.modified))
        && modified > since
    {
        return Verdict::Failed;
    }
    if let Some(matches) =
        any_tag(headers, &IF_NONE_MATCH, |tag| tag.strip_prefix("W/").unwrap_or(tag) == current.tag)
    {
        return if matches { Verdict::NotModified } else { Verdict::Proceed };
    }
    match (date(headers, &IF_MODIFIED_SINCE), seconds(current.modified)) {
        (Some(since), Some(modified)) if modified <= since => Verdict::NotModified,
        _ => Verdict::Proceed,
    }
}

/// Whether `Range` counts: there is no `If-Range`, or it names the current representation (RFC 9110 section 13.1.5).
pub(crate) fn range_counts(headers: &HeaderMap, current: &Validators) -> bool {
    let Some(field) = headers.get(IF_RANGE) else { return true };
    let Ok(field) = field.to_str() else { return false };
    if field.starts_with('"') || field.starts_with("W/") {
        return field.trim() == current.tag;
    }
    match (httpdate::parse_http_date(field), seconds(current.modified)) {
        (Ok(date), Some(modified)) => seconds(Some(date)) == Some(modified),
        _ => false,
    }
}

/// Whether one of a field's entity tags matches, or it is `*`; none where there is no such field.
fn any_tag(headers: &HeaderMap, name: &HeaderName, matches: impl Fn(&str) -> bool) -> Option<bool> {
    let mut found = None;
    for field in headers.get_all(name) {
        let text = field.to_str().unwrap_or_default().trim();
        let any = text == "*" || tags(text).any(&matches);
        found = Some(found.unwrap_or(false) || any);
    }
    found
}

/// The entity tags of a list, each with its quotes and its `W/`; what is malformed ends the list.
fn tags(mut list: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        list = list.trim_start_matches([' ', '\t', ',']);
        let opening = if list.starts_with("W/") { 2 } else { 0 };
        let opaque = list.get(opening..)?.strip_prefix('"')?;
        let length = opening + 2 + opaque.find('"')?;
        let (tag, rest) = list.split_at_checked(length)?;
        list = rest;
        Some(tag)
    })
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    seconds(httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok())
}

/// Whole seconds since 1970, as an HTTP date tells them.
fn seconds(time: Option<SystemTime>) -> Option<Duration> {
    Some(Duration::from_secs(time?.duration_since(UNIX_EPOCH).ok()?.as_secs()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn current() -> Validators {
        let modified = httpdate::parse_http_date(DATE).unwrap() + Duration::from_millis(900);
        Validators { tag: "\"abc\"".into(), modified: Some(modified) }
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn conditions_as_the_rfc_has_them() {
        use Verdict::{Failed, NotModified, Proceed};
        let table: [(&[(HeaderName, &str)], Verdict); 19] = [
            (&[], Proceed),
            (&[(IF_NONE_MATCH, "\"abc\"")], NotModified),
            (&[(IF_NONE_MATCH, "W/\"abc\"")], NotModified),
            (&[(IF_NONE_MATCH, "\"x\", \"a,b\" , \"abc\"")], NotModified),
            (&[(IF_NONE_MATCH, "*")], NotModified),
            (&[(IF_NONE_MATCH, "\"x\"")], Proceed),
            (&[(IF_NONE_MATCH, "abc")], Proceed),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, AFTER)], Proceed),
            (&[(IF_MODIFIED_SINCE, DATE)], NotModified),
            (&[(IF_MODIFIED_SINCE, AFTER)], NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Proceed),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Proceed),
            (&[(IF_MATCH, "\"abc\"")], Proceed),
            (&[(IF_MATCH, "*")], Proceed),
            (&[(IF_MATCH, "W/\"abc\"")], Failed),
            (&[(IF_MATCH, "\"x\"")], Failed),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Failed),
            (&[(IF_UNMODIFIED_SINCE, DATE)], Proceed),
            (
                &[(IF_MATCH, "\"abc\""), (IF_UNMODIFIED_SINCE, BEFORE), (IF_NONE_MATCH, "\"abc\"")],
                NotModified,
            ),
        ];
        for (fields, verdict) in table {
            assert_eq!(evaluate(&headers(fields), &current()), verdict, "{fields:?}");
        }
    }

    #[test]
    fn if_range_wants_exactly_the_current_representation() {
        let table = [
            ("\"abc\"", true),
            ("W/\"abc\"", false),
            ("\"x\"", false),
            (DATE, true),
            (BEFORE, false),
            (AFTER, false),
            ("nonsense", false),
        ];
        for (field, counts) in table {
            assert_eq!(range_counts(&headers(&[(IF_RANGE, field)]), &current()), counts, "{field}");
        }
        assert!(range_counts(&HeaderMap::new(), &current()));
    }

    #[test]
    fn without_a_date_only_tags_decide() {
        let undated = Validators { modified: None, ..current() };
        assert_eq!(evaluate(&headers(&[(IF_MODIFIED_SINCE, AFTER)]), &undated), Verdict::Proceed);
        assert!(!range_counts(&headers(&[(IF_RANGE, DATE)]), &undated));
    }

    proptest! {
        #[test]
        fn a_tag_is_found_wherever_it_stands_in_a_list(
            before in prop::collection::vec("[!#-~]{0,8}", 0..4), after in prop::collection::vec("[!#-~]{0,8}", 0..4),
        ) {
            let mut list: Vec<String> = before.iter().map(|tag| format!("\"{tag}\"")).collect();
            list.push("\"abc\"".into());
            list.extend(after.iter().map(|tag| format!("W/\"{tag}\"")));
            let field = headers(&[(IF_NONE_MATCH, &list.join(", "))]);
            prop_assert_eq!(evaluate(&field, &current()), Verdict::NotModified);
        }

        #[test]
        fn no_field_can_panic(field in "[ -~]{0,40}") {
            for name in [IF_MATCH, IF_NONE_MATCH, IF_RANGE, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
                let headers = headers(&[(name, &field)]);
                let _ = (evaluate(&headers, &current()), range_counts(&headers, &current()));
            }
        }
    }
}
