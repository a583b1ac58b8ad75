//! The command line: what a person or a script may say, and the help that teaches it.

mod datastore;
mod discovery;
mod events;
mod handler;
mod identity;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use http::{HeaderName, HeaderValue, Method, Uri};
use protoplex_runtime::config::Setting;
use reqwest::Url;
use thiserror::Error;

use crate::nodes::Target;
use crate::settings::setting;
use crate::units;

pub(crate) use datastore::{Datastore, DatastoreCommand, Migrate};
pub(crate) use discovery::{Discover, Inspect, Request, Sort, Top};
pub(crate) use events::{Emit, Subscribe, Subscriptions};
pub(crate) use handler::{Apply, Handler, HandlerAdd, HandlerEdit, HandlerFields, Placement};
pub(crate) use identity::{Enrol, JoinToken, JoinTokenCreate, Joining, Node, Operator, OperatorCreate};

const EXAMPLES: &str = "\
Examples:
  protoplex up                                             a whole cluster on this machine
  protoplex token create --path /files/                    who has it may upload below /files/
  protoplex upload --token TOKEN big.iso http://localhost:8080/files/
  protoplex join --pool rooms --backend http://127.0.0.1:3000
  protoplex handler add rooms --path '/room/{room}/{*rest}' --key 'room:{room}' --pool rooms
  protoplex apply edge.toml --dry-run                      what would this file change of the handlers?
  protoplex route http://localhost:8080/room/42/chat       where would this request go, and why?
  protoplex restart proxy-1                                new processes, and no connection lost
  protoplex tail -l warn proxy-1 live-1                    what do these nodes log?
  protoplex subscribe 'file.*' 'node.#'                    what happens in the cluster?
  protoplex emit room.closed '{\"room\": 42}'              tell whoever subscribes to room.closed

Exit codes: 0 done; 1 the cluster refuses, or doesn't have it; 2 what is wrong without it: bad usage, a
file, the configuration; 3 the cluster can't be reached, or no seed leads; 4 a dry run has found that
something would change. With --json errors are a line on standard error:
{\"error\": {\"message\": …, \"exit_code\": 1}}.";

/// What was asked for can't be meant; exit code 2, as for what does not even parse.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Usage(pub String);

impl Usage {
    /// Of a file that is named and can't be read.
    pub(crate) fn unreadable(file: &Path) -> impl FnOnce(io::Error) -> Self + use<'_> {
        move |error| Self(format!("can't read {}: {error}", file.display()))
    }
}

