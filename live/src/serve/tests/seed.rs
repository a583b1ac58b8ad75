//! A seed that assigns every key that is asked for, and takes keys away when it is told to.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use prost::Message as _;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{Identity, Kind, LIVE_POOL};
use protoplex_wire::proto::seed_server::{Seed as Service, SeedServer};
use protoplex_wire::proto::{
    Asset, Assigned, FetchBuildRequest, FollowReply, FollowRequest, FollowWelcome, JoinReply, JoinRequest,
    Located, Member, OwnedKey, Owner, Pool, Position, Renewed, Revoked, Table, Yield, follow_reply,
    follow_request, located,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Default)]
pub(super) struct Seed(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    members: HashMap<String, (Member, UnboundedSender<follow_reply::Message>)>,
    /// Key → member and epoch.
    owners: HashMap<String, (String, u64)>,
    /// Keys that are to go to this member when they are asked for.
    wishes: HashMap<String, String>,
    last_epoch: u64,
    released: Vec<String>,
    draining: Vec<String>,
}

impl Seed {
    /// Serves on a free port, and returns its address.
    pub(super) async fn serve(&self, identity: &Identity) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gate = Gate::new(&identity.issue(Kind::Seed, "seed-1").unwrap()).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(SeedServer::new(self.clone()))
            .serve_with_incoming(gate.incoming(listener));
        tokio::spawn(server);
        address
    }

    /// Makes the member own the key, and returns the epoch.
    pub(super) fn assign(&self, key: &str, member: &str) -> u64 {
        let mut state = self.0.lock().unwrap();
        state.assign(key, member)
    }

    /// Lets the next question for the key be answered with this member.
    pub(super) fn wish(&self, key: &str, member: &str) {
        self.0.lock().unwrap().wishes.insert(key.to_owned(), member.to_owned());
    }

    /// Takes a key away from its owner.
    pub(super) fn revoke(&self, key: &str) {
        let mut state = self.0.lock().unwrap();
        let (member, epoch) = state.owners.remove(key).unwrap();
        let keys = vec![OwnedKey { key: key.to_owned(), epoch }];
        state.tell(&member, follow_reply::Message::Revoked(Revoked { keys }));
    }

    /// Asks the owner of a key to give it up; answers the epoch.
    pub(super) fn ask_for(&self, key: &str, idle: bool) -> u64 {
        let state = self.0.lock().unwrap();
        let (member, epoch) = state.owners[key].clone();
        let keys = vec![OwnedKey { key: key.to_owned(), epoch }];
        state.tell(&member, follow_reply::Message::Yield(Yield { keys, idle }));
        epoch
    }

    /// Tells this one who the members are.
    pub(super) fn tell_members(&self, member: &str) {
        let state = self.0.lock().unwrap();
        let members = state.members.values().map(|(member, _)| member.clone()).collect();
        let pools = vec![Pool { name: LIVE_POOL.to_owned(), members }];
        let table = Table { version: 1, pools, ..Table::default() };
        state.tell(member, follow_reply::Message::Table(table.encode_to_vec().into()));
    }

    /// Does it get no new keys any more?
    pub(super) fn is_draining(&self, member: &str) -> bool {
        self.0.lock().unwrap().draining.iter().any(|draining| draining == member)
    }

    /// Ends the lease of a member.
    pub(super) fn end_lease(&self, member: &str) {
        let mut state = self.0.lock().unwrap();
        state.owners.retain(|_, (owner, _)| owner != member);
        state.tell(member, follow_reply::Message::LeaseLost(Default::default()));
    }

    /// Member and epoch.
    pub(super) fn owner(&self, key: &str) -> (String, u64) {
        self.0.lock().unwrap().owners[key].clone()
    }

    pub(super) fn has_member(&self, member: &str) -> bool {
        self.0.lock().unwrap().members.contains_key(member)
    }

    pub(super) fn released(&self) -> Vec<String> {
        self.0.lock().unwrap().released.clone()
    }
}

impl State {
    fn assign(&mut self, key: &str, member: &str) -> u64 {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        self.owners.insert(key.to_owned(), (member.to_owned(), epoch));
        self.tell(member, follow_reply::Message::Assigned(Assigned { key: key.to_owned(), epoch }));
        epoch
    }

    fn tell(&self, member: &str, message: follow_reply::Message) {
        self.members[member].1.send(message).unwrap();
    }

    fn hear(&mut self, member: &str, message: follow_request::Message) {
        match message {
            follow_request::Message::Renew(renew) => {
                self.tell(member, follow_reply::Message::Renewed(Renewed { sequence: renew.sequence }));
            }
            follow_request::Message::Locate(locate) => {
                let wish = self.wishes.remove(&locate.key);
                let known = self.owners.get(&locate.key).filter(|_| wish.is_none()).cloned();
                let (owner, epoch) = known.unwrap_or_else(|| {
                    let owner = wish.unwrap_or_else(|| member.to_owned());
                    let epoch = self.assign(&locate.key, &owner);
                    (owner, epoch)
                });
                let address = self.members[&owner].0.address.clone();
                let result =
                    Some(located::Result::Owner(Owner { member: owner, address, epoch, fresh_ms: 0 }));
                self.tell(member, follow_reply::Message::Located(Located { id: locate.id, result }));
            }
            follow_request::Message::Released(released) => {
                for OwnedKey { key, epoch } in released.keys {
                    if self.owners.get(&key).is_some_and(|(_, current)| *current == epoch) {
                        self.owners.remove(&key);
                    }
                    self.released.push(key);
                }
            }
            follow_request::Message::Draining(_) => self.draining.push(member.to_owned()),
            follow_request::Message::HotKeys(_) => {}
            follow_request::Message::Leave(_) => {
                self.members.remove(member);
            }
            follow_request::Message::Hello(_) | follow_request::Message::Owned(_) => {}
        }
    }
}

#[tonic::async_trait]
impl Service for Seed {
    type JoinStream = Replies<JoinReply>;
    type FollowStream = Replies<FollowReply>;
    type FetchBuildStream = Replies<Asset>;

    async fn join(&self, _: Request<Streaming<JoinRequest>>) -> Result<Response<Self::JoinStream>, Status> {
        Err(Status::unimplemented("no node joins in these tests"))
    }

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut requests = request.into_inner();
        let hello = requests.next().await.unwrap()?.message;
        let Some(follow_request::Message::Hello(hello)) = hello else { panic!("no hello: {hello:?}") };
        let member = hello.member.unwrap();
        let (tell, told) = unbounded_channel();
        let welcome = FollowWelcome {
            position: Some(Position { term: 1, sequence: 0 }),
            lease_ms: 5_000,
            heartbeat_ms: 1_000,
        };
        tell.send(follow_reply::Message::Welcome(welcome)).unwrap();
        let id = member.id.clone();
        self.0.lock().unwrap().members.insert(id.clone(), (member, tell));

        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                state.lock().unwrap().hear(&id, request.message.unwrap());
            }
        });
        let replies =
            UnboundedReceiverStream::new(told).map(|message| Ok(FollowReply { message: Some(message) }));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn fetch_build(
        &self,
        _: Request<FetchBuildRequest>,
    ) -> Result<Response<Self::FetchBuildStream>, Status> {
        Err(Status::unimplemented("no build is fetched in these tests"))
    }
}
