//! Handlers and builds: refused with reasons, stored before they are acknowledged, pushed to those that follow.

use futures_util::stream;
use protoplex_wire::identity::Kind;
use protoplex_wire::proto::{
    Asset, BuildEnd, ChangeHandlersRequest, DeployHeader, DeployRequest, Directory, ExplainRequest, Handler,
    HandlerChanges, HandlerHistoryRequest, HandlersAtRequest, JoinHello, JoinRequest, ListHandlersRequest,
    NodeState, deploy_request, join_reply, join_request, seed_client::SeedClient,
};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::rig::{Rig, adding, handler, leads, removing, until};

#[tokio::test]
async fn a_handler_survives_a_killed_seed_and_reaches_every_follower() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            let follower = rig.follow("proxy-1", false);
            let version = rig
                .operator()
                .change_handlers(adding(handler("rooms", "/room/{room}")))
                .await
                .unwrap()
                .into_inner()
                .table_version;
            let table = until("the table has it", async || {
                Some(follower.table()).filter(|table| table.version >= version)
            })
            .await;
            assert_eq!(table.handlers[0].host, "rooms.example.com");
            seed.kill();

            let seed = rig.start_seed().await;
            leads(&seed).await;
            let list = rig.operator().list_handlers(ListHandlersRequest {}).await.unwrap().into_inner();
            assert_eq!(list.handlers.len(), 1);
            assert!(list.table_version > version, "versions grow over restarts");
            let removed = rig.operator().change_handlers(removing("rooms")).await.unwrap();
            let version = removed.into_inner().table_version;
            until("the table is empty", async || {
                Some(follower.table()).filter(|table| table.version >= version && table.handlers.is_empty())
            })
            .await;
        })
        .await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let mut operator = rig.operator();
    operator.change_handlers(adding(handler("rooms", "/room/{room}"))).await.unwrap();
    for (bad, code, words) in [
        (handler("rooms", "/x/{room}"), Code::AlreadyExists, "choose another name"),
        (handler("other", "/room/{room}"), Code::AlreadyExists, "those of handler \"rooms\""),
        (
            handler("other", "/x/{id}"),
            Code::InvalidArgument,
            "{room} is no capture of the path (it has {id})",
        ),
        (
            Handler { placement: 9, ..handler("other", "/x/{room}") },
            Code::InvalidArgument,
            "choose \"owned\"",
        ),
    ] {
        let status = operator.change_handlers(adding(bad)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
    }
    let gone = operator.change_handlers(removing("nobody")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(operator.list_handlers(ListHandlersRequest {}).await.unwrap().into_inner().handlers.len(), 1);
}

#[tokio::test]
async fn a_disabled_handler_is_kept_and_not_routed() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            let follower = rig.follow("proxy-1", false);
            let mut operator = rig.operator();
            operator.change_handlers(adding(handler("rooms", "/room/{room}"))).await.unwrap();
            operator.change_handlers(adding(handler("other", "/other/{room}"))).await.unwrap();
            let replace = vec![Handler { disabled: true, ..handler("rooms", "/room/{room}") }];
            let disable = HandlerChanges { replace, ..HandlerChanges::default() };
            let changed = operator.change_handlers(disable.clone()).await.unwrap().into_inner();
            assert!(changed.changed);
            let table = until("the table has it no more", async || {
                Some(follower.table()).filter(|table| table.version >= changed.table_version)
            })
            .await;
            assert_eq!(table.handlers.len(), 1);
            assert_eq!((table.handlers[0].name.as_str(), table.handlers[0].since), ("other", 0));

            let again = operator.change_handlers(disable).await.unwrap().into_inner();
            assert_eq!((again.changed, again.version), (false, changed.version));
            let list = operator.list_handlers(ListHandlersRequest {}).await.unwrap().into_inner();
            let rooms = list.handlers.iter().find(|handler| handler.name == "rooms").unwrap();
            assert_eq!((rooms.disabled, rooms.since, list.version), (true, changed.version, changed.version));
        })
        .await;
}

#[tokio::test]
async fn a_change_that_was_made_of_another_version_changes_nothing() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let mut operator = rig.operator();
    let first = operator.change_handlers(adding(handler("a", "/a/{room}"))).await.unwrap().into_inner();
    let of = |base, change| HandlerChanges { base, ..change };
    let dry = HandlerChanges { dry_run: true, ..of(first.version, removing("a")) };
    let dry = operator.change_handlers(dry).await.unwrap().into_inner();
    assert_eq!((dry.changed, dry.version), (true, first.version));
    operator.change_handlers(of(first.version, adding(handler("b", "/b/{room}")))).await.unwrap();
    let late = operator.change_handlers(of(first.version, removing("a"))).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted);
    assert!(late.message().contains("somebody else has changed the handlers"), "{late:?}");
    let history = operator.handler_history(HandlerHistoryRequest {}).await.unwrap().into_inner().versions;
    assert_eq!(
        (history.len(), history[0].operator.as_str(), history[0].what.as_str()),
        (3, "local (says ada)", "added b")
    );
    let before =
        operator.handlers_at(HandlersAtRequest { version: first.version }).await.unwrap().into_inner();
    assert_eq!(before.handlers.len(), 1);
    let unknown = operator.handlers_at(HandlersAtRequest { version: 99 }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn a_change_that_another_seed_made_is_heard_of_by_the_next_one() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let mut operator = rig.operator();
    operator.change_handlers(adding(handler("a", "/a/{room}"))).await.unwrap();
    // As a call whose answer was lost leaves it.
    let mut datastore = rig.datastore();
    let behind =
        ChangeHandlersRequest { base: 2, put: vec![handler("b", "/b/{room}")], ..Default::default() };
    datastore.change_handlers(behind).await.unwrap();
    let taken = operator.change_handlers(adding(handler("b", "/c/{room}"))).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    let added = operator.change_handlers(adding(handler("c", "/c/{room}"))).await.unwrap().into_inner();
    assert_eq!(added.version, 4);
}

