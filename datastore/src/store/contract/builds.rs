//! App builds.

use futures_util::{StreamExt, stream};
use protoplex_wire::proto::{Asset, Build};
use tokio::sync::oneshot;

use super::{Database, until};
use crate::store::{Store, StoreError, StoreResult};

const HOST: &str = "*.example.com";

fn asset(path: &str, identity: &str) -> Asset {
    Asset {
        path: path.to_owned(),
        content_type: "text/html".to_owned(),
        identity: identity.into(),
        gzip: vec![0, 1],
        brotli: Vec::new(),
    }
}

async fn deploy<S: Store>(store: &S, host: &str, assets: Vec<Asset>) -> StoreResult<Build> {
    store.put_build(host, 0, stream::iter(assets.into_iter().map(Ok))).await
}

/// Every asset, in the order in which they are read.
async fn read<S: Store>(store: &S, version: u64) -> StoreResult<Vec<Asset>> {
    let mut assets: Vec<Asset> = Vec::new();
    loop {
        let after = assets.last().map_or("", |asset| asset.path.as_str());
        match store.next_asset(version, after).await? {
            Some(asset) => assets.push(asset),
            None => return Ok(assets),
        }
    }
}

pub(crate) async fn a_build_is_read_back_whole(database: &impl Database) {
    let store = database.open().await;
    let (a, b, c) = (asset("/a", "1"), asset("/b", ""), asset("/c", "345"));
    let build = deploy(&*store, "*.Example.com", vec![c.clone(), a.clone(), b.clone()]).await.unwrap();
    assert_eq!((build.host.as_str(), build.assets, build.bytes), (HOST, 3, 4));
    assert_eq!(build.digest.len(), 64);
    assert!(build.version > 0 && build.deployed_at_ms > 0);
    assert_eq!(store.load_routes().await.unwrap().builds, vec![build.clone()]);
    assert_eq!(read(&*store, build.version).await.unwrap(), vec![a, b, c]);
    let unknown = read(&*store, build.version + 1).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))), "{unknown:?}");
    assert!(read(&*store, u64::MAX).await.is_err());
}

pub(crate) async fn a_build_that_breaks_off_leaves_nothing(database: &impl Database) {
    let store = database.open().await;
    let kept = deploy(&*store, HOST, vec![asset("/a", "1")]).await.unwrap();
    let broken = stream::iter([Ok(asset("/a", "2")), Err(StoreError::Interrupted("gone".to_owned()))]);
    let error = store.put_build(HOST, 0, broken).await;
    assert!(matches!(error, Err(StoreError::Interrupted(_))), "{error:?}");
    assert_eq!(store.load_routes().await.unwrap().builds, vec![kept.clone()]);
    assert!(read(&*store, kept.version + 1).await.is_err());
    assert_eq!(read(&*store, kept.version).await.unwrap(), vec![asset("/a", "1")]);
}

pub(crate) async fn a_dropped_deployment_leaves_nothing(database: &impl Database) {
    let store = database.open().await;
    let (sent, received) = oneshot::channel();
    let endless = stream::iter([Ok(asset("/a", "1"))]).chain(Box::pin(stream::once(async move {
        sent.send(()).unwrap();
        std::future::pending().await
    })));
    {
        // The first asset is written when the second is asked for; then the call is dropped.
        let deployment = store.put_build(HOST, 0, endless);
        tokio::select! {
            _ = deployment => panic!("it has no end"),
            _ = received => {}
        }
    }
    assert!(store.load_routes().await.unwrap().builds.is_empty());
    let whole = deploy(&*store, HOST, vec![asset("/b", "2")]).await.unwrap();
    assert_eq!(read(&*store, whole.version).await.unwrap(), vec![asset("/b", "2")]);
    for version in 1..whole.version {
        assert!(read(&*store, version).await.is_err());
    }
}

