//! Log lines that name their node and child, the recorder of metrics, and the exporter of traces.

mod level;
mod line;
mod loss;
mod queue;
mod recorder;
mod scope;
mod sink;
pub mod trace;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing_subscriber::fmt::format::JsonFields;

use crate::config::Problems;
use crate::exposition::Family;
use crate::log_file::Rotation;
use line::Line;
use queue::Queue;
use recorder::Recorder;
pub use scope::within_trace;

pub use level::{level, set_level};
pub use line::Record;
pub(crate) use loss::{details, keep_telling};
pub use sink::Sink;

static RECORDER: OnceLock<Arc<Recorder>> = OnceLock::new();
static QUEUE: OnceLock<Queue> = OnceLock::new();
/// Where the lines of this process are kept, where a reader can make something of them.
static KEPT: OnceLock<Option<PathBuf>> = OnceLock::new();

/// The smallest file that may be put aside for its size.
const MIN_BYTES: u64 = 4096;
/// What a process waits at its end for its last lines.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// The same at a panic, which need not be the end.
const PANIC_PATIENCE: Duration = Duration::from_millis(250);

/// Where log lines go and which. Also the section `[log]` of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A level, or directives as in `info,protoplex_proxy=debug`.
    pub level: String,
    /// How a line looks.
    pub format: Format,
    /// Appended to, by any number of processes; without it lines go to standard error.
    pub file: Option<PathBuf>,
    /// A file that would become larger is put aside first, as `FILE.1`. For access logs, too. 0 is never.
    pub max_bytes: u64,
    /// How many files are kept that were put aside. 0 is all.
    pub keep: u32,
    /// A file that was begun so long ago is put aside, and one that was put aside so long ago is removed. 0 is never.
    pub max_age_days: u32,
}

impl Settings {
    /// Whether lines would look otherwise, or go elsewhere.
    pub(crate) fn differs_in_place(&self, other: &Self) -> bool {
        Self { level: other.level.clone(), ..self.clone() } != *other
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Auto,
            file: None,
            max_bytes: 51_000_000,
            keep: 10,
            max_age_days: 30,
        }
    }
}

impl Settings {
    /// What is wrong goes to `problems`, for the section `[log]`.
    pub fn check(&self, problems: &mut Problems) {
        problems.check("log.level", level::filter(&self.level));
        if (1..MIN_BYTES).contains(&self.max_bytes) {
            problems
                .add("log.max_bytes", format_args!("must be 0, which is no limit, or at least {MIN_BYTES}"));
        }
    }

    /// When files are put aside, and for how long they are kept.
    pub fn rotation(&self) -> Rotation {
        let max_age = Duration::from_secs(u64::from(self.max_age_days) * 86_400);
        Rotation { max_bytes: self.max_bytes, keep: self.keep, max_age }
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

/// Why log lines can't be written, or another level can't be set.
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
    /// The system gives no thread to write lines.
    #[error("the log has no thread: {0}")]
    Thread(io::Error),
    /// No log was started.
    #[error("this process has no log")]
    None,
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
    let filter = level::filter(&settings.level)?;
    let (sink, terminal) = match &settings.file {
        Some(path) => {
            let sink = Sink::file("log", path, settings.rotation());
            (sink.map_err(|source| TelemetryError::File { path: path.clone(), source })?, false)
        }
        None => (Sink::stderr("log"), io::stderr().is_terminal()),
    };
    let json = match settings.format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    if QUEUE.get().is_none() {
        let queue = Queue::start(sink).map_err(TelemetryError::Thread)?;
        let kept = settings.file.clone().filter(|_| json);
        // They fail where another thread was first.
        let _ = QUEUE.set(queue.clone());
        let _ = KEPT.set(kept);
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(move || queue.clone())
            .with_ansi(terminal)
            .fmt_fields(JsonFields::new())
            .event_format(Line { node: node.to_owned(), child, json })
            .with_filter_reloading();
        level::remember(builder.reload_handle(), &settings.level);
        // It fails where a test has a subscriber of its own.
        let _ = builder.try_init();
    }
    record();
    log_panics();
    Ok(())
}

/// Waits for the last lines to be written, for whoever ends now; not for long where the disk stands still.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(END_PATIENCE);
    }
}

/// The file with the lines of this process; none where they go to standard error, or are not JSON.
pub(crate) fn kept() -> Option<PathBuf> {
    KEPT.get().cloned().flatten()
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
            if let Some(queue) = QUEUE.get() {
                queue.flush(PANIC_PATIENCE);
            }
        }));
    });
}
