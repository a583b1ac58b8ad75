//! `protoplex datastore export|import|migrate`: all structured data to a file, from one, to another database.

mod destination;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write, stderr, stdin};
use std::path::Path;
use std::time::Duration;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use protoplex_datastore::archive::{self, ArchiveError, Database, Summary};
use protoplex_datastore::{postgres, postgres::Target};
use protoplex_runtime::signals::StopSignals;
use serde::Serialize;

use crate::cli::{Common, DatastoreCommand, Migrate, Usage};
use crate::cluster::Unreachable;
use crate::output::{columns, plural, print};
use crate::settings::Settings;
use destination::Destination;

/// Standard output, or standard input.
const STANDARD: &str = "-";
/// What `--to` says for the file in the data directory.
const FILE: &str = "sqlite";
/// How every gzip file begins (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const TICK: Duration = Duration::from_millis(100);

/// What has been done.
#[derive(Serialize)]
struct Report {
    from: String,
    to: String,
    rows: u64,
    tables: Summary,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: DatastoreCommand) -> anyhow::Result<()> {
    let settings = Settings::load(common)?;
    let configured = settings.datastore.database(&settings.data)?;
    match command {
        DatastoreCommand::Export { file } => {
            // As whoever calls, for it is their folder; the database is touched as the nodes' user.
            let mut out = Destination::create(&file)?;
            settings.assume_account()?;
            let to = file.display().to_string();
            let mut stop = out.stop();
            let exported = tokio::select! {
                exported = export(&configured, out) => exported?,
                () = stopped(&mut stop) => anyhow::bail!("ended before it was whole: {to} is as it was"),
            };
            report(common, "exported", &configured.to_string(), &to, exported)
        }
        DatastoreCommand::Import { file, replace } => {
            let input = open(&file)?;
            settings.assume_account()?;
            let bar = bar("imported");
            let imported = archive::import(&configured, input, replace, || bar.inc(1)).await;
            bar.finish_and_clear();
            let summary = imported.map_err(|error| unimported(&file, error))?;
            report(common, "imported", &file.display().to_string(), &configured.to_string(), summary)
        }
        DatastoreCommand::Migrate(command) => {
            settings.assume_account()?;
            migrate(common, &settings, &configured, command).await
        }
    }
}

async fn migrate(
    common: &Common,
    settings: &Settings,
    configured: &Database,
    command: Migrate,
) -> anyhow::Result<()> {
    if command.undo {
        let to = archive::reopen(configured).await.map_err(explain)?;
        let text = match &to {
            Some(to) => format!("{configured} counts again, as it was when everything was moved to {to}"),
            None => format!("nothing was moved away from {configured}"),
        };
        print(common.json, &serde_json::json!({"database": configured.to_string(), "was": to}), |_| text)?;
        return Ok(());
    }
    let Some(to) = command.to else {
        let [before, after] = archive::upgrade(configured).await.map_err(explain)?;
        let text = match before {
            0 => format!("{configured} was made, with schema {after}"),
            _ if before == after => format!("{configured} has the present schema, {after}"),
            _ => format!("{configured} was brought from schema {before} to {after}"),
        };
        let told = serde_json::json!({"database": configured.to_string(), "before": before, "after": after});
        print(common.json, &told, |_| text)?;
        return Ok(());
    };
    let password = command.password_file.as_deref().map(password).transpose()?;
    let destination = match &*to {
        FILE => protoplex_datastore::config::database_file(&settings.data),
        url => Database::server(
            Target::parse(url, password.as_deref())
                .map_err(|error| Usage(format!("--to {error}; or sqlite, which is that file")))?,
        ),
    };
    let bar = bar("moved");
    let moved = archive::migrate(configured, &destination, command.replace, || bar.inc(1)).await;
    bar.finish_and_clear();
    report(common, "moved", &configured.to_string(), &destination.to_string(), moved.map_err(explain)?)?;
    if !common.json {
        let name = match destination {
            Database::File(_) => "no datastore.url".to_owned(),
            Database::Server(_) => "datastore.url = that database".to_owned(),
        };
        crate::output::tell(&format!(
            "Now configure {name} and start the datastore. The old database was left as it is; no datastore opens it."
        ));
    }
    Ok(())
}

async fn export(database: &Database, out: Destination) -> anyhow::Result<Summary> {
    let bar = bar("exported");
    let exported = match out.is_gzip() {
        false => archive::export(database, BufWriter::new(out.out()), || bar.inc(1)).await,
        true => {
            let mut encoder = GzEncoder::new(BufWriter::new(out.out()), Compression::default());
            let exported = archive::export(database, &mut encoder, || bar.inc(1)).await;
            exported.and_then(|summary| Ok(encoder.finish()?.flush().map(|()| summary)?))
        }
    };
    bar.finish_and_clear();
    let summary = exported.map_err(explain)?;
    out.keep()?;
    Ok(summary)
}

/// Cancel-safe.
async fn stopped(stop: &mut Option<StopSignals>) {
    match stop {
        Some(stop) => drop(stop.next().await),
        None => std::future::pending().await,
    }
}

fn report(common: &Common, done: &str, from: &str, to: &str, tables: Summary) -> anyhow::Result<()> {
    let rows = tables.iter().map(|sum| sum.rows).sum();
    let report = Report { from: from.to_owned(), to: to.to_owned(), rows, tables };
    let text = |report: &Report| {
        let cells: Vec<_> = report
            .tables
            .iter()
            .map(|sum| [format!("  {}", sum.table), HumanCount(sum.rows).to_string()])
            .collect();
        let rows = plural(report.rows as usize, "row");
        format!("{done} {rows} from {from} to {to}\n{}", columns(&cells))
    };
    if to == STANDARD {
        // That is where the archive went.
        crate::output::tell(text(&report).trim_end());
        return Ok(());
    }
    Ok(print(common.json, &report, text)?)
}

/// An archive, compressed or not.
fn open(name: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let mut input: Box<dyn BufRead> = if name.as_os_str() == STANDARD {
        Box::new(BufReader::new(stdin()))
    } else {
        let file = File::open(name).map_err(Usage::unreadable(name))?;
        Box::new(BufReader::new(file))
    };
    let is_gzip = input.fill_buf()?.starts_with(&GZIP);
    Ok(if is_gzip { Box::new(BufReader::new(GzDecoder::new(input))) } else { input })
}

/// The first line of a file.
fn password(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).map_err(Usage::unreadable(file))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What is wrong with a line is said with the file's name, as compilers do.
fn unimported(file: &Path, error: ArchiveError) -> anyhow::Error {
    let name = file.display();
    match error {
        // Whether the last word, to make it so, was heard is not known.
        ArchiveError::Database(_) => return explain(error),
        ArchiveError::Malformed { line, reason } => Usage(format!("{name}:{line}: {reason}")).into(),
        ArchiveError::Truncated | ArchiveError::Damaged(_) => Usage(format!("{name}: {error}")).into(),
        error => explain(error),
    }
    .context("nothing was changed")
}

/// A server that is away may be there later; exit code 3.
fn explain(error: ArchiveError) -> anyhow::Error {
    match error {
        ArchiveError::Server(error @ postgres::OpenError::Away { .. }) => {
            Unreachable::new(error.to_string()).into()
        }
        error => error.into(),
    }
}

fn bar(done: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if !stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} rows {msg}  {per_sec}  {elapsed}")
    {
        bar.set_style(style);
    }
    bar.set_message(done);
    bar.enable_steady_tick(TICK);
    bar
}
