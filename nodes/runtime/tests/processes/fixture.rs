//! The smallest node there is. Its children answer each line of a connection with their index and pid.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use protoplex_runtime::child;
use protoplex_runtime::config::{Common, Timing};
use protoplex_runtime::context::Context;
use protoplex_runtime::drain::{Drain, Tasks};
use protoplex_runtime::parent::Spec;
use protoplex_runtime::solo;
use protoplex_runtime::telemetry::Settings;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The only argument, as JSON.
#[derive(Deserialize)]
struct Arguments {
    data: PathBuf,
    children: u32,
    listen: String,
    meta: String,
    meta_forced: bool,
    timing: Timing,
    telemetry: Settings,
    config: Config,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Config {
    /// The child that dies whenever it starts.
    hopeless: Option<u32>,
}

fn main() -> ExitCode {
    match child::from_environment() {
        Ok(Some(child)) => return child.run(async |context| serve(context).await),
        Ok(None) => {}
        Err(error) => return refuse(&error),
    }
    match std::env::args().nth(1).map(|argument| serde_json::from_str(&argument)) {
        Some(Ok(arguments)) => run(arguments),
        _ => refuse(&"usage: runtime-fixture JSON"),
    }
}

fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(protoplex_runtime::start::REFUSED)
}

fn run(arguments: Arguments) -> ExitCode {
    let (Ok(listen), Ok(meta)) = (arguments.listen.parse(), arguments.meta.parse()) else {
        return refuse(&"bad address");
    };
    let spec = Spec {
        kind: "fixture",
        common: Common {
            node: "fixture-1".to_owned(),
            data: arguments.data,
            seed: String::new(),
            region: String::new(),
            zone: String::new(),
            meta,
            meta_forced: arguments.meta_forced,
            timing: arguments.timing,
            telemetry: arguments.telemetry,
            trace: Default::default(),
        },
        children: arguments.children,
        shared: vec![("http".to_owned(), listen)],
        own: vec![("internal".to_owned(), listen.ip())],
        child_config: serde_json::json!(arguments.config),
    };
    let bound = match spec.bind() {
        Ok(bound) => bound,
        Err(error) => return refuse(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    match arguments.children {
        0 => tokio::task::LocalSet::new().block_on(&runtime, solo::run(bound, serve)),
        _ => runtime.block_on(bound.run()),
    }
}

async fn serve(context: Context) -> io::Result<()> {
    let config: Config = context.config()?;
    if config.hopeless == Some(context.index()) {
        return Err(io::Error::other("hopeless"));
    }
    metrics::gauge!("fixture_index").set(f64::from(context.index()));
    let tasks = Tasks::default();
    for listener in context.listeners("http").into_iter().chain(context.listeners("internal")) {
        let listener = TcpListener::from_std(listener)?;
        tasks.spawn(accept(listener, context.index(), tasks.clone(), context.drain()));
    }
    context.detail("answers", 0);
    context.ready(true);
    context.drain().started().await;
    tasks.finished().await;
    Ok(())
}

async fn accept(listener: TcpListener, index: u32, tasks: Tasks, drain: Drain) {
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                tasks.spawn(async move {
                    // A client that goes away ends its own conversation.
                    let _ = converse(stream, index).await;
                });
            },
            () = drain.started() => return,
        }
    }
}

/// One line, one answer, until the client ends.
async fn converse(stream: TcpStream, index: u32) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "rubbish" => {
                rustix::io::write(io::stdin(), b"{\"rubbish\":true}\n")?;
            }
            "panic" => panic!("as it was told"),
            _ => metrics::counter!("fixture_answers_total", "line" => line).increment(1),
        }
        writer.write_all(format!("{index} {}\n", std::process::id()).as_bytes()).await?;
    }
    Ok(())
}
