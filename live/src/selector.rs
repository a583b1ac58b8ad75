//! Topic selectors: how tokens and the configuration name many topics at once.

/// A topic selector is `*`, a topic itself, or a URI template (RFC 6570, level 1) whose `{variables}` each stand for one
/// or more characters other than `/`.
pub(crate) fn covers(selector: &str, topic: &str) -> bool {
    if selector == "*" || selector == topic {
        return true;
    }
    let (mut selectors, mut segments) = (selector.split('/'), topic.split('/'));
    loop {
        match (selectors.next(), segments.next()) {
            (Some(selector), Some(segment)) if covers_segment(selector, segment) => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Takes the shortest text for each variable but the last: if any choice matches, this one does.
fn covers_segment(selector: &str, segment: &str) -> bool {
    let Some((literal, mut selector)) = selector.split_once('{') else { return selector == segment };
    let Some(mut rest) = segment.strip_prefix(literal) else { return false };
    loop {
        let Some((_, after)) = selector.split_once('}') else { return false };
        let Some(first) = rest.chars().next() else { return false };
        let Some((literal, next)) = after.split_once('{') else {
            return rest.len() >= first.len_utf8() + after.len() && rest.ends_with(after);
        };
        let Some(found) = rest[first.len_utf8()..].find(literal) else { return false };
        rest = &rest[first.len_utf8() + found + literal.len()..];
        selector = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_cover_topics() {
        let table = [
            ("*", "anything/at all", true),
            ("upload/1", "upload/1", true),
            ("upload/1", "upload/12", false),
            ("upload/{id}", "upload/12", true),
            ("upload/{id}", "upload/", false),
            ("upload/{id}", "upload/1/2", false),
            ("upload/{id}", "upload", false),
            ("upload/{id}", "upload/{id}", true),
            ("https://example.com/{user}/book-{id}.json", "https://example.com/ann/book-3.json", true),
            ("https://example.com/{user}/book-{id}.json", "https://example.com/ann/book-.json", false),
            ("https://example.com/{user}/book-{id}.json", "https://example.org/ann/book-3.json", false),
            ("{a}-{b}-c", "1-2-3-c", true),
            ("{a}-{b}-c", "1-2-3", false),
            ("{a}{b}", "é", false),
            ("{a}{b}", "éè", true),
            ("{a", "x", false),
            ("a}b", "a}b", true),
            ("", "", true),
            ("", "a", false),
        ];
        for (selector, topic, covered) in table {
            assert_eq!(covers(selector, topic), covered, "{selector} {topic}");
        }
    }
}
