//! `protoplex handler rollback`: all handlers as they were.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Context;

use super::history::{at, previous};
use crate::apply::{Wanted, converge};
use crate::cli::Common;
use crate::cluster::Cluster;

/// Brings the handlers back to a version, or to the one before the present one.
pub(super) async fn run(
    common: &Common,
    cluster: &Cluster,
    version: Option<u64>,
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    let version = match version {
        Some(version) => version,
        None => previous(cluster).await?.context("there is no earlier version to go back to")?,
    };
    let wanted = Wanted {
        handlers: at(cluster, version).await?,
        places: HashMap::new(),
        prune: true,
        occasion: format!("rollback to {version}"),
        base: None,
        dry_run,
    };
    converge(common, cluster, wanted).await
}
