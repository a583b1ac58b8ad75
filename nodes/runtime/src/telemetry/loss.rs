//! What the logs of this process have lost: for the metrics and the status page.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;
use tokio::sync::watch;

use crate::context::Context;

static LOSSES: LazyLock<watch::Sender<BTreeMap<&'static str, Loss>>> = LazyLock::new(watch::Sender::default);

/// Of one log.
#[derive(Debug, Default)]
struct Loss {
    lines: u64,
    /// Only while nothing can be written.
    reason: Option<String>,
}

/// Lines of a log were dropped.
pub(super) fn note(log: &'static str, lines: u64, reason: &str) {
    metrics::counter!("protoplex_log_lines_lost_total", "log" => log).increment(lines);
    LOSSES.send_modify(|losses| {
        let loss = losses.entry(log).or_default();
        loss.lines += lines;
        loss.reason = Some(reason.to_owned());
    });
}

/// Lines are written again.
pub(super) fn over(log: &'static str) {
    LOSSES.send_modify(|losses| {
        if let Some(loss) = losses.get_mut(log) {
            loss.reason = None;
        }
    });
}

/// For the status page: an entry for each log that has lost lines.
pub(crate) fn details() -> BTreeMap<String, Value> {
    let told = |loss: &Loss| match &loss.reason {
        Some(reason) => format!("{} lines lost: {reason}", loss.lines),
        None => format!("{} lines were lost, and it goes on", loss.lines),
    };
    LOSSES.borrow().iter().map(|(log, loss)| ((*log).to_owned(), told(loss).into())).collect()
}

/// Keeps the details of a process up to date. Never ends.
pub(crate) async fn keep_telling(context: Context) {
    let mut losses = LOSSES.subscribe();
    losses.mark_changed();
    // The sender is never dropped.
    while losses.changed().await.is_ok() {
        losses.mark_unchanged();
        details().into_iter().for_each(|(log, told)| context.detail(&log, told));
    }
}
