//! One log line: an event with the fields of its spans, its node and its child.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::scope;

/// The field that tells which lines belong to one request.
const TRACE_ID: &str = "trace_id";

/// Writes the lines of one process.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) node: String,
    pub(super) child: Option<u32>,
    pub(super) json: bool,
}

/// A line, in the order in which people look for things.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// RFC 3339, in UTC, to the microsecond.
    pub time: String,
    /// `INFO`.
    pub level: String,
    /// `proxy-1`.
    pub node: String,
    /// Only where a child wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<u32>,
    /// The part of the program.
    pub target: String,
    /// What happened.
    #[serde(default)]
    pub message: Value,
    /// The event's own.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

impl<S> FormatEvent<S, JsonFields> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(recorded) = span.extensions().get::<FormattedFields<JsonFields>>() {
                // Our own formatter wrote it; a span without fields is empty.
                fields
                    .0
                    .extend(serde_json::from_str::<BTreeMap<String, Value>>(recorded).unwrap_or_default());
            }
        }
        event.record(&mut fields);
        if let Some(id) = scope::trace() {
            // What an event says itself is more precise.
            fields.0.entry("trace_id".to_owned()).or_insert_with(|| String::from_utf8_lossy(&id).into());
        }
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let record = self.record(time, event.metadata(), fields.0);
        if self.json {
            writeln!(writer, "{}", serde_json::to_string(&record).map_err(|_| fmt::Error)?)
        } else {
            let colours = writer.has_ansi_escapes();
            writeln!(writer, "{}", record.text(colours, 0))
        }
    }
}

impl Line {
    fn record(&self, time: String, metadata: &Metadata<'_>, mut fields: BTreeMap<String, Value>) -> Record {
        for own in ["time", "level", "node", "child", "target"] {
            // What the line says of itself can't be contradicted by an event.
            fields.remove(own);
        }
        Record {
            time,
            level: metadata.level().to_string(),
            node: self.node.clone(),
            child: self.child,
            target: metadata.target().to_owned(),
            message: fields.remove("message").unwrap_or_default(),
            fields,
        }
    }
}

impl Record {
    /// `proxy-1:0`.
    pub fn origin(&self) -> String {
        match self.child {
            Some(child) => format!("{}:{child}", self.node),
            None => self.node.clone(),
        }
    }

    /// The line as people read it, without its end, in colours or not; who wrote it in a column of this width.
    pub fn text(&self, colours: bool, width: usize) -> String {
        let (colour, plain) = match (colours, self.level.as_str()) {
            (true, "ERROR") => ("\x1b[31m", "\x1b[0m"),
            (true, "WARN") => ("\x1b[33m", "\x1b[0m"),
            (true, "DEBUG" | "TRACE") => ("\x1b[2m", "\x1b[0m"),
            _ => ("", ""),
        };
        let [time, level, origin, target] =
            [&self.time, &self.level, &self.origin(), &self.target].map(|text| harmless(text));
        let mut text = format!("{time} {colour}{level:>5}{plain} {origin:width$} {target}:");
        if let Value::String(message) = &self.message {
            text.push(' ');
            text.push_str(&harmless(message));
        }
        // By it people look for further lines.
        let (last, others): (Vec<_>, Vec<_>) = self.fields.iter().partition(|(name, _)| *name == TRACE_ID);
        for (name, value) in others.into_iter().chain(last) {
            let value = match value {
                Value::String(value) if !value.is_empty() && !value.contains(awkward) => value.clone(),
                value => harmless(&value.to_string()),
            };
            text.push_str(&format!(" {}={value}", harmless(name)));
        }
        text
    }
}

/// Control characters would end the line, or move a terminal's cursor.
fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => harmless.extend(character.escape_default()),
            false => harmless.push(character),
        }
    }
    harmless
}

/// Whether a character would make it unclear where a field ends.
fn awkward(character: char) -> bool {
    character.is_whitespace() || character.is_control() || character == '"' || character == '='
}

#[derive(Default)]
struct Fields(BTreeMap<String, Value>);

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), json!(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests;
