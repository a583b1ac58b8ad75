//! The lines of `text/event-stream` (WHATWG HTML, section 9.2.6).

use std::fmt::Write as _;

use bytes::Bytes;

use crate::channel::Update;

/// Keeps proxies and clients from taking a quiet stream for a dead one.
pub(crate) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// One event. Where the publisher gave an id of its own, the channel's follows in a comment, for those who merge streams.
pub(crate) fn event(update: &Update, own_id: &str) -> Bytes {
    let mut frame = String::with_capacity(update.data.len() + 64);
    // Writing to a String cannot fail.
    let _ = match &update.id {
        Some(id) => write!(frame, "id: {id}\n:{own_id}\n"),
        None => writeln!(frame, "id: {own_id}"),
    };
    if let Some(kind) = &update.kind {
        let _ = writeln!(frame, "event: {kind}");
    }
    if let Some(retry_ms) = update.retry_ms {
        let _ = writeln!(frame, "retry: {retry_ms}");
    }
    for line in lines(&update.data) {
        let _ = writeln!(frame, "data: {line}");
    }
    frame.push('\n');
    frame.into()
}

/// Tells a client where it stands before its first event: a block without data sets the last event id and is not
/// dispatched, so that a client that loses its connection before any event recovers too.
pub(crate) fn position(id: &str) -> Bytes {
    format!("id: {id}\n\n").into()
}

/// The last words of a stream that a client is to open again, after a time.
pub(crate) fn retry(after_ms: u64) -> Bytes {
    format!("retry: {after_ms}\n\n").into()
}

/// The last words to a consumer that was too slow. Without an id: its last event stays what it was.
pub(crate) fn lagged(missed: u64, retry_ms: u64) -> Bytes {
    format!("event: protoplex.lagged\nretry: {retry_ms}\ndata: {{\"missed\":{missed}}}\n\n").into()
}

/// Tells a subscriber of several topics that events of this one may be missing: its owner changed.
pub(crate) fn gap(topic: &str) -> Bytes {
    format!("event: protoplex.gap\ndata: {}\n\n", serde_json::json!({ "topic": topic })).into()
}

/// A block that was made here or by another live node, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    /// The channel's id of the event, or of the place; the last words of a stream and heartbeats have none.
    pub(crate) position: Option<&'a str>,
    /// The publisher's own id.
    pub(crate) own_id: Option<&'a str>,
    /// The lines after the ids, to the block's end.
    pub(crate) rest: &'a str,
}

/// Takes a block apart.
pub(crate) fn split(block: &str) -> Parts<'_> {
    let none = Parts { position: None, own_id: None, rest: block };
    let Some((id, rest)) = block.strip_prefix("id: ").and_then(|text| text.split_once('\n')) else {
        return none;
    };
    if id.starts_with('#') {
        return Parts { position: Some(id), own_id: None, rest };
    }
    let Some((position, rest)) = rest.strip_prefix(':').and_then(|text| text.split_once('\n')) else {
        return none;
    };
    Parts { position: Some(position), own_id: Some(id), rest }
}

/// Puts a block together again under another id.
pub(crate) fn join(id: &str, rest: &str) -> Bytes {
    format!("id: {id}\n{rest}").into()
}

/// Lines end with LF, CR or CRLF: each would end the `data` field.
fn lines(data: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\r', '\n']) else {
            rest = None;
            return Some(text);
        };
        let terminator = if text[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[end + terminator..]);
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(update: &Update) -> String {
        String::from_utf8(event(update, "#1.1").to_vec()).unwrap()
    }

    #[test]
    fn every_line_of_data_gets_its_own_field() {
        let update = Update { data: "a\nb\r\nc\rd\n".into(), ..Update::default() };
        assert_eq!(text(&update), "id: #1.1\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
    }

    #[test]
    fn blocks_come_apart_as_they_were_made() {
        let parts = |position, own_id, rest| Parts { position, own_id, rest };
        let own = text(&Update { id: Some("urn:mine".into()), data: "x".into(), ..Update::default() });
        assert_eq!(split(&own), parts(Some("#1.1"), Some("urn:mine"), "data: x\n\n"));
        assert_eq!(split(&text(&Update::default())), parts(Some("#1.1"), None, "data: \n\n"));
        assert_eq!(split("id: #1.1\n\n"), parts(Some("#1.1"), None, "\n"));
        for other in [":\n\n", "retry: 5\n\n", "id: x\n\n", ""] {
            assert_eq!(split(other), parts(None, None, other));
        }
    }

    #[test]
    fn an_update_without_data_is_dispatched_all_the_same() {
        assert_eq!(text(&Update::default()), "id: #1.1\ndata: \n\n");
    }

    #[test]
    fn the_publishers_id_leads_and_the_channels_follows_in_a_comment() {
        let update = Update {
            data: "x".into(),
            kind: Some("upload.progress".into()),
            id: Some("urn:mine".into()),
            retry_ms: Some(1500),
            private: true,
        };
        assert_eq!(text(&update), "id: urn:mine\n:#1.1\nevent: upload.progress\nretry: 1500\ndata: x\n\n");
    }
}
