//! Keeps the cache within its size. Run by the parent, once for all children.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use metrics::{counter, gauge};
use tokio::time::sleep;

use crate::disk::blocking;
use crate::evict::{Entry, victims};

/// How often the cache is looked through. Between two looks it may grow over its limit.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Evicts from the cache in `folder` whatever is over `max_bytes`, and removes parts without a filler. Never ends.
pub(crate) async fn sweep(folder: PathBuf, max_bytes: u64) {
    loop {
        let swept = folder.clone();
        match blocking(move || sweep_once(&swept, max_bytes)).await {
            Ok(swept) => {
                gauge!("protoplex_fileserver_cache_bytes").set(swept.bytes_kept as f64);
                counter!("protoplex_fileserver_cache_evictions_total").increment(swept.evicted);
            }
            Err(error) => {
                tracing::warn!(%error, folder = %folder.display(), "the cache can't be looked through")
            }
        }
        sleep(SWEEP_INTERVAL).await;
    }
}

/// What one look did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) evicted: u64,
    pub(super) bytes_kept: u64,
}

pub(super) fn sweep_once(folder: &Path, max_bytes: u64) -> io::Result<Swept> {
    let entries = list(folder)?;
    let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let mut swept = Swept { evicted: 0, bytes_kept: total };
    for victim in victims(entries, max_bytes, SystemTime::now()) {
        match fs::remove_file(folder.join(&victim.name)) {
            Ok(()) => {
                swept.evicted += 1;
                swept.bytes_kept -= victim.bytes;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => swept.bytes_kept -= victim.bytes,
            Err(error) => return Err(error),
        }
    }
    Ok(swept)
}

fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let folders = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
        folders => folders?,
    };
    for folder in folders {
        for file in fs::read_dir(folder?.path())? {
            let file = file?;
            // Whatever vanishes meanwhile needs no sweeping.
            let Ok(metadata) = file.metadata() else { continue };
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                remove_orphan(&path)?;
                continue;
            }
            let name = path.iter().rev().take(2).collect::<Vec<_>>();
            let [name, folder] = name[..] else { continue };
            entries.push(Entry {
                name: Path::new(folder).join(name).to_string_lossy().into_owned(),
                bytes: metadata.len(),
                used: metadata.modified()?,
            });
        }
    }
    Ok(entries)
}

/// Removes a part that nobody fills. Whoever opened it just now finds it removed, and claims anew.
fn remove_orphan(part: &Path) -> io::Result<()> {
    match File::open(part) {
        Ok(file) if file.try_lock().is_ok() => fs::remove_file(part),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
