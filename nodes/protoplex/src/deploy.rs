//! `protoplex deploy`: a folder becomes the current app build of a host.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use protoplex_wire::identity::TrustedChannel;
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::{Asset, Build, BuildEnd, DeployHeader, DeployRequest, deploy_request};
use serde::Serialize;

use crate::cli::{Common, Deploy, Usage};
use crate::cluster::{Cluster, unmade};
use crate::output::{plural, print};
use crate::units::show_size;

/// Largest asset, in bytes; larger files belong into storage.
const MAX_ASSET_BYTES: u64 = 16 << 20;
/// All assets of a build together: they are held in memory.
const MAX_BUILD_BYTES: u64 = 256 << 20;
/// A compressed form is kept where it saves at least a tenth.
const WORTHWHILE: f64 = 0.9;
const BROTLI_QUALITY: u32 = 9;
/// log2 of brotli's window.
const BROTLI_WINDOW: u32 = 22;

#[derive(Serialize)]
struct Deployed {
    host: String,
    version: u64,
    assets: u32,
    bytes: u64,
    digest: String,
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Deploy) -> anyhow::Result<()> {
    if !command.folder.is_dir() {
        return Err(Usage(format!("{} is no folder", command.folder.display())).into());
    }
    let assets = tokio::task::spawn_blocking(move || read_folder(&command.folder)).await??;
    let cluster = Cluster::find(common)?;
    // A large build may be long on its way, but not to nobody.
    cluster.any_status().await?;
    let build = send(cluster.operator().await?, &command.host, assets).await.map_err(|status| {
        unmade(
            cluster.explain(status),
            "the build is deployed (status shows its version; run it again to be sure)",
        )
    })?;
    let deployed = Deployed {
        host: build.host,
        version: build.version,
        assets: build.assets,
        bytes: build.bytes,
        digest: build.digest,
    };
    print(common.json, &deployed, |d| {
        let assets = plural(d.assets as usize, "asset");
        format!("Deployed build {} for host {}: {assets}, {}", d.version, d.host, show_size(d.bytes))
    })?;
    Ok(())
}

/// Sends the build to the seed; it is current when this returns.
pub(crate) async fn send(
    mut operator: OperatorClient<TrustedChannel>,
    host: &str,
    assets: Vec<Asset>,
) -> Result<Build, tonic::Status> {
    let header = deploy_request::Message::Header(DeployHeader { host: host.to_owned() });
    let assets = assets.into_iter().map(deploy_request::Message::Asset);
    let messages = std::iter::once(header).chain(assets).chain([deploy_request::Message::End(BuildEnd {})]);
    let requests = messages.map(|message| DeployRequest { message: Some(message) }).collect::<Vec<_>>();
    Ok(operator.deploy(tokio_stream::iter(requests)).await?.into_inner())
}

/// An asset with its compressed forms.
pub(crate) fn asset(path: String, identity: Vec<u8>) -> anyhow::Result<Asset> {
    let content_type = content_type(&path);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&identity)?;
    let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_QUALITY, BROTLI_WINDOW);
    brotli.write_all(&identity)?;
    let worthwhile = |form: Vec<u8>| {
        let pays = (form.len() as f64) < identity.len() as f64 * WORTHWHILE;
        if pays { form } else { Vec::new() }
    };
    let (gzip, brotli) = (worthwhile(gzip.finish()?), worthwhile(brotli.into_inner()));
    Ok(Asset { path, content_type, identity, gzip, brotli })
}

fn content_type(path: &str) -> String {
    let guess = mime_guess::from_path(path).first_or_octet_stream();
    let textual =
        guess.type_() == "text" || ["javascript", "json", "svg"].contains(&guess.subtype().as_str());
    if textual { format!("{guess}; charset=utf-8") } else { guess.to_string() }
}

fn read_folder(folder: &Path) -> anyhow::Result<Vec<Asset>> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    files.sort();
    if files.is_empty() {
        bail!("{}: no files to deploy", folder.display());
    }
    let mut total = 0;
    let mut assets = Vec::with_capacity(files.len());
    for file in files {
        let size = fs::metadata(&file)?.len();
        total += size;
        if size > MAX_ASSET_BYTES {
            bail!(
                "{}: {} is over the limit of {} an asset; upload it as a file instead",
                file.display(),
                show_size(size),
                show_size(MAX_ASSET_BYTES)
            );
        }
        if total > MAX_BUILD_BYTES {
            bail!("{}: over the limit of {} a build", folder.display(), show_size(MAX_BUILD_BYTES));
        }
        let relative = file.strip_prefix(folder)?.to_str();
        let relative = relative.with_context(|| format!("{}: the name is not UTF-8", file.display()))?;
        let bytes = fs::read(&file).with_context(|| format!("{}", file.display()))?;
        assets.push(asset(format!("/{relative}"), bytes)?);
    }
    Ok(assets)
}

/// All files below `folder` but hidden ones; symbolic links are followed only to files.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_becomes_assets_by_path_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("js")).unwrap();
        fs::write(folder.path().join("index.html"), "<p>hello</p>".repeat(100)).unwrap();
        fs::write(folder.path().join("js/app.js"), "x").unwrap();
        fs::write(folder.path().join(".secret"), "x").unwrap();
        let assets = read_folder(folder.path()).unwrap();
        let paths: Vec<_> = assets.iter().map(|asset| asset.path.as_str()).collect();
        assert_eq!(paths, ["/index.html", "/js/app.js"]);
        assert_eq!(assets[0].content_type, "text/html; charset=utf-8");
        assert!(!assets[0].gzip.is_empty() && !assets[0].brotli.is_empty());
        assert!(assets[1].gzip.is_empty(), "one byte doesn't get smaller");
    }

    #[test]
    fn an_empty_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_folder(folder.path()).unwrap_err().to_string().contains("no files"));
    }
}