/// An edge in one binary: keyed requests to the node that owns them, files, uploads, realtime.
#[derive(Debug, Parser)]
#[command(name = "protoplex", version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Common {
    /// Configuration file [default: ./protoplex.toml where there is one]
    #[arg(long, global = true, value_name = "FILE", env = "PROTOPLEX_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory: identity, storage, caches, logs, running nodes
    #[arg(long, global = true, value_name = "DIR", env = "PROTOPLEX_DATA")]
    pub data: Option<PathBuf>,
    /// Address of a seed; may be repeated, or be several with commas between them. Any of them says which one leads
    /// [default: the one that runs in the data directory]
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',', env = "PROTOPLEX_SEED")]
    pub seed: Vec<String>,
    /// Folder with an operator's or a server's credentials, from `operator create` or `enrol` [default: those of whoever
    /// may read the data directory where the cluster began]
    #[arg(long, global = true, value_name = "DIR", env = "PROTOPLEX_CREDENTIALS")]
    pub credentials: Option<PathBuf>,
    /// Override one setting of the configuration, as in proxy.children=4; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = setting)]
    pub set: Vec<Setting>,
    /// Answer in JSON, for scripts
    #[arg(long, global = true)]
    pub json: bool,
    /// How much to log: error, warn, info, debug, trace, or per module as in `info,protoplex_seed=debug`
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster on this machine: seed, datastore, proxy, fileserver and live node
    Up(Up),
    /// Run a seed: membership, routing table, key ownership
    Seed(Single),
    /// Run a datastore: all structured data, in SQLite or PostgreSQL; or move what is in it
    Datastore(Datastore),
    /// Run a proxy: public HTTP and HTTPS, relayed to the member that owns the key
    Proxy(Parent),
    /// Run a fileserver: app builds, files, virtual hosts, uploads
    Fileserver(Parent),
    /// Run a live node: channels over server-sent events
    Live(Parent),
    /// Register an HTTP server of your own as a member of a pool, and answer for its health
    Join(Join),
    /// Make a cluster: its certificate authority and its secrets, in the data directory
    ///
    /// `up`, the first seed and the first datastore do so by themselves where there is none.
    Init,
    /// Tokens with which nodes, servers and people join the cluster
    #[command(subcommand)]
    JoinToken(JoinToken),
    /// Who is refused, whatever certificate it has
    #[command(subcommand)]
    Node(Node),
    /// Credentials of people
    #[command(subcommand)]
    Operator(Operator),
    /// Credentials of a server of your own, in any language, for mutual TLS with the seed
    Enrol(Enrol),
    /// What runs where, and how it is
    ///
    /// Where no seed leads: which nodes run on this data directory, by their own words, and which seeds answer, why there is no
    /// more, and exit code 3.
    ///
    /// A member is `overloaded` while its machine has a load of 2 a core, or more: only new keys go elsewhere.
    Status,
    /// Which keys have the most requests, and who owns them
    ///
    /// Proxies tell every 10 s which owned keys had at least one in fifty of their requests. Keys that are not told have
    /// fewer.
    HotKeys,
    /// Start nodes or children that were stopped or given up
    Start {
        /// A node (proxy-1) or one child of it (proxy-1:0) [default: all]
        #[arg(value_name = "NODE[:CHILD]")]
        targets: Vec<Target>,
    },
    /// Stop nodes or children in good order; `start` brings them back
    Stop {
        /// A node (proxy-1) or one child of it (proxy-1:0)
        #[arg(value_name = "NODE[:CHILD]", required_unless_present = "all")]
        targets: Vec<Target>,
        /// All proxies, fileservers and live nodes: nobody is answered any more
        #[arg(long, conflicts_with = "targets")]
        all: bool,
        /// Let nothing finish
        #[arg(long)]
        now: bool,
    },
    /// Replace the children of nodes one by one, without an interruption
    Restart {
        /// A node (proxy-1) or one child of it (proxy-1:0) [default: all]
        #[arg(value_name = "NODE[:CHILD]")]
        targets: Vec<Target>,
        /// Only have them read their configuration anew; every connection lives on
        #[arg(long)]
        reload: bool,
    },
    /// Have nodes go on as the program that stands where theirs was started from; nobody is cut or refused
    ///
    /// Replace the file first, in one step (by renaming; one that runs can't be written to). Each node tries the new
    /// program beside itself, then executes it in its own process with its sockets and children, and replaces the children
    /// one by one. `protoplex up` itself stays the program that it is. One that can't go on changes nothing, and one whose children don't become ready goes back; then the
    /// nodes that were to follow are left as they are.
    Upgrade {
        /// A node (proxy-1) [default: all]
        #[arg(value_name = "NODE")]
        targets: Vec<Target>,
    },
    /// Take nodes or children out of service for good: what is under way may finish, then they end
    Drain {
        /// A node (proxy-1) or one child of it (proxy-1:0)
        #[arg(value_name = "NODE[:CHILD]", required = true)]
        targets: Vec<Target>,
    },
    /// Which kinds of node there are, how many of each, and which servers have joined
    Discover(Discover),
    /// What a node is, and what it can be asked for
    Inspect(Inspect),
    /// What all nodes and their processes use, live: processor, memory, connections, requests
    Top(Top),
    /// Ask a node for something: calls one of its methods, once or as a benchmark
    Request(Request),
    /// Follow the log lines of any nodes together, in order of time
    Tail(Tail),
    /// Publish events, which are CloudEvents 1.0
    Emit(Emit),
    /// Print events as they come, or run a command for each
    Subscribe(Subscribe),
    /// Subscriptions that have a name, and what they have put aside
    #[command(subcommand)]
    Subscriptions(Subscriptions),
    /// Check a configuration file and say every mistake in it
    Check {
        /// The file [default: ./protoplex.toml]
        file: Option<PathBuf>,
    },
    /// Rules that send requests to pools
    #[command(subcommand)]
    Handler(Handler),
    /// Bring the handlers to what a file says: prints the difference, then makes it, all or nothing
    Apply(Apply),
    /// Where would this request go, and why? Step by step, by the proxy's own rules
    ///
    /// With --json `outcome` is relayed, recovering (the seed waits for the key's last owner), bad_request, not_found or
    /// no_member, and `status` is that of the proxy's own answer; null where a member answers.
    Route(Route),
    /// Make a folder the current app build: its files are served from memory at once, all or nothing
    Deploy(Deploy),
    /// Tokens to upload with, and to publish and subscribe with
    #[command(subcommand)]
    Token(Token),
    /// Upload files with a token, with a progress bar
    Upload(Upload),
    /// Stored files
    #[command(subcommand)]
    Files(Files),
    /// Print completions for a shell: source <(protoplex completions bash)
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages to a folder: protoplex man ~/.local/share/man/man1
    Man { folder: PathBuf },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Public HTTP address, may be repeated [default: 127.0.0.1:8080 and [::1]:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Vec<SocketAddr>,
    /// Public HTTPS address, may be repeated [default: 127.0.0.1:8443 and [::1]:8443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub https: Vec<SocketAddr>,
    /// Children of the proxy, of the fileserver and of the live node [default: 2 each]
    #[arg(long, value_name = "N")]
    pub children: Option<u32>,
}

