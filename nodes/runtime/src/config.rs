//! Reads `protoplex.toml`, lays environment and flags over it, and says where each mistake stands.

mod addresses;
mod layers;
pub mod wording;

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use protoplex_wire::seeds::Seeds;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::account::Account;
use crate::meta::{TlsSettings, Tokens};
use crate::telemetry;
pub use addresses::Addresses;
use layers::{Layers, Origins};

/// The most children that a node may have.
const MAX_CHILDREN: u32 = 256;

/// What every node is told, whatever its kind. Children get it whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// Unique in the cluster, e.g. `proxy-1`; also names its files in `run/`.
    pub node: String,
    /// The user that the node works as, where it is started as root.
    pub account: Option<Account>,
    /// The data directory; made, readable by its owner alone, where it is missing.
    pub data: PathBuf,
    /// Where seeds are reached, `127.0.0.1:8050`; any of them says which leads.
    pub seeds: Vec<String>,
    /// Of this machine; empty where there is only one.
    pub region: String,
    /// Of this machine; empty where there is only one.
    pub zone: String,
    /// Health, readiness, metrics and status.
    pub meta: SocketAddr,
    /// Lets the meta port listen on an address that isn't loopback.
    pub meta_forced: bool,
    /// What lets clients of no part in the cluster use such a meta port.
    pub meta_tokens: Tokens,
    /// How such a meta port speaks TLS.
    pub meta_tls: TlsSettings,
    /// How the node drains.
    pub timing: Timing,
    /// Where log lines go.
    pub telemetry: telemetry::Settings,
    /// Where traces go.
    pub trace: telemetry::trace::Settings,
}

/// How a node drains. Also the section `[drain]` of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// From "not ready" to the end of accepting, so that balancers notice.
    pub drain_grace_ms: u64,
    /// From the end of accepting until what is still in flight is cut.
    pub drain_timeout_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { drain_grace_ms: 0, drain_timeout_ms: 30_000 }
    }
}

impl Common {
    /// Where the node looks for seeds.
    pub fn seeds(&self) -> Seeds {
        Seeds::new(self.seeds.clone(), &self.data)
    }
}

impl Timing {
    /// [`Timing::drain_grace_ms`].
    pub fn drain_grace(&self) -> Duration {
        Duration::from_millis(self.drain_grace_ms)
    }

    /// [`Timing::drain_timeout_ms`].
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// What is wrong with the configuration, one mistake a line, each with the place where it stands. The process should
/// exit with [`crate::start::REFUSED`].
#[derive(Clone, Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// In the order of their lines; what stands in no file comes last.
    fn of(mut mistakes: Vec<String>) -> Self {
        let line = |mistake: &String| {
            let (place, _) = mistake.split_once(": ")?;
            place.rsplit_once(':')?.1.parse::<usize>().ok()
        };
        mistakes.sort_by_key(|mistake| line(mistake).unwrap_or(usize::MAX));
        Self(mistakes)
    }

    /// Each mistake, with its place.
    pub fn mistakes(&self) -> &[String] {
        &self.0
    }
}

/// Collects what is wrong with values that read well, so that all of it can be told together.
#[derive(Debug, Default)]
pub struct Problems {
    origins: Origins,
    found: Vec<String>,
}

impl Problems {
    /// Notes that the value of a dotted key (`proxy.children`) is wrong. Entries of lists have their number as a name:
    /// `proxy.listen.0`.
    pub fn add(&mut self, key: &str, reason: impl Display) {
        self.found.push(self.told(key, reason));
    }

    /// As [`Problems::add`], in words that don't name the key as it is written: for entries of lists, which have names.
    pub fn add_at(&mut self, key: &str, text: impl Display) {
        self.found.push(format!("{}{text}", self.place(key)));
    }

    /// `protoplex.toml:12: `, of the key or of the table that it is missing from; empty for what nobody set.
    pub fn place(&self, key: &str) -> String {
        self.origins.place(key)
    }

    /// As [`Problems::add`], for what is wrong only to who uses the value: it is not noted.
    pub fn aside(&self, key: &str, reason: impl Display) -> ConfigError {
        ConfigError(vec![self.told(key, reason)])
    }

    fn told(&self, key: &str, reason: impl Display) -> String {
        format!("{}{key}: {reason}", self.origins.place(key))
    }

    /// The value, or a note of its error and nothing.
    pub fn check<T, E: Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(key, error)).ok()
    }

    /// # Errors
    /// Everything that was noted, if anything was.
    pub fn finish(self) -> Result<(), ConfigError> {
        if self.found.is_empty() { Ok(()) } else { Err(ConfigError::of(self.found)) }
    }
}

/// How many children a node has: as many as are configured at `key` (`proxy.children`), or one for each processor. What
/// is wrong goes to `problems`.
pub fn children(configured: Option<u32>, key: &str, problems: &mut Problems) -> u32 {
    match configured {
        Some(count @ 1..=MAX_CHILDREN) => count,
        Some(_) => {
            problems.add(key, format_args!("must be from 1 to {MAX_CHILDREN}"));
            1
        }
        None => available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(MAX_CHILDREN).min(MAX_CHILDREN)),
    }
}

/// Where a node listens that serves this machine alone: 127.0.0.1 and, where the machine has IPv6, [::1]. Browsers take
/// either for `localhost`.
pub fn loopback(port: u16) -> Vec<SocketAddr> {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let v6 = has_ipv6.then(|| (Ipv6Addr::LOCALHOST, port).into());
    [(Ipv4Addr::LOCALHOST, port).into()].into_iter().chain(v6).collect()
}

/// How a process of this machine reaches what listens there: an unspecified address is reached on the loopback.
pub fn connectable(listen: SocketAddr) -> SocketAddr {
    let loopback = match listen.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    if listen.ip().is_unspecified() { SocketAddr::new(loopback, listen.port()) } else { listen }
}

/// A dotted key and its value.
pub type Setting = (String, toml::Value);

/// Reads the file, if there is one, over the `defaults` of the command, then lays the environment and the flags over it.
///
/// `PROTOPLEX_PROXY__CHILDREN=4` sets `proxy.children`: two underscores are a dot. Variables without them are not looked
/// at; they belong to the command line. Empty ones count as unset; `''` is an empty text. A value that reads as TOML is one, anything else is a string.
///
/// With the values comes a [`Problems`] that knows where each of them was set, and has noted each unknown key and each
/// value of a wrong type: those are left at their default.
///
/// # Errors
/// The file can't be read or is not TOML.
pub fn load<T: DeserializeOwned>(
    defaults: &[Setting],
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[Setting],
) -> Result<(T, Problems), ConfigError> {
    let layers = Layers::read(defaults, file, environment, flags)?;
    let mut values = layers.merge()?;
    let mut found = Vec::new();
    // A deserializer ends at the first mistake; without it the next one is found.
    loop {
        match T::deserialize(toml::Deserializer::from(values.clone())) {
            Ok(value) => {
                // Of what is left: lists may have become shorter.
                return Ok((value, Problems { origins: layers.origins(values.get_ref()), found }));
            }
            Err(error) => {
                let removed = error.span().and_then(|span| layers::remove(values.get_mut(), span.start));
                found.push(layers.told(&error, removed.as_deref()));
                if removed.is_none() {
                    return Err(ConfigError::of(found));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
