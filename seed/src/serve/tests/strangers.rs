//! What one certificate, or none, can take from all others: through real connections.

use std::future::poll_fn;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use protoplex_wire::identity::{Identity, Kind};
use protoplex_wire::join_token::JoinToken;
use protoplex_wire::proto::enrolment_client::EnrolmentClient;
use protoplex_wire::proto::{
    ChildState, CreateJoinTokenRequest, Credentials, EnrolRequest, FollowHello, FollowRequest, JoinHello,
    JoinReply, JoinRequest, ListJoinTokensRequest, Member, NodeState, Owned, Revocation, follow_request,
    join_reply, join_request, seed_client::SeedClient,
};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Code, Status};

use super::rig::{Rig, leads, until};
use crate::link::{MAX_FOLLOWERS_OF_ONE, MAX_NODES_OF_ONE};

const DEADLINE: Duration = Duration::from_secs(20);

fn said(message: follow_request::Message) -> FollowRequest {
    FollowRequest { message: Some(message) }
}

fn told(message: join_request::Message) -> JoinRequest {
    JoinRequest { message: Some(message) }
}

fn join_hello(node: &str) -> JoinHello {
    let [node, kind, instance] = [node, "proxy", "i"].map(str::to_owned);
    JoinHello { node, kind, instance, ..JoinHello::default() }
}

fn of_proxy(rig: &Rig, node: &str) -> SeedClient<protoplex_wire::identity::TrustedChannel> {
    let proxy = rig.identity.issue(Kind::Proxy, node).unwrap();
    SeedClient::new(proxy.channel(&rig.seed.to_string()).unwrap())
}

#[tokio::test]
async fn a_question_of_somebody_unknown_is_short() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let _seed = rig.start_seed().await;
    for path in ["/protoplex.v1.Enrolment/Enrol", "/protoplex.v1.Understudy/Leader"] {
        let mut channel = rig.identity.channel(&rig.seed.to_string()).unwrap();
        poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        // 3 MiB are announced, and never come.
        let head = stream::iter([Ok::<_, Status>(vec![0, 0, 0x30, 0, 0])]).chain(stream::pending());
        let request = axum::http::Request::post(path)
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(axum::body::Body::from_stream(head)))
            .unwrap();
        let answer = timeout(DEADLINE, channel.call(request)).await.expect("it is answered at once").unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::OutOfRange, "{path}: {status:?}");
    }
}

#[tokio::test]
async fn one_certificate_does_not_take_the_places_of_all_followers() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    // A link that lasts as long as what it is asked by.
    let hello = |node: &str| {
        let (say, requests) = mpsc::channel(1);
        let hello = FollowHello { node: node.to_owned(), kind: "proxy".to_owned(), ..FollowHello::default() };
        say.try_send(said(follow_request::Message::Hello(hello))).unwrap();
        (say, ReceiverStream::new(requests))
    };
    let mut links = Vec::new();
    while links.len() < MAX_FOLLOWERS_OF_ONE {
        // A connection has fewer calls at once.
        let mut client = of_proxy(&rig, "proxy-1");
        for _ in 0..128 {
            let (say, requests) = hello("proxy-1");
            links.push((say, client.follow(requests).await.unwrap()));
        }
    }
    let refused = of_proxy(&rig, "proxy-1").follow(hello("proxy-1").1).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "proxy-1 has 512 followers here, as many as it may have");
    let (_say, requests) = hello("proxy-2");
    let mut other = of_proxy(&rig, "proxy-2").follow(requests).await.unwrap().into_inner();
    assert!(other.message().await.unwrap().is_some(), "it is welcomed");
    links.clear();
    until("its places are free again", async || {
        of_proxy(&rig, "proxy-1").follow(hello("proxy-1").1).await.ok()
    })
    .await;
}

