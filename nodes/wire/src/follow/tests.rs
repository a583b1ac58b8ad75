//! The link against a server on loopback, over TLS and with the cluster's token: each test plays the seed.

use std::pin::Pin;
use std::time::Instant;

use prost::Message as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::gate::Gate;
use crate::identity::Kind;
use crate::proto::seed_server::{Seed, SeedServer};
use crate::proto::{
    Assigned, Directory, FollowHello, FollowReply, FollowWelcome, Invalidate, JoinReply, JoinRequest, Locate,
    Located, MemberGone, Owned, OwnedKey, Owner as Named, ResetOwners, Unavailable, follow_reply, located,
};
use crate::seeds::Redirect;
use follow_reply::Message as Reply;
use follow_request::Message as Said;

const DEADLINE: Duration = Duration::from_secs(20);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One link, from the seed's side. Dropping it ends the link.
struct Conversation {
    requests: Streaming<FollowRequest>,
    replies: mpsc::Sender<Result<FollowReply, Status>>,
}

impl Conversation {
    async fn next(&mut self) -> Option<Said> {
        let next = timeout(DEADLINE, self.requests.message()).await.expect("the follower says something");
        next.ok().flatten().map(|request| request.message.unwrap())
    }

    async fn hello(&mut self) -> FollowHello {
        match self.next().await {
            Some(Said::Hello(hello)) => hello,
            other => panic!("no hello: {other:?}"),
        }
    }

    /// What a member reports, the mark of the end left out.
    async fn report(&mut self) -> Vec<OwnedKey> {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Some(Said::Owned(Owned { keys, last })) => {
                    all.extend(keys);
                    if last {
                        return all;
                    }
                }
                other => panic!("no report: {other:?}"),
            }
        }
    }

    /// The next question; renewals go unanswered.
    async fn question(&mut self) -> Locate {
        loop {
            match self.next().await {
                Some(Said::Locate(question)) => return question,
                Some(Said::Renew(_)) => {}
                other => panic!("no question: {other:?}"),
            }
        }
    }

    async fn say(&self, message: Reply) {
        self.replies.send(Ok(FollowReply { message: Some(message) })).await.unwrap();
    }

    async fn welcome(&self, term: u64, sequence: u64) {
        let welcome = FollowWelcome {
            position: Some(Position { term, sequence }),
            lease_ms: 5_000,
            heartbeat_ms: 1_000,
        };
        self.say(Reply::Welcome(welcome)).await;
    }

    async fn answer(&self, question: &Locate, port: u16, epoch: u64) {
        self.answer_for(question, port, epoch, Duration::ZERO).await;
    }

    async fn answer_for(&self, question: &Locate, port: u16, epoch: u64, fresh: Duration) {
        let (member, address) = ("live-1:0".to_owned(), format!("127.0.0.1:{port}"));
        let owner = Named { member, address, epoch, fresh_ms: fresh.as_millis() as u32 };
        let result = Some(located::Result::Owner(owner));
        self.say(Reply::Located(Located { id: question.id, result })).await;
    }

    /// The next question, for this key, can't be answered.
    async fn refuse(&mut self, key: &str) {
        let question = self.question().await;
        assert_eq!(question.key, key);
        let why = Unavailable { reason: "the seed does not lead".to_owned(), retry_after_ms: 1 };
        let result = Some(located::Result::Unavailable(why));
        self.say(Reply::Located(Located { id: question.id, result })).await;
    }

    async fn invalidate(&self, sequence: u64, key: &str) {
        let (pool, keys) = ("rooms".to_owned(), vec![key.to_owned()]);
        self.say(Reply::Invalidate(Invalidate { sequence, pool, keys }.encode_to_vec().into())).await;
    }

    async fn close(self, status: Status) {
        self.replies.send(Err(status)).await.unwrap();
    }
}

struct Stage {
    opened: mpsc::Sender<Conversation>,
}

#[tonic::async_trait]
impl Seed for Stage {
    type JoinStream = Replies<JoinReply>;
    type FollowStream = Replies<FollowReply>;
    type FetchBuildStream = Replies<Asset>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (replies, stream) = mpsc::channel(64);
        let opened = self.opened.send(Conversation { requests: request.into_inner(), replies });
        opened.await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn join(&self, _: Request<Streaming<JoinRequest>>) -> Result<Response<Self::JoinStream>, Status> {
        Err(Status::unimplemented("only followers come here"))
    }

