//! The bus: whoever publishes an event is answered when it is kept, whoever subscribes to its type gets it.
//!
//! The [`service`] checks what comes. A [`carrier`] keeps events and shares them out: [`kept`] has the datastore keep
//! them and does the rest itself, as the seed that leads; [`nats`] has JetStream do it. What is to be published later,
//! the datastore's own news among it, waits in the datastore and goes the same way when its time has come ([`pusher`]).

pub mod config;

mod announcer;
mod carrier;
mod kept;
mod nats;
mod pusher;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use protoplex_wire::cloud_event::CloudEvent;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cluster::Handle;
use crate::datastores::Datastores;
use crate::role::Role;
use carrier::{AnyCarrier, Reign};
use kept::Kept;
use nats::Nats;

pub(crate) use announcer::Announcements;
pub use nats::NatsError;
pub(crate) use service::EventBus;

/// The way to tell of the cluster, for whom nothing may stop, and what is told.
pub(crate) fn announcements() -> (Announcements, mpsc::Receiver<CloudEvent>) {
    let (tell, told) = mpsc::channel(announcer::MAX_ANNOUNCEMENTS);
    (Announcements(tell), told)
}

impl EventBus {
    /// The bus, by the carrier that is configured, and all its tasks.
    pub(crate) async fn start(
        config: &config::Config,
        datastores: Arc<Datastores>,
        cluster: Handle,
        role: watch::Receiver<Role>,
        announced: mpsc::Receiver<CloudEvent>,
        ending: watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, NatsError> {
        let leads = reign(role.clone(), tasks);
        let carrier = if config.0.nats.is_some() {
            AnyCarrier::Nats(Nats::connect(config, Arc::clone(&datastores)).await?)
        } else {
            let (kept, run) = Kept::new(Arc::clone(&datastores), cluster, leads.clone(), config);
            tasks.spawn(run);
            AnyCarrier::Kept(kept)
        };
        tasks.spawn(pusher::push(Arc::clone(&datastores), carrier.clone(), leads));
        tasks.spawn(announcer::announce(Arc::clone(&datastores), announced));
        Ok(Self::new(carrier, datastores, role, ending))
    }
}

/// The term in which this seed leads, while it does.
fn reign(mut role: watch::Receiver<Role>, tasks: &mut JoinSet<()>) -> Reign {
    let (tell, reign) = watch::channel(None);
    tasks.spawn(async move {
        loop {
            let term = match *role.borrow_and_update() {
                Role::Leading(term) => Some(term),
                Role::Waiting | Role::Understudy { .. } => None,
            };
            tell.send_if_modified(|known| std::mem::replace(known, term) != term);
            if role.changed().await.is_err() {
                return;
            }
        }
    });
    reign
}
