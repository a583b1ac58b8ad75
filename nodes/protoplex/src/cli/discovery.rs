//! What may be said of the nodes that there are, and to them.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::units::{self, Method};

#[derive(Debug, Args)]
pub(crate) struct Discover {
    /// Kinds of node, or pools of joined servers [default: all]
    #[arg(value_name = "KIND")]
    pub kinds: Vec<String>,
    /// Each node, with its meta port, its process and its children
    #[arg(short, long)]
    pub instances: bool,
    /// Which versions run
    #[arg(short, long)]
    pub versions: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A node (proxy-1), or a kind of node (proxy) for all of it
    #[arg(value_name = "NODE")]
    pub node: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  protoplex request proxy-1.ping '{\"payload\": [1, 2]}'
  protoplex request live.change_loglevel '{\"level\": \"debug\", \"for_s\": 60}'
  protoplex request proxy.ping -N 10000 -C 8           a benchmark, all proxies in turns
  echo '{\"prefixes\": [\"process_\"]}' | protoplex request seed.metrics -")]
pub(crate) struct Request {
    /// The node (proxy-1) and the method; `inspect` tells which there are. Of a kind of node (proxy) any one is asked, and all
    /// are commanded
    #[arg(value_name = "NODE.METHOD", value_parser = units::method)]
    pub method: Method,
    /// An object of JSON; - for what standard input has
    #[arg(value_name = "JSON")]
    pub arguments: Option<String>,
    /// Call so often, and tell how long that took instead of the answers
    #[arg(short = 'N', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub count: Option<u64>,
    /// So many calls at a time
    #[arg(short = 'C', long, value_name = "N", requires = "count", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=128))]
    pub concurrency: u32,
    /// The trace that the nodes' log lines of it name: 32 hexadecimal digits
    #[arg(long, value_name = "ID", value_parser = units::trace_id)]
    pub trace_id: Option<String>,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::interval)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Nodes (proxy-1), or kinds of node (proxy) [default: all]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Time between two looks
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = units::interval)]
    pub interval: Duration,
    /// Sort by this first
    #[arg(short, long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Print one table and end, as where standard output is no terminal, or TERM is dumb
    #[arg(long)]
    pub once: bool,
}

/// What a table of processes is put in order by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// By name, with the children below their nodes
    #[default]
    Name,
    /// Processor time
    Cpu,
    /// Resident memory
    Memory,
    /// Open connections
    Connections,
    /// Requests a second
    Requests,
}
