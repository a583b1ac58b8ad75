//! Three seeds, of which one leads: how it is found, how another takes over, and what one that is overtaken may still do.

use std::net::SocketAddr;
use std::time::Duration;

use protoplex_wire::follow::{Link, SEED_LEASE};
use protoplex_wire::identity::LIVE_POOL;
use protoplex_wire::proto::understudy_client::UnderstudyClient;
use protoplex_wire::proto::{
    LeaderRequest, ListHandlersRequest, PeekLeaseRequest, ReleaseLeaseRequest, StatusRequest,
    TakeLeaseRequest,
};
use protoplex_wire::seeds::Redirect;
use tokio::task::LocalSet;
use tokio::time::Instant;
use tonic::Code;

use crate::role::Role;

use super::rig::{Process, Rig, adding, handler, leads, until};

struct Trio {
    rig: Rig,
    _datastore: Process,
    seeds: [Option<Process>; 3],
}

impl Trio {
    /// The first one leads, and the others have joined it.
    async fn start() -> Self {
        let rig = Rig::new();
        let datastore = rig.start_datastore().await;
        let first = rig.start_one_of(0).await;
        leads(&first).await;
        let seeds = [Some(first), Some(rig.start_one_of(1).await), Some(rig.start_one_of(2).await)];
        let trio = Self { rig, _datastore: datastore, seeds };
        until("the understudies have joined", async || {
            let status = trio.rig.status().await;
            (status.seeds.len() == 3 && status.seeds.iter().all(|seed| seed.ready)).then_some(())
        })
        .await;
        trio
    }

    fn process(&self, index: usize) -> &Process {
        self.seeds[index].as_ref().unwrap()
    }

    /// Which one leads now, in which term.
    async fn leader(&self) -> (usize, u64) {
        until("one of them leads", async || {
            let mut leading = self.seeds.iter().enumerate().filter_map(|(index, seed)| {
                match *seed.as_ref()?.role.borrow() {
                    Role::Leading(term) => Some((index, term)),
                    _ => None,
                }
            });
            let first = leading.next();
            assert_eq!(leading.next(), None, "one at a time");
            first
        })
        .await
    }

    fn follow(&self, node: &str, member: bool) -> Link {
        self.rig.follow_any(node, member, &self.rig.seeds())
    }
}

/// Member and epoch of each of these keys.
async fn locate(asker: &Link, keys: std::ops::Range<usize>) -> Vec<(String, u64)> {
    let mut owners = Vec::new();
    for key in keys {
        let owner =
            until("the key is owned", async || asker.locate(LIVE_POOL, &key.to_string()).await.ok()).await;
        owners.push((owner.member.to_string(), owner.epoch));
    }
    owners
}

async fn play<F: Future<Output = ()>>(test: F) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn one_leads_and_the_others_say_who_at_once() {
    play(async {
        let trio = Trio::start().await;
        let [first, second, third] = trio.rig.seeds();
        let expected = Redirect { address: first.to_string(), term: 1 };
        for understudy in [second, third] {
            let refused =
                trio.rig.operator_of(understudy).list_handlers(ListHandlersRequest {}).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable);
            assert_eq!(Redirect::of(&refused), Some(expected.clone()));
            let changed =
                trio.rig.operator_of(understudy).change_handlers(adding(handler("a", "/a/{room}"))).await;
            assert_eq!(Redirect::of(&changed.unwrap_err()), Some(expected.clone()));
            let status = trio.rig.operator_of(understudy).status(StatusRequest {}).await.unwrap();
            assert!(!status.get_ref().leading, "it tells of itself");
            let why = format!("the one at {first} does");
            assert!(status.get_ref().not_leading.contains(&why), "{:?}", status.get_ref().not_leading);
            let channel = trio.rig.identity.channel(&understudy.to_string()).unwrap();
            let told = UnderstudyClient::new(channel).leader(LeaderRequest {}).await.unwrap().into_inner();
            assert_eq!((told.leading, told.address, told.term), (false, first.to_string(), 1));
        }

        // Whoever knows one of them finds the one that leads, and all others by it.
        let began = Instant::now();
        let link = trio.rig.follow_any("proxy-1", false, &[third]);
        until("it follows", async || link.connected().then_some(())).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    })
    .await;
}

