//! The section `[seed]` of `protoplex.toml`, and what the runtime has to take for it.

use std::net::{Ipv4Addr, SocketAddr};

use protoplex_runtime::config::{Common, Problems};
use protoplex_runtime::parent::Spec;
use serde::{Deserialize, Serialize};

/// The name of its socket.
pub(crate) const SOCKET: &str = "grpc";
/// Where the datastore listens unless it is told otherwise.
const DATASTORE: &str = "127.0.0.1:8060";

/// The section as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where other nodes and commands reach it; not for the public.
    pub listen: SocketAddr,
    /// Where every node reaches the datastore, `host:port`; its usual port on this machine if it is left out.
    pub datastore: Option<String>,
    /// Keys that it knows at once, owned or remembered.
    pub max_keys: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 8050).into(), datastore: None, max_keys: 4_000_000 }
    }
}

/// The section, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) datastore: String,
    pub(crate) max_keys: usize,
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`.
    pub fn resolve(self, problems: &mut Problems) -> Config {
        let Self { listen, datastore, max_keys } = self;
        let datastore = datastore.unwrap_or_else(|| DATASTORE.to_owned());
        let has_port = datastore
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !has_port {
            problems.add("seed.datastore", format_args!("{datastore:?} is not HOST:PORT"));
        }
        if max_keys == 0 {
            problems.add("seed.max_keys", "without a key nothing can be owned");
        }
        Config { listen, datastore, max_keys }
    }
}

/// The node, for the runtime: one process, one socket.
pub fn spec(config: &Config, common: &Common) -> Spec {
    Spec {
        kind: "seed",
        common: common.clone(),
        children: 0,
        shared: vec![(SOCKET.to_owned(), config.listen)],
        own: Vec::new(),
        child_config: serde_json::Value::Null,
    }
}
