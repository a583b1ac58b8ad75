//! `protoplex request`: calls a method of a node, once or many times.

mod benchmark;

use std::io::{IsTerminal, Read, stdin};
use std::time::Duration;

use reqwest::Client;

use crate::cli::{Common, Request, Usage};
use crate::nodes::Nodes;
use crate::output::print;
use crate::rpc::{Caller, identity};
use crate::units::Method;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// As large as what a method takes, in bytes.
const MAX_ARGUMENTS_BYTES: u64 = 1 << 20;
/// Standard input.
const STANDARD: &str = "-";

/// Runs the command. Where a kind of node is meant its instances take turns.
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
        return Ok(print(common.json, &report, ToString::to_string)?);
    }
    let turn = rand::random_range(0..callers.len());
    let answer = callers[turn].call(&name, &arguments, trace.as_deref()).await?;
    // Both for a person and for a script.
    Ok(print(true, &answer, |_| String::new())?)
}

/// From the command line, or from standard input where it is given there.
fn read(arguments: Option<String>) -> anyhow::Result<String> {
    let text = match arguments {
        Some(text) if text != STANDARD => text,
        None if stdin().is_terminal() => String::new(),
        _ => {
            let mut text = String::new();
            stdin().lock().take(MAX_ARGUMENTS_BYTES + 1).read_to_string(&mut text)?;
            text
        }
    };
    if text.len() as u64 > MAX_ARGUMENTS_BYTES {
        return Err(Usage(format!("the arguments have more than {MAX_ARGUMENTS_BYTES} bytes")).into());
    }
    if text.trim().is_empty() {
        return Ok("{}".to_owned());
    }
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(value) if value.is_object() => Ok(text),
        Ok(_) => Err(Usage("the arguments are no object: write {\"name\": value}".to_owned()).into()),
        Err(error) => Err(Usage(format!("the arguments are no JSON: {error}")).into()),
    }
}