#[tokio::test]
async fn one_certificate_does_not_take_the_places_of_all_nodes() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let hello = |node: &str| {
        stream::iter([told(join_request::Message::Hello(join_hello(node)))]).chain(stream::pending())
    };
    let mut client = of_proxy(&rig, "proxy-1");
    let mut links = Vec::new();
    for _ in 0..MAX_NODES_OF_ONE {
        links.push(client.join(hello("proxy-1")).await.unwrap());
    }
    let refused = client.join(hello("proxy-1")).await.unwrap_err();
    assert_eq!(refused.message(), "proxy-1 has 16 nodes here, as many as it may have");
    let mut other = of_proxy(&rig, "proxy-2").join(hello("proxy-2")).await.unwrap().into_inner();
    assert!(other.message().await.unwrap().is_some(), "it is welcomed");
}

/// Somebody who comes with this token.
async fn enrol(rig: &Rig, token: &JoinToken, kind: &str, node: &str) -> Result<Credentials, Status> {
    let mut client = EnrolmentClient::new(rig.identity.channel(&rig.seed.to_string()).unwrap());
    let (kind, node) = (kind.to_owned(), node.to_owned());
    // A point in its uncompressed form.
    let request = EnrolRequest { token: token.presented(), kind, node, public_key: vec![4; 65] };
    client.enrol(request).await.map(tonic::Response::into_inner)
}

async fn join_token(rig: &Rig, kind: &str, pools: &[&str]) -> JoinToken {
    let wanted = CreateJoinTokenRequest {
        kind: kind.to_owned(),
        pools: pools.iter().copied().map(str::to_owned).collect(),
        uses: 1,
        life_s: 3600,
        operator: "ada".to_owned(),
    };
    rig.operator().create_join_token(wanted).await.unwrap().into_inner().token.parse().unwrap()
}

#[tokio::test]
async fn who_has_no_token_that_counts_learns_of_no_name_and_writes_no_long_line() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            let _here = rig.follow("live-1", false);
            let revoked = Revocation { name: "live-2".to_owned(), revoked: true, ..Revocation::default() };
            rig.operator().change_revocation(revoked).await.unwrap();
            let good = join_token(&rig, "live", &[]).await;
            until("it is here, which whoever has a token is told", async || {
                let refused = enrol(&rig, &good, "live", "live-1").await.unwrap_err();
                (refused.code() == Code::AlreadyExists).then_some(())
            })
            .await;
            let refused = enrol(&rig, &good, "live", "live-2").await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
            let listed =
                rig.operator().list_join_tokens(ListJoinTokensRequest {}).await.unwrap().into_inner();
            assert_eq!(listed.tokens[0].uses_taken, 0, "and takes no use of it");

            let invented = JoinToken::draw(rig.identity.fingerprint());
            for node in ["live-1", "live-2", "live-3"] {
                let refused = enrol(&rig, &invented, "live", node).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unauthenticated, "{node}: {refused:?}");
            }
            let refused = enrol(&rig, &invented, &"k".repeat(3_000), "live-3").await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "before it is told of in the log: {refused:?}");
        })
        .await;
}

#[tokio::test]
async fn the_name_of_a_node_that_is_away_is_no_backends() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            let node = rig.follow("live-1", true);
            until("it is there", async || node.connected().then_some(())).await;
            node.leave().await;
            until("it is away, and its name stays", async || {
                let token = join_token(&rig, "backend", &["rooms"]).await;
                let refused = enrol(&rig, &token, "backend", "live-1").await.unwrap_err();
                refused.message().contains("is that of a live node: give this one another name").then_some(())
            })
            .await;
            let token = join_token(&rig, "backend", &["rooms"]).await;
            enrol(&rig, &token, "backend", "rooms-1").await.unwrap();
            // Another seed leads on the same database: tokens have let in who had them.
            seed.kill();
            drop(datastore);
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            let token = join_token(&rig, "live", &[]).await;
            let refused = enrol(&rig, &token, "live", "rooms-1").await.unwrap_err();
            assert!(refused.message().contains("is that of a backend"), "{refused:?}");
        })
        .await;
}

/// Credentials of a backend for the pool "rooms".
fn backend(rig: &Rig, node: &str) -> Identity {
    let folder = rig.data.path().join(node);
    let pools = vec!["rooms".to_owned()];
    let peer = protoplex_wire::gate::Peer {
        cluster: rig.identity.cluster(),
        kind: Kind::Backend,
        node: node.to_owned(),
        pools,
    };
    protoplex_wire::identity::make_credentials(&rig.identity, &folder, &peer, Duration::from_secs(600))
        .unwrap();
    Identity::credentials(&folder).unwrap()
}

