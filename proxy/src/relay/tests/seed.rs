//! A seed whose answers a test dictates, on the real wire: mutual TLS and the ordered stream.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::proto::seed_server::{Seed, SeedServer};
use protoplex_wire::proto::{
    Asset, FetchBuildRequest, FollowReply, FollowRequest, FollowWelcome, JoinReply, JoinRequest, Locate,
    Located, Owner, Position, Unavailable, follow_reply, follow_request, located,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the seed says and what it was asked; shared with the test.
#[derive(Clone, Default)]
pub(super) struct Script {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    away: watch::Sender<bool>,
    /// Answers for a key, in order; the last one is repeated.
    owners: HashMap<String, Vec<Owner>>,
    asked: Vec<Locate>,
}

impl Script {
    /// The answers to the questions for `key`, one each, the last one for all further questions.
    pub(super) fn owners(&self, key: &str, owners: &[(SocketAddr, u64)]) {
        let owner = |&(address, epoch): &(SocketAddr, u64)| Owner {
            member: format!("rooms/{address}"),
            address: address.to_string(),
            epoch,
            fresh_ms: 0,
        };
        let owners = owners.iter().rev().map(owner).collect();
        self.inner.lock().unwrap().owners.insert(key.to_owned(), owners);
    }

    /// Ends every link, and takes none any more.
    pub(super) fn go_away(&self) {
        self.inner.lock().unwrap().away.send_replace(true);
    }

    /// Every question so far.
    pub(super) fn asked(&self) -> Vec<Locate> {
        self.inner.lock().unwrap().asked.clone()
    }

    fn answer(&self, question: &Locate) -> located::Result {
        let mut inner = self.inner.lock().unwrap();
        inner.asked.push(question.clone());
        let owner = inner.owners.get_mut(&question.key).and_then(|owners| match owners.len() {
            0 | 1 => owners.first().cloned(),
            _ => owners.pop(),
        });
        let nobody = || Unavailable { reason: "no live node".to_owned(), retry_after_ms: 3_000 };
        owner.map_or_else(|| located::Result::Unavailable(nobody()), located::Result::Owner)
    }
}

/// Starts it on a free port.
pub(super) async fn start(identity: &Identity, script: Script) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gate = Gate::new(&identity.issue(Kind::Seed, "seed-1").unwrap()).unwrap();
    let server = Server::builder().add_service(SeedServer::new(script));
    tokio::spawn(server.serve_with_incoming(gate.incoming(listener)));
    address
}

#[tonic::async_trait]
impl Seed for Script {
    type JoinStream = Replies<JoinReply>;
    type FollowStream = Replies<FollowReply>;
    type FetchBuildStream = Replies<Asset>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut away = self.inner.lock().unwrap().away.subscribe();
        if *away.borrow() {
            return Err(Status::unavailable("away"));
        }
        let script = self.clone();
        let replies = request.into_inner().filter_map(move |request| {
            let message = match request.ok()?.message? {
                follow_request::Message::Hello(_) => follow_reply::Message::Welcome(FollowWelcome {
                    position: Some(Position { term: 1, sequence: 0 }),
                    lease_ms: 5_000,
                    heartbeat_ms: 1_000,
                }),
                follow_request::Message::Locate(question) => {
                    let result = Some(script.answer(&question));
                    follow_reply::Message::Located(Located { id: question.id, result })
                }
                _ => return None,
            };
            Some(Ok(FollowReply { message: Some(message) }))
        });
        let gone = async move { away.wait_for(|away| *away).await.map(drop) };
        let replies = futures_util::StreamExt::take_until(replies, Box::pin(gone));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn join(&self, _: Request<Streaming<JoinRequest>>) -> Result<Response<Self::JoinStream>, Status> {
        Err(Status::unimplemented("proxies' children only follow"))
    }

    async fn fetch_build(
        &self,
        _: Request<FetchBuildRequest>,
    ) -> Result<Response<Self::FetchBuildStream>, Status> {
        Err(Status::unimplemented("proxies need no builds"))
    }
}
