//! `protoplex tail`: the log lines of any nodes together, in order of time.

mod merge;
mod stream;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use protoplex_runtime::signals::StopSignals;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::merge::Merge;
use self::stream::{Heard, Line, Stream};
use crate::cli::{Common, Tail};
use crate::nodes::Nodes;
use crate::output;

/// Lines that may be on their way from the streams to the page.
const ON_THEIR_WAY: usize = 1024;
/// Between two looks for lines that have waited long enough for earlier ones.
const PRINT_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the command, until Ctrl-C or until nobody reads.
pub(crate) async fn run(common: &Common, command: Tail) -> anyhow::Result<()> {
    let wanted = Nodes::find(common).await?.choose(&command.origins)?;
    let mut stop = StopSignals::take()?;
    let page = Page::new(common.json, &wanted);
    let (told, heard) = mpsc::channel(ON_THEIR_WAY);
    let mut streams = JoinSet::new();
    for (node, children) in wanted {
        let stream = Stream::new(common, &command, node, children, told.clone())?;
        streams.spawn(stream.keep());
    }
    drop(told);

    let mut together = Together::of(heard);
    let is_read = tokio::select! {
        is_read = together.show(!command.no_follow, |lines| page.print(lines)) => is_read?,
        _ = stop.next() => true,
    };
    if !is_read {
        return Ok(());
    }
    page.print(together.merge.rest())?;
    if together.is_refused { bail!("not all of the nodes could be followed") } else { Ok(()) }
}

/// The lines of all streams.
struct Together {
    heard: mpsc::Receiver<Heard>,
    merge: Merge<Line>,
    /// A node will never show its lines.
    is_refused: bool,
}

impl Together {
    fn of(heard: mpsc::Receiver<Heard>) -> Self {
        Self { heard, merge: Merge::default(), is_refused: false }
    }

    /// Prints lines once they have waited long enough, or leaves all to the end. Says whether anybody still reads when the
    /// streams have ended.
    async fn show(
        &mut self,
        follow: bool,
        mut print: impl FnMut(Vec<Line>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        // It goes on while lines come without a pause.
        let mut due = interval(PRINT_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                heard = self.heard.recv() => match heard {
                    Some(Heard::Line(line)) => self.merge.add(line.record.time.clone(), line, Instant::now()),
                    Some(Heard::Told(note)) => output::tell(&note),
                    Some(Heard::Refused(reason)) => {
                        output::tell(&reason);
                        self.is_refused = true;
                    }
                    None => return Ok(true),
                },
                _ = due.tick(), if follow => {
                    if !print(self.merge.due(Instant::now()))? {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

/// What lines look like.
struct Page {
    json: bool,
    colours: bool,
    /// Of the column that says who wrote a line.
    width: usize,
}

impl Page {
    fn new(json: bool, wanted: &BTreeMap<String, Vec<u32>>) -> Self {
        // With room for a colon and the number of a child.
        let width = wanted.keys().map(|node| node.chars().count() + 2).max().unwrap_or(0);
        Self { json, colours: io::stdout().is_terminal(), width }
    }

    /// Whether anybody still reads.
    fn print(&self, lines: Vec<Line>) -> io::Result<bool> {
        let mut text = String::new();
        for line in lines {
            match self.json {
                true => text.push_str(&line.raw),
                false => text.push_str(&line.record.text(self.colours, self.width)),
            }
            text.push('\n');
        }
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            written => written.map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    fn line() -> Heard {
        let raw = r#"{"time":"2026-11-22T00:00:00Z","level":"INFO","node":"n","target":"t"}"#;
        Heard::Line(Line { raw: raw.to_owned(), record: serde_json::from_str(raw).unwrap() })
    }

    #[tokio::test]
    async fn lines_that_come_without_a_pause_are_printed_and_do_not_pile_up() {
        let (told, heard) = mpsc::channel(ON_THEIR_WAY);
        let talking = async {
            while told.send(line()).await.is_ok() {
                sleep(PRINT_INTERVAL / 10).await;
            }
        };
        let mut together = Together::of(heard);
        let shown = together.show(true, |lines| Ok(lines.is_empty()));
        let shown = tokio::select! {
            shown = timeout(Duration::from_secs(10), shown) => shown,
            () = talking => unreachable!("somebody listens"),
        };
        assert!(!shown.expect("a line is printed while others come").unwrap());
    }
}