fn header(host: &str) -> DeployRequest {
    DeployRequest { message: Some(deploy_request::Message::Header(DeployHeader { host: host.to_owned() })) }
}

fn end() -> DeployRequest {
    DeployRequest { message: Some(deploy_request::Message::End(BuildEnd {})) }
}

fn asset(path: &str, text: &str) -> DeployRequest {
    let (path, identity) = (path.to_owned(), text.as_bytes().to_vec());
    let asset = Asset { path, identity, content_type: "text/html".to_owned(), ..Asset::default() };
    DeployRequest { message: Some(deploy_request::Message::Asset(asset)) }
}

#[tokio::test]
async fn a_build_is_pushed_and_fetched_and_a_broken_one_changes_nothing() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            let follower = rig.follow("fileserver-1", false);
            let messages =
                vec![header("Example.com"), asset("/index.html", "hello"), asset("/a.html", "a"), end()];
            let build = rig.operator().deploy(stream::iter(messages)).await.unwrap().into_inner();
            assert_eq!((build.host.as_str(), build.assets), ("example.com", 2));
            until("the build is known", async || follower.builds().current.contains(&build).then_some(()))
                .await;
            let assets = follower.fetch_build(build.version).await.unwrap();
            assert_eq!(assets.iter().map(|asset| asset.identity.len()).sum::<usize>(), 6);

            for (messages, words) in [
                (vec![asset("/index.html", "x")], "begins with its header"),
                (vec![header("a b")], "host \"a b\""),
                (
                    vec![header("example.com"), asset("/b.html", "b"), header("example.com"), end()],
                    "one header",
                ),
                (vec![header("example.com"), asset("/b.html", "b")], "cut before its end"),
                (vec![header("example.com"), asset("/b.html", "b"), DeployRequest::default()], "neither"),
            ] {
                let status = rig.operator().deploy(stream::iter(messages)).await.unwrap_err();
                assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
                assert!(status.message().contains(words), "{status:?}");
            }
            assert_eq!(rig.status().await.builds, [build]);
            assert_eq!(follower.fetch_build(99).await.unwrap_err().code(), Code::NotFound);
        })
        .await;
}

#[tokio::test]
async fn nodes_that_join_are_shown_until_they_part() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let proxy = rig.identity.issue(Kind::Proxy, "proxy-1").unwrap();
    let mut client = SeedClient::new(proxy.channel(&rig.seed.to_string()).unwrap());
    let (say, said) = mpsc::channel(4);
    let [node, kind, instance] = ["proxy-1", "proxy", "a"].map(ToOwned::to_owned);
    let hello = JoinHello { node, kind, instance, ..JoinHello::default() };
    say.send(JoinRequest { message: Some(join_request::Message::Hello(hello.clone())) }).await.unwrap();
    let mut replies = client.join(ReceiverStream::new(said)).await.unwrap().into_inner();
    let first = replies.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(first, join_reply::Message::Welcome(welcome) if welcome.term > 0 && !welcome.idle));
    let second = replies.message().await.unwrap().unwrap().message.unwrap();
    let join_reply::Message::Directory(Directory { seeds, datastores }) = second else {
        panic!("{second:?}")
    };
    assert_eq!((seeds, datastores), (vec![rig.seed.to_string()], vec![rig.datastore.to_string()]));
    let state = NodeState { ready: true, ..NodeState::default() };
    say.send(JoinRequest { message: Some(join_request::Message::State(state.clone())) }).await.unwrap();
    assert!(matches!(replies.message().await.unwrap().unwrap().message, Some(join_reply::Message::Seen(_))));
    let nodes = rig.status().await.nodes;
    assert_eq!((&nodes[0].node, &nodes[0].state), (&Some(hello.clone()), &Some(state)));

    let (say_second, said) = mpsc::channel(4);
    let namesake = JoinHello { instance: "b".to_owned(), ..hello.clone() };
    say_second.send(JoinRequest { message: Some(join_request::Message::Hello(namesake)) }).await.unwrap();
    let refused =
        client.join(ReceiverStream::new(said)).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("taken by another instance"), "{refused:?}");
    let nodes: Vec<_> = rig.status().await.nodes.into_iter().map(|status| status.node).collect();
    assert_eq!(nodes, [Some(hello)], "the first is there as before");
    drop((say, replies));
    until("it is gone", async || rig.status().await.nodes.is_empty().then_some(())).await;

    let (say, said) = mpsc::channel(4);
    say.send(JoinRequest { message: Some(join_request::Message::State(NodeState::default())) })
        .await
        .unwrap();
    let status =
        client.join(ReceiverStream::new(said)).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn explaining_a_key_assigns_nothing() {
    let rig = Rig::new();
    let _datastore = rig.start_datastore().await;
    let seed = rig.start_seed().await;
    leads(&seed).await;
    let request = ExplainRequest { pool: "rooms".to_owned(), key: "1".to_owned(), zone: String::new() };
    let explanation = rig.operator().explain(request).await.unwrap().into_inner();
    assert_eq!((explanation.owner, explanation.recovering), (None, false));
    assert_eq!(rig.status().await.keys, 0);
}
