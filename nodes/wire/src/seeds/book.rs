//! Where a node looks for seeds: its configuration, and what a seed that led has told it, kept over restarts.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;
use tracing::debug;

use super::MAX_SEEDS;

/// In the data directory; one address a line.
const FILE: &str = "seeds";
/// How long a name server may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Of one address.
const MAX_ADDRESS_BYTES: usize = 255;

/// Where seeds are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeds {
    configured: Vec<String>,
    file: Option<PathBuf>,
}

impl Seeds {
    /// The configured ones, "host:port" each, once each, and those that are remembered in the data directory.
    #[must_use]
    pub fn new(mut configured: Vec<String>, data: &Path) -> Self {
        let mut seen = HashSet::new();
        configured.retain(|seed| seen.insert(seed.clone()));
        Self { configured, file: Some(data.join(FILE)) }
    }

    /// The data directory, where there is one.
    pub(crate) fn data(&self) -> Option<&Path> {
        self.file.as_deref()?.parent()
    }

    /// These and no others.
    #[must_use]
    pub fn only(seeds: Vec<String>) -> Self {
        Self { configured: seeds, file: None }
    }

    /// The configured ones.
    #[must_use]
    pub fn configured(&self) -> &[String] {
        &self.configured
    }

    /// What was remembered last; nothing where nothing was, or it can't be read. Blocking, and short.
    #[must_use]
    pub fn remembered(&self) -> Vec<String> {
        let Some(file) = &self.file else { return Vec::new() };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let is_address = |line: &&str| !line.is_empty() && line.len() <= MAX_ADDRESS_BYTES;
        text.lines().map(str::trim).filter(is_address).take(MAX_SEEDS).map(str::to_owned).collect()
    }

    /// Remembers these, whole or not at all; several nodes of a data directory may do so at once. Blocking, and short.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn remember(&self, seeds: &[String]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let text: String = seeds.iter().flat_map(|seed| [seed, "\n"]).collect();
        let new = file.with_extension(format!("new-{}", std::process::id()));
        std::fs::write(&new, text)?;
        std::fs::rename(new, file)
    }

    /// The addresses that the configured ones stand for now: a name with several counts as so many seeds.
    pub async fn resolve(&self) -> Vec<String> {
        let mut addresses = Vec::new();
        for seed in &self.configured {
            let found: Vec<_> = match timeout(RESOLVE_TIMEOUT, lookup_host(seed.as_str())).await {
                Ok(Ok(found)) => found.map(|address| address.to_string()).collect(),
                Ok(Err(error)) => {
                    debug!(seed, %error, "a seed's name can't be resolved");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            };
            // One that has one address, or none at the moment, goes by its name: then errors name it, too.
            if found.len() > 1 { addresses.extend(found) } else { addresses.push(seed.clone()) }
        }
        addresses
    }
}

impl From<&str> for Seeds {
    fn from(seed: &str) -> Self {
        Self::only(vec![seed.to_owned()])
    }
}

impl From<&String> for Seeds {
    fn from(seed: &String) -> Self {
        Self::from(seed.as_str())
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.configured.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_back_and_bounded() {
        let data = tempfile::tempdir().unwrap();
        let twice = ["a:1", "a:1"].map(str::to_owned);
        let seeds = Seeds::new(twice.into(), data.path());
        assert_eq!(seeds.to_string(), "a:1");
        assert!(seeds.remembered().is_empty());
        seeds.remember(&["a:1".to_owned(), "b:1".to_owned()]).unwrap();
        assert_eq!(seeds.remembered(), ["a:1", "b:1"]);
        let many: Vec<_> = (0..100).map(|n| format!("a:{n}")).collect();
        seeds.remember(&many).unwrap();
        assert_eq!(seeds.remembered().len(), MAX_SEEDS);
        std::fs::write(data.path().join(FILE), [0xff, 0xfe]).unwrap();
        assert!(seeds.remembered().is_empty(), "what is no text is nothing");
        assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn an_address_stands_for_itself_and_a_name_of_nobody_stays() {
        let configured = ["127.0.0.1:1", "seed.invalid:1"].map(str::to_owned).into();
        let seeds = Seeds { configured, file: None };
        assert_eq!(seeds.resolve().await, ["127.0.0.1:1", "seed.invalid:1"]);
    }
}
