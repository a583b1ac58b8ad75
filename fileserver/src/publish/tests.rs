//! What arrives at a live node: a stand-in that writes down every request, found through a stand-in seed that grants a
//! newer epoch whenever it is told that the last was refuted.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;

use futures_util::{Stream, stream};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use protoplex_http::upstream::Settings;
use protoplex_http::{AccessLog, Exchange, Fronts, Handler, Limits, Listener, Response};
use protoplex_runtime::drain::{Drain, Trigger};
use protoplex_wire::follow::Follower;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{Identity, Kind, REGISTRATIONS_AUDIENCE};
use protoplex_wire::proto::seed_server::{Seed, SeedServer};
use protoplex_wire::proto::{
    Asset, FetchBuildRequest, FollowReply, FollowRequest, FollowWelcome, JoinReply, JoinRequest, Located,
    Owner, follow_reply, follow_request, located,
};
use serde_json::Value;
use tokio::net::TcpListener as AsyncListener;
use tokio::task::LocalSet;
use tonic::transport::Server;
use tonic::{Status, Streaming};

use super::*;
use crate::progress::Live;

const DEADLINE: Duration = Duration::from_secs(20);

struct StandInSeed {
    live: SocketAddr,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Seed for StandInSeed {
    type JoinStream = Replies<JoinReply>;
    type FollowStream = Replies<FollowReply>;
    type FetchBuildStream = Replies<Asset>;

    async fn join(
        &self,
        _: tonic::Request<Streaming<JoinRequest>>,
    ) -> Result<tonic::Response<Self::JoinStream>, Status> {
        Err(Status::unimplemented("join"))
    }

    async fn follow(
        &self,
        request: tonic::Request<Streaming<FollowRequest>>,
    ) -> Result<tonic::Response<Self::FollowStream>, Status> {
        let live = self.live;
        let replies = stream::unfold(request.into_inner(), move |mut requests| async move {
            loop {
                let message = match requests.message().await.ok()??.message? {
                    follow_request::Message::Hello(_) => {
                        follow_reply::Message::Welcome(FollowWelcome::default())
                    }
                    follow_request::Message::Locate(question) => {
                        let (member, address) = ("live-1:0".to_owned(), live.to_string());
                        let owner = Owner { member, address, epoch: question.refuted_epoch + 1, fresh_ms: 0 };
                        let result = Some(located::Result::Owner(owner));
                        follow_reply::Message::Located(Located { id: question.id, result })
                    }
                    _ => continue,
                };
                return Some((Ok(FollowReply { message: Some(message) }), requests));
            }
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }

    async fn fetch_build(
        &self,
        _: tonic::Request<FetchBuildRequest>,
    ) -> Result<tonic::Response<Self::FetchBuildStream>, Status> {
        Err(Status::unimplemented("fetch_build"))
    }
}

#[derive(Debug)]
struct Received {
    target: String,
    key: String,
    epoch: String,
    token: String,
    form: Vec<(String, String)>,
}

/// Answers with the statuses that it was given, then with 200.
#[derive(Default)]
struct StandInLive {
    statuses: RefCell<Vec<StatusCode>>,
    received: RefCell<Vec<Received>>,
}

impl Handler for StandInLive {
    async fn handle(&self, request: Request, _: &Rc<Exchange>) -> Response {
        let (head, body) = request.into_parts();
        let body = body.collect(1 << 20).await.unwrap();
        let header = |name: &str| head.headers[name].to_str().unwrap().to_owned();
        self.received.borrow_mut().push(Received {
            target: head.uri.to_string(),
            key: header("protoplex-key"),
            epoch: header("protoplex-epoch"),
            token: header("authorization").strip_prefix("Bearer ").unwrap().to_owned(),
            form: form_urlencoded::parse(&body).into_owned().collect(),
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.statuses.borrow_mut().pop().unwrap_or(StatusCode::OK);
        response
    }
}

impl StandInLive {
    async fn until_received(&self, count: usize) {
        let start = std::time::Instant::now();
        while self.received.borrow().len() < count {
            assert!(start.elapsed() < DEADLINE, "{:?}", self.received);
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Runs a test with a pipeline's end, and the live node at the other.
fn run(statuses: &[StatusCode], test: impl AsyncFnOnce(Live, Rc<StandInLive>, Identity)) {
    run_until_drained(statuses, async |live, node, identity, _, _| test(live, node, identity).await);
}

/// As [`run`]; the trigger ends the live node, and the tasks are those of the publisher, which is told to drain by it too.
fn run_until_drained(
    statuses: &[StatusCode],
    test: impl AsyncFnOnce(Live, Rc<StandInLive>, Identity, Trigger, Tasks),
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&folder.path().join("cluster")).unwrap();

        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let node = Rc::new(StandInLive { statuses: statuses.to_vec().into(), ..StandInLive::default() });
        let (trigger, drain) = Drain::new();
        let listeners = vec![Listener { socket, tls: None, fronts: Fronts::default() }];
        let served = protoplex_http::serve(
            listeners,
            Limits::default(),
            AccessLog::off(),
            drain.clone(),
            Rc::clone(&node),
        );
        tokio::task::spawn_local(served);

        let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
        let seed = listener.local_addr().unwrap().to_string();
        let gate = Gate::new(&identity.issue(Kind::Seed, "seed-1").unwrap()).unwrap();
        let server = Server::builder().add_service(SeedServer::new(StandInSeed { live: address }));
        tokio::spawn(server.serve_with_incoming(gate.incoming(listener)));

        let who = Follower {
            node: "fileserver-1".to_owned(),
            kind: "fileserver".to_owned(),
            zone: String::new(),
            membership: None,
        };
        let link = Link::open(&identity, &seed, who).unwrap();
        link.connection().wait_for(|connected| *connected).await.unwrap();
        let (live, notices) = Live::new("/fileserver-1/0");
        let credentials = Credentials::new(&identity);
        let tasks = Tasks::default();
        let pool = Pool::new(Settings::default());
        let publisher = Publisher::new(link, pool, credentials, tasks.clone(), drain);
        tokio::task::spawn_local(publisher.deliver(notices));
        test(live, node, identity, trigger, tasks).await;
    }));
}

#[test]
fn events_reach_the_owner_of_their_topic_as_mercure_publications() {
    run(&[], async |live, node, identity| {
        let feed = live.feed("abc", "/files/a b");
        feed.started(Some(5));
        feed.failed("client-gone");
        node.until_received(2).await;
        for (received, kind) in node.received.borrow().iter().zip(["upload.started", "upload.failed"]) {
            assert_eq!(received.target, "/.well-known/mercure");
            assert_eq!((received.key.as_str(), received.epoch.as_str()), ("upload/abc", "1"));
            assert_eq!(received.form[0], ("topic".to_owned(), "upload/abc".to_owned()));
            assert_eq!(received.form[1].0, "data");
            let event: Value = serde_json::from_str(&received.form[1].1).unwrap();
            assert_eq!((&event["type"], &event["data"]["path"]), (&kind.into(), &"/files/a b".into()));
            let key = DecodingKey::from_secret(identity.live_key());
            let claims =
                jsonwebtoken::decode::<Value>(&received.token, &key, &Validation::new(Algorithm::HS256));
            assert_eq!(claims.unwrap().claims["mercure"]["publish"], serde_json::json!(["upload/abc"]));
        }
    });
}

#[test]
fn an_owner_that_is_no_more_is_asked_for_once_more() {
    run(&[StatusCode::MISDIRECTED_REQUEST], async |live, node, _| {
        live.feed("abc", "/a").started(None);
        node.until_received(2).await;
        let epochs: Vec<_> = node.received.borrow().iter().map(|received| received.epoch.clone()).collect();
        assert_eq!(epochs, ["1", "2"]);
    });
}

#[test]
fn the_last_event_is_tried_again_and_progress_is_not() {
    run(&[StatusCode::SERVICE_UNAVAILABLE; 2], async |live, node, _| {
        let mut feed = live.feed("abc", "/a");
        feed.progress(1, None, std::time::Instant::now());
        feed.finished(Value::Null);
        node.until_received(3).await;
        let kinds: Vec<_> = node
            .received
            .borrow()
            .iter()
            .map(|received| serde_json::from_str::<Value>(&received.form[1].1).unwrap()["type"].clone())
            .collect();
        assert_eq!(kinds, ["upload.progress", "upload.finished", "upload.finished"]);
    });
}

#[test]
fn a_last_event_that_nobody_takes_does_not_hold_up_a_drain() {
    run_until_drained(&[StatusCode::SERVICE_UNAVAILABLE; 1000], async |live, node, _, trigger, tasks| {
        let feed = live.feed("abc", "/a");
        feed.finished(Value::Null);
        drop(feed);
        node.until_received(1).await;
        let drained = Instant::now();
        trigger.pull();
        tasks.finished().await;
        let took = drained.elapsed();
        assert!((LASTING_IN_DRAIN..LASTING / 2).contains(&took), "{took:?}");
    });
}

#[test]
fn an_invalidation_goes_to_the_shard_of_its_name_and_is_done_when_it_is_answered() {
    run(&[], async |live, node, identity| {
        let name = "site:example.com:/a b&c".to_owned();
        assert!(live.invalidate(vec![name.clone()], DEADLINE).await);
        let received = node.received.borrow();
        assert_eq!(received[0].key, shard(&name));
        let query = received[0].target.strip_prefix("/.well-known/protoplex/invalidate?").unwrap();
        let query: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        assert_eq!(query, [("name".to_owned(), name)]);
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[REGISTRATIONS_AUDIENCE]);
        let key = DecodingKey::from_secret(&identity.node_key());
        jsonwebtoken::decode::<Value>(&received[0].token, &key, &validation).unwrap();
    });
}

#[test]
fn an_invalidation_that_fails_is_not_taken_for_done() {
    run(&[StatusCode::SERVICE_UNAVAILABLE], async |live, _, _| {
        assert!(!live.invalidate(vec!["file:a".to_owned()], DEADLINE).await);
        assert!(live.invalidate(vec!["file:a".to_owned()], DEADLINE).await);
    });
}
