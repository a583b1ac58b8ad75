//! `protoplex check`: says every mistake in a configuration file, and exits with 2 where there is one.

use std::path::PathBuf;
use std::process::ExitCode;

use protoplex_runtime::config::ConfigError;
use protoplex_runtime::start::REFUSED;
use serde_json::json;

use crate::cli::Common;
use crate::environment;
use crate::output::{print, tell};
use crate::settings::Settings;

/// Runs the command.
pub(crate) fn run(common: &Common, file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut common = common.clone();
    common.config = file.or(common.config);
    let file = Settings::file(&common)?;
    let checked = file.map_or_else(|| "no file: the defaults".to_owned(), |file| file.display().to_string());
    let loaded = Settings::load(&common).and_then(|settings| Ok(settings.account()?));
    if let Err(error) = &loaded
        && let Some(error) = error.downcast_ref::<ConfigError>()
    {
        let has_handlers = error.mistakes().iter().any(|mistake| mistake.contains("unknown key \"handler\""));
        let advice = has_handlers.then_some("handlers are checked by `protoplex apply FILE --dry-run`");
        if common.json {
            let mut answer = json!({"file": checked, "ok": false, "mistakes": error.mistakes()});
            if let Some(advice) = advice {
                answer["advice"] = json!(advice);
            }
            print(true, &answer, |_| String::new())?;
            return Ok(ExitCode::from(REFUSED));
        }
        advice.into_iter().for_each(|advice| tell(&format!("protoplex: {advice}")));
    }
    loaded?;
    let answer = json!({"file": checked, "ok": true, "mistakes": [], "warnings": environment::warnings()});
    print(common.json, &answer, |_| format!("{checked}: ok"))?;
    Ok(ExitCode::SUCCESS)
}
