//! Which events become log lines, and how that is changed while the process runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use super::TelemetryError;

type Reload = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// Libraries that tell each attempt to reach a server that is away, which nodes say once in their own words.
const TALKATIVE: [(&str, &str); 2] =
    [("sqlx", "sqlx::postgres::notice=error,sqlx_core=error"), ("async_nats", "async_nats=error")];

static PRESENT: OnceLock<Present> = OnceLock::new();

struct Present {
    reload: Box<Reload>,
    level: Mutex<String>,
}

impl Present {
    fn lock(&self) -> MutexGuard<'_, String> {
        // No code panics while it holds this lock.
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets what this process logs from now on: a level, or directives as in `info,protoplex_proxy=debug`.
///
/// # Errors
/// It can't be understood, or there is no log; then nothing changes.
pub fn set_level(level: &str) -> Result<(), TelemetryError> {
    let filter = filter(level)?;
    let present = PRESENT.get().ok_or(TelemetryError::None)?;
    let mut now = present.lock();
    (present.reload)(filter).map_err(|reason| misunderstood(level, reason))?;
    level.clone_into(&mut now);
    Ok(())
}

/// What this process logs, as it was set last; nothing where there is no log.
pub fn level() -> Option<String> {
    PRESENT.get().map(|present| present.lock().clone())
}

/// For [`set_level`].
pub(super) fn remember<S: 'static>(handle: Handle<EnvFilter, S>, level: &str) {
    let reload = move |filter| handle.reload(filter).map_err(|error| error.to_string());
    // It fails where this is not the first call.
    let _ = PRESENT.set(Present { reload: Box::new(reload), level: Mutex::new(level.to_owned()) });
}

/// What is neither a level nor has one would be taken for a target, and nothing else be logged any more.
pub(super) fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_directive = |part: &str| part.contains('=') || is_level(part.trim());
    if !level.contains('[') && !level.split(',').all(is_directive) {
        let known = "write error, warn, info, debug, trace or off, or TARGET=LEVEL, with commas between them";
        return Err(misunderstood(level, known.to_owned()));
    }
    EnvFilter::try_new(quiet(level)).map_err(|error| misunderstood(level, error.to_string()))
}

/// With what is grave alone of those libraries of which the operator says nothing.
fn quiet(level: &str) -> String {
    let is_off = |part: &str| part.trim().parse().is_ok_and(|level: LevelFilter| level == LevelFilter::OFF);
    if level.split(',').any(is_off) {
        return level.to_owned();
    }
    let unnamed = TALKATIVE.into_iter().filter(|(library, _)| !level.contains(library));
    unnamed.fold(level.to_owned(), |level, (_, directives)| format!("{level},{directives}"))
}

fn misunderstood(level: &str, reason: String) -> TelemetryError {
    TelemetryError::Level { level: level.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_say_each_attempt_are_heard_where_the_operator_asks_for_it() {
        for (level, quieted) in [
            ("info", "info,sqlx::postgres::notice=error,sqlx_core=error,async_nats=error"),
            ("debug,async_nats=info", "debug,async_nats=info,sqlx::postgres::notice=error,sqlx_core=error"),
            ("info,sqlx_core=debug", "info,sqlx_core=debug,async_nats=error"),
            ("async_nats=info,sqlx=warn", "async_nats=info,sqlx=warn"),
            ("off", "off"),
        ] {
            assert_eq!(quiet(level), quieted);
        }
        let filter = filter("info").unwrap().to_string();
        assert!(filter.contains("sqlx_core=error") && filter.contains("info"), "{filter}");
    }

    #[test]
    fn row_a_level_that_means_nothing_is_refused() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,protoplex_seed=debug",
            "protoplex_proxy=trace",
            "[request{x}]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,", "info,protoplex_seed", "protoplex_seed=loud", "info debug"] {
            let told = filter(bad).unwrap_err().to_string();
            assert!(told.starts_with(&format!("the log level {bad:?} can't be understood: ")), "{told}");
        }
    }
}
