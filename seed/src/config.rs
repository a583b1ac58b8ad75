//! The section `[seed]` of `protoplex.toml`, and what the runtime has to take for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use protoplex_runtime::config::{Addresses, Common, Problems, connectable};
use protoplex_runtime::network::Networks;
use protoplex_runtime::parent::Spec;
use protoplex_wire::pattern::check_name;
use serde::{Deserialize, Serialize};

use crate::events::config as events;
use crate::ownership::Idle;

/// The name of its socket.
pub(crate) const SOCKET: &str = "grpc";

/// The key of [`Raw::member_networks`].
const MEMBER_NETWORKS: &str = "seed.member_networks";

/// The section as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Where other nodes and commands reach it; not for the public.
    pub listen: SocketAddr,
    /// Where others reach this seed, `host:port`; where it listens if it is left out.
    pub address: Option<String>,
    /// Where every node reaches the datastore, `host:port`; where it listens on this machine if it is left out. Several
    /// are of one database: one that can't be reached is done without.
    pub datastore: Addresses,
    /// Keys that it knows at once, owned or remembered.
    pub max_keys: usize,
    /// A key that nobody has asked for during this time, and some more, has no owner any more. Proxies ask again within it
    /// for what they use. 0: never.
    pub idle_ms: u64,
    /// How long the certificates last that it issues to nodes and backends, which renew them.
    pub certificate_life_s: u64,
    /// Networks in which members may be, `10.0.0.0/8` or an address each; any where there are none.
    pub member_networks: Vec<String>,
    /// `[seed.pools.NAME]`: other times for some pools.
    pub pools: BTreeMap<String, RawPool>,
}

/// `[seed.pools.NAME]`, as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPool {
    /// As in `[seed]`.
    pub idle_ms: u64,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8050).into(),
            address: None,
            datastore: Addresses::default(),
            max_keys: 4_000_000,
            idle_ms: 10 * 60_000,
            certificate_life_s: 24 * 3600,
            member_networks: Vec::new(),
            pools: BTreeMap::new(),
        }
    }
}

/// Below, proxies would do little else but ask.
const MIN_IDLE_MS: u64 = 1_000;
/// What fits into the answer that tells proxies: 49 days.
const MAX_IDLE_MS: u64 = u32::MAX as u64;

/// Certificates shorter than this would be over before they are renewed; years would make them as good as passwords.
const CERTIFICATE_LIFE_S: RangeInclusive<u64> = 3..=366 * 24 * 3600;

/// The section, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    pub(crate) listen: SocketAddr,
    address: String,
    pub(crate) datastore: Vec<String>,
    pub(crate) max_keys: usize,
    pub(crate) events: events::Config,
    idle_ms: u64,
    certificate_life_s: u64,
    member_networks: Vec<String>,
    pools: BTreeMap<String, RawPool>,
}

impl Config {
    /// Where members may be.
    pub(crate) fn member_networks(&self) -> Networks {
        // They were looked at when the section was.
        Networks::resolve(&self.member_networks, MEMBER_NETWORKS, &mut Problems::default())
    }

    /// How long certificates last that it issues.
    pub(crate) fn certificate_life(&self) -> Duration {
        Duration::from_secs(self.certificate_life_s)
    }

    /// When keys are idle.
    pub(crate) fn idle(&self) -> Idle {
        let time = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        let pools = self.pools.iter().map(|(name, pool)| (name.clone(), time(pool.idle_ms)));
        Idle { default: time(self.idle_ms), pools: pools.collect() }
    }
}

impl Config {
    /// With the section `[events]`, which is the seed's, too.
    #[must_use]
    pub fn with_events(self, events: events::Config) -> Self {
        Self { events, ..self }
    }

    /// Where others reach this seed; empty where it can't be told.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Raw {
    /// Checks the section; what is wrong goes to `problems`. `datastore` is where this machine's datastore listens.
    pub fn resolve(self, datastore: SocketAddr, problems: &mut Problems) -> Config {
        let Self {
            listen,
            address,
            datastore: told,
            max_keys,
            idle_ms,
            certificate_life_s,
            member_networks,
            pools,
        } = self;
        Networks::resolve(&member_networks, MEMBER_NETWORKS, problems);
        if !CERTIFICATE_LIFE_S.contains(&certificate_life_s) {
            let (least, most) = (CERTIFICATE_LIFE_S.start(), CERTIFICATE_LIFE_S.end());
            let key = "seed.certificate_life_s";
            problems.add(key, format_args!("{certificate_life_s} is not from {least} to {most}"));
        }
        let datastore =
            if told.is_empty() { vec![reached(datastore, listen, problems)] } else { told.into_vec() };
        for datastore in datastore.iter().filter(|datastore| !has_port(datastore)) {
            problems.add("seed.datastore", format_args!("{datastore:?} is not HOST:PORT"));
        }
        if let Some(address) = address.as_ref().filter(|address| !has_port(address)) {
            problems.add("seed.address", format_args!("{address:?} is not HOST:PORT"));
        }
        // At any address of the machine it is reached, but by which one it can't know.
        let own = || if listen.ip().is_unspecified() { String::new() } else { listen.to_string() };
        let address = address.unwrap_or_else(own);
        if max_keys == 0 {
            problems.add("seed.max_keys", "without a key nothing can be owned");
        }
        check_idle("seed.idle_ms", idle_ms, problems);
        for (name, pool) in &pools {
            let section = format!("seed.pools.{name}");
            if let Err(error) = check_name("pool", name) {
                problems.add(&section, error);
            }
            check_idle(&format!("{section}.idle_ms"), pool.idle_ms, problems);
        }
        let events = events::Config::default();
        Config {
            listen,
            address,
            datastore,
            max_keys,
            events,
            idle_ms,
            certificate_life_s,
            member_networks,
            pools,
        }
    }
}

fn check_idle(key: &str, idle_ms: u64, problems: &mut Problems) {
    if idle_ms != 0 && !(MIN_IDLE_MS..=MAX_IDLE_MS).contains(&idle_ms) {
        problems
            .add(key, format_args!("{idle_ms} is not from {MIN_IDLE_MS} to {MAX_IDLE_MS}, nor 0 for never"));
    }
}

fn has_port(address: &str) -> bool {
    let named = address.rsplit_once(':');
    named.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
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
