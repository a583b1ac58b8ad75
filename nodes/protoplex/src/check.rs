//! `protoplex check`: says every mistake in a configuration file, and exits with 2 where there is one.

use std::path::PathBuf;

use serde_json::json;

use crate::cli::Common;
use crate::output::print;
use crate::settings::Settings;

/// Runs the command.
pub(crate) fn run(common: &Common, file: Option<PathBuf>) -> anyhow::Result<()> {
    let mut common = common.clone();
    common.config = file.or(common.config);
    let file = Settings::file(&common)?;
    Settings::load(&common)?;
    let checked = file.map_or_else(|| "no file: the defaults".to_owned(), |file| file.display().to_string());
    print(common.json, &json!({"file": checked, "ok": true}), |_| format!("{checked}: ok"))?;
    Ok(())
}
