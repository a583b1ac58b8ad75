//! The whole of `protoplex.toml`, with environment and flags laid over it, checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use http::uri::Authority;
use protoplex_runtime::account::{Account, AccountError};
use protoplex_runtime::config::{
    self, Addresses, Common as NodeCommon, ConfigError, Problems, Setting, Timing, connectable,
};
use protoplex_runtime::meta::{TlsSettings, Tokens};
use protoplex_runtime::start::{StartCause, StartError};
use protoplex_runtime::telemetry;
use serde::Deserialize;

use crate::cli::Common;
use crate::environment;
use crate::node::Kind;

/// Looked for where no other file is named.
const DEFAULT_FILE: &str = "protoplex.toml";

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    /// Whom nodes that are started as root work as.
    user: Option<String>,
    /// Theirs, unless another one is named.
    group: Option<String>,
    data: PathBuf,
    /// Where nodes and commands reach seeds, any of which says who leads; where one listens on this machine if it is left
    /// out.
    seed_address: Addresses,
    region: String,
    zone: String,
    log: telemetry::Settings,
    trace: telemetry::trace::Settings,
    drain: Timing,
    meta: Meta,
    seed: protoplex_seed::config::Raw,
    events: protoplex_seed::events::config::Raw,
    datastore: protoplex_datastore::config::Raw,
    proxy: protoplex_proxy::config::Raw,
    fileserver: protoplex_fileserver::config::Raw,
    live: protoplex_live::Raw,
}

/// The section `[meta]`: the internal port of each node, for health, metrics and status.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Meta {
    seed: SocketAddr,
    datastore: SocketAddr,
    proxy: SocketAddr,
    fileserver: SocketAddr,
    live: SocketAddr,
    /// Lets meta ports listen on addresses that other machines reach. They ask for a token then.
    exposed: bool,
    /// Lets scrapers read all of them. Nodes and operators of the cluster need none.
    token: Option<String>,
    /// Lets hooks of other systems read and command all of them.
    command_token: Option<String>,
    /// Whose certificates count there besides the cluster's own.
    tls: TlsSettings,
}

impl Meta {
    fn tokens(&self) -> Tokens {
        Tokens { token: self.token.clone(), command_token: self.command_token.clone() }
    }
}

impl Default for Meta {
    fn default() -> Self {
        let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            seed: port(8051),
            datastore: port(8052),
            proxy: port(8053),
            fileserver: port(8054),
            live: port(8055),
            exposed: false,
            token: None,
            command_token: None,
            tls: TlsSettings::default(),
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            user: None,
            group: None,
            data: "protoplex-data".into(),
            seed_address: Addresses::default(),
            region: String::new(),
            zone: String::new(),
            log: telemetry::Settings::default(),
            trace: Default::default(),
            drain: Timing::default(),
            meta: Meta::default(),
            seed: Default::default(),
            events: Default::default(),
            datastore: Default::default(),
            proxy: Default::default(),
            fileserver: Default::default(),
            live: Default::default(),
        }
    }
}

/// Everything that is configured, checked.
pub(crate) struct Settings {
    account: Result<Option<Account>, ConfigError>,
    /// The data directory.
    pub data: PathBuf,
    /// Where nodes and commands reach seeds.
    pub seed_addresses: Vec<String>,
    /// Where they reach one of this machine.
    pub own_seed: SocketAddr,
    /// How nodes drain.
    pub drain: Timing,
    /// Which lines nodes log, and where.
    pub log: telemetry::Settings,
    region: String,
    zone: String,
    trace: telemetry::trace::Settings,
    meta: Meta,
    pub seed: protoplex_seed::config::Config,
    pub datastore: protoplex_datastore::config::Config,
    pub proxy: protoplex_proxy::config::Config,
    pub fileserver: protoplex_fileserver::config::Config,
    pub live: protoplex_live::Config,
}

