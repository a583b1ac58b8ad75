//! What is said of handlers: by flags one at a time, by a file all of them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Each change makes a new version of the handlers. The last 100 are kept, with time, what changed and
who changed it: the name of their credentials; where the cluster began also PROTOPLEX_OPERATOR, else
the user and the machine. What is so already is no change, and exit code 0.")]
pub(crate) enum Handler {
    /// Add a handler; requests follow it at once, and no connection notices
    #[command(after_help = "\
A path matches segment by segment: {name} takes one segment, {*rest} takes what is left.
A key is text with parts of the request in it: {name} of the path, {header.NAME} {cookie.NAME} {query.NAME}
{form.NAME} {host} {path} {client_ip}; {a|b} takes the first that is there.

  protoplex handler add rooms --host '*.live.example.com' --path '/room/{room}/{*rest}' \\
      --key 'room:{room}' --pool rooms --placement owned")]
    Add(HandlerAdd),
    /// The handlers, in the order in which they are tried
    List,
    /// Everything of one handler: its fields, since when it is so, who is in its pool
    Show {
        /// Its name
        name: String,
    },
    /// Change what is given of a handler, and leave the rest
    Edit(HandlerEdit),
    /// Remove a handler
    Remove {
        /// Its name
        name: String,
    },
    /// Have requests follow a handler again
    Enable {
        /// Its name
        name: String,
    },
    /// Keep a handler, but have no request follow it; its host and path stay taken
    Disable {
        /// Its name
        name: String,
    },
    /// The versions that are kept, the newest first
    History {
        /// What changed with this version
        version: Option<u64>,
    },
    /// Bring all handlers back to what they were in an earlier version; that makes a new version
    Rollback {
        /// The version [default: the one before the present one, so that a second rollback takes the first back]
        version: Option<u64>,
        /// Only print the difference; exit code 4 where there is one
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct HandlerAdd {
    /// Its name
    pub name: String,
    /// Host: example.com, *.example.com, or * for any
    #[arg(long, default_value = "*")]
    pub host: String,
    /// Path pattern
    #[arg(long)]
    pub path: String,
    /// Key template; requests with the same key go to the same member
    #[arg(long, default_value = "")]
    pub key: String,
    /// Pool that takes the requests
    #[arg(long)]
    pub pool: String,
    /// How a member is chosen
    #[arg(long, default_value = "owned")]
    pub placement: Placement,
}

#[derive(Debug, Args)]
pub(crate) struct HandlerEdit {
    /// Its name
    pub name: String,
    #[command(flatten)]
    pub fields: HandlerFields,
}

/// What is left out stays.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct HandlerFields {
    /// Host: example.com, *.example.com, or * for any
    #[arg(long)]
    pub host: Option<String>,
    /// Path pattern
    #[arg(long)]
    pub path: Option<String>,
    /// Key template; '' for none
    #[arg(long)]
    pub key: Option<String>,
    /// Pool that takes the requests
    #[arg(long)]
    pub pool: Option<String>,
    /// How a member is chosen
    #[arg(long)]
    pub placement: Option<Placement>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Placement {
    /// Exactly one member owns a key, until it leaves or its lease ends
    Owned,
    /// Rendezvous hashing of the key over the members
    Hash,
    /// The less busy of two members
    Spread,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The file has a table for each handler, with the names of the flags of `handler add`:

  [[handler]]
  name      = \"rooms\"
  host      = \"*.live.example.com\"     # \"*\" where it is left out
  path      = \"/room/{room}/{*rest}\"
  key       = \"room:{room}\"
  pool      = \"rooms\"
  placement = \"owned\"                  # owned (where it is left out), hash or spread
  enabled   = true                     # as where it is left out

Handlers that the file doesn't name are kept, and told, unless --prune is given.
A mistake anywhere in the file changes nothing, and is told with its line. Nothing is changed
either where somebody else changes the handlers while this runs. `handler rollback` takes it back.

Exit codes: 0 done, or nothing to do; 1 failed, nothing was changed; 2 a mistake in the file; 3 the
cluster can't be reached (the change may have been made, whole; the same command again says so);
4 with --dry-run: something would change.")]
pub(crate) struct Apply {
    /// The file; - for standard input
    pub file: PathBuf,
    /// Only print the difference; exit code 4 where there is one
    #[arg(long)]
    pub dry_run: bool,
    /// Remove handlers that the file doesn't name
    #[arg(long)]
    pub prune: bool,
    /// Only change anything if the handlers still have this version, as a dry run has told it
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub base: Option<u64>,
}