    async fn fetch_build(
        &self,
        _: Request<FetchBuildRequest>,
    ) -> Result<Response<Self::FetchBuildStream>, Status> {
        Err(Status::unimplemented("there are no builds"))
    }
}

struct Rig {
    link: Link,
    opened: mpsc::Receiver<Conversation>,
    data: TempDir,
}

impl Rig {
    async fn start(member: bool) -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, opened) = mpsc::channel(1);
        let gate = Gate::new(&identity.issue(Kind::Seed, "seed-1").unwrap()).unwrap();
        let server = Server::builder().add_service(SeedServer::new(Stage { opened: sender }));
        tokio::spawn(server.serve_with_incoming(gate.incoming(listener)));

        let [node, kind, zone] = ["live-1", "live", "a"].map(ToOwned::to_owned);
        let membership = member.then(|| Membership {
            member: Member {
                id: "live-1:0".to_owned(),
                pool: "rooms".to_owned(),
                address: "127.0.0.1:9".to_owned(),
                zone: zone.clone(),
                instance: "i".to_owned(),
            },
            capacity: 3,
            judge: Some(Rc::new(|wanted| wanted.idle)),
        });
        let link = Link::open(&identity, &address, Follower { node, kind, zone, membership }).unwrap();
        Self { link, opened, data }
    }

    async fn next(&mut self) -> Conversation {
        timeout(DEADLINE, self.opened.recv()).await.expect("it connects").unwrap()
    }

    /// The next link, up to its welcome.
    async fn welcomed(&mut self, term: u64, sequence: u64) -> (Conversation, FollowHello) {
        let mut conversation = self.next().await;
        let hello = conversation.hello().await;
        conversation.welcome(term, sequence).await;
        self.connected(true).await;
        (conversation, hello)
    }

    async fn connected(&self, is: bool) {
        let mut connection = self.link.connection();
        timeout(DEADLINE, connection.wait_for(|connected| *connected == is)).await.unwrap().unwrap();
    }

    /// Asks for a key, answered by the seed.
    async fn locate(&self, seed: &mut Conversation, key: &str, port: u16, epoch: u64) -> Owner {
        let (asked, ()) = tokio::join!(self.link.locate("rooms", key), async {
            let question = seed.question().await;
            assert_eq!(question.key, key);
            seed.answer(&question, port, epoch).await;
        });
        asked.unwrap()
    }
}

