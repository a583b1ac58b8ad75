//! A seed whose task has much in hand, as the report of a million keys is, keeps its lead.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::identity::Kind;
use protoplex_wire::seeds::Seeds;
use tokio::sync::{Notify, mpsc, watch};

use super::rig::Rig;
use crate::cluster::{Cluster, Myself};
use crate::datastores::Datastores;
use crate::events;
use crate::leader::Candidate;
use crate::ownership::{Limits, Ownership, Timing};
use crate::role::Role;

/// Longer than the row lasts.
const BUSY: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_is_busy_for_longer_than_its_row_lasts_leads_on() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let identity = rig.identity.issue(Kind::Seed, "seed-1").unwrap();
    let addresses = vec![rig.datastore.to_string()];
    let core = Ownership::new(Timing::default(), Limits::default());
    let myself = Myself { node: "seed-1".to_owned(), address: rig.seed.to_string() };
    let (errands, _errands) = mpsc::channel(1);
    let (announcements, _announcements) = events::announcements();
    let cluster = Cluster::new(core, Timing::default(), myself, addresses.clone(), errands, announcements);
    let (mut role, leading, renewals) = (cluster.role(), cluster.leading(), cluster.renewals());
    let (cluster, task) = cluster.task();
    tokio::spawn(task);
    let ending = watch::Sender::new(false);
    let candidate = Candidate {
        holder: "seed-1".to_owned(),
        datastores: Arc::new(Datastores::new(&identity, &addresses).unwrap()),
        cluster: cluster.clone(),
        leading,
        renewals,
        seeds: Seeds::new(Vec::new(), rig.data.path()),
        nudge: Arc::new(Notify::new()),
        ending: ending.subscribe(),
    };
    let lead = tokio::spawn(candidate.lead());
    let first = role.wait_for(|role| matches!(role, Role::Leading(_))).await.unwrap().clone();
    for _ in 0..2 {
        cluster.ask(|_, _| std::thread::sleep(BUSY)).await.unwrap();
    }
    cluster.ask(|_, _| ()).await.unwrap();
    assert_eq!(*role.borrow_and_update(), first);
    lead.abort();
}
