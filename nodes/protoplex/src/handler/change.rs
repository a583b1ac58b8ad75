//! `protoplex handler add|edit|remove|enable|disable`: one handler at a time. What is so already is no change.

use std::time::Duration;

use protoplex_seed::handlers::check;
use protoplex_wire::backoff::Backoff;
use protoplex_wire::proto::{self, HandlerChanges, HandlerList};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::pools::Lonely;
use super::{named, now, send};
use crate::cli::{Common, HandlerAdd, HandlerEdit, HandlerFields, Usage};
use crate::cluster::{Cluster, Outdated, unmade};
use crate::output::print;

/// How long a change is made anew where somebody else was faster.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Changed<'a> {
    handler: &'a str,
    /// False where it was so already.
    changed: bool,
    /// Of the handlers.
    version: u64,
    /// The routing table that has it.
    table_version: u64,
    #[serde(flatten)]
    pools: Lonely,
}

/// Adds a handler; one that is there just so is left.
pub(super) async fn add(common: &Common, cluster: &Cluster, new: HandlerAdd) -> anyhow::Result<()> {
    let HandlerAdd { name, host, path, key, pool, placement } = new;
    let placement = proto::Placement::from(placement);
    if key.is_empty() && placement != proto::Placement::Spread {
        return Err(Usage("--key is needed, or --placement spread".to_owned()).into());
    }
    let placement = placement.into();
    let handler = proto::Handler { name, host, path, key, pool, placement, ..Default::default() };
    let words = Words { done: "Added handler", already: "is there already, just so" };
    let add = |list: &HandlerList| {
        let host = handler.host.to_ascii_lowercase();
        let same = |it: &proto::Handler| {
            proto::Handler { since: 0, ..it.clone() }
                == proto::Handler { host: host.clone(), ..handler.clone() }
        };
        let there = list.handlers.iter().any(same);
        Ok(if there {
            replacing(handler.clone())
        } else {
            HandlerChanges { add: vec![handler.clone()], ..Default::default() }
        })
    };
    change(common, cluster, &handler.name, add, words).await
}

/// Changes what is given.
pub(super) async fn edit(common: &Common, cluster: &Cluster, edit: HandlerEdit) -> anyhow::Result<()> {
    let HandlerEdit { name, fields } = edit;
    let words = Words { done: "Changed handler", already: "is so already" };
    let changed = |list: &HandlerList| Ok(replacing(edited(named(&list.handlers, &name)?, &fields)));
    change(common, cluster, &name, changed, words).await
}

/// Enables or disables a handler.
pub(super) async fn switch(
    common: &Common,
    cluster: &Cluster,
    name: &str,
    enabled: bool,
) -> anyhow::Result<()> {
    let words = match enabled {
        true => Words { done: "Enabled handler", already: "is enabled already" },
        false => Words { done: "Disabled handler", already: "is disabled already" },
    };
    let switched = |list: &HandlerList| {
        Ok(replacing(proto::Handler { disabled: !enabled, ..named(&list.handlers, name)?.clone() }))
    };
    change(common, cluster, name, switched, words).await
}

/// Removes a handler. A name that there is not may be a slip, so that is a failure.
pub(super) async fn remove(common: &Common, cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let words = Words { done: "Removed handler", already: "is removed already" };
    let removed = |list: &HandlerList| {
        let name = named(&list.handlers, name)?.name.clone();
        Ok(HandlerChanges { remove: vec![name], ..Default::default() })
    };
    change(common, cluster, name, removed, words).await
}

struct Words {
    done: &'static str,
    already: &'static str,
}

/// Makes a change of what is there now; anew, where somebody else has changed that meanwhile.
async fn change(
    common: &Common,
    cluster: &Cluster,
    handler: &str,
    decide: impl Fn(&HandlerList) -> anyhow::Result<HandlerChanges>,
    words: Words,
) -> anyhow::Result<()> {
    let (mut backoff, end) = (Backoff::default(), Instant::now() + PATIENCE);
    let (done, changed) = loop {
        let list = now(cluster).await?;
        let changes = decide(&list)?;
        for handler in changes.add.iter().chain(&changes.replace) {
            check(handler.clone()).map_err(|error| Usage(error.to_string()))?;
        }
        // What is made of a handler as it was must be of the last one. The rest stands by itself.
        let base = if changes.replace.is_empty() { 0 } else { list.version };
        let changed = [changes.add.as_slice(), &changes.replace].concat();
        match send(cluster, HandlerChanges { base, ..changes }).await {
            Err(error) if error.is::<Outdated>() && Instant::now() < end => sleep(backoff.next_delay()).await,
            done => {
                let done =
                    done.map_err(|error| unmade(error, "the handler was changed (run it again to see)"))?;
                break (done, changed);
            }
        }
    };
    let pools = Lonely::among(cluster, &changed).await;
    let proto::HandlersChanged { changed, version, table_version, .. } = done;
    let changed = Changed { handler, changed, version, table_version, pools };
    print(common.json, &changed, |it| {
        let Changed { handler, version, .. } = it;
        let done = match it.changed {
            true => format!("{} {handler} (version {version})", words.done),
            false => {
                format!("Handler {handler} {}; nothing was changed (version {version})", words.already)
            }
        };
        format!("{done}\n{}", it.pools.text())
    })?;
    Ok(())
}

fn replacing(handler: proto::Handler) -> HandlerChanges {
    HandlerChanges { replace: vec![handler], ..HandlerChanges::default() }
}

fn edited(handler: &proto::Handler, fields: &HandlerFields) -> proto::Handler {
    let HandlerFields { host, path, key, pool, placement } = fields.clone();
    let old = handler.clone();
    proto::Handler {
        host: host.unwrap_or(old.host),
        path: path.unwrap_or(old.path),
        key: key.unwrap_or(old.key),
        pool: pool.unwrap_or(old.pool),
        placement: placement.map_or(old.placement, |placement| proto::Placement::from(placement).into()),
        ..old
    }
}