async fn play<F: Future<Output = ()>>(test: F) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_seed_of_an_older_term_is_not_followed_and_one_that_names_another_is_left_at_once() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(2, 7).await;
        let owner = rig.locate(&mut seed, "a", 1, 5).await;
        drop(seed);
        rig.connected(false).await;

        let mut old = rig.next().await;
        old.hello().await;
        old.welcome(1, 9).await;
        assert_eq!(old.next().await, None, "it is left without a word");
        assert!(!rig.link.connected());
        assert_eq!(rig.link.locate("rooms", "a").await, Ok(owner), "what was known goes on");

        // It may be that one of the present term again.
        let (seed, _) = rig.welcomed(2, 7).await;
        // The other one doesn't answer; the first is tried again then.
        let leader = Redirect { address: "127.0.0.1:1".to_owned(), term: 3 };
        seed.close(Redirect::status("handed over", Some(&leader))).await;
        rig.connected(false).await;
        let mut stale = rig.next().await;
        stale.hello().await;
        stale.welcome(2, 7).await;
        assert_eq!(stale.next().await, None, "the third term has begun elsewhere");
        rig.welcomed(3, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_seed_that_was_told_of_is_found_after_a_restart_while_the_configured_one_is_away() {
    play(async {
        let mut rig = Rig::start(false).await;
        let away = vec!["127.0.0.1:1".to_owned()];
        let seeds = Seeds::new(away, rig.data.path());
        let [there] = rig.link.shared.seeds.configured() else { panic!("the rig has one seed") };
        // As the node's parent does when a seed tells it.
        seeds.remember(std::slice::from_ref(there)).unwrap();
        let who = rig.link.shared.who.clone();
        let first = rig.next().await;
        let restarted = Link::open(&rig.link.shared.identity, seeds, who).unwrap();
        let mut seed = rig.next().await;
        seed.hello().await;
        seed.welcome(1, 0).await;
        let mut connection = restarted.connection();
        timeout(DEADLINE, connection.wait_for(|connected| *connected)).await.unwrap().unwrap();
        drop(first);
    })
    .await;
}

#[tokio::test]
async fn all_datastores_that_the_seed_tells_are_known_and_the_first_is_used() {
    play(async {
        let mut rig = Rig::start(false).await;
        assert!(rig.link.datastore().is_none());
        let (seed, _) = rig.welcomed(1, 0).await;
        let named = |rig: &Rig| -> Vec<String> {
            rig.link.shared.datastores.borrow().iter().map(|(address, _)| address.clone()).collect()
        };
        assert!(named(&rig).is_empty());
        let told = ["127.0.0.1:2", "127.0.0.1:1"].map(str::to_owned).to_vec();
        seed.say(Reply::Directory(Directory { seeds: Vec::new(), datastores: told.clone() })).await;
        timeout(DEADLINE, async {
            while named(&rig) != told {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert!(rig.link.datastore().is_some());
    })
    .await;
}

#[tokio::test]
async fn a_seed_that_is_away_is_tried_less_and_less_often_and_what_is_known_goes_on() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, hello) = rig.welcomed(3, 10).await;
        assert_eq!((hello.node.as_str(), hello.zone.as_str(), hello.member), ("live-1", "a", None));
        assert_eq!(hello.since, Some(Position::default()), "one that is new has seen nothing");
        let owner = rig.locate(&mut seed, "1", 1001, 7).await;
        seed.invalidate(11, "2").await;
        let also = rig.locate(&mut seed, "3", 1001, 8).await;
        drop(seed);
        rig.connected(false).await;
        assert_eq!(rig.link.locate("rooms", "1").await, Ok(owner.clone()));

        // Five attempts that are not welcomed: each wait is at least half of a bound that doubles from 50 ms.
        let away = Instant::now();
        for _ in 0..5 {
            let mut refusing = rig.next().await;
            assert_eq!(refusing.hello().await.since, Some(Position { term: 3, sequence: 11 }));
        }
        let (_seed, hello) = rig.welcomed(3, 11).await;
        assert!(away.elapsed() >= Duration::from_millis(25 + 50 + 100 + 200 + 400), "{:?}", away.elapsed());
        assert_eq!(hello.since, Some(Position { term: 3, sequence: 11 }), "what it missed is told by this");
        assert_eq!(rig.link.locate("rooms", "1").await, Ok(owner));
        assert_eq!(rig.link.locate("rooms", "3").await, Ok(also));
    })
    .await;
}

#[tokio::test]
async fn an_answer_holds_until_the_invalidation_behind_it_and_one_in_front_of_it_changes_nothing() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(1, 0).await;
        // In one go, so that the link has both before anybody asks again.
        let (asked, ()) = tokio::join!(rig.link.locate("rooms", "1"), async {
            let question = seed.question().await;
            seed.answer(&question, 1001, 7).await;
            seed.invalidate(1, "1").await;
            seed.invalidate(2, "other").await;
        });
        assert_eq!(asked.unwrap().epoch, 7, "whoever asked before is answered");
        // The answer of another key comes behind the invalidation: the link has taken that in by now.
        rig.locate(&mut seed, "2", 1001, 8).await;
        assert_eq!(rig.locate(&mut seed, "1", 1002, 9).await.epoch, 9, "asked anew");

        let (asked, ()) = tokio::join!(rig.link.locate("rooms", "3"), async {
            let question = seed.question().await;
            seed.invalidate(3, "3").await;
            seed.answer(&question, 1003, 10).await;
        });
        let known = asked.unwrap();
        assert_eq!(rig.link.locate("rooms", "3").await, Ok(known), "the answer is the newer word");

        let gone = MemberGone { sequence: 4, pool: "rooms".to_owned(), member: "live-1:0".to_owned() };
        seed.say(Reply::MemberGone(gone)).await;
        rig.locate(&mut seed, "4", 1004, 11).await;
        assert_eq!(rig.locate(&mut seed, "3", 1005, 12).await.epoch, 12, "with its member its keys are gone");

        rig.link.refute("rooms", "3", 12);
        let (asked, question) = tokio::join!(rig.link.locate("rooms", "3"), async {
            let question = seed.question().await;
            seed.answer(&question, 1005, 13).await;
            question
        });
        assert_eq!((asked.unwrap().epoch, question.refuted_epoch), (13, 12));
    })
    .await;
}