impl Settings {
    /// The file that counts: the one that is named, else `./protoplex.toml` where there is one.
    pub(crate) fn file(common: &Common) -> Result<Option<PathBuf>, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        Ok(common.config.clone().or_else(|| default.exists().then(|| default.to_owned())))
    }

    /// Reads and checks everything.
    pub(crate) fn load(common: &Common) -> anyhow::Result<Self> {
        Self::load_over(&[], common)
    }

    /// As [`Self::load`], over the defaults of the command.
    pub(crate) fn load_over(defaults: &[Setting], common: &Common) -> anyhow::Result<Self> {
        let flags = flags(common);
        let (raw, mut problems): (Raw, Problems) =
            config::load(defaults, Self::file(common)?.as_deref(), environment::variables(), &flags)?;
        raw.log.check(&mut problems);
        raw.meta.tls.check(&mut problems);
        raw.meta.tokens().check(&mut problems);
        check_listeners(&raw, &mut problems);
        // On one machine nobody should have to say twice where something listens.
        let own_seed = connectable(raw.seed.listen);
        raw.trace.check(&mut problems);
        let is_address = |seed: &str| seed.parse::<Authority>().is_ok_and(|seed| seed.port_u16().is_some());
        if let Some(seed) = raw.seed_address.iter().find(|seed| !is_address(seed)) {
            let from = if common.seed.is_empty() { "" } else { ", of --seed or PROTOPLEX_SEED," };
            problems.add("seed_address", format_args!("{seed:?}{from} is no HOST:PORT"));
        }
        let mut seed_addresses = raw.seed_address.into_vec();
        let seed = raw.seed.resolve(raw.datastore.listen, &mut problems);
        if seed_addresses.len() > 1 && seed.address().is_empty() {
            let reason = "must be given where this seed is one of several and listens at any address";
            problems.add("seed.address", reason);
        }
        if seed_addresses.is_empty() {
            seed_addresses.push(own_seed.to_string());
        }
        let settings = Self {
            account: account(raw.user.as_deref(), raw.group.as_deref(), &problems),
            // As commands that are printed are run from elsewhere.
            data: std::path::absolute(raw.data)?,
            seed_addresses,
            own_seed,
            drain: raw.drain,
            region: raw.region,
            zone: raw.zone,
            log: raw.log,
            trace: raw.trace,
            meta: raw.meta,
            seed: seed.with_events(raw.events.resolve(&mut problems)),
            datastore: raw.datastore.resolve(&mut problems),
            proxy: raw.proxy.resolve(&mut problems),
            fileserver: raw.fileserver.resolve(&mut problems),
            live: raw.live.resolve(&mut problems),
        };
        problems.finish()?;
        Ok(settings)
    }

    /// Whom nodes that are started as root work as. An operator's commands need not know that user.
    pub(crate) fn account(&self) -> Result<Option<Account>, ConfigError> {
        self.account.clone()
    }

    /// Has this process work as that user from here on, and only bind as root.
    pub(crate) fn assume_account(&self) -> anyhow::Result<()> {
        match self.account()? {
            Some(account) => {
                account.assume(&self.data).map_err(|error| StartError::from(StartCause::from(error)).into())
            }
            None => Ok(()),
        }
    }

    /// How many children a node of this kind has; nothing where it is a single process.
    pub(crate) fn children(&self, kind: Kind) -> Option<u32> {
        match kind {
            Kind::Seed | Kind::Datastore => None,
            Kind::Proxy => Some(self.proxy.children()),
            Kind::Fileserver => Some(self.fileserver.children()),
            Kind::Live => Some(self.live.children()),
        }
    }

    /// What a node of this kind is told besides its own section.
    pub(crate) fn common(&self, kind: Kind, node: Option<&str>) -> Result<NodeCommon, ConfigError> {
        Ok(NodeCommon {
            account: self.account()?,
            node: node.map_or_else(|| kind.node(), str::to_owned),
            data: self.data.clone(),
            seeds: self.seed_addresses.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            meta: match kind {
                Kind::Seed => self.meta.seed,
                Kind::Datastore => self.meta.datastore,
                Kind::Proxy => self.meta.proxy,
                Kind::Fileserver => self.meta.fileserver,
                Kind::Live => self.meta.live,
            },
            meta_forced: self.meta.exposed,
            meta_tokens: self.meta.tokens(),
            meta_tls: self.meta.tls.clone(),
            timing: self.drain.clone(),
            telemetry: self.log.clone(),
            trace: telemetry::trace::Settings {
                // Only proxies reach live nodes: what they export is exported whole.
                trust_parent: self.trace.trust_parent || kind == Kind::Live,
                ..self.trace.clone()
            },
        })
    }
}