pub(crate) async fn what_no_build_can_have_is_refused(database: &impl Database) {
    let store = database.open().await;
    let table = [
        (HOST, vec![]),
        (HOST, vec![asset("a", "")]),
        (HOST, vec![asset("/../a", "")]),
        (HOST, vec![asset("/a", ""), asset("/a", "")]),
        (HOST, vec![Asset { gzip: vec![0; (16 << 20) + 1], ..asset("/a", "") }]),
        ("*example.com", vec![asset("/a", "")]),
    ];
    for (host, assets) in table {
        let error = deploy(&*store, host, assets).await;
        assert!(matches!(error, Err(StoreError::Invalid(_))), "{error:?}");
    }
    assert!(store.load_routes().await.unwrap().builds.is_empty());
    deploy(&*store, HOST, vec![Asset { identity: vec![0; 16 << 20], ..asset("/a", "") }]).await.unwrap();
}

pub(crate) async fn the_last_three_builds_are_kept(database: &impl Database) {
    let store = database.open().await;
    let mut versions = Vec::new();
    for n in 0..5 {
        let build = deploy(&*store, HOST, vec![asset("/a", &n.to_string()), asset("/b", "")]).await.unwrap();
        versions.push(build.version);
        assert_eq!(store.load_routes().await.unwrap().builds, vec![build]);
    }
    assert!(versions.is_sorted() && versions[0] < versions[1], "{versions:?}");
    for gone in &versions[..2] {
        assert!(matches!(read(&*store, *gone).await, Err(StoreError::NotFound(_))));
        // Whoever has read half of it is told, and doesn't take the half for the whole.
        assert!(matches!(store.next_asset(*gone, "/a").await, Err(StoreError::NotFound(_))));
    }
    for (n, kept) in versions.iter().enumerate().skip(2) {
        assert_eq!(read(&*store, *kept).await.unwrap()[0].identity, n.to_string().into_bytes());
    }
}

pub(crate) async fn hosts_have_builds_of_their_own(database: &impl Database) {
    let store = database.open().await;
    let one = deploy(&*store, "a.example", vec![asset("/a", "1")]).await.unwrap();
    for _ in 0..4 {
        deploy(&*store, "b.example", vec![asset("/a", "2")]).await.unwrap();
    }
    let builds = futures_util::future::try_join_all(
        ["c.example", "d.example", "c.example"].map(|host| deploy(&*store, host, vec![asset("/a", host)])),
    )
    .await
    .unwrap();
    let hosts: Vec<_> =
        store.load_routes().await.unwrap().builds.into_iter().map(|build| build.host).collect();
    assert_eq!(hosts, ["a.example", "b.example", "c.example", "d.example"]);
    assert_eq!(read(&*store, one.version).await.unwrap(), vec![asset("/a", "1")]);
    for build in builds {
        assert_eq!(read(&*store, build.version).await.unwrap(), vec![asset("/a", &build.host)]);
    }
}

pub(crate) async fn builds_outlive_a_crash(database: &impl Database) {
    let store = database.open().await;
    let kept = deploy(&*store, HOST, vec![asset("/a", "1")]).await.unwrap();
    let (sent, mut received) = oneshot::channel();
    let stuck = {
        let store = store.clone();
        let assets = stream::iter([Ok(asset("/b", "2"))]).chain(Box::pin(stream::once(async move {
            sent.send(()).unwrap();
            std::future::pending().await
        })));
        tokio::spawn(async move { store.put_build(HOST, 0, assets).await.map(drop) })
    };
    until("half a build is written", async || received.try_recv().ok()).await;
    stuck.abort();
    stuck.await.unwrap_err();
    drop(store);

    let store = database.open().await;
    assert_eq!(store.load_routes().await.unwrap().builds, vec![kept.clone()]);
    assert_eq!(read(&*store, kept.version).await.unwrap(), vec![asset("/a", "1")]);
    let next = deploy(&*store, HOST, vec![asset("/a", "3")]).await.unwrap();
    assert!(next.version > kept.version);
}
