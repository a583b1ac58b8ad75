//! What a line looks like.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::*;

/// Where the lines of a test go.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line that an event becomes, without its time.
fn written(child: Option<u32>, json: bool, event: impl FnOnce()) -> String {
    let page = Page::default();
    let writer = page.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .fmt_fields(JsonFields::new())
        .event_format(Line { node: "proxy-1".to_owned(), child, json })
        .finish();
    tracing::subscriber::with_default(subscriber, event);
    let line = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
    if json {
        let (_, rest) = line.split_once("\",").unwrap();
        rest.to_owned()
    } else {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        rest.to_owned()
    }
}

#[test]
fn text_names_node_and_child_and_keeps_to_one_line() {
    let line = written(Some(1), false, || {
        let _span = tracing::info_span!("request", trace_id = "4bf9").entered();
        tracing::warn!(target: "proxy", upstream = "live-1:0", path = "/a b", status = 502_u16, error = "two\nlines", empty = "", "can't\nanswer");
    });
    let fields = r#"empty="" error="two\nlines" path="/a b" status=502 upstream=live-1:0 trace_id=4bf9"#;
    assert_eq!(line, format!(" WARN proxy-1:1 proxy: can't\\nanswer {fields}\n"));
}

#[test]
fn json_has_the_same_and_an_event_cannot_pretend_to_come_from_elsewhere() {
    let line = written(None, true, || {
        let _span = tracing::info_span!("request", trace_id = "4bf9").entered();
        tracing::info!(target: "proxy", node = "other", child = 7, ratio = 0.5, good = true, "done");
    });
    let expected = r#""level":"INFO","node":"proxy-1","target":"proxy","message":"done","good":true,"ratio":0.5,"trace_id":"4bf9"}"#;
    assert_eq!(line, format!("{expected}\n"));
}

#[test]
fn a_line_names_the_trace_for_which_it_was_written_and_no_later_one_does() {
    let id = b"4bf92f3577b34da6a3ce929d0e0e4736";
    let line = written(None, false, || {
        crate::telemetry::within_trace(id, || tracing::warn!(target: "proxy", "no answer"));
    });
    assert_eq!(line, format!(" WARN proxy-1 proxy: no answer trace_id={}\n", str::from_utf8(id).unwrap()));
    let panicked = std::panic::catch_unwind(|| crate::telemetry::within_trace(id, || panic!("on purpose")));
    assert!(panicked.is_err());
    assert_eq!(
        written(None, false, || tracing::warn!(target: "proxy", "late")),
        " WARN proxy-1 proxy: late\n"
    );
}