/// The children of each node of `up`, where nobody says how many.
const UP_CHILDREN: i64 = 2;
/// The kinds of node that have children.
const PARENTS: [&str; 3] = ["proxy", "fileserver", "live"];

impl Up {
    /// What holds unless somebody says otherwise.
    pub(crate) fn defaults() -> [Setting; 3] {
        PARENTS.map(|kind| (format!("{kind}.children"), UP_CHILDREN.into()))
    }

    /// What its flags set.
    pub(crate) fn settings(&self) -> impl Iterator<Item = Setting> {
        let list = |key: &str, addresses: &[SocketAddr]| {
            let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
            (!addresses.is_empty()).then(|| (format!("proxy.{key}"), addresses.into()))
        };
        let children = |kind| self.children.map(|n| (format!("{kind}.children"), i64::from(n).into()));
        let addresses = [list("http", &self.http), list("https", &self.https)];
        addresses.into_iter().flatten().chain(PARENTS.into_iter().filter_map(children))
    }
}

/// A node of one process.
#[derive(Clone, Debug, Args)]
pub(crate) struct Single {
    /// Its name, unique in the cluster [default: the kind and "-1"]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    #[command(flatten)]
    pub joining: Joining,
}

/// A node with children.
#[derive(Debug, Args)]
pub(crate) struct Parent {
    #[command(flatten)]
    pub single: Single,
    /// Child processes [default: of a live node 2, of the others one a core]
    #[arg(long, value_name = "N")]
    pub children: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Pool to join; handlers send requests to pools
    #[arg(long, value_parser = units::pool)]
    pub pool: String,
    /// The server, as in http://127.0.0.1:3000
    #[arg(long, value_name = "URL", value_parser = units::backend)]
    pub backend: Url,
    /// Its name in the pool [default: POOL/HOST:PORT, with credentials that were enrolled NAME/HOST:PORT, with which it has to
    /// begin]; the same name gets the same keys back
    #[arg(long)]
    pub id: Option<String>,
    /// Its zone; requests prefer owners in their own zone
    #[arg(long)]
    pub zone: Option<String>,
    /// Ask this path for its health instead of only connecting; 2xx and 3xx are healthy
    #[arg(long, value_name = "PATH", value_parser = units::path)]
    pub health: Option<String>,
    /// Time between two health checks
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = units::interval)]
    pub interval: Duration,
    /// Its share of the pool's keys: one of 2 gets twice the keys of one of 1
    #[arg(long, value_name = "SHARES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub capacity: u32,
    /// Keys in use may be moved to a member that joins later: for servers that look at Protoplex-Epoch, or keep nothing in
    /// memory
    #[arg(long)]
    pub movable: bool,
    /// POST to this path of the server when keys go: {"yield": …} asks for keys, which are given up where it answers 2xx, and
    /// {"revoked": …} and {"lease_lost": {}} tell what is lost (docs/registration.md). Implies --movable
    #[arg(long, value_name = "PATH")]
    pub notify: Option<String>,
    /// At its end, give the keys up bit by bit over this time
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = units::duration)]
    pub drain: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Nodes, or children of nodes, as in proxy-1 or proxy-1:0 [default: all that run]
    #[arg(value_name = "NODE[:CHILD]")]
    pub origins: Vec<Target>,
    /// Only lines of this level, and graver ones
    #[arg(short, long, default_value = "trace")]
    pub level: Level,
    /// Begin with so many of the last lines of each node
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub lines: u32,
    /// End after these lines
    #[arg(long)]
    pub no_follow: bool,
}

