//! The binary: one file for each command, over the crates that do the work.

mod apply;
mod check;
mod cli;
mod cluster;
mod command;
mod datastore;
mod demo;
mod deploy;
mod discover;
mod emit;
mod enrol;
mod environment;
mod files;
mod handler;
mod hot_keys;
mod inspect;
mod join;
mod join_token;
mod man;
mod meta;
mod node;
mod nodes;
mod output;
mod request;
mod revoke;
mod route;
mod rpc;
mod settings;
mod state;
mod status;
mod subscribe;
mod subscriptions;
mod tail;
mod token;
mod top;
mod units;
mod up;
mod upload;

use std::process::ExitCode;

use mimalloc::MiMalloc;
use protoplex_runtime::config::ConfigError;
use protoplex_runtime::start::{REFUSED, StartError};
use protoplex_runtime::telemetry;
use protoplex_runtime::upgrade::{self, Succession};

use crate::cli::{Cli, Command, Usage};
use crate::cluster::Unreachable;
use crate::command::Verb;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The exit code where the cluster refuses, or doesn't have what is asked for.
const FAILED: u8 = 1;
/// The exit code where the cluster can't be reached.
const UNREACHABLE: u8 = 3;

fn main() -> ExitCode {
    // A child of a node gets everything from its parent and looks at no argument.
    match protoplex_runtime::child::from_environment() {
        Ok(Some(child)) => return node::child(child),
        Ok(None) => {}
        Err(error) => return fail(false, &error.into()),
    }
    let succession = match upgrade::from_environment() {
        Ok(succession) => succession,
        Err(error) => return fail(false, &error.into()),
    };
    let cli = match environment::parse() {
        Ok(cli) => cli,
        Err(misuse) if misuse.use_stderr() && std::env::args_os().any(|argument| argument == "--json") => {
            let text = misuse.to_string();
            return fail(
                true,
                &Usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()).into(),
            );
        }
        // Or help.
        Err(misuse) => misuse.exit(),
    };
    let json = cli.common.json;
    if !matches!(cli.command, Command::Completions { .. } | Command::Man { .. }) {
        environment::warnings().iter().for_each(|warning| output::warn(json, warning));
    }
    let code = run(cli, succession).unwrap_or_else(|error| fail(json, &error));
    telemetry::flush();
    code
}

fn run(cli: Cli, succession: Option<Succession>) -> anyhow::Result<ExitCode> {
    let Cli { common, command } = cli;
    match command {
        Command::Up(up) => return up::run(&common, up),
        Command::Seed(node) => return node::run(node::Kind::Seed, &common, &node, succession),
        Command::Datastore(cli::Datastore { node, command: None }) => {
            return node::run(node::Kind::Datastore, &common, &node, succession);
        }
        Command::Datastore(cli::Datastore { command: Some(command), .. }) => {
            wait(datastore::run(&common, command))?;
        }
        Command::Proxy(node) => return many(node::Kind::Proxy, common, node, succession),
        Command::Fileserver(node) => return many(node::Kind::Fileserver, common, node, succession),
        Command::Live(node) => return many(node::Kind::Live, common, node, succession),
        Command::Check { file } => return check::run(&common, file),
        Command::Completions { shell } => man::completions(shell)?,
        Command::Man { folder } => man::write(&folder)?,
        Command::Join(command) => wait(join::run(&common, command))?,
        Command::Init => enrol::init(&common)?,
        Command::JoinToken(command) => wait(join_token::run(&common, command))?,
        Command::Node(command) => wait(revoke::run(&common, command))?,
        Command::Operator(command) => wait(enrol::operator(&common, command))?,
        Command::Enrol(command) => wait(enrol::run(&common, command))?,
        Command::Status => wait(status::run(&common))?,
        Command::HotKeys => wait(hot_keys::run(&common))?,
        Command::Start { targets } => return wait(command::run(&common, Verb::Start, &targets)),
        Command::Stop { targets, now, all: _ } => {
            return wait(command::run(&common, Verb::Stop { now }, &targets));
        }
        Command::Restart { targets, reload } => {
            let verb = if reload { Verb::Reload } else { Verb::Restart };
            return wait(command::run(&common, verb, &targets));
        }
        Command::Upgrade { targets } => return wait(command::run(&common, Verb::Upgrade, &targets)),
        Command::Drain { targets } => return wait(command::run(&common, Verb::Drain, &targets)),
        Command::Discover(command) => wait(discover::run(&common, command))?,
        Command::Inspect(command) => wait(inspect::run(&common, command))?,
        Command::Request(command) => wait(request::run(&common, command))?,
        Command::Top(command) => wait(top::run(&common, command))?,
        Command::Tail(command) => wait(tail::run(&common, command))?,
        Command::Emit(command) => wait(emit::run(&common, command))?,
        Command::Subscribe(command) => return wait(subscribe::run(&common, command)),
        Command::Subscriptions(command) => wait(subscriptions::run(&common, command))?,
        Command::Handler(command) => return wait(handler::run(&common, command)),
        Command::Apply(command) => return wait(apply::run(&common, command)),
        Command::Route(command) => wait(route::run(&common, command))?,
        Command::Deploy(command) => wait(deploy::run(&common, command))?,
        Command::Token(cli::Token::Create(command)) => wait(token::run(&common, command))?,
        Command::Token(cli::Token::Live(command)) => token::live(&common, command)?,
        Command::Upload(command) => wait(upload::run(&common, command))?,
        Command::Files(command) => wait(files::run(&common, command))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a node with children.
fn many(
    kind: node::Kind,
    mut common: cli::Common,
    node: cli::Parent,
    succession: Option<Succession>,
) -> anyhow::Result<ExitCode> {
    let children = node.children.map(|n| (format!("{}.children", kind.name()), i64::from(n).into()));
    common.set.extend(children);
    node::run(kind, &common, &node.single, succession)
}

/// Runs a command of an operator: one thread does.
fn wait<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// Says what failed, on standard error, and with which code that ends the process.
fn fail(json: bool, error: &anyhow::Error) -> ExitCode {
    let code = if error.is::<Unreachable>() {
        UNREACHABLE
    } else if error.is::<ConfigError>() || error.is::<StartError>() || error.is::<Usage>() {
        REFUSED
    } else {
        FAILED
    };
    output::fail(json, &output::whole(error), code);
    ExitCode::from(code)
}
