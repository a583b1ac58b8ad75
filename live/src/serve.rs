//! The processes of a live node: what its parent binds, what each child runs.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use protoplex_http::public::{self, ServeError};
use protoplex_http::{AccessLog, Fronts, Limits, Listener, Surroundings, Tuning, serve};
use protoplex_runtime::config::{Common, Problems};
use protoplex_runtime::context::Context;
use protoplex_runtime::drain::{Drain, Tasks};
use protoplex_runtime::parent::Spec;
use protoplex_wire::follow::{Follower, Judge, Link, Membership};
use protoplex_wire::holder::Lost;
use protoplex_wire::identity::{Identity, IdentityError, Kind, LIVE_POOL};
use protoplex_wire::proto::Member;
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::config::Config;
use crate::request::Live;
use crate::tenure::End;

/// The name of a child's own port.
const PORT: &str = "live";
/// What a child goes by as soon as it is told.
const ADOPTED: [&str; 2] = ["children", "http"];
/// How often histories are aged and idle keys given back.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Why a child can't run. Ours, or the operator's.
#[derive(Debug, Error)]
pub enum LiveError {
    /// What the parent gave can't be read, or lacks a socket.
    #[error("the parent gave no usable {0}")]
    Parent(&'static str),
    /// The data directory has no cluster identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The seed's address is none.
    #[error("{seed:?} is no address of a seed: {source}")]
    Seed {
        /// As configured.
        seed: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// The port can't be served.
    #[error("the live port: {0}")]
    Io(#[from] io::Error),
}

/// What the parent of a live node needs.
pub fn spec(config: &Config, common: &Common) -> Spec {
    Spec {
        kind: "live",
        common: common.clone(),
        children: config.children,
        shared: Vec::new(),
        own: vec![(PORT.to_owned(), config.address)],
        connections: config.http.max_connections as u64,
        child_config: serde_json::to_value(config).expect("plain data has a JSON form"),
        adopted: &ADOPTED,
    }
}

/// Runs one child until it has drained.
pub async fn child(context: Context) -> Result<(), LiveError> {
    // First, so that no change is missed.
    let reconfigured = context.reconfigured();
    let config: Config = context.config().map_err(|_| LiveError::Parent("configuration"))?;
    let socket = context.listeners(PORT).pop().ok_or(LiveError::Parent("socket"))?;
    let common = context.common();
    let identity = Identity::of_node(&common.data.join("cluster"), Kind::Live, context.node())?;
    let member = Member {
        id: format!("{}:{}", context.node(), context.index()),
        pool: LIVE_POOL.to_owned(),
        address: socket.local_addr()?.to_string(),
        zone: common.zone.clone(),
        instance: context.instance().to_owned(),
    };
    info!(member = member.id, address = member.address, "serving");
    // Its link comes first.
    let judged = Rc::default();
    let who = Follower {
        node: context.node().to_owned(),
        kind: context.kind().to_owned(),
        zone: common.zone.clone(),
        membership: Some(Membership { judge: Some(judge(&judged)), ..member.into() }),
    };
    let link = Link::open(&identity, common.seeds(), who)
        .map_err(|source| LiveError::Seed { seed: common.seeds().to_string(), source })?;
    let lost_keys = link.lost_keys().ok_or(LiveError::Parent("link"))?;

    // Checked by the parent.
    let limits = config.http.resolve("live.http", &mut Problems::default());
    let live = Rc::new(Live::new(config, link.clone(), &identity));
    judged.replace(Rc::downgrade(&live));
    let tasks = Tasks::default();
    let parting = parting_time(&limits, common.timing.drain_timeout());
    let tenures = keep_tenures(Rc::clone(&live), lost_keys, context.drain(), parting);
    let leaving = context.clone();
    // Whoever comes for a key that is still here is served until the last one is given up.
    let (given_up, server_drain) = Drain::new();
    tasks.spawn(async move {
        tenures.await;
        leaving.left();
        given_up.pull();
    });
    tasks.spawn(tell_ready(context.clone(), link));
    let listeners = vec![Listener { socket, tls: None, fronts: Fronts::default() }];
    let tuning = Tuning::from(limits);
    let surroundings = Surroundings::from(&context)
        .with_drain(server_drain)
        .with_drain_timeout(common.timing.drain_timeout().saturating_sub(parting));
    // Both arms are polled in place until serving ends.
    tokio::select! {
        served = serve(listeners, tuning.clone(), AccessLog::off(), surroundings, live) => served?,
        () = public::adopt(reconfigured, |config| adopt(&tuning, config)) => {}
    }
    tasks.finished().await;
    Ok(())
}

/// Goes by another configuration from here on.
fn adopt(tuning: &Tuning, config: Config) -> Result<(), ServeError> {
    let mut problems = Problems::default();
    let limits = config.http.resolve("live.http", &mut problems);
    problems.finish()?;
    tuning.change(limits, None, Fronts::default());
    Ok(())
}

/// Ready once the seed knows this child. That the seed goes away later changes nothing for those who are served.
async fn tell_ready(context: Context, link: Link) {
    let mut connection = link.connection();
    let drain = context.drain();
    // Every arm is cancel-safe.
    tokio::select! {
        known = connection.wait_for(|connected| *connected) => context.ready(known.is_ok()),
        () = drain.started() => {}
    }
}

/// Over how long the keys are given up in a drain: as event streams are ended elsewhere, and never more than half of the
/// drain.
fn parting_time(limits: &Limits, whole: Duration) -> Duration {
    (limits.event_stream_drain_timeout * 3 / 4).min(whole / 2)
}

/// Gives up what the seed asks for: what moves in any case, what nobody asks for unless it is held here.
pub(crate) fn judge(judged: &Rc<RefCell<Weak<Live>>>) -> Judge {
    let judged = Rc::clone(judged);
    Rc::new(move |wanted| {
        let Some(live) = judged.borrow().upgrade() else { return false };
        if wanted.idle {
            return !live.tenures.holds(wanted.key, wanted.epoch);
        }
        live.tenures.end_one(wanted.key, End::Moved, |tenure| tenure.epoch == wanted.epoch);
        true
    })
}

/// Ends the tenures of lost keys, gives idle ones back, and those that the seed asks for. When the drain starts it gives
/// up all of them over this time, and leaves: first nothing is owned any more, then the seed is told.
pub(crate) async fn keep_tenures(
    live: Rc<Live>,
    mut lost_keys: UnboundedReceiver<Lost>,
    drain: Drain,
    parting: Duration,
) {
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Every arm is cancel-safe.
        tokio::select! {
            Some(lost) = lost_keys.recv() => end_lost(&live, lost),
            now = sweep.tick() => {
                let idle = live.tenures.sweep(now);
                live.link.release(idle.iter().map(|(key, epoch)| (&**key, *epoch)));
            }
            () = drain.started() => break,
        }
    }
    let end = |key: &str, epoch| live.tenures.end_one(key, End::Draining, |tenure| tenure.epoch == epoch);
    let mut parting = std::pin::pin!(live.link.part_with_all(parting, end));
    loop {
        // Both arms are cancel-safe: the first is polled in place until it ends.
        tokio::select! {
            () = &mut parting => break,
            Some(lost) = lost_keys.recv() => end_lost(&live, lost),
        }
    }
    live.tenures.end(End::Draining, |_| true);
    live.link.leave().await;
}

fn end_lost(live: &Live, lost: Lost) {
    match lost {
        Lost::Key { key, epoch } => {
            live.tenures.end_one(&key, End::Revoked, |tenure| tenure.epoch <= epoch);
        }
        Lost::All { epoch } => {
            warn!("the lease is lost: all channels end here");
            live.tenures.end(End::Revoked, |tenure| tenure.epoch <= epoch);
        }
    }
}

#[cfg(test)]
mod tests;
