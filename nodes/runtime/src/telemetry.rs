//! Log lines that name their node and child, the recorder of metrics, and the exporter of traces.

mod line;
mod recorder;
mod scope;
pub mod trace;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::exposition::Family;
use line::Line;
use recorder::Recorder;
pub use scope::within_trace;

static RECORDER: OnceLock<Arc<Recorder>> = OnceLock::new();

/// Where log lines go and which. Also the section `[log]` of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A level, or directives as in `info,protoplex_proxy=debug`.
    pub level: String,
    /// How a line looks.
    pub format: Format,
    /// Appended to; without it lines go to standard error.
    pub file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Auto, file: None }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// `TIME LEVEL NODE:CHILD TARGET: MESSAGE KEY=VALUE…`
    Text,
    /// One object a line: `time`, `level`, `node`, `child`, `target`, `message`, then the event's fields.
    Json,
}

/// Why log lines can't be written.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The level reads neither as a level nor as directives.
    #[error("the log level {level:?} can't be understood: {reason}")]
    Level {
        /// As configured.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file can't be opened for appending.
    #[error("the log {}: {source}", path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing can bring spans to the collector.
    #[error("traces can't be exported to {collector}: {reason}")]
    Trace {
        /// As configured.
        collector: String,
        /// What is wrong.
        reason: String,
    },
}

/// Sends the log lines and metrics of this process where they belong. The first call of a process counts, later ones
/// change nothing. [`crate::parent::Spec::bind`] and [`crate::child::Child::run`] call it by themselves.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start(settings: &Settings, node: &str, child: Option<u32>) -> Result<(), TelemetryError> {
    let level = EnvFilter::try_new(&settings.level).map_err(|error| TelemetryError::Level {
        level: settings.level.clone(),
        reason: error.to_string(),
    })?;
    let (writer, terminal) = match &settings.file {
        Some(path) => {
            let file = append(path).map_err(|source| TelemetryError::File { path: path.clone(), source })?;
            (BoxMakeWriter::new(Arc::new(file)), false)
        }
        None => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
    };
    let json = match settings.format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(writer)
        .with_ansi(terminal)
        .fmt_fields(JsonFields::new())
        .event_format(Line { node: node.to_owned(), child, json });
    // It fails where this is not the first call.
    let _ = subscriber.try_init();
    record();
    log_panics();
    Ok(())
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// From here on the macros of `metrics` count.
fn record() {
    let recorder = RECORDER.get_or_init(Arc::default);
    // It fails where this is not the first call, or where a test has a recorder of its own.
    let _ = metrics::set_global_recorder(Arc::clone(recorder));
}

/// All metrics of this process.
pub(crate) fn gather() -> Vec<Family> {
    RECORDER.get().map(|recorder| recorder.gather()).unwrap_or_default()
}

/// A panic ends its task only; it must not pass unseen.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            metrics::counter!("protoplex_panics_total").increment(1);
            tracing::error!(%panic, backtrace = %std::backtrace::Backtrace::capture(), "panicked");
        }));
    });
}
