//! The datastore as other nodes meet it: real TLS, real gRPC, a real file.

use std::future::poll_fn;
use std::net::SocketAddr;

use futures_util::{StreamExt, stream};
use protoplex_wire::identity::{Kind, TrustedChannel};
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::{BuildEnd, Handler, Member, StoredFile, TokenRefusal};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::codegen::Service as _;

use super::*;

/// A datastore that serves, until it is told to drain.
struct Node {
    _data: TempDir,
    identity: Identity,
    address: SocketAddr,
    drain: Arc<Notify>,
    served: JoinHandle<Result<(), RunError>>,
}

impl Node {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let identity = Identity::open_or_create(&data.path().join("cluster")).unwrap();
        let store = Arc::new(SqliteStore::open(&data.path().join("protoplex.db")).await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Arc::new(Notify::new());
        let served = tokio::spawn({
            let identity = identity.issue(Kind::Datastore, "datastore-1").unwrap();
            let drain = Arc::clone(&drain);
            async move { serve(store, listener, &identity, drain.notified()).await }
        });
        Self { _data: data, identity, address, drain, served }
    }

    /// As a seed has it.
    fn client(&self) -> DatastoreClient<TrustedChannel> {
        self.client_as(Kind::Seed)
    }

    fn client_as(&self, kind: Kind) -> DatastoreClient<TrustedChannel> {
        self.client_of(&self.identity.issue(kind, "n-1").unwrap())
    }

