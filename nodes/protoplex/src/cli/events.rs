//! What is said of events: publishing them, subscribing to them, and what has subscribed.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::units;

#[derive(Debug, Args)]
#[command(after_help = "\
Answered when the event is kept: it is then delivered to every subscription, whatever fails meanwhile.
An event that is known by its source and id, and was kept within five minutes, is not kept again: so
repeat with --id what you can't be sure of.

  protoplex emit room.closed '{\"room\": 42}' --subject room/42
  protoplex emit report.due --delay 1h
  jq -c '.[]' rooms.json | protoplex emit room.opened --lines
  protoplex emit --cloudevent - < event.json

Exit codes: 0 kept, 1 refused, 2 no event (bad JSON, a bad type), 3 the seed or what keeps the events is away.")]
pub(crate) struct Emit {
    /// Type of the event, words between dots as in room.closed: subscribers name it by patterns
    #[arg(value_name = "TYPE", required_unless_present = "cloudevent")]
    pub topic: Option<String>,
    /// What it carries: JSON, or text with a --content-type that isn't JSON; - reads standard input
    #[arg(value_name = "DATA")]
    pub payload: Option<String>,
    /// What of its source it is about, as in room/42
    #[arg(long)]
    pub subject: Option<String>,
    /// Where it happened, a URI reference [default: /operator/USER@MACHINE]
    #[arg(long, value_name = "URI")]
    pub source: Option<String>,
    /// Tells it from other events of its source [default: a random one]
    #[arg(long)]
    pub id: Option<String>,
    /// Publish it so much later, as in 10s, 15m, 12h
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub delay: Option<Duration>,
    /// Media type of what it carries [default: application/json]
    #[arg(long, value_name = "TYPE/SUBTYPE")]
    pub content_type: Option<String>,
    /// An attribute of your own, may be repeated; names are made of a-z and 0-9
    #[arg(long, value_name = "NAME=VALUE")]
    pub extension: Vec<String>,
    /// Read standard input, and publish each of its lines as an event as it comes
    #[arg(long, conflicts_with_all = ["payload", "id"])]
    pub lines: bool,
    /// What is given, or read, are whole CloudEvents in JSON
    #[arg(long, conflicts_with_all = ["subject", "source", "id", "content_type", "extension", "payload"])]
    pub cloudevent: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A pattern names types: * stands for one word, # at the end for any number of words. Quote them:

  protoplex subscribe 'file.*'                   what happens to files from now on
  protoplex subscribe '#' --from earliest        everything that is kept
  protoplex subscribe 'room.#' --group billing   share the events with all who say --group billing
  protoplex subscribe file.stored --durable index --exec './index.sh'

Every event is delivered at least once, and acknowledged after it was printed, or after the command has
succeeded. One that was delivered ten times in vain is put aside: protoplex subscriptions dead NAME.
With --json each line is {\"position\": …, \"attempt\": …, \"event\": {…}}.")]
pub(crate) struct Subscribe {
    /// Which types of events
    #[arg(value_name = "PATTERN", required = true)]
    pub patterns: Vec<String>,
    /// Share the events with all subscribers of this name; it is remembered how far they have come
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Remember under this name how far this subscriber has come; nobody else may have the name meanwhile
    #[arg(long, value_name = "NAME", conflicts_with = "group")]
    pub durable: Option<String>,
    /// Where to begin, where no position is remembered: new, earliest, or behind a POSITION
    #[arg(long, value_name = "WHERE", default_value = "new", value_parser = start)]
    pub from: Start,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Run this command (by sh) for each event, which it reads as a CloudEvent on standard input
    #[arg(long, value_name = "COMMAND")]
    pub exec: Option<String>,
}

pub(crate) use protoplex_wire::events::Start;

/// "new", "earliest", "17".
fn start(text: &str) -> Result<Start, String> {
    match text {
        "new" => Ok(Start::Newest),
        "earliest" => Ok(Start::Earliest),
        position => match position.parse() {
            Ok(position) => Ok(Start::After(position)),
            Err(_) => Err("write new, earliest or a position, which is a number".to_owned()),
        },
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Subscriptions {
    /// All that have a name: for what, how far they have come, who is there. BEHIND counts events of all types that have been
    /// published since, also those that are not for it
    List,
    /// Forget one: its position, and the events that it has put aside
    Remove {
        /// Its name
        name: String,
    },
    /// Events that were delivered to one again and again in vain, the oldest first
    Dead {
        /// Its name
        name: String,
        /// At most this many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}
