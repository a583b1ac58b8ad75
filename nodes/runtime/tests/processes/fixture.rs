//! The smallest node there is. Its children answer each line of a connection with their index and pid.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use protoplex_runtime::account::Account;
use protoplex_runtime::child;
use protoplex_runtime::commands::Reload;
use protoplex_runtime::config::{Common, Timing};
use protoplex_runtime::context::{Context, PortChange};
use protoplex_runtime::drain::{Drain, Tasks, Trigger};
use protoplex_runtime::meta::{TlsSettings, Tokens};
use protoplex_runtime::parent::{Bound, Spec};
use protoplex_runtime::signals;
use protoplex_runtime::solo;
use protoplex_runtime::telemetry::{self, Settings};
use protoplex_runtime::upgrade::{self, Succession};
use protoplex_wire::identity::{Identity, Kind};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What stands as JSON in the file that is the only argument.
#[derive(Deserialize)]
struct Arguments {
    user: Option<String>,
    data: PathBuf,
    children: u32,
    listen: String,
    meta: String,
    meta_forced: bool,
    meta_tokens: Tokens,
    meta_tls: TlsSettings,
    timing: Timing,
    telemetry: Settings,
    /// Whether each child has a socket of its own.
    own: bool,
    connections: u64,
    config: Config,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Config {
    /// The child that dies whenever it starts.
    hopeless: Option<u32>,
    /// Shown on the status page, and adopted while the child runs.
    #[serde(default)]
    word: String,
    /// Shown likewise, but taken to heart only by a new child.
    #[serde(default)]
    motto: String,
    /// Not to be shown to anybody.
    #[serde(default)]
    secret_word: String,
}

fn main() -> ExitCode {
    match child::from_environment() {
        Ok(Some(child)) => return child.run(async |context| serve(context).await),
        Ok(None) => {}
        Err(error) => return refuse(&error),
    }
    if let Err(error) = signals::hold() {
        return refuse(&error);
    }
    let succession = match upgrade::from_environment() {
        Ok(succession) => succession,
        Err(error) => return refuse(&error),
    };
    let Some(file) = std::env::args().nth(1) else { return refuse(&"usage: runtime-fixture FILE") };
    match (bound(&file, succession.as_ref()), succession) {
        (Ok(_), Some(succession)) if succession.is_rehearsal() => match succession.consent() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&error),
        },
        (Ok((children, bound)), _) => run(children, bound, Box::new(move || spec(&file))),
        (Err(error), Some(succession)) => refuse(&succession.go_back(&error)),
        (Err(error), None) => refuse(&error),
    }
}

fn bound(file: &str, succession: Option<&Succession>) -> Result<(u32, Bound), String> {
    let spec = spec(file).and_then(assumed)?;
    let (children, cluster) = (spec.children, spec.common.data.join("cluster"));
    let bound = match succession {
        Some(succession) if flaw() == "refuses" && !succession.is_rehearsal() => {
            return Err("it has changed its mind".to_owned());
        }
        Some(succession) => spec.succeed(succession),
        None => spec.bind(),
    };
    let mut bound = bound.map_err(|error| error.to_string())?;
    let identity = Identity::open_or_create(&cluster).map_err(|error| error.to_string())?;
    let identity = identity.issue(Kind::Proxy, "fixture-1").map_err(|error| error.to_string())?;
    bound.trust(&identity).map_err(|error| error.to_string())?;
    Ok((children, bound))
}

/// What is wrong with this program: stands behind its last byte, after a `#`.
fn flaw() -> String {
    let program = std::fs::read("/proc/self/exe").unwrap_or_default();
    let end = &program[program.len().saturating_sub(16)..];
    String::from_utf8_lossy(end).rsplit_once('#').map(|(_, flaw)| flaw.to_owned()).unwrap_or_default()
}

fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(protoplex_runtime::start::REFUSED)
}

fn spec(file: &str) -> Result<Spec, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let arguments: Arguments = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let (Ok(listen), Ok(meta)) = (arguments.listen.parse::<std::net::SocketAddr>(), arguments.meta.parse())
    else {
        return Err("bad address".to_owned());
    };
    Ok(Spec {
        kind: "fixture",
        common: Common {
            account: account(arguments.user.as_deref())?,
            node: "fixture-1".to_owned(),
            data: arguments.data,
            seeds: Vec::new(),
            region: String::new(),
            zone: String::new(),
            meta,
            meta_forced: arguments.meta_forced,
            meta_tokens: arguments.meta_tokens,
            meta_tls: arguments.meta_tls,
            timing: arguments.timing,
            telemetry: arguments.telemetry,
            trace: Default::default(),
        },
        children: arguments.children,
        shared: vec![("http".to_owned(), listen)],
        own: if arguments.own { vec![("internal".to_owned(), listen.ip())] } else { Vec::new() },
        connections: arguments.connections,
        child_config: serde_json::json!(arguments.config),
        adopted: &["word"],
    })
}

