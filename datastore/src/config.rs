//! The section `[datastore]` of `protoplex.toml`, and what the runtime has to take for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use protoplex_runtime::config::{Common, Problems};
use protoplex_runtime::parent::Spec;
use serde::{Deserialize, Serialize};

use crate::archive::Database;
use crate::postgres::{Target, TargetError};

/// The port that other nodes look for it on.
const DEFAULT_PORT: u16 = 8060;
/// The name of its socket.
pub(crate) const SOCKET: &str = "grpc";

/// The section as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where other nodes reach it; not for the public.
    pub listen: SocketAddr,
    /// A PostgreSQL database; a file in the data directory where it is left out.
    pub url: Option<String>,
    /// Counts before the one in `url`, so that it can come from elsewhere.
    pub password: Option<String>,
}

impl Default for Raw {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(), url: None, password: None }
    }
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`.
    pub fn resolve(self, problems: &mut Problems) -> Config {
        let Self { listen, url, password } = self;
        match &url {
            Some(url) => {
                problems.check("datastore.url", Target::parse(url, password.as_deref()));
            }
            None if password.is_some() => {
                problems.add("datastore.password", "is only for a `url`, which is not given");
            }
            None => {}
        }
        Config { listen, url, password }
    }
}

/// The section, checked. It may hold a password; the runtime masks it where it shows what a node goes by.
#[derive(Clone, Serialize)]
pub struct Config {
    listen: SocketAddr,
    url: Option<String>,
    password: Option<String>,
}

impl Config {
    /// Where everything is, or will be once it is opened; the file is in the data directory.
    pub fn database(&self, data: &Path) -> Result<Database, TargetError> {
        Ok(self.target()?.map_or_else(|| database_file(data), Database::server))
    }

    /// The PostgreSQL database; none where it is a file.
    pub(crate) fn target(&self) -> Result<Option<Target>, TargetError> {
        self.url.as_deref().map(|url| Target::parse(url, self.password.as_deref())).transpose()
    }
}

/// The node, for the runtime: one process, one socket.
pub fn spec(config: &Config, common: &Common) -> Spec {
    Spec {
        kind: "datastore",
        common: common.clone(),
        children: 0,
        shared: vec![(SOCKET.to_owned(), config.listen)],
        own: Vec::new(),
        connections: 0,
        child_config: serde_json::json!(config),
        adopted: &[],
    }
}

/// The database's file in the data directory.
pub(crate) fn file(data: &Path) -> PathBuf {
    data.join("datastore").join("protoplex.db")
}

/// The SQLite database of a data directory.
pub fn database_file(data: &Path) -> Database {
    Database::File(file(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_defaults_and_refuses_unknown_keys() {
        let raw: Raw = serde_json::from_str("{}").unwrap();
        assert_eq!(raw.listen.to_string(), "127.0.0.1:8060");
        let error = serde_json::from_str::<Raw>(r#"{"prot": 1}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `prot`"), "{error}");
        let mut problems = Problems::default();
        assert!(raw.resolve(&mut problems).target().unwrap().is_none(), "a file");
        problems.finish().unwrap();
    }

    #[test]
    fn a_database_is_named_by_its_url() {
        let raw = |url: &str| Raw { url: Some(url.to_owned()), ..Raw::default() };
        let refusal = |raw: Raw| {
            let mut problems = Problems::default();
            raw.resolve(&mut problems);
            problems.finish().unwrap_err().to_string()
        };
        let mut problems = Problems::default();
        let config = raw("postgres://app:hush@db.example/edge").resolve(&mut problems);
        problems.finish().unwrap();
        assert_eq!(config.target().unwrap().unwrap().to_string(), "postgres://app@db.example:5432/edge");

        let other = refusal(raw("mysql://app:hush@db.example/edge"));
        assert!(
            other.starts_with("datastore.url: names no kind of database that Protoplex knows"),
            "{other}"
        );
        let alone = refusal(Raw { password: Some("hush".to_owned()), ..Raw::default() });
        assert!(alone.starts_with("datastore.password: is only for a `url`"), "{alone}");
        assert!(!other.contains("hush") && !alone.contains("hush"));
    }
}
