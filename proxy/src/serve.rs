//! What a proxy's parent runs, and what each of its children does from its start to the end of its drain.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use protoplex_http::tls::{self, TlsConfig, TlsError};
use protoplex_http::upstream::Pool;
use protoplex_http::{AccessLog, Listener};
use protoplex_runtime::config::{Common, ConfigError, Problems};
use protoplex_runtime::context::Context;
use protoplex_runtime::parent::Spec;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, IdentityError};
use thiserror::Error;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::Config;
use crate::meters;
use crate::relay::Relay;

const KIND: &str = "proxy";
/// Names of the sockets.
const HTTP: &str = "http";
const HTTPS: &str = "https";

/// How long a child that starts accepts nothing for want of a routing table; then it says that it has none.
const FIRST_TABLE_WAIT: Duration = Duration::from_secs(2);

/// Why a child can't serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Ours: the parent and the child don't understand each other.
    #[error("what the parent said can't be understood: {0}")]
    Told(#[from] serde_json::Error),
    /// Ours: the parent should have refused it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operator's: there is no identity in the data directory, or it is unreadable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The operator's: the certificate was changed since the parent read it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operator's: the seed's address is none.
    #[error("the seed's address can't be used: {0}")]
    Seed(String),
    /// The system's: the access log or a socket can't be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The node, for the runtime. Makes the local certificate where one is needed and missing; blocking.
///
/// # Errors
/// The local certificate can't be read or made.
pub fn spec(config: &Config, common: &Common) -> Result<Spec, TlsError> {
    if !config.https.is_empty() {
        config.certificate(&common.data)?;
    }
    let http = config.http.iter().map(|&address| (HTTP.to_owned(), address));
    let https = config.https.iter().map(|&address| (HTTPS.to_owned(), address));
    Ok(Spec {
        kind: KIND,
        common: common.clone(),
        children: config.children,
        shared: http.chain(https).collect(),
        own: Vec::new(),
        child_config: serde_json::json!(config),
    })
}

/// What a child does: follows the seed, and relays until its drain has ended. Ready as soon as it has a routing table.
///
/// # Errors
/// It can't begin to serve; see [`ServeError`].
pub async fn child(context: Context) -> Result<(), ServeError> {
    meters::describe();
    let config: Config = context.config()?;
    let mut problems = Problems::default();
    let limits = config.limits.resolve("proxy.limits", &mut problems);
    let upstream = config.upstream.resolve("proxy.upstream", &mut problems);
    problems.finish()?;
    let log = AccessLog::open(&config.access_log, config.access_log_format)?;
    let listeners = listeners(&context, &config)?;

    let common = context.common();
    let identity = Identity::open(&common.data.join("cluster"))?;
    let follower = Follower {
        node: context.node().to_owned(),
        child: context.index(),
        kind: KIND.to_owned(),
        zone: common.zone.clone(),
        member: None,
    };
    let link =
        Link::open(&identity, &common.seed, follower).map_err(|error| ServeError::Seed(error.to_string()))?;
    let relay = Rc::new(Relay::new(link.clone(), Pool::new(upstream), config.tunnel_idle_timeout));

    // Requests that wait at the sockets of a child that died should wait for its successor's table, not be refused.
    if let Ok(table) = timeout(FIRST_TABLE_WAIT, link.table_changed(0)).await {
        relay.adopt(&table);
    }
    let serving = protoplex_http::serve(listeners, limits, log, context.drain(), Rc::clone(&relay));
    // Both arms are polled in place until serving ends, so neither is ever cancelled half-way.
    tokio::select! {
        served = serving => Ok(served?),
        () = follow(&context, &link, &relay) => Ok(()),
    }
}

/// Adopts each routing table as it comes. Never ends: with the seed away the last table stays in force.
async fn follow(context: &Context, link: &Link, relay: &Relay) {
    let mut version = 0;
    loop {
        let table = link.table_changed(version).await;
        version = table.version;
        for unusable in relay.adopt(&table) {
            warn!(table = version, "{unusable}");
        }
        info!(version, handlers = table.handlers.len(), pools = table.pools.len(), "new routing table");
        context.detail("table_version", version);
        context.ready(true);
    }
}

fn listeners(context: &Context, config: &Config) -> Result<Vec<Listener>, TlsError> {
    let plain = context.listeners(HTTP);
    let encrypted = context.listeners(HTTPS);
    let tls: Option<TlsConfig> = match encrypted.is_empty() {
        true => None,
        false => {
            let (certificate, key) = config.certificate(&context.common().data)?;
            Some(tls::load(&certificate, &key)?)
        }
    };
    let plain = plain.into_iter().map(|socket| Listener { socket, tls: None });
    let encrypted = encrypted.into_iter().map(|socket| Listener { socket, tls: tls.clone() });
    Ok(plain.chain(encrypted).collect())
}
