//! A seed that was stopped for longer than its row lasts, and goes on where it was: nothing renews its row any more.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{Identity, Kind, LOCAL_OPERATOR, Peer};
use protoplex_wire::join_token::JoinToken;
use protoplex_wire::proto::enrolment_server::Enrolment;
use protoplex_wire::proto::events_server::Events;
use protoplex_wire::proto::operator_server::Operator;
use protoplex_wire::proto::{
    CreateJoinTokenRequest, EnrolRequest, ListJoinTokensRequest, ListRevocationsRequest, LoadRoutesReply,
    LoadRoutesRequest, PublishRequest, Revocation, RevokeJoinTokenRequest, TakeLeaseRequest,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};

use super::rig::{Rig, adding, handler, until};
use crate::cluster::{Cluster, Handle, Myself};
use crate::datastores::Datastores;
use crate::enrolment::Registrar;
use crate::events::{self, EventBus};
use crate::operator::Console;
use crate::ownership::{Limits, Ownership, Timing};
use crate::role::Role;

/// The services of a seed that leads, by its own word, for the next minute.
struct Paused {
    _cluster: Handle,
    role: watch::Receiver<Role>,
    console: Console,
    registrar: Registrar,
    bus: EventBus,
    _tasks: JoinSet<()>,
    _ending: watch::Sender<bool>,
}

impl Paused {
    async fn start(rig: &Rig, term: u64) -> Self {
        let mut tasks = JoinSet::new();
        let identity = &rig.identity.issue(Kind::Seed, "seed-1").unwrap();
        let addresses = vec![rig.datastore.to_string()];
        let datastores = Arc::new(Datastores::new(identity, &addresses).unwrap());
        let core = Ownership::new(Timing::default(), Limits::default());
        let myself = Myself { node: "seed-1".to_owned(), address: rig.seed.to_string() };
        let (announcements, to_announce) = events::announcements();
        let (errands, _) = tokio::sync::mpsc::channel(1);
        let cluster =
            Cluster::new(core, Timing::default(), myself, addresses.clone(), errands, announcements);
        let mut role = cluster.role();
        let (cluster, task) = cluster.task();
        tasks.spawn(async move { drop(task.await) });
        let until = BootTime::now() + Duration::from_secs(60);
        assert_eq!(
            cluster.ask(move |cluster, now| cluster.lead(term, until, LoadRoutesReply::default(), now)).await,
            Some(true)
        );
        role.wait_for(|role| *role == Role::Leading(term)).await.unwrap();

        let (gate, ending) = (Gate::new(identity).unwrap(), watch::Sender::new(false));
        let registrar =
            Registrar::new(identity, "seed-1", cluster.clone(), Arc::clone(&datastores), role.clone(), gate);
        let console = Console::new(cluster.clone(), Arc::clone(&datastores), role.clone(), registrar.clone());
        let config = events::config::Config::default();
        let bus = EventBus::start(
            &config,
            datastores,
            cluster.clone(),
            role.clone(),
            to_announce,
            ending.subscribe(),
            &mut tasks,
        );
        let bus = bus.await.unwrap();
        Self { _cluster: cluster, role, console, registrar, bus, _tasks: tasks, _ending: ending }
    }
}

/// As an operator on the machine with the authority's key sends it.
fn of_operator<T>(message: T, identity: &Identity) -> Request<T> {
    let mut request = Request::new(message);
    let (cluster, node) = (identity.cluster(), LOCAL_OPERATOR.to_owned());
    request.extensions_mut().insert(Peer { cluster, kind: Kind::Operator, node, pools: Vec::new() });
    request
}

/// What it is asked to change.
#[derive(Clone, Copy, Debug)]
enum Change {
    Handler,
    Revoke,
    Readmit,
    MakeToken,
    RevokeToken,
    LetIn,
    KeepEvent,
}