fn account(user: Option<&str>) -> Result<Option<Account>, String> {
    user.map(|user| Account::find(user, None)).transpose().map_err(|error| error.to_string())
}

fn assumed(spec: Spec) -> Result<Spec, String> {
    let account = spec.common.account.as_ref();
    account.map_or(Ok(()), |account| account.assume(&spec.common.data)).map_err(|error| error.to_string())?;
    Ok(spec)
}

fn run(children: u32, bound: Bound, reload: Reload) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    match children {
        0 => tokio::task::LocalSet::new().block_on(&runtime, solo::run(bound, reload, serve)),
        _ => runtime.block_on(bound.run(reload)),
    }
}

async fn serve(context: Context) -> io::Result<()> {
    let config: Config = context.config()?;
    if flaw() == "hangs" {
        std::future::pending::<()>().await;
    }
    let flawed = format!("child {}", context.index()) == flaw();
    if config.hopeless == Some(context.index()) || flawed {
        return Err(io::Error::other("hopeless"));
    }
    metrics::gauge!("fixture_index").set(f64::from(context.index()));
    let tasks = Tasks::default();
    for listener in context.listeners("http").into_iter().chain(context.listeners("internal")) {
        let listener = TcpListener::from_std(listener)?;
        tasks.spawn(accept(listener, context.clone(), tasks.clone(), context.drain()));
    }
    context.detail("answers", 0);
    for (name, value) in [("word", config.word), ("motto", config.motto)] {
        if !value.is_empty() {
            context.detail(name, value);
        }
    }
    context.ready(true);
    let (mut accepting, mut reconfigured) = (BTreeMap::new(), context.reconfigured());
    let drain = context.drain();
    loop {
        // Every arm is cancel-safe.
        tokio::select! {
            changes = context.port_changes() => for change in changes {
                match change {
                    PortChange::Open { id, socket, .. } => {
                        let listener = TcpListener::from_std(socket)?;
                        let (closer, closed) = Drain::new();
                        accepting.insert(id, closer);
                        tasks.spawn(accept(listener, context.clone(), tasks.clone(), closed));
                    }
                    PortChange::Close { id } => accepting.remove(&id).iter().for_each(Trigger::pull),
                }
            },
            config = reconfigured.next::<Config>() => context.detail("word", config?.word),
            () = drain.started() => break,
        }
    }
    accepting.values().for_each(Trigger::pull);
    context.left();
    tasks.finished().await;
    Ok(())
}

async fn accept(listener: TcpListener, context: Context, tasks: Tasks, closed: Drain) {
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let context = context.clone();
                tasks.spawn(async move {
                    // A client that goes away ends its own conversation.
                    let _ = converse(stream, &context).await;
                });
            },
            () = closed.started() => return,
        }
    }
}

/// One line, one answer, until the client ends.
async fn converse(stream: TcpStream, context: &Context) -> io::Result<()> {
    let index = context.index();
    let (reader, mut writer) = stream.into_split();
    let mut hoard = Vec::new();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "rubbish" => {
                rustix::io::write(io::stdin(), b"{\"rubbish\":true}\n")?;
            }
            "panic" => panic!("as it was told"),
            "shed" => context.shedding(true),
            "relax" => context.shedding(false),
            "hoard" => hoard.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok())),
            "relent" => hoard.clear(),
            "hang" => std::thread::sleep(std::time::Duration::from_secs(3600)),
            _ if line.starts_with("say ") => tracing::info!(text = &line[4..], "said"),
            _ if line.starts_with("whisper ") => tracing::debug!(text = &line[8..], "whispered"),
            _ if line.starts_with("level ") => {
                if let Err(error) = telemetry::set_level(&line[6..]) {
                    tracing::warn!(%error, level = telemetry::level(), "refused");
                }
            }
            _ => metrics::counter!("fixture_answers_total", "line" => line).increment(1),
        }
        writer.write_all(format!("{index} {}\n", std::process::id()).as_bytes()).await?;
    }
    Ok(())
}
