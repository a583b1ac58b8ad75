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
use tokio::time::sleep;

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
    let (told, mut heard) = mpsc::channel(ON_THEIR_WAY);
    let mut streams = JoinSet::new();
    for (node, children) in wanted {
        let stream = Stream::new(common, &command, node, children, told.clone())?;
        streams.spawn(stream.keep());
    }
    drop(told);

    let (mut merge, mut refused) = (Merge::default(), false);
    loop {
        // Every arm is cancel-safe.
        tokio::select! {
            heard = heard.recv() => match heard {
                Some(Heard::Line(line)) => merge.add(line.record.time.clone(), line, Instant::now()),
                Some(Heard::Told(note)) => output::tell(&note),
                Some(Heard::Refused(reason)) => {
                    output::tell(&reason);
                    refused = true;
                }
                None => break,
            },
            () = sleep(PRINT_INTERVAL), if !command.no_follow => {
                if !page.print(merge.due(Instant::now()))? {
                    return Ok(());
                }
            }
            _ = stop.next() => break,
        }
    }
    page.print(merge.rest())?;
    if refused { bail!("not all of the nodes could be followed") } else { Ok(()) }
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
