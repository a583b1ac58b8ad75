//! `protoplex request`: calls a method of a node, once or many times.

mod benchmark;

use std::io::{Read, stdin};
use std::time::Duration;

use protoplex_runtime::meta::is_command_method;
use reqwest::Client;
use serde_json::Value;

use crate::cli::{Common, Request, Usage};
use crate::cluster::Unreachable;
use crate::nodes::Nodes;
use crate::output::print;
use crate::rpc::{Caller, identity};
use crate::units::Method;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// As large as what a method takes, in bytes.
const MAX_ARGUMENTS_BYTES: u64 = 1 << 20;
/// Standard input.
const STANDARD: &str = "-";

/// Runs the command. Where a kind of node is meant any of its instances answers, and all of them are commanded.
pub(crate) async fn run(common: &Common, command: Request) -> anyhow::Result<()> {
    let Request { method: Method { node, name }, arguments, count, concurrency, trace_id, timeout } = command;
    let arguments = read(arguments)?;
    let nodes = Nodes::find(common).await?;
    let identity = identity(common)?;
    let client = || Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(timeout);
    let callers = nodes
        .alike(&node)?
        .into_iter()
        .map(|node| Caller::of(node, identity.as_ref(), client()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let trace = trace_id.map(|id| format!("00-{id}-{:016x}-01", rand::random_range(1..u64::MAX)));
    if let Some(count) = count {
        let report = benchmark::run(callers, &name, &arguments, trace.as_deref(), count, concurrency).await?;
        print(common.json, &report, ToString::to_string)?;
        if let Some(why) = report.failure() {
            anyhow::bail!(why);
        }
        return Ok(());
    }
    if callers.len() > 1 && is_command_method(&name) {
        return command_all(&callers, &name, &arguments, trace.as_deref()).await;
    }
    let answer = ask_any(callers, &name, &arguments, trace.as_deref()).await?;
    // Both for a person and for a script.
    Ok(print(true, &answer, |_| String::new())?)
}

/// The answer of one that can be reached, whichever that is.
async fn ask_any(
    mut callers: Vec<Caller>,
    name: &str,
    arguments: &str,
    trace: Option<&str>,
) -> anyhow::Result<Value> {
    loop {
        let caller = callers.swap_remove(rand::random_range(0..callers.len()));
        match caller.call(name, arguments, trace).await {
            Err(error) if error.is::<Unreachable>() && !callers.is_empty() => {}
            answer => return answer,
        }
    }
}

/// Has all of them do it; prints what each answers, by its name.
async fn command_all(
    callers: &[Caller],
    name: &str,
    arguments: &str,
    trace: Option<&str>,
) -> anyhow::Result<()> {
    let (mut answers, mut failure) = (serde_json::Map::new(), None);
    for caller in callers {
        match caller.call(name, arguments, trace).await {
            Ok(answer) => drop(answers.insert(caller.node().to_owned(), answer)),
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    if !answers.is_empty() {
        print(true, &answers, |_| String::new())?;
    }
    failure.map_or(Ok(()), Err)
}

/// From the command line, or from standard input where it is given there.
fn read(arguments: Option<String>) -> anyhow::Result<String> {
    let mut text = arguments.unwrap_or_default();
    if text == STANDARD {
        text.clear();
        stdin().lock().take(MAX_ARGUMENTS_BYTES + 1).read_to_string(&mut text)?;
    }
    if text.len() as u64 > MAX_ARGUMENTS_BYTES {
        return Err(Usage(format!("the arguments have more than {MAX_ARGUMENTS_BYTES} bytes")).into());
    }
    if text.trim().is_empty() {
        return Ok("{}".to_owned());
    }
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(text),
        Ok(_) => Err(Usage("the arguments are no object: write {\"name\": value}".to_owned()).into()),
        Err(error) => Err(Usage(format!("the arguments are no JSON: {error}")).into()),
    }
}