impl Paused {
    async fn make(&self, change: Change, token: &JoinToken, identity: &Identity) -> Result<(), Status> {
        let revocation = |name: &str, revoked| {
            let wanted = Revocation { name: name.to_owned(), revoked, ..Revocation::default() };
            of_operator(wanted, identity)
        };
        let console = &self.console;
        match change {
            Change::Handler => {
                let wanted = of_operator(adding(handler("a", "/a/{room}")), identity);
                console.change_handlers(wanted).await.map(drop)
            }
            Change::Revoke => console.change_revocation(revocation("proxy-2", true)).await.map(drop),
            Change::Readmit => console.change_revocation(revocation("proxy-1", false)).await.map(drop),
            Change::MakeToken => {
                let wanted =
                    CreateJoinTokenRequest { kind: "proxy".to_owned(), life_s: 60, ..Default::default() };
                console.create_join_token(of_operator(wanted, identity)).await.map(drop)
            }
            Change::RevokeToken => {
                let wanted = RevokeJoinTokenRequest { id: token.id().to_owned(), term: 0 };
                console.revoke_join_token(of_operator(wanted, identity)).await.map(drop)
            }
            Change::LetIn => {
                let public_key = identity.issue(Kind::Proxy, "proxy-3").unwrap().certificate().public_key;
                let [kind, node] = ["proxy", "proxy-3"].map(ToOwned::to_owned);
                let wanted = EnrolRequest { token: token.presented(), kind, node, public_key };
                self.registrar.enrol(Request::new(wanted)).await.map(drop)
            }
            Change::KeepEvent => {
                let events = vec![CloudEvent::new("/test", "a").to_json().unwrap()];
                self.bus.publish(Request::new(PublishRequest { events, delay_ms: 0 })).await.map(drop)
            }
        }
    }
}

#[tokio::test]
async fn what_it_wants_changed_stays_as_it_is_and_ends_its_lead() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let mut datastore = rig.datastore();
    let take = || TakeLeaseRequest {
        name: SEED_LEASE.to_owned(),
        holder: "seed-2".to_owned(),
        ttl_ms: 60_000,
        term: 0,
    };
    let term = datastore.take_lease(take()).await.unwrap().into_inner().term;
    let seed = Paused::start(&rig, term).await;
    let wanted = CreateJoinTokenRequest { kind: "proxy".to_owned(), life_s: 60, ..Default::default() };
    let made = seed.console.create_join_token(of_operator(wanted, &rig.identity)).await.unwrap();
    let token = made.into_inner().token.parse::<JoinToken>().unwrap();
    let newer = datastore.take_lease(take()).await.unwrap().into_inner().term;
    let revoked = Revocation { name: "proxy-1".to_owned(), revoked: true, term: newer, ..Default::default() };
    datastore.change_revocation(revoked).await.unwrap();
    let state = async || {
        let mut datastore = rig.datastore();
        (
            datastore.load_routes(LoadRoutesRequest {}).await.unwrap().into_inner(),
            datastore.list_join_tokens(ListJoinTokensRequest {}).await.unwrap().into_inner(),
            datastore.list_revocations(ListRevocationsRequest {}).await.unwrap().into_inner(),
        )
    };
    let before = state().await;

    for change in [
        Change::Handler,
        Change::Revoke,
        Change::Readmit,
        Change::MakeToken,
        Change::RevokeToken,
        Change::LetIn,
        Change::KeepEvent,
    ] {
        let seed = Paused::start(&rig, term).await;
        let refused = seed.make(change, &token, &rig.identity).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{change:?}: {refused:?}");
        until("it leads no more", async || (*seed.role.borrow() == Role::Waiting).then_some(())).await;
        assert_eq!(state().await, before, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_datastore_that_is_silent_keeps_no_change_for_longer_than_a_command_waits() {
    let rig = Rig::new();
    // Connections are made, and nobody takes them.
    let _silent = std::net::TcpListener::bind(rig.datastore).unwrap();
    let seed = Paused::start(&rig, 1).await;
    let began = tokio::time::Instant::now();
    let wanted = of_operator(adding(handler("a", "/a/{room}")), &rig.identity);
    let refused = seed.console.change_handlers(wanted).await.unwrap_err();
    assert!(refused.message().contains("perhaps stored"), "{refused:?}");
    // By the clock of the test, which passes only where all wait.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
