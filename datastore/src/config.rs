//! The section `[datastore]` of `protoplex.toml`, and what the runtime has to take for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use protoplex_runtime::config::Common;
use protoplex_runtime::parent::Spec;
use serde::{Deserialize, Serialize};

/// The port that other nodes look for it on.
const DEFAULT_PORT: u16 = 8060;
/// The name of its socket.
pub(crate) const SOCKET: &str = "grpc";

/// The section as written. There is nothing in it that could be wrong together, so it is used as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where other nodes reach it; not for the public.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into() }
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
pub(crate) fn file(common: &Common) -> PathBuf {
    common.data.join("datastore").join("protoplex.db")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_defaults_and_refuses_unknown_keys() {
        let config: Config = serde_json::from_str("{}").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8060");
        let error = serde_json::from_str::<Config>(r#"{"prot": 1}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `prot`"), "{error}");
    }
}