/// How a backend is answered that says that it is this member.
async fn register(rig: &Rig, backend: &Identity, member: Member) -> Result<(), Status> {
    let mut client = SeedClient::new(backend.channel(&rig.seed.to_string()).unwrap());
    let [node, kind] = ["rooms-1", "backend"].map(str::to_owned);
    let hello = FollowHello {
        node,
        kind,
        member: Some(member),
        incarnation: 1,
        attempt: 1,
        ..FollowHello::default()
    };
    let owned = follow_request::Message::Owned(Owned { keys: Vec::new(), last: true });
    let opening = [follow_request::Message::Hello(hello), owned].map(said);
    let requests = stream::iter(opening).chain(stream::pending());
    let mut replies = client.follow(requests).await?.into_inner();
    timeout(DEADLINE, replies.message()).await.unwrap().map(drop)
}

#[tokio::test]
async fn row_a_member_is_where_a_server_can_be_and_has_texts_for_terminals() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let backend = backend(&rig, "rooms-1");
    let at = |address: &str| {
        let [id, pool, instance] = ["rooms-1", "rooms", "i"].map(str::to_owned);
        Member { id, pool, address: address.to_owned(), instance, zone: String::new() }
    };
    for (member, why) in [
        (at("169.254.169.254:80"), "is link-local"),
        (at("224.0.0.1:80"), "is of a multicast group"),
        (at("255.255.255.255:80"), "is for broadcasts"),
        (at("0.0.0.0:80"), "is unspecified"),
        (Member { zone: "a\u{1b}[31m".to_owned(), ..at("127.0.0.1:9") }, "zone has control characters"),
        (Member { id: "rooms-1:\n".to_owned(), ..at("127.0.0.1:9") }, "member id has control characters"),
    ] {
        let refused = register(&rig, &backend, member).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(why), "{why}: {refused:?}");
    }
    register(&rig, &backend, at("127.0.0.1:9")).await.unwrap();
}

#[tokio::test]
async fn row_a_node_tells_of_itself_in_bounds() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let hello = || join_hello("proxy-1");
    let child = |state: &str| ChildState { state: state.to_owned(), ..ChildState::default() };
    let of = |children| Some(NodeState { children, ..NodeState::default() });
    for (hello, state, why) in [
        (JoinHello { listens: vec!["http".to_owned(); 257], ..hello() }, None, Some("256 addresses at most")),
        (JoinHello { version: "1\u{7}".to_owned(), ..hello() }, None, Some("has control characters")),
        (hello(), of(vec![child("RUNNING"); 1_025]), Some("1024 children at most")),
        (hello(), of(vec![child("RUNNING\u{1b}")]), Some("a child's state is a word")),
        (hello(), of(vec![child(&"R".repeat(1_000))]), Some("a child's state is a word")),
        (hello(), of(vec![child("RUNNING"); 512]), None),
    ] {
        let (say, requests) = mpsc::channel(4);
        say.send(told(join_request::Message::Hello(hello))).await.unwrap();
        if let Some(state) = state {
            say.send(told(join_request::Message::State(state))).await.unwrap();
        }
        let answers = of_proxy(&rig, "proxy-1").join(ReceiverStream::new(requests)).await.unwrap();
        let mut answers = answers.into_inner();
        // A welcome, where seeds are, and that the state is seen.
        let mut refused = None;
        for _ in 0..3 {
            match timeout(DEADLINE, answers.message()).await.expect("an answer") {
                Ok(Some(JoinReply { message: Some(join_reply::Message::Seen(_)) })) => break,
                Ok(_) => {}
                Err(status) => {
                    refused = Some(status);
                    break;
                }
            }
        }
        let told = refused.as_ref().map(Status::message);
        assert_eq!(told.is_some(), why.is_some(), "{why:?}: {told:?}");
        assert!(told.unwrap_or_default().contains(why.unwrap_or_default()), "{told:?}");
    }
}