/// What `bind` would refuse, where it can be seen without a socket.
fn check_listeners(raw: &Raw, problems: &mut Problems) {
    let Meta { seed, datastore, proxy, fileserver, live, exposed, .. } = raw.meta;
    let metas = [
        ("seed", seed),
        ("datastore", datastore),
        ("proxy", proxy),
        ("fileserver", fileserver),
        ("live", live),
    ];
    for (kind, address) in metas {
        if !address.ip().is_loopback() && !exposed {
            let advice = "use a loopback address, or meta.exposed = true";
            problems.add(
                &format!("meta.{kind}"),
                format_args!("{address} could be reached from outside: {advice}"),
            );
        }
    }
    // Those of one node: others may run on other machines.
    let nodes = [
        ("proxy", &raw.proxy.http, &raw.proxy.https, proxy),
        ("fileserver", &raw.fileserver.http, &raw.fileserver.https, fileserver),
    ];
    for (kind, http, https, meta) in nodes {
        let mut taken: Vec<(SocketAddr, String)> = vec![(meta, format!("meta.{kind}"))];
        for (list, addresses) in [("http", http), ("https", https)] {
            let list = format!("{kind}.{list}");
            let others = taken.clone();
            for (n, address) in addresses.iter().enumerate().filter(|(_, address)| address.port() != 0) {
                if let Some((_, other)) = others.iter().find(|(other, _)| other == address) {
                    let reason = format_args!("{address} is the address of {other}, too: each needs its own");
                    problems.add(&format!("{list}.{n}"), reason);
                }
                taken.push((*address, list.clone()));
            }
        }
    }
}

fn account(
    user: Option<&str>,
    group: Option<&str>,
    problems: &Problems,
) -> Result<Option<Account>, ConfigError> {
    match (user, group) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(problems.aside("group", "is only for a `user`, which is not given")),
        (Some(user), group) => match Account::find(user, group) {
            Ok(account) => Ok(Some(account)),
            Err(error @ AccountError::NoGroup(_)) => Err(problems.aside("group", error)),
            Err(error) => Err(problems.aside("user", error)),
        },
    }
}

/// The settings that flags of every command make; later ones count.
fn flags(common: &Common) -> Vec<Setting> {
    let mut flags = common.set.clone();
    let texts = [
        ("data", common.data.as_ref().map(|data| data.display().to_string())),
        ("log.level", common.log_level.clone()),
    ];
    let texts =
        texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), toml::Value::String(text?))));
    flags.extend(texts);
    if !common.seed.is_empty() {
        let seeds = common.seed.iter().cloned().map(toml::Value::String).collect();
        flags.push(("seed_address".to_owned(), toml::Value::Array(seeds)));
    }
    flags
}

/// Whether a variable of this name sets something.
pub(crate) fn has_key(variable: &str) -> bool {
    let set = std::iter::once((variable.to_owned(), "0".to_owned()));
    let read: Result<(Raw, Problems), _> = config::load(&[], None, set, &[]);
    let mistakes = read.and_then(|(_, problems)| problems.finish()).err();
    let mistakes = mistakes.iter().flat_map(|error| error.mistakes());
    !mistakes.into_iter().any(|mistake| mistake.contains("unknown key"))
}

/// "proxy.children=4" → a dotted key and its value.
pub(crate) fn setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in --set proxy.children=4")?;
    let part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if key.split('.').all(part) {
        Ok((key.to_owned(), value_of(value)))
    } else {
        Err(format!("{key:?} is no key; write KEY=VALUE, as in --set proxy.children=4"))
    }
}

/// What reads as TOML is that, anything else is text.
fn value_of(text: &str) -> toml::Value {
    let document = format!("value = {text}").parse::<toml::Table>();
    document
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}
