//! One line a request, gathered in memory and written in batches off the event loop.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Version;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::exchange::Exchange;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Nowhere.
    Off,
    /// Standard error.
    Stderr,
    /// Appended to a file (`O_APPEND`, so that children can share one), which is made where it is missing.
    File(PathBuf),
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `name=value` pairs behind the time, for people.
    Text,
}

/// The access log of a child. Cheap to clone.
#[derive(Clone)]
pub struct AccessLog(Option<Rc<Inner>>);

struct Inner {
    sink: Sink,
    format: Format,
    lines: RefCell<String>,
    /// Lines that there was no room for.
    lost: Cell<u64>,
    full: Notify,
}

#[derive(Clone)]
enum Sink {
    Stderr,
    File(Arc<File>),
}

/// Lines wait for others so long at most.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// So many bytes of lines are written at once, without waiting for more.
const BATCH_BYTES: usize = 64 * 1024;
/// With so many bytes waiting for a slow disk, further lines are counted and dropped.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

impl AccessLog {
    /// Opens the log. Blocking.
    ///
    /// # Errors
    /// The file can't be opened for appending.
    pub fn open(target: &Target, format: Format) -> io::Result<Self> {
        let sink = match target {
            Target::Off => return Ok(Self::off()),
            Target::Stderr => Sink::Stderr,
            Target::File(path) => {
                Sink::File(Arc::new(OpenOptions::new().create(true).append(true).open(path)?))
            }
        };
        let (lines, lost, full) = (RefCell::default(), Cell::default(), Notify::new());
        Ok(Self(Some(Rc::new(Inner { sink, format, lines, lost, full }))))
    }

    /// A log that takes nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Adds the line of an exchange that has ended.
    pub(crate) fn write(&self, exchange: &Exchange) {
        let Some(inner) = &self.0 else { return };
        let mut lines = inner.lines.borrow_mut();
        if lines.len() >= MAX_WAITING_BYTES {
            inner.lost.set(inner.lost.get() + 1);
            return;
        }
        let line = Line { exchange, format: inner.format };
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{line}");
        if lines.len() >= BATCH_BYTES {
            inner.full.notify_one();
        }
    }

    /// Writes batches until `over` is notified, then what is left.
    pub(crate) async fn keep_writing(&self, over: &Notify) {
        let Some(inner) = &self.0 else {
            return over.notified().await;
        };
        let mut last = false;
        while !last {
            // All three can be dropped at any time: a notification that came is kept.
            last = tokio::select! {
                () = over.notified() => true,
                () = inner.full.notified() => false,
                () = sleep(FLUSH_INTERVAL) => false,
            };
            inner.flush().await;
        }
    }
}

impl Inner {
    async fn flush(&self) {
        let batch = self.lines.take();
        let lost = self.lost.take();
        if lost > 0 {
            tracing::warn!(lines = lost, "the access log's disk is too slow, lines were dropped");
        }
        if batch.is_empty() {
            return;
        }
        let sink = self.sink.clone();
        let written = tokio::task::spawn_blocking(move || match sink {
            Sink::Stderr => io::stderr().write_all(batch.as_bytes()),
            Sink::File(file) => (&*file).write_all(batch.as_bytes()),
        });
        // A writer that was cancelled is a runtime that ends; then there is nobody to tell.
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "can't write to the access log, lines were lost");
        }
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessLog")
    }
}

/// The line of an exchange, without its end.
struct Line<'a> {
    exchange: &'a Exchange,
    format: Format,
}

enum Value<'a> {
    Text(&'a str),
    Number(u64),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exchange = self.exchange;
        let (key, upstream) = (exchange.key.borrow(), exchange.upstream.borrow());
        let peer = exchange.peer.to_string();
        let duration = u64::try_from(exchange.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let time = Time(SystemTime::now()).to_string();
        let fields = [
            ("time", Some(Value::Text(&time))),
            ("client", Some(Value::Text(&peer))),
            ("scheme", Some(Value::Text(exchange.scheme.as_str()))),
            ("protocol", Some(Value::Text(protocol(exchange.version)))),
            ("method", Some(Value::Text(exchange.method.as_str()))),
            ("host", Some(Value::Text(&exchange.host))),
            ("path", Some(Value::Text(&exchange.target))),
            ("status", Some(Value::Number(exchange.status.get().as_u16().into()))),
            ("bytes_in", Some(Value::Number(exchange.bytes_in.get()))),
            ("bytes_out", Some(Value::Number(exchange.bytes_out.get()))),
            ("duration_us", Some(Value::Number(duration))),
            ("key", key.as_deref().map(Value::Text)),
            ("upstream", upstream.as_deref().map(Value::Text)),
            ("refused", exchange.fault.get().map(|rule| Value::Text(rule.kind()))),
            ("request_id", Some(Value::Text(&exchange.request_id))),
        ];
        let known = fields.into_iter().filter_map(|(name, value)| value.map(|value| (name, value)));
        match self.format {
            Format::Json => json(f, known),
            Format::Text => text(f, known),
        }
    }
}

fn json<'a>(f: &mut fmt::Formatter<'_>, fields: impl Iterator<Item = (&'a str, Value<'a>)>) -> fmt::Result {
    for (at, (name, value)) in fields.enumerate() {
        write!(f, "{}\"{name}\":", if at == 0 { '{' } else { ',' })?;
        match value {
            Value::Number(number) => write!(f, "{number}")?,
            Value::Text(text) => {
                f.write_char('"')?;
                escaped(f, text)?;
                f.write_char('"')?;
            }
        }
    }
    f.write_char('}')
}

fn text<'a>(f: &mut fmt::Formatter<'_>, fields: impl Iterator<Item = (&'a str, Value<'a>)>) -> fmt::Result {
    for (at, (name, value)) in fields.enumerate() {
        if at > 0 {
            write!(f, " {name}=")?;
        }
        match value {
            Value::Number(number) => write!(f, "{number}")?,
            Value::Text(text)
                if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') =>
            {
                escaped(f, text)?;
            }
            Value::Text(text) => {
                f.write_char('"')?;
                escaped(f, text)?;
                f.write_char('"')?;
            }
        }
    }
    Ok(())
}

/// What a client wrote must not look like a line's or a field's end: quotes, backslashes and everything that
/// is not plain text is escaped, as JSON does it.
fn escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            _ if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') => {
                write!(f, "\\u{:04x}", u32::from(character))?;
            }
            _ => f.write_char(character)?,
        }
    }
    Ok(())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// A time as RFC 3339 writes it, in UTC, to the millisecond.
struct Time(SystemTime);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let milli = since.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

/// The date of a day since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
