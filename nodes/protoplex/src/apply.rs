//! `protoplex apply`: the handlers as a file says, with the difference printed first, all or nothing.

mod file;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use protoplex_seed::handlers::{HandlerError, check_conflicts};
use protoplex_wire::proto::{Handler, HandlerChanges};
use serde_json::json;

use crate::cli::{Apply, Common, Usage};
use crate::cluster::{self, Cluster, Outdated, is_unclear};
use crate::handler::diff::Diff;
use crate::handler::pools::Lonely;
use crate::handler::{now, send};
use crate::output::{plural, print};

/// The exit code of a dry run that has found that something would change: neither failed, nor bad usage.
const WOULD_CHANGE: u8 = 4;

/// What the handlers shall be.
pub(crate) struct Wanted {
    pub handlers: Vec<Handler>,
    /// Where the path of each stands that is a file's, as mistakes are told of it.
    pub places: HashMap<String, String>,
    /// Whether others go.
    pub prune: bool,
    /// For the history.
    pub occasion: String,
    /// The version that they must have now.
    pub base: Option<u64>,
    /// Only say what would change.
    pub dry_run: bool,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Apply) -> anyhow::Result<ExitCode> {
    let Apply { file, dry_run, prune, base } = command;
    // The whole file is understood before anything else is done.
    let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { &file };
    let file::Read { handlers, places } = file::read(path)?;
    if prune && handlers.is_empty() {
        let text = "names no handler, so that --prune would remove all of them; \
                    if that is meant, `protoplex handler remove` them";
        return Err(Usage(format!("{}: {text}", path.display())).into());
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut occasion = format!("apply {name}");
    occasion.truncate(occasion.floor_char_boundary(200));
    let cluster = Cluster::find(common)?;
    converge(common, &cluster, Wanted { handlers, places, prune, occasion, base, dry_run }).await
}

/// Prints what differs from `wanted`, then changes all of it in one step, against the very handlers that it was printed of.
pub(crate) async fn converge(common: &Common, cluster: &Cluster, wanted: Wanted) -> anyhow::Result<ExitCode> {
    let Wanted { handlers, places, prune, occasion, base, dry_run } = wanted;
    let list = now(cluster).await?;
    if let Some(base) = base.filter(|base| *base != list.version) {
        let now = list.version;
        anyhow::bail!(
            "the handlers have version {now}, not {base}: nothing was changed; see `protoplex handler history`"
        );
    }
    if !prune {
        check_kept(&list.handlers, &handlers, &places)?;
    }
    let diff = Diff::between(&list.handlers, &handlers, prune);
    if !common.json {
        print(false, &diff.json(), |_| diff.text() + &diff.kept())?;
    }
    // The seed checks a dry run, too: what it would refuse is told now.
    let changes = HandlerChanges { base: list.version, occasion, dry_run, ..diff.changes() };
    let changed = [changes.add.as_slice(), &changes.replace].concat();
    let version = match diff.is_empty() {
        true => list.version,
        false => send(cluster, changes).await.map_err(unmade)?.version,
    };
    let mut answer = diff.json();
    answer["changed"] = json!(!diff.is_empty() && !dry_run);
    answer["dry_run"] = json!(dry_run);
    answer["base"] = json!(list.version);
    answer["version"] = json!(version);
    let pools = Lonely::among(cluster, &changed).await;
    answer["memberless_pools"] = json!(pools.memberless_pools);
    print(common.json, &answer, |_| {
        let done = match (diff.is_empty(), dry_run) {
            (true, _) => format!("Nothing to change (version {version})"),
            (false, true) => {
                format!("This would change the handlers; nothing was changed (version {version})")
            }
            (false, false) => {
                let count = plural(changed.len() + diff.changes().remove.len(), "handler");
                format!("Changed {count} (version {version})")
            }
        };
        format!("{done}\n{}", pools.text())
    })?;
    Ok(if dry_run && !diff.is_empty() { ExitCode::from(WOULD_CHANGE) } else { ExitCode::SUCCESS })
}

/// Refuses a handler of a file that conflicts with one that the file doesn't name, with its line.
fn check_kept(now: &[Handler], of_file: &[Handler], places: &HashMap<String, String>) -> anyhow::Result<()> {
    let kept = now.iter().filter(|handler| !places.contains_key(&handler.name));
    let all: Vec<_> = kept.chain(of_file).cloned().collect();
    let Err(error) = check_conflicts(&all, |name| places.contains_key(name)) else { return Ok(()) };
    let place = match &error {
        HandlerError::Conflict { name, .. } => places.get(name),
        _ => None,
    };
    let place = place.map_or("", String::as_str);
    Err(anyhow::anyhow!("{place}{error}").context("nothing was changed"))
}

/// Says what a failure means for the handlers.
pub(crate) fn unmade(error: anyhow::Error) -> anyhow::Error {
    if is_unclear(&error) {
        return cluster::unmade(
            error,
            "the handlers were changed (all of this or none; run it again to see)",
        );
    }
    // Who was too late is told so by the seed.
    if error.is::<Outdated>() { error } else { error.context("nothing was changed") }
}