#[tokio::test]
async fn a_dead_leader_is_followed_by_another_and_no_key_moves() {
    play(async {
        let mut trio = Trio::start().await;
        // They know the first one alone, and the others by its word.
        let knows: [SocketAddr; 1] = [trio.rig.seed];
        let (one, two, asker) = (
            trio.rig.follow_any("live-1", true, &knows),
            trio.rig.follow_any("live-2", true, &knows),
            trio.rig.follow_any("proxy-1", false, &knows),
        );
        until("two members", async || (asker.table().pools.first()?.members.len() == 2).then_some(())).await;
        let before = locate(&asker, 0..20).await;
        trio.seeds[0].take().unwrap().kill();
        let began = Instant::now();
        let (leader, term) = trio.leader().await;
        assert!(leader > 0 && term == 2);
        let led = began.elapsed();
        locate(&asker, 20..21).await;
        let assigned = began.elapsed();
        println!("leader killed: another leads after {led:?}, assignments flow again after {assigned:?}");
        assert!(assigned < Duration::from_secs(6), "the lease of members and a second: {assigned:?}");
        let fresh = trio.rig.follow_any("proxy-2", false, &trio.rig.seeds());
        assert_eq!(locate(&fresh, 0..20).await, before, "the same owners at the same epochs");
        for link in [&one, &two] {
            assert!(link.lost_keys().unwrap().try_recv().is_err(), "nothing was lost");
        }
    })
    .await;
}

#[tokio::test]
async fn a_planned_hand_over_moves_no_key_and_takes_less_than_a_second() {
    play(async {
        let mut trio = Trio::start().await;
        let (one, asker) = (trio.follow("live-1", true), trio.follow("proxy-1", false));
        let before = locate(&asker, 0..20).await;
        let epochs = before.iter().map(|(_, epoch)| *epoch).max().unwrap();
        for (round, leaving) in [0, 1].into_iter().enumerate() {
            let (leader, _) = trio.leader().await;
            assert!(round > 0 || leader == leaving);
            let process = trio.seeds[leader].take().unwrap();
            let began = Instant::now();
            let stopping = tokio::task::spawn_local(process.stop());
            // Nobody is refused: the question waits for the next leader.
            let key = (100 + round).to_string();
            let mut assigned = asker.locate(LIVE_POOL, &key).await;
            // It may have been answered by the old leader, before it began to go.
            let mut more = 0;
            while assigned.as_ref().is_ok_and(|owner| owner.epoch >> 40 < round as u64 + 2) {
                more += 1;
                assigned = asker.locate(LIVE_POOL, &format!("{key}-{more}")).await;
            }
            let took = began.elapsed();
            let owner = assigned.unwrap_or_else(|error| panic!("no request may fail: {error}"));
            println!("hand-over {round}: first assignment of the new term after {took:?}");
            assert!(took < Duration::from_secs(1), "{took:?}");
            assert!(owner.epoch > epochs);
            stopping.await.unwrap();
        }
        let fresh = trio.follow("proxy-2", false);
        assert_eq!(locate(&fresh, 0..20).await, before, "the same owners at the same epochs");
        assert!(one.lost_keys().unwrap().try_recv().is_err(), "nothing was lost");
    })
    .await;
}

#[tokio::test]
async fn a_leader_whose_row_is_anothers_changes_nothing_and_learns_it() {
    play(async {
        let trio = Trio::start().await;
        let asker = trio.follow("proxy-1", false);
        until("it follows", async || asker.connected().then_some(())).await;
        // As if it had been stopped for longer than its row lasts: the datastore has granted a newer term meanwhile.
        let mut datastore = trio.rig.datastore();
        let name = SEED_LEASE.to_owned();
        let row = datastore.peek_lease(PeekLeaseRequest { name: name.clone() }).await.unwrap().into_inner();
        let release = ReleaseLeaseRequest { name: name.clone(), holder: row.holder, term: row.term };
        datastore.release_lease(release).await.unwrap();
        let holder = "seed-9/i@127.0.0.1:1".to_owned();
        let taken =
            datastore.take_lease(TakeLeaseRequest { name, holder, ttl_ms: 60_000, term: 0 }).await.unwrap();
        let newer = taken.into_inner();
        // One of the understudies may have been faster, which is as good.
        let change = trio.rig.operator().change_handlers(adding(handler("a", "/a/{room}"))).await;
        let refused = change.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let mut role = trio.process(0).role.clone();
        let is_understudy =
            |role: &Role| matches!(role, Role::Understudy { leader, .. } if leader.term >= newer.term);
        tokio::time::timeout(Duration::from_secs(5), role.wait_for(is_understudy)).await.unwrap().unwrap();
        until("its followers have left it", async || {
            (!asker.connected() || trio.process(0).role.borrow().is_ready()).then_some(())
        })
        .await;
        let loaded = datastore.load_routes(protoplex_wire::proto::LoadRoutesRequest {}).await.unwrap();
        assert!(loaded.get_ref().handlers.is_empty(), "nothing was changed");
        let status = until("the other seeds have left it, or found it again", async || {
            let status = trio.rig.status().await;
            (status.leading || status.seeds.len() == 1).then_some(status)
        })
        .await;
        assert!(status.leading || status.lost.is_empty(), "they have gone as it leads no more: {status:?}");
    })
    .await;
}
