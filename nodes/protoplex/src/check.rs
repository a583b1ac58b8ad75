//! `protoplex check`: says every mistake in a configuration file, and exits with 2 where there is one.

use std::path::PathBuf;
use std::process::ExitCode;

use protoplex_runtime::config::ConfigError;
use protoplex_runtime::start::REFUSED;
use serde_json::json;

use crate::cli::Common;
use crate::output::print;
use crate::settings::Settings;

/// Runs the command.
pub(crate) fn run(common: &Common, file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut common = common.clone();
    common.config = file.or(common.config);
    let file = Settings::file(&common)?;
    let checked = file.map_or_else(|| "no file: the defaults".to_owned(), |file| file.display().to_string());
    let loaded = Settings::load(&common).and_then(|settings| Ok(settings.account()?));
    if let (Err(error), true) = (&loaded, common.json)
        && let Some(error) = error.downcast_ref::<ConfigError>()
    {
        let answer = json!({"file": checked, "ok": false, "mistakes": error.mistakes()});
        print(true, &answer, |_| String::new())?;
        return Ok(ExitCode::from(REFUSED));
    }
    loaded?;
    print(common.json, &json!({"file": checked, "ok": true, "mistakes": []}), |_| format!("{checked}: ok"))?;
    Ok(ExitCode::SUCCESS)
}
