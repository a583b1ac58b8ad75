//! One log line: an event with the fields of its spans, its node and its child.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::scope;

/// Writes the lines of one process.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) node: String,
    pub(super) child: Option<u32>,
    pub(super) json: bool,
}

/// In the order in which people look for things.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: &'a str,
    level: &'a str,
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    child: Option<u32>,
    target: &'a str,
    message: Value,
    #[serde(flatten)]
    fields: BTreeMap<String, Value>,
}

impl<S> FormatEvent<S, JsonFields> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        writer: Writer<'_>,
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
        let metadata = event.metadata();
        if self.json {
            self.write_json(writer, &time, metadata, fields.0)
        } else {
            self.write_text(writer, &time, metadata, fields.0)
        }
    }
}

impl Line {
    fn write_json(
        &self,
        mut writer: Writer<'_>,
        time: &str,
        metadata: &Metadata<'_>,
        mut fields: BTreeMap<String, Value>,
    ) -> fmt::Result {
        for own in ["time", "level", "node", "child", "target"] {
            // What the line says of itself can't be contradicted by an event.
            fields.remove(own);
        }
        let message = fields.remove("message");
        let line = JsonLine {
            time,
            level: metadata.level().as_str(),
            node: &self.node,
            child: self.child,
            target: metadata.target(),
            message: message.unwrap_or_default(),
            fields,
        };
        writeln!(writer, "{}", serde_json::to_string(&line).map_err(|_| fmt::Error)?)
    }

    fn write_text(
        &self,
        mut writer: Writer<'_>,
        time: &str,
        metadata: &Metadata<'_>,
        mut fields: BTreeMap<String, Value>,
    ) -> fmt::Result {
        let level = metadata.level();
        let (colour, plain) = match (writer.has_ansi_escapes(), *level) {
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, Level::DEBUG | Level::TRACE) => ("\x1b[2m", "\x1b[0m"),
            _ => ("", ""),
        };
        write!(writer, "{time} {colour}{level:>5}{plain} {}", self.node)?;
        if let Some(child) = self.child {
            write!(writer, ":{child}")?;
        }
        write!(writer, " {}:", metadata.target())?;
        if let Some(Value::String(message)) = fields.remove("message") {
            writer.write_char(' ')?;
            for character in message.chars() {
                match character.is_control() {
                    true => write!(writer, "{}", character.escape_default())?,
                    false => writer.write_char(character)?,
                }
            }
        }
        for (name, value) in &fields {
            match value {
                Value::String(text) if !text.is_empty() && !text.contains(awkward) => {
                    write!(writer, " {name}={text}")?
                }
                value => write!(writer, " {name}={value}")?,
            }
        }
        writeln!(writer)
    }
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
