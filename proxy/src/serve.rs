//! What a proxy's parent runs, and what each of its children does from its start to the end of its drain.

use std::rc::Rc;
use std::time::Duration;

use protoplex_http::public::{self, ServeError};
use protoplex_http::tls::TlsError;
use protoplex_http::upstream::Pool;
use protoplex_http::{AccessLog, Tuning};
use protoplex_runtime::config::{Common, Problems};
use protoplex_runtime::context::Context;
use protoplex_runtime::parent::Spec;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, Kind};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::Config;
use crate::hot_keys;
use crate::meters;
use crate::relay::Relay;

const KIND: &str = "proxy";
/// What a child goes by as soon as it is told: where it listens is its parent's business.
const ADOPTED: [&str; 9] = [
    "http",
    "https",
    "children",
    "certificate",
    "proxy_protocol",
    "trusted_proxies",
    "tunnel_idle_timeout",
    "limits",
    "upstream",
];

/// How long a child that starts accepts nothing for want of a routing table; then it says that it has none.
const FIRST_TABLE_WAIT: Duration = Duration::from_secs(2);

/// The node, for the runtime. Makes the local certificate where one is needed and missing; blocking.
///
/// # Errors
/// The local certificate can't be read or made.
pub fn spec(config: &Config, common: &Common) -> Result<Spec, TlsError> {
    let shared = public::sockets(&config.http, &config.https, &config.certificate, &common.data)?;
    Ok(Spec {
        kind: KIND,
        common: common.clone(),
        children: config.children,
        shared,
        own: Vec::new(),
        connections: config.limits.max_connections as u64,
        child_config: serde_json::json!(config),
        adopted: &ADOPTED,
    })
}

/// What a child does: follows the seed, and relays until its drain has ended. Ready as soon as it has a routing table.
///
/// # Errors
/// It can't begin to serve; see [`ServeError`].
pub async fn child(context: Context) -> Result<(), ServeError> {
    meters::describe();
    // First, so that no change is missed.
    let reconfigured = context.reconfigured();
    let config: Config = context.config()?;
    let mut problems = Problems::default();
    let limits = config.limits.resolve("proxy.limits", &mut problems);
    let upstream = config.upstream.resolve("proxy.upstream", &mut problems);
    let fronts = config.fronts(&mut problems);
    problems.finish()?;
    let rotation = context.common().telemetry.rotation();
    let log = AccessLog::open(&config.access_log, config.access_log_format, rotation)?;
    let common = context.common();
    let tuning = Tuning::new(limits, public::tls(&config.https, &config.certificate, &common.data)?, fronts);
    let identity = Identity::of_node(&common.data.join("cluster"), Kind::Proxy, context.node())?;
    let follower = Follower {
        node: context.node().to_owned(),
        kind: KIND.to_owned(),
        zone: common.zone.clone(),
        membership: None,
    };
    let link = Link::open(&identity, common.seeds(), follower)
        .map_err(|error| ServeError::Seed(error.to_string()))?;
    let pool = Pool::new(upstream);
    let relay = Rc::new(Relay::new(link.clone(), Rc::clone(&pool), config.tunnel_idle_timeout));

    // Requests that wait at the sockets of a child that died should wait for its successor's table, not be refused.
    if let Ok(table) = timeout(FIRST_TABLE_WAIT, link.table_changed(0)).await {
        relay.adopt(&table);
    }
    let (ports, tuned) = (public::ports(&context), tuning.clone());
    let serving = protoplex_http::serve(ports, tuned, log, &context, Rc::clone(&relay));
    // All arms are polled in place until serving ends, so none is ever cancelled half-way.
    tokio::select! {
        served = serving => Ok(served?),
        () = follow(&context, &link, &relay) => Ok(()),
        () = report_hot_keys(&link, &relay) => Ok(()),
        () = public::adopt(reconfigured, |config| adopt(&context, &tuning, &pool, &relay, config)) => Ok(()),
    }
}

/// Goes by another configuration from here on.
fn adopt(
    context: &Context,
    tuning: &Tuning,
    pool: &Pool,
    relay: &Relay,
    config: Config,
) -> Result<(), ServeError> {
    let mut problems = Problems::default();
    let limits = config.limits.resolve("proxy.limits", &mut problems);
    let upstream = config.upstream.resolve("proxy.upstream", &mut problems);
    let fronts = config.fronts(&mut problems);
    problems.finish()?;
    // The parent has just read it, so that it is in memory.
    let tls = public::tls(&config.https, &config.certificate, &context.common().data)?;
    tuning.change(limits, tls, fronts);
    pool.change(upstream);
    relay.change(config.tunnel_idle_timeout);
    Ok(())
}

/// Tells the seed which keys are hot, and once that none is any more. Never ends.
async fn report_hot_keys(link: &Link, relay: &Relay) {
    let mut told = false;
    loop {
        sleep(hot_keys::PERIOD).await;
        let hot = relay.hot_keys();
        let news = !hot.keys.is_empty();
        if news || told {
            link.report_hot_keys(hot);
        }
        told = news;
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