    fn client_of(&self, identity: &Identity) -> DatastoreClient<TrustedChannel> {
        let channel = identity.channel(&self.address.to_string()).unwrap();
        DatastoreClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

fn host(host: &str) -> PutBuildRequest {
    PutBuildRequest { message: Some(Message::Host(host.to_owned())), term: 0 }
}

fn end() -> PutBuildRequest {
    PutBuildRequest { message: Some(Message::End(BuildEnd {})), term: 0 }
}

fn asset(path: &str, bytes: usize) -> PutBuildRequest {
    let asset = Asset {
        path: path.to_owned(),
        content_type: "text/html".to_owned(),
        identity: vec![b'x'; bytes],
        gzip: vec![b'y'; bytes],
        brotli: vec![b'z'; bytes],
    };
    PutBuildRequest { message: Some(Message::Asset(asset)), term: 0 }
}

fn token() -> CreateTokenRequest {
    CreateTokenRequest {
        host: "*".to_owned(),
        path_prefix: "/".to_owned(),
        max_bytes: 100,
        uses: 1,
        ..Default::default()
    }
}

fn begin(token: &str, upload: &str) -> BeginUploadRequest {
    BeginUploadRequest {
        token: token.to_owned(),
        host: "example.com".to_owned(),
        path: "/a".to_owned(),
        size: Some(5),
        upload: upload.to_owned(),
        watch: String::new(),
    }
}

#[tokio::test]
async fn an_upload_goes_its_way_over_the_wire() {
    let node = Node::start().await;
    let (mut client, mut tools) = (node.client_as(Kind::Fileserver), node.client_as(Kind::Operator));
    let token = tools.create_token(token()).await.unwrap().into_inner().token;
    let begun = client.begin_upload(begin(&token, "u1")).await.unwrap().into_inner();
    assert_eq!((begun.refusal(), begun.max_bytes), (TokenRefusal::None, 5));
    client.abort_upload(AbortUploadRequest { upload: "u1".to_owned() }).await.unwrap();
    client.begin_upload(begin(&token, "u2")).await.unwrap();
    let refused = client.begin_upload(begin(&token, "u3")).await.unwrap().into_inner();
    assert_eq!(refused.refusal(), TokenRefusal::UsedUp, "an answer, not an error");

    let reference = "a".repeat(128);
    let file = StoredFile {
        reference: reference.clone(),
        size: 5,
        stored_size: 5,
        encoding: "identity".to_owned(),
        node: "files-1".to_owned(),
        stored_sha256: "0".repeat(64),
        ..Default::default()
    };
    let done = CompleteUploadRequest {
        upload: "u2".to_owned(),
        file: Some(file),
        host: "example.com".to_owned(),
        path: "/a".to_owned(),
        content_type: "text/plain".to_owned(),
    };
    assert!(!client.complete_upload(done).await.unwrap().into_inner().existed);
    client.mark_stored(MarkStoredRequest { reference: reference.clone() }).await.unwrap();
    let found = client.find_file(FindFileRequest { reference }).await.unwrap().into_inner().file.unwrap();
    assert!(found.stored);
    let place = FindSiteRequest { host: "example.com".to_owned(), path: "/a".to_owned() };
    let site = client.find_site(place).await.unwrap().into_inner().site.unwrap();
    assert_eq!(site.file, Some(found));
    let page = tools.list_files(ListFilesRequest::default()).await.unwrap().into_inner();
    assert_eq!(page.sites, vec![site]);
}

#[tokio::test]
async fn a_seed_keeps_its_state_over_the_wire() {
    let node = Node::start().await;
    let mut client = node.client();
    let handler = Handler { name: "rooms".to_owned(), path: "/".to_owned(), ..Default::default() };
    let change = |base, put: &[Handler], remove: &[&str]| ChangeHandlersRequest {
        base,
        put: put.to_vec(),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let put = change(1, std::slice::from_ref(&handler), &[]);
    let added = client.change_handlers(put).await.unwrap().into_inner().version;
    let handler = Handler { since: added, ..handler };
    let member = Member { id: "m".to_owned(), pool: "rooms".to_owned(), ..Default::default() };
    client.put_member(PutMemberRequest { member: Some(member.clone()), revision: 1, term: 0 }).await.unwrap();
    let routes = client.load_routes(LoadRoutesRequest {}).await.unwrap().into_inner();
    assert_eq!((routes.table_version, routes.handlers, routes.members), (added, vec![handler], vec![member]));

    let removed = client.change_handlers(change(added, &[], &["rooms"])).await.unwrap().into_inner();
    assert!(removed.version > added);
    let history = client.handler_history(HandlerHistoryRequest {}).await.unwrap().into_inner().versions;
    assert_eq!(history.len(), 3);
    let before = client.handlers_at(HandlersAtRequest { version: added }).await.unwrap().into_inner();
    assert_eq!(before.handlers[0].name, "rooms");
    let gone = RemoveMemberRequest { pool: "rooms".to_owned(), id: "m".to_owned(), revision: 1, term: 0 };
    client.remove_member(gone).await.unwrap();
    let routes = client.load_routes(LoadRoutesRequest {}).await.unwrap().into_inner();
    assert!(routes.handlers.is_empty() && routes.members.is_empty());

    let lease =
        TakeLeaseRequest { name: "seed".to_owned(), holder: "seed-1".to_owned(), ttl_ms: 60_000, term: 0 };
    assert!(client.take_lease(lease).await.unwrap().into_inner().granted);
    let held = client.peek_lease(PeekLeaseRequest { name: "seed".to_owned() }).await.unwrap().into_inner();
    assert_eq!((held.held, held.term, held.holder.as_str()), (true, 1, "seed-1"));
}

#[tokio::test]
async fn errors_have_their_usual_codes() {
    let node = Node::start().await;
    let mut client = node.client();
    let handler = Handler { name: "a".to_owned(), path: "/".to_owned(), ..Default::default() };
    let other = Handler { name: "b".to_owned(), ..handler.clone() };
    let change = |base, handler| ChangeHandlersRequest { base, put: vec![handler], ..Default::default() };
    client.change_handlers(change(1, handler)).await.unwrap();
    let taken = client.change_handlers(change(2, other.clone())).await.unwrap_err();
    assert_eq!((taken.code(), taken.message()), (Code::AlreadyExists, "handler \"a\" has / already"));
    let stale = client.change_handlers(change(1, other)).await.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition);
    let mut client = node.client_as(Kind::Fileserver);
    let unknown = client.mark_stored(MarkStoredRequest { reference: String::new() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let broken = client.begin_upload(begin("px_x.y", "")).await.unwrap_err();
    assert_eq!(broken.code(), Code::InvalidArgument);
    let mut tools = node.client_as(Kind::Operator);
    let token = tools.create_token(token()).await.unwrap().into_inner().token;
    client.abort_upload(AbortUploadRequest { upload: "u".to_owned() }).await.unwrap();
    let late = client.begin_upload(begin(&token, "u")).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn each_kind_may_call_what_is_its_own_and_nobody_anything_without_a_certificate() {
    let node = Node::start().await;
    for kind in [Kind::Proxy, Kind::Live, Kind::Backend, Kind::Datastore, Kind::Operator, Kind::Fileserver] {
        let mut client = node.client_as(kind);
        let refused = client.load_routes(LoadRoutesRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{kind}");
        let name = if kind == Kind::Operator { "operator/n-1" } else { "n-1" };
        let why = format!("{name} is {}, and such may not call Datastore.LoadRoutes", kind.one());
        assert_eq!(refused.message(), why);
        let messages = stream::iter([host("*"), asset("/a", 1)]);
        let stream = client.put_build(messages).await.unwrap_err();
        assert_eq!(stream.code(), Code::PermissionDenied, "streams included");
    }
    let refused = node.client_as(Kind::Proxy).create_token(token()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let peek = PeekLeaseRequest { name: "seed".to_owned() };
    node.client_as(Kind::Backend).peek_lease(peek).await.unwrap();
    assert!(node.client().load_routes(LoadRoutesRequest {}).await.unwrap().into_inner().builds.is_empty());
}

#[tokio::test]
async fn who_is_revoked_is_refused_and_its_connection_is_cut() {
    let node = Node::start().await;
    let (mut seed, mut proxy) = (node.client(), node.identity.issue(Kind::Proxy, "proxy-1").unwrap());
    let mut other = node.client_as(Kind::Proxy);
    let mut client = node.client_of(&proxy);
    let peek = || PeekLeaseRequest { name: "seed".to_owned() };
    client.peek_lease(peek()).await.unwrap();
    let revoke = |revoked| Revocation { name: "proxy-1".to_owned(), revoked, ..Default::default() };
    seed.change_revocation(revoke(true)).await.unwrap();
    let refused = crate::store::contract::until("it is refused", async || {
        client.peek_lease(peek()).await.err().filter(|status| status.code() == Code::PermissionDenied)
    });
    assert_eq!(refused.await.message(), "proxy-1 is revoked; an operator may readmit it");
    // Another certificate of the same name is no better.
    proxy = node.identity.issue(Kind::Proxy, "proxy-1").unwrap();
    assert!(node.client_of(&proxy).peek_lease(peek()).await.is_err());
    other.peek_lease(peek()).await.unwrap();
    seed.change_revocation(revoke(false)).await.unwrap();
    crate::store::contract::until("it is readmitted", async || client.peek_lease(peek()).await.ok()).await;
}

#[tokio::test]
async fn another_cluster_does_not_trust_it() {
    let node = Node::start().await;
    let theirs = tempfile::tempdir().unwrap();
    let identity = Identity::open_or_create(&theirs.path().join("cluster")).unwrap();
    let error = node.client_of(&identity).load_routes(LoadRoutesRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    node.client().load_routes(LoadRoutesRequest {}).await.unwrap();
}

#[tokio::test]
async fn without_tls_there_is_no_answer() {
    let node = Node::start().await;
    let mut plain = tokio::net::TcpStream::connect(node.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut said = Vec::new();
    // A TLS alert at most, then the end.
    let _ = plain.read_to_end(&mut said).await;
    assert!(said.len() <= 7, "{said:?}");
    node.client().load_routes(LoadRoutesRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_build_goes_in_and_out_with_the_largest_assets() {
    let node = Node::start().await;
    let mut client = node.client();
    let messages = stream::iter([host("*"), asset("/b", MAX_ASSET_BYTES), asset("/a", 1), end()]);
    let build = client.put_build(messages).await.unwrap().into_inner();
    assert_eq!((build.assets, build.bytes), (2, MAX_ASSET_BYTES as u64 + 1));
    let mut assets =
        client.get_build(FetchBuildRequest { version: build.version }).await.unwrap().into_inner();
    let sizes = async |assets: &mut Streaming<Asset>| {
        assets.message().await.unwrap().map(|asset| (asset.path, asset.identity.len(), asset.brotli.len()))
    };
    assert_eq!(sizes(&mut assets).await, Some(("/a".to_owned(), 1, 1)));
    assert_eq!(sizes(&mut assets).await, Some(("/b".to_owned(), MAX_ASSET_BYTES, MAX_ASSET_BYTES)));
    assert_eq!(sizes(&mut assets).await, None);

    let mut none = client.get_build(FetchBuildRequest { version: 99 }).await.unwrap().into_inner();
    assert_eq!(none.message().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_build_out_of_order_is_refused() {
    let node = Node::start().await;
    let mut client = node.client();
    let none = PutBuildRequest { message: None, term: 0 };
    let table = [
        vec![],
        vec![asset("/a", 1)],
        vec![host("*")],
        vec![host("*"), end()],
        vec![host("*"), asset("/a", 1)],
        vec![host("*"), asset("/a", 1), host("*"), end()],
        vec![host("*"), asset("/a", 1), none],
        vec![host("*"), asset("/a", MAX_ASSET_BYTES + 1), end()],
    ];
    for messages in table {
        let refused = client.put_build(stream::iter(messages)).await.unwrap_err();
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::OutOfRange), "{refused:?}");
    }
    assert!(client.load_routes(LoadRoutesRequest {}).await.unwrap().into_inner().builds.is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_build() {
    let node = Node::start().await;
    let (sent, more) = oneshot::channel::<()>();
    let messages = stream::iter([host("*"), asset("/a", 1)]).chain(stream::once(async move {
        sent.send(()).unwrap();
        std::future::pending().await
    }));
    let mut client = node.client();
    let deployment = tokio::spawn(async move { client.put_build(messages).await.map(drop) });
    more.await.unwrap();
    deployment.abort();
    assert!(deployment.await.unwrap_err().is_cancelled());
    // The next one waits until the first is known to be gone, and is whole.
    let mut client = node.client();
    let build =
        client.put_build(stream::iter([host("*"), asset("/b", 1), end()])).await.unwrap().into_inner();
    let routes = client.load_routes(LoadRoutesRequest {}).await.unwrap().into_inner();
    assert_eq!(routes.builds, vec![build]);
}

#[tokio::test]
async fn a_drain_answers_what_is_in_flight() {
    let node = Node::start().await;
    let mut client = node.client();
    client.load_routes(LoadRoutesRequest {}).await.unwrap();
    let (sent, more) = oneshot::channel::<()>();
    let (go_on, last) = oneshot::channel();
    let messages = stream::iter([host("*"), asset("/a", 1)]).chain(stream::once(async move {
        sent.send(()).unwrap();
        last.await.unwrap()
    }));
    let messages = messages.chain(stream::iter([end()]));
    let mut deploying = client.clone();
    let deployment = tokio::spawn(async move { deploying.put_build(messages).await });
    more.await.unwrap();
    node.drain.notify_one();
    // A drained socket takes no new connection; what it has goes on.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while node.client().load_routes(LoadRoutesRequest {}).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "it still takes connections");
    }
    assert!(!node.served.is_finished());
    go_on.send(asset("/b", 1)).unwrap();
    assert_eq!(deployment.await.unwrap().unwrap().into_inner().assets, 2);
    node.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_announced_message_is_no_longer_than_the_call_needs() {
    let node = Node::start().await;
    let announced = u32::try_from(MAX_CALL_BYTES + 1).unwrap();
    for (kind, method, refused) in [
        (Kind::Backend, "PeekLease", Some(Code::OutOfRange)),
        (Kind::Seed, "PutMember", Some(Code::OutOfRange)),
        (Kind::Fileserver, "CompleteUpload", Some(Code::OutOfRange)),
        (Kind::Seed, "ChangeHandlers", None),
    ] {
        let mut channel =
            node.identity.issue(kind, "n-1").unwrap().channel(&node.address.to_string()).unwrap();
        poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let mut head = vec![0];
        head.extend(announced.to_be_bytes());
        let begun = stream::iter([Ok::<_, Status>(head)]);
        // What may be that long is cut: then its end is what is wrong with it.
        let body = if refused.is_none() { begun.boxed() } else { begun.chain(stream::pending()).boxed() };
        let request = axum::http::Request::post(format!("/protoplex.v1.Datastore/{method}"))
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(axum::body::Body::from_stream(body)))
            .unwrap();
        let answer =
            timeout(Duration::from_secs(10), channel.call(request)).await.expect("an answer").unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), refused.unwrap_or(Code::Internal), "{method}: {status:?}");
    }
}

#[tokio::test]
async fn the_largest_table_of_handlers_goes_in() {
    let node = Node::start().await;
    let handler = |number: usize| Handler {
        name: format!("h-{number}"),
        path: format!("/{number}/{}", "p".repeat(1_000)),
        ..Default::default()
    };
    let put = (0..5_000).map(handler).collect();
    let change = ChangeHandlersRequest { base: 1, put, ..Default::default() };
    assert_eq!(node.client().change_handlers(change).await.unwrap().into_inner().version, 2);
}