#[tokio::test]
async fn an_open_question_is_asked_again_on_the_next_link_and_after_a_reset_every_owner_is() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(3, 10).await;
        let old = rig.locate(&mut seed, "1", 1001, 7).await;
        let asking = tokio::task::spawn_local({
            let link = rig.link.clone();
            async move { link.locate("rooms", "2").await }
        });
        let asked = seed.question().await;
        drop(seed);
        rig.connected(false).await;
        let (mut seed, _) = rig.welcomed(4, 0).await;
        assert_eq!(seed.question().await, asked);
        assert_eq!(rig.link.locate("rooms", "1").await, Ok(old), "nobody has said otherwise yet");
        let position = Position { term: 4, sequence: 2 };
        seed.say(Reply::ResetOwners(ResetOwners { position: Some(position) })).await;
        seed.answer(&asked, 1002, 8).await;
        assert_eq!(asking.await.unwrap().unwrap().epoch, 8);
        assert_eq!(rig.locate(&mut seed, "1", 1003, 9).await.epoch, 9, "asked anew");
        drop(seed);
        let (_seed, hello) = rig.welcomed(4, 2).await;
        assert_eq!(hello.since, Some(position));
    })
    .await;
}

#[tokio::test]
async fn after_a_reset_what_was_known_goes_on_while_nobody_can_be_asked_and_only_then() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(3, 10).await;
        let old = rig.locate(&mut seed, "1", 1001, 7).await;
        rig.locate(&mut seed, "2", 1001, 8).await;
        rig.locate(&mut seed, "3", 1001, 9).await;
        rig.locate(&mut seed, "4", 1001, 10).await;
        drop(seed);
        rig.connected(false).await;
        let (mut seed, _) = rig.welcomed(4, 0).await;
        let position = Position { term: 4, sequence: 2 };
        seed.say(Reply::ResetOwners(ResetOwners { position: Some(position) })).await;
        rig.locate(&mut seed, "other", 1001, 10).await;

        // The seed that leads says that there is none: it knows.
        let (asked, ()) = tokio::join!(rig.link.locate("rooms", "1"), seed.refuse("1"));
        assert_eq!(asked.unwrap_err().reason, "the seed does not lead");
        seed.invalidate(3, "2").await;
        // It dies while it is asked, and with it the last one that could be.
        let [asking, in_vain] = ["3", "4"].map(|key| {
            let link = rig.link.clone();
            tokio::task::spawn_local(async move { link.locate("rooms", key).await })
        });
        assert_eq!([seed.question().await.key, seed.question().await.key], ["3", "4"]);
        seed.invalidate(4, "4").await;
        drop(seed);
        rig.connected(false).await;
        assert_eq!(asking.await.unwrap().unwrap().epoch, 9);
        assert!(in_vain.await.unwrap().is_err(), "it was told meanwhile that this one has moved");
        assert_eq!(rig.link.locate("rooms", "1").await, Ok(old));
        assert_eq!(rig.link.locate("rooms", "other").await.unwrap().epoch, 10);
        assert!(rig.link.locate("rooms", "2").await.is_err(), "that one has moved for sure");

        // Asked anew once there is one to ask.
        let (mut seed, _) = rig.welcomed(4, 4).await;
        assert_eq!(rig.locate(&mut seed, "1", 1003, 12).await.epoch, 12);
    })
    .await;
}

