//! What a proxy's parent runs, and what each of its children does from its start to the end of its drain.

use std::rc::Rc;
use std::time::Duration;

use protoplex_http::AccessLog;
use protoplex_http::public::{self, ServeError};
use protoplex_http::tls::TlsError;
use protoplex_http::upstream::Pool;
use protoplex_runtime::config::{Common, Problems};
use protoplex_runtime::context::Context;
use protoplex_runtime::parent::Spec;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::Identity;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::Config;
use crate::meters;
use crate::relay::Relay;

const KIND: &str = "proxy";

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
    let fronts = config.fronts(&mut problems);
    problems.finish()?;
    let log = AccessLog::open(&config.access_log, config.access_log_format)?;
    let listeners = public::listeners(&context, &config.certificate, &fronts)?;

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
    let serving = protoplex_http::serve(listeners, limits, log, &context, Rc::clone(&relay));
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
