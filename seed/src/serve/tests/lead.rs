//! Who keeps the lead, and who must not: a seed with much in hand, one whose datastore is slow, one that does nothing more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::identity::Kind;
use protoplex_wire::proto::PeekLeaseRequest;
use protoplex_wire::seeds::Seeds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::rig::{Rig, until};
use crate::cluster::{Cluster, Handle, Myself};
use crate::datastores::Datastores;
use crate::events;
use crate::leader::{Candidate, STUCK};
use crate::ownership::{Limits, Ownership, Timing};
use crate::role::Role;

/// Longer than the row lasts.
const BUSY: Duration = Duration::from_secs(4);

/// A seed without its port.
struct Contender {
    cluster: Handle,
    role: watch::Receiver<Role>,
    datastores: Arc<Datastores>,
    _lead: JoinHandle<()>,
    _ending: watch::Sender<bool>,
}

impl Contender {
    fn start(rig: &Rig, datastore: SocketAddr, stuck: Duration) -> Self {
        let identity = rig.identity.issue(Kind::Seed, "seed-1").unwrap();
        let addresses = vec![datastore.to_string()];
        let core = Ownership::new(Timing::default(), Limits::default());
        let myself = Myself { node: "seed-1".to_owned(), address: rig.seed.to_string() };
        let (errands, _) = mpsc::channel(1);
        let (announcements, _) = events::announcements();
        let cluster =
            Cluster::new(core, Timing::default(), myself, addresses.clone(), errands, announcements);
        let (role, leading, renewals) = (cluster.role(), cluster.leading(), cluster.renewals());
        let (cluster, task) = cluster.task();
        tokio::spawn(task);
        let (ending, datastores) =
            (watch::Sender::new(false), Arc::new(Datastores::new(&identity, &addresses).unwrap()));
        let candidate = Candidate {
            holder: "seed-1".to_owned(),
            datastores: Arc::clone(&datastores),
            cluster: cluster.clone(),
            leading,
            renewals,
            seeds: Seeds::new(Vec::new(), rig.data.path()),
            nudge: Arc::new(Notify::new()),
            ending: ending.subscribe(),
            stuck,
        };
        Self { cluster, role, datastores, _lead: tokio::spawn(candidate.lead()), _ending: ending }
    }

    async fn leads(&mut self) -> Role {
        self.role.wait_for(|role| matches!(role, Role::Leading(_))).await.unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_is_busy_for_longer_than_its_row_lasts_leads_on() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let mut seed = Contender::start(&rig, rig.datastore, STUCK);
    let first = seed.leads().await;
    for _ in 0..2 {
        seed.cluster.ask(|_, _| std::thread::sleep(BUSY)).await.unwrap();
    }
    seed.cluster.ask(|_, _| ()).await.unwrap();
    assert_eq!(*seed.role.borrow_and_update(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_does_nothing_more_gives_its_row_up() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let mut seed = Contender::start(&rig, rig.datastore, Duration::from_millis(500));
    seed.leads().await;
    let (goes_on, stuck) = std::sync::mpsc::channel::<()>();
    seed.cluster.tell(move |_, _| stuck.recv().unwrap_or_default()).await;
    let mut datastore = rig.datastore();
    until("the row is free", async || {
        let row = PeekLeaseRequest { name: SEED_LEASE.to_owned() };
        (!datastore.peek_lease(row).await.unwrap().into_inner().held).then_some(())
    })
    .await;
    drop(goes_on);
    // It has lost its lead by then, and takes it anew.
    seed.cluster.ask(|_, _| ()).await.unwrap();
    seed.leads().await;
}

/// Passes on what comes, so much later.
async fn delay(from: TcpListener, to: SocketAddr, by: Duration) {
    let mut relays = JoinSet::new();
    while let Ok((near, _)) = from.accept().await {
        let (near_in, near_out) = near.into_split();
        let (far_in, far_out) = TcpStream::connect(to).await.unwrap().into_split();
        for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
            let (later, mut due) = mpsc::unbounded_channel();
            relays.spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(read @ 1..) = from.read(&mut buffer).await {
                    let _ = later.send((Instant::now() + by, buffer[..read].to_vec()));
                }
            });
            relays.spawn(async move {
                while let Some((at, bytes)) = due.recv().await {
                    sleep_until(at).await;
                    let _ = to.write_all(&bytes).await;
                }
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datastore_too_slow_for_the_lead_is_told_and_nobody_claims_to_lead() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = slow.local_addr().unwrap();
    // There and back it takes longer than a first lead lasts, and not too long for an answer.
    tokio::spawn(delay(slow, rig.datastore, Duration::from_millis(600)));
    let mut seed = Contender::start(&rig, address, STUCK);
    let too_slow = || seed.datastores.not_leading().contains("its datastore takes longer");
    until("it says why", async || too_slow().then_some(())).await;
    // In another turn or two neither.
    let leads = timeout(BUSY, seed.role.wait_for(|role| matches!(role, Role::Leading(_)))).await;
    assert!(leads.is_err());
}