/// How grave a log line is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// As in settings and queries.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Route {
    /// The request's URL
    #[arg(value_parser = units::request_url)]
    pub url: Uri,
    /// A header of the request, may be repeated; Host counts instead of the URL's
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = units::header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's method [default: GET, with --form POST]
    #[arg(short = 'X', long)]
    pub method: Option<Method>,
    /// The request's body, a form as in 'topic=news&data=hello': keys may be made of its fields
    #[arg(long, value_name = "FIELDS")]
    pub form: Option<String>,
    /// Where the request would come from
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub client_ip: IpAddr,
    /// Zone of the proxy that it would reach: new keys go to members there first
    #[arg(long, default_value = "")]
    pub zone: String,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Folder with the app's files
    pub folder: PathBuf,
    /// Host that the build is for: app.example.com, *.example.com, or * for any
    #[arg(long, default_value = "*")]
    pub host: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Create an upload token; it is shown once
    Create(TokenCreate),
    /// Create a token (a Mercure JWT) that publishes to channels, or sees their private updates
    #[command(after_help = "\
A topic is written as it is, as a URI template (room/{id}), or * for all.

  TOKEN=$(protoplex token live --publish news)
  curl -H \"Authorization: Bearer $TOKEN\" -d topic=news -d data=hello http://localhost:8080/.well-known/mercure

Services of your own may sign such tokens themselves: HS256 with the key in DATA/cluster/live.key (base64url), and the
claim {\"mercure\": {\"publish\": [\"news\"], \"subscribe\": []}}.")]
    Live(TokenLive),
}

#[derive(Debug, Args)]
pub(crate) struct TokenLive {
    /// Topic to which it may publish, may be repeated
    #[arg(long, value_name = "TOPIC", required_unless_present = "subscribe")]
    pub publish: Vec<String>,
    /// Topic whose private updates it may see, may be repeated
    #[arg(long, value_name = "TOPIC")]
    pub subscribe: Vec<String>,
    /// How long it is valid, as in 30m, 12h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = units::life)]
    pub expires: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct TokenCreate {
    /// Host to which it may upload: example.com, *.example.com, or * for any
    #[arg(long, default_value = "*")]
    pub host: String,
    /// Path below which it may upload
    #[arg(long, default_value = "/", value_parser = units::path)]
    pub path: String,
    /// Largest file
    #[arg(long, value_name = "SIZE", default_value = "5GiB", value_parser = units::some_size)]
    pub max_size: u64,
    /// Most bytes of all its files together [default: no quota]
    #[arg(long, value_name = "SIZE", value_parser = units::some_size)]
    pub quota: Option<u64>,
    /// How many uploads [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// How long it is valid, as in 30m, 12h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = units::life)]
    pub expires: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Upload {
    /// Files to upload
    #[arg(required = true, num_args = 1.., value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where to; one that ends in / takes the files' names
    #[arg(value_parser = units::url)]
    pub url: Url,
    /// The upload token
    #[arg(long, env = "PROTOPLEX_TOKEN", hide_env_values = true)]
    pub token: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Files {
    /// List stored files by host and path
    List {
        /// Only of this host
        #[arg(long)]
        host: Option<String>,
        /// Only below this path
        #[arg(long, value_name = "PATH")]
        prefix: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}