#[tokio::test]
async fn a_member_that_comes_back_reports_what_it_owns() {
    play(async {
        let mut rig = Rig::start(true).await;
        let (mut seed, first) = rig.welcomed(1, 0).await;
        assert_eq!(first.member.unwrap().instance, "i");
        assert_eq!((first.capacity, first.yields), (3, true), "the first hello has all that it is");
        assert_eq!(seed.report().await, []);
        seed.say(Reply::Assigned(Assigned { key: "1".to_owned(), epoch: 7 })).await;
        assert!(rig.link.admit("1", 7).await);
        drop(seed);
        rig.connected(false).await;
        assert_eq!(rig.link.check("1", 7), Fence::Owned, "the lease goes on without a link");
        let (mut seed, second) = rig.welcomed(1, 0).await;
        assert_eq!((second.incarnation, second.attempt), (first.incarnation, first.attempt + 1));
        assert_eq!(seed.report().await, [OwnedKey { key: "1".to_owned(), epoch: 7 }]);
    })
    .await;
}

#[tokio::test]
async fn a_reason_for_which_the_seed_closes_reaches_the_operator_once() {
    play(async {
        let mut rig = Rig::start(true).await;
        let mut refusal = rig.link.refusal();
        let taken = || Status::failed_precondition("the name is taken");
        // Refused twice at the hello, for one reason; then welcomed; then displaced.
        for round in 0..2 {
            let mut seed = rig.next().await;
            seed.hello().await;
            seed.close(taken()).await;
            if round == 0 {
                timeout(DEADLINE, refusal.changed()).await.unwrap().unwrap();
                assert_eq!(refusal.borrow_and_update().as_deref(), Some("the name is taken"));
            }
        }
        let mut seed = rig.next().await;
        assert!(!refusal.has_changed().unwrap(), "the second time is no news");
        seed.hello().await;
        seed.welcome(1, 0).await;
        rig.connected(true).await;
        assert_eq!(*refusal.borrow_and_update(), None);

        seed.close(Status::failed_precondition("the member has joined on another link")).await;
        rig.connected(false).await;
        assert_eq!(refusal.borrow_and_update().as_deref(), Some("the member has joined on another link"));
        let (seed, _) = rig.welcomed(1, 0).await;
        assert_eq!(*refusal.borrow_and_update(), None);

        seed.close(Status::unavailable("the seed is ending")).await;
        rig.connected(false).await;
        assert_eq!(*refusal.borrow_and_update(), None, "a seed that goes away has refused nobody");
    })
    .await;
}

#[tokio::test]
async fn who_leaves_is_told_that_it_owns_nothing_and_comes_back_no_more() {
    play(async {
        let mut rig = Rig::start(true).await;
        let mut lost = rig.link.lost_keys().unwrap();
        let (mut seed, _) = rig.welcomed(1, 0).await;
        seed.report().await;
        seed.say(Reply::Assigned(Assigned { key: "1".to_owned(), epoch: 7 })).await;
        assert!(rig.link.admit("1", 7).await);
        let leaving = async {
            while !matches!(seed.next().await, Some(Said::Leave(_))) {}
            seed.close(Status::failed_precondition("the member has left")).await;
        };
        tokio::join!(rig.link.leave(), leaving);
        assert_eq!(timeout(DEADLINE, lost.recv()).await.unwrap(), Some(Lost::All { epoch: 7 }));
        assert_eq!(rig.link.check("1", 7), Fence::Misdirected);
        assert!(!rig.link.connected());
        assert_eq!(*rig.link.refusal().borrow(), None, "it was its own wish");
        // The tasks of the link have ended, and what they shared is the test's alone.
        while Rc::strong_count(&rig.link.shared) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_leaves_while_it_is_greeted_is_no_member() {
    play(async {
        let mut rig = Rig::start(true).await;
        let mut seed = rig.next().await;
        seed.hello().await;
        seed.report().await;
        rig.link.leave().await;
        seed.welcome(1, 0).await;
        assert_eq!(seed.next().await, None, "it ends the link");
        assert!(!rig.link.connected());
    })
    .await;
}

/// Asks for the key over and over, as clients do.
async fn keep_locating(link: &Link, key: &str) {
    loop {
        link.locate("rooms", key).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_answer_that_has_aged_is_asked_for_anew_beside_the_requests_and_one_that_nobody_can_renew_goes_on()
{
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(1, 0).await;
        let link = rig.link.clone();
        let (first, ()) = tokio::join!(link.locate("rooms", "1"), async {
            let question = seed.question().await;
            seed.answer_for(&question, 1, 7, Duration::from_secs(1)).await;
        });
        assert_eq!(first.unwrap().epoch, 7);
        let asked = Instant::now();
        tokio::select! {
            () = keep_locating(&link, "1") => unreachable!("it never ends"),
            () = seed.refuse("1") => {}
        }
        assert!(asked.elapsed() < Duration::from_secs(1), "while it was still good");
        // The next one is asked before the answer is used.
        tokio::select! {
            () = keep_locating(&link, "1") => unreachable!("it never ends"),
            () = seed.refuse("1") => {}
        }
        assert!(asked.elapsed() > Duration::from_millis(400));
        // Whether a third question is asked or this one waits for the answer to the second: known goes on.
        assert_eq!(link.locate("rooms", "1").await.unwrap().epoch, 7);
    })
    .await;
}

#[tokio::test]
async fn a_key_in_use_is_asked_for_again_though_nobody_locates_it() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(1, 0).await;
        let link = rig.link.clone();
        let answered = async {
            for key in ["1", "2"] {
                let question = seed.question().await;
                assert_eq!(question.key, key);
                seed.answer_for(&question, 1, 7, Duration::from_secs(1)).await;
            }
        };
        let located = async {
            link.locate("rooms", "1").await.unwrap();
            link.locate("rooms", "2").await.unwrap();
        };
        tokio::join!(located, answered);
        let [one, two] = ["1", "2"].map(|key| link.locate("rooms", key));
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        let used = link.employ("rooms", "2", &two, || {});
        drop(link.employ("rooms", "1", &one, || {}));
        for _ in 0..2 {
            let question = seed.question().await;
            assert_eq!(question.key, "2");
            seed.answer_for(&question, 1, 7, Duration::from_secs(1)).await;
        }
        drop(used);
    })
    .await;
}

