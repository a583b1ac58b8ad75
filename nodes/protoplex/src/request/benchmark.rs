//! Many calls, some at a time, and how long they took.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::rpc::Caller;

const BAR: &str = "{wide_bar}  {human_pos}/{human_len}  {per_sec}  {eta}";

/// How it went. Times are in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    calls: u64,
    failed: u64,
    concurrency: u32,
    seconds: f64,
    calls_per_second: f64,
    mean_us: u64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    max_us: u64,
    /// Of the first call that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Calls so often, with so many under way at once, the instances in turns. A first call that fails is an error.
pub(super) async fn run(
    callers: Vec<Caller>,
    method: &str,
    arguments: &str,
    trace: Option<&str>,
    count: u64,
    concurrency: u32,
) -> anyhow::Result<Report> {
    // Connections are made, and what can't be meant is told, before the time is taken.
    for caller in &callers {
        caller.call(method, arguments, trace).await?;
    }
    let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    let (next, times, error) = (Cell::new(0_u64), RefCell::new(Vec::new()), RefCell::new(None));
    let failed = Cell::new(0_u64);
    let began = Instant::now();
    let worker = async || {
        while next.get() < count {
            let turn = next.replace(next.get() + 1);
            let asked = Instant::now();
            match callers[turn as usize % callers.len()].call(method, arguments, trace).await {
                Ok(_) => times.borrow_mut().push(asked.elapsed()),
                Err(why) => {
                    failed.set(failed.get() + 1);
                    error.borrow_mut().get_or_insert_with(|| format!("{why:#}"));
                }
            }
            bar.inc(1);
        }
    };
    join_all((0..concurrency).map(|_| worker())).await;
    let took = began.elapsed();
    bar.finish_and_clear();
    Ok(Report::new(times.into_inner(), failed.get(), concurrency, took, error.into_inner()))
}

impl Report {
    /// In words, where not all calls were answered.
    pub(super) fn failure(&self) -> Option<String> {
        (self.failed > 0).then(|| format!("{} of {} calls failed", self.failed, self.calls))
    }

    fn new(
        mut times: Vec<Duration>,
        failed: u64,
        concurrency: u32,
        took: Duration,
        error: Option<String>,
    ) -> Self {
        times.sort();
        let us = |time: Duration| time.as_micros() as u64;
        // The nearest rank: the smallest time that so many percent of all are not above.
        let rank = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().map_or(0, us)
        };
        let calls = times.len() as u64 + failed;
        Self {
            calls,
            failed,
            concurrency,
            seconds: took.as_secs_f64(),
            calls_per_second: calls as f64 / took.as_secs_f64().max(f64::EPSILON),
            mean_us: times.iter().sum::<Duration>().checked_div(times.len() as u32).map_or(0, us),
            p50_us: rank(50),
            p90_us: rank(90),
            p99_us: rank(99),
            max_us: rank(100),
            error,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        writeln!(
            f,
            "{} calls, {} at a time, in {:.2} s: {:.0} a second, {} failed",
            self.calls, self.concurrency, self.seconds, self.calls_per_second, self.failed
        )?;
        writeln!(
            f,
            "mean {:.2} ms, p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
            ms(self.mean_us),
            ms(self.p50_us),
            ms(self.p90_us),
            ms(self.p99_us),
            ms(self.max_us)
        )?;
        match &self.error {
            Some(error) => writeln!(f, "the first that failed: {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = (1..=200).rev().map(Duration::from_micros).collect();
        let report = Report::new(times, 1, 4, Duration::from_secs(2), None);
        assert_eq!((report.p50_us, report.p90_us, report.p99_us, report.max_us), (100, 180, 198, 200));
        assert_eq!((report.calls, report.failed, report.mean_us), (201, 1, 100));
        assert!((report.calls_per_second - 100.5).abs() < 0.01);
        let none = Report::new(Vec::new(), 0, 1, Duration::ZERO, None);
        assert_eq!((none.calls, none.max_us, none.mean_us), (0, 0, 0));
    }
}
