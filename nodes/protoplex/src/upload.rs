//! `protoplex upload`: files to a URL, with a progress bar on a terminal.

use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Body, Certificate, Client, StatusCode, Url};
use serde_json::Value;
use tokio::fs::File;

use crate::cli::{Common, Upload, Usage};
use crate::output::print;
use crate::settings::Settings;
use crate::units::show_size;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const BAR: &str = "{prefix}  {wide_bar}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
/// Bytes of a file name that the bar shows.
const NAME_WIDTH: usize = 32;

/// Runs the command: one file after the other, stopping at the first that fails.
pub(crate) async fn run(common: &Common, command: Upload) -> anyhow::Result<()> {
    let Upload { files, url, token } = command;
    if files.len() > 1 && !url.path().ends_with('/') {
        let advice = "several files need a URL that ends in /, so that each keeps its own name";
        return Err(Usage(advice.to_owned()).into());
    }
    if let Some(folder) = files.iter().find(|file| file.is_dir()) {
        let folder = folder.display();
        return Err(Usage(format!("{folder} is a folder; name the files in it, as in {folder}/*")).into());
    }
    let client = client(common)?;
    let mut stored = Vec::new();
    for file in &files {
        let answer = send(&client, &token, file, &url).await;
        stored.push(answer.with_context(|| format!("{} was not uploaded", file.display()))?);
    }
    print(common.json, &stored, |stored| stored.iter().map(describe).collect::<Vec<_>>().join("\n"))?;
    Ok(())
}

/// Trusts the system's authorities, and the local one of this data directory, where there is one.
fn client(common: &Common) -> anyhow::Result<Client> {
    let mut builder = Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy();
    let local_authority: PathBuf = Settings::load(common)?.data.join("tls/ca.pem");
    if let Ok(pem) = fs::read(local_authority) {
        builder = builder.tls_certs_merge([Certificate::from_pem(&pem)?]);
    }
    Ok(builder.build()?)
}

async fn send(client: &Client, token: &str, path: &Path, url: &Url) -> anyhow::Result<Value> {
    let name = path.file_name().and_then(|name| name.to_str()).context("the file's name is not UTF-8")?;
    let mut target = url.clone();
    if url.path().ends_with('/') {
        target.path_segments_mut().ok().context("the URL can't have a path")?.pop_if_empty().push(name);
    }
    let file = File::open(path).await.map_err(Usage::unreadable(path))?;
    let size = file.metadata().await?.len();
    let bar = bar(name, size);

    let counted = bar.clone();
    let stream = tokio_util::io::ReaderStream::with_capacity(file, 64 << 10)
        .inspect_ok(move |chunk| counted.inc(chunk.len() as u64));
    let answer = client
        .put(target)
        .bearer_auth(token)
        .header("content-length", size)
        .header("content-type", mime_guess::from_path(path).first_or_octet_stream().to_string())
        .body(Body::wrap_stream(stream))
        .send()
        .await;
    bar.finish_and_clear();
    let answer = answer?;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    if status != StatusCode::CREATED {
        let detail = ["detail", "title"].into_iter().find_map(|field| body[field].as_str());
        bail!("{}", detail.map_or_else(|| format!("the server answered {status}"), str::to_owned));
    }
    Ok(body)
}

fn bar(name: &str, size: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
    if !stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    let short: String = name.chars().take(NAME_WIDTH).collect();
    bar.set_prefix(short);
    bar
}

fn describe(stored: &Value) -> String {
    let text = |field: &str| stored[field].as_str().unwrap_or_default();
    let size = |field: &str| show_size(stored[field].as_u64().unwrap_or_default());
    let compressed = match text("encoding") {
        "gzip" => format!(", stored as {} of gzip", size("stored_size")),
        _ => String::new(),
    };
    format!(
        "{}\n  {}{compressed}\n  sha256     {}\n  whirlpool  {}\n  reference  {}",
        text("url"),
        size("size"),
        text("sha256"),
        text("whirlpool"),
        text("reference"),
    )
}