#[tokio::test]
async fn who_uses_a_key_is_told_once_when_another_server_has_it() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(1, 0).await;
        let owner = rig.locate(&mut seed, "1", 1, 7).await;
        let (now, told) = (Rc::new(Cell::new(7)), Rc::new(RefCell::new(Vec::new())));
        let (at, note) = (Rc::clone(&now), Rc::clone(&told));
        let used = rig.link.employ("rooms", "1", &owner, move || note.borrow_mut().push(at.get()));
        drop(rig.link.employ("rooms", "1", &owner, || panic!("it has ended")));
        // First the same server has it again.
        for (sequence, port, epoch) in [(1, 1, 8), (2, 2, 9), (3, 3, 10)] {
            seed.invalidate(sequence, "1").await;
            let question = timeout(DEADLINE / 5, seed.question()).await.expect("it is asked for at once");
            now.set(epoch);
            seed.answer(&question, port, epoch).await;
            while rig.link.locate("rooms", "1").await.unwrap().epoch != epoch {}
            while epoch > 8 && told.borrow().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert_eq!(*told.borrow(), [9]);
        drop(used);
    })
    .await;
}

#[tokio::test]
async fn a_key_in_use_that_ages_while_others_are_asked_for_is_asked_for_next() {
    play(async {
        let mut rig = Rig::start(false).await;
        let (mut seed, _) = rig.welcomed(1, 0).await;
        let shared = Rc::clone(&rig.link.shared);
        let owner = Owner { member: "live-1:0".into(), address: "127.0.0.1:1".parse().unwrap(), epoch: 7 };
        // So long that none of it passes by itself.
        let (now, hour) = (BootTime::now(), Duration::from_hours(1));
        let mut uses = Vec::new();
        for (key, fresh) in [("1", 2 * hour), ("2", 4 * hour)] {
            shared.owners.borrow_mut().learn("rooms", key, &owner, now, fresh);
            uses.push(rig.link.employ("rooms", key, &owner, || panic!("it has not moved")));
        }
        let all = shared.uses.borrow().all();
        let (first, _) = shared.ask_ageing(&all, now + hour);
        assert_eq!((first.len(), seed.question().await.key), (1, "1".to_owned()));
        // The answers are waited for, and meanwhile the other one has aged.
        shared.tell_moved(&all, now + 2 * hour);
        let (second, _) = shared.ask_ageing(&all, now + 2 * hour);
        assert_eq!(second.len(), 2, "both are without an answer");
        assert_eq!(seed.question().await.key, "2");
    })
    .await;
}
