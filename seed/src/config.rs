//! The section `[seed]` of `protoplex.toml`, and what the runtime has to take for it.

use std::net::{Ipv4Addr, SocketAddr};

use protoplex_runtime::config::{Common, Problems, connectable};
use protoplex_runtime::parent::Spec;
use serde::{Deserialize, Serialize};

/// The name of its socket.
pub(crate) const SOCKET: &str = "grpc";

/// The section as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where other nodes and commands reach it; not for the public.
    pub listen: SocketAddr,
    /// Where every node reaches the datastore, `host:port`; where it listens on this machine if it is left out.
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
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) datastore: String,
    pub(crate) max_keys: usize,
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`. `datastore` is where this machine's datastore listens.
    pub fn resolve(self, datastore: SocketAddr, problems: &mut Problems) -> Config {
        let Self { listen, datastore: told, max_keys } = self;
        let datastore = told.unwrap_or_else(|| reached(datastore, listen, problems));
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

/// How nodes reach a datastore that listens there, on the machine of a seed that listens on `seed`.
fn reached(datastore: SocketAddr, seed: SocketAddr, problems: &mut Problems) -> String {
    if datastore.port() == 0 {
        problems.add("datastore.listen", "needs a port of its own, since others have to find it");
    }
    if !seed.ip().is_loopback() && (datastore.ip().is_loopback() || datastore.ip().is_unspecified()) {
        let reason =
            "must be given where other machines reach the seed: it tells them all where the datastore is";
        problems.add("seed.datastore", reason);
    }
    connectable(datastore).to_string()
}

/// The node, for the runtime: one process, one socket.
pub fn spec(config: &Config, common: &Common) -> Spec {
    Spec {
        kind: "seed",
        common: common.clone(),
        children: 0,
        shared: vec![(SOCKET.to_owned(), config.listen)],
        own: Vec::new(),
        connections: 0,
        child_config: serde_json::json!(config),
        adopted: &[],
    }
}
