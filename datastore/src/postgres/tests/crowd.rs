//! Two datastores on one database, many callers at each.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, future, stream};
use protoplex_wire::clock::BootTime;
use tokio::sync::oneshot;

use super::*;

/// Callers at each of the two.
const CALLERS: u32 = 8;

async fn two(database: &Postgres) -> [Arc<PgStore>; 2] {
    [database.open().await, database.open().await]
}

/// What a token has taken, and what its uploads say that it should have.
fn taken(database: &Postgres) -> (String, String) {
    let kept = database.run("SELECT uses_taken, bytes_taken FROM tokens");
    let summed = database.run(
        "SELECT count(*), coalesce(sum(coalesce(size, reserved_bytes)), 0) FROM uploads LEFT JOIN files USING (reference)
         WHERE state <> 'aborted'",
    );
    (kept, summed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_uses_nor_quota_are_ever_exceeded() {
    const USES: u32 = 20;
    const QUOTA: u64 = 10_000;
    let database = Postgres::new();
    let stores = two(&database).await;
    let token = token(&stores[0], |terms| (terms.uses, terms.quota_bytes) = (USES, QUOTA)).await;
    // Each begins ten; every third is aborted by way of the other datastore, every third completed, one left open.
    let caller = async |number: u32| {
        let (own, other) = (&stores[number as usize % 2], &stores[(number as usize + 1) % 2]);
        let mut holds = 0;
        for n in 0..10 {
            let begun = upload(&format!("u{number}-{n}"), &token, Some(600));
            if own.begin_upload(begun.clone()).await.unwrap().refusal() != TokenRefusal::None {
                continue;
            }
            match n % 3 {
                0 => other.abort_upload(&begun.upload).await.unwrap(),
                1 => {
                    other.complete_upload(completion(&begun, number * 100 + n, 500)).await.unwrap();
                    holds += 500;
                }
                _ => holds += 600,
            }
        }
        holds
    };
    let held: u64 = future::join_all((0..2 * CALLERS).map(caller)).await.into_iter().sum();
    assert!((QUOTA - 600..=QUOTA).contains(&held), "all of it is taken, and no more: {held}");
    let (kept, summed) = taken(&database);
    assert_eq!(kept, summed);
    let uses: u32 = kept.split('|').next().unwrap().parse().unwrap();
    assert!(uses <= USES, "{uses}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_use_goes_to_one_of_all_callers() {
    let database = Postgres::new();
    let stores = two(&database).await;
    let token = token(&stores[0], |terms| terms.uses = 1).await;
    let callers = (0..2 * CALLERS).map(|n| {
        let request = upload(&format!("u{n}"), &token, Some(1));
        stores[n as usize % 2].begin_upload(request)
    });
    let replies = future::try_join_all(callers).await.unwrap();
    assert_eq!(replies.iter().filter(|reply| reply.refusal() == TokenRefusal::None).count(), 1);
    assert_eq!(taken(&database), ("1|1".to_owned(), "1|1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_id_goes_to_one_of_two_tokens() {
    let database = Postgres::new();
    let stores = two(&database).await;
    let tokens = [token(&stores[0], |_| {}).await, token(&stores[0], |_| {}).await];
    for round in 0..20 {
        let watched = |n: usize| BeginUploadRequest {
            watch: format!("w{round}"),
            ..upload(&format!("u{round}-{n}"), &tokens[n], Some(1))
        };
        let (one, other) =
            tokio::join!(stores[0].begin_upload(watched(0)), stores[1].begin_upload(watched(1)));
        let refusals = [one.unwrap().refusal(), other.unwrap().refusal()];
        assert!(refusals.contains(&TokenRefusal::None), "{refusals:?}");
        assert!(refusals.contains(&TokenRefusal::WatchTaken), "{refusals:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_and_its_begin_agree_wherever_they_are_made() {
    let database = Postgres::new();
    let stores = two(&database).await;
    let token = token(&stores[0], |_| {}).await;
    for round in 0..20 {
        let id = format!("u{round}");
        let (begun, aborted) =
            tokio::join!(stores[0].begin_upload(upload(&id, &token, Some(1))), stores[1].abort_upload(&id));
        aborted.unwrap();
        assert!(matches!(begun, Ok(_) | Err(StoreError::Conflict(_))), "{begun:?}");
    }
    assert_eq!(taken(&database), ("0|0".to_owned(), "0|0".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_have_versions_of_their_own() {
    let database = Postgres::new();
    let stores = two(&database).await;
    let callers = (0..2 * CALLERS).map(async |n| {
        let store = &stores[n as usize % 2];
        let mut versions = Vec::new();
        for round in 0..5 {
            versions.push(handler(store, &format!("h{n}-{round}")).await.unwrap());
        }
        versions
    });
    let versions: Vec<u64> = future::join_all(callers).await.concat();
    let distinct: BTreeSet<_> = versions.iter().collect();
    assert_eq!((versions.len(), distinct.len()), (80, 80));
    let routes = stores[0].load_routes().await.unwrap();
    assert_eq!((routes.handlers.len(), Some(&routes.table_version)), (80, versions.iter().max()));
}

fn lease(holder: &str, term: u64, ttl_ms: u32) -> TakeLeaseRequest {
    TakeLeaseRequest { name: "seed".to_owned(), holder: holder.to_owned(), ttl_ms, term }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_one_holder_and_its_term_grows() {
    let database = Postgres::new();
    let stores = two(&database).await;
    // So short that it often ends while they are at it.
    let callers = (0..2 * CALLERS).map(async |n| {
        let store = &stores[n as usize % 2];
        let mut terms = Vec::new();
        for _ in 0..20 {
            let reply = store.take_lease(lease(&format!("seed-{n}"), 0, 5)).await.unwrap();
            terms.extend(reply.granted.then_some(reply.term));
        }
        assert!(terms.is_sorted(), "{terms:?}");
        terms
    });
    let mut terms = future::join_all(callers).await.concat();
    terms.sort_unstable();
    assert!(terms.len() > 1, "it changed hands");
    assert_eq!(terms, (1..=terms.len() as u64).collect::<Vec<_>>(), "no term is given twice");
}

#[tokio::test]
async fn a_lease_holds_at_both_datastores_and_its_old_holder_is_fenced_at_both() {
    const TTL: Duration = Duration::from_secs(2);
    let ttl_ms = TTL.as_millis() as u32;
    let database = Postgres::new();
    let [one, other] = two(&database).await;
    assert!(one.take_lease(lease("a", 0, ttl_ms)).await.unwrap().granted);
    let seen = other.peek_lease("seed").await.unwrap();
    assert_eq!((seen.held, seen.term, seen.holder.as_str()), (true, 1, "a"));
    // Renewed by way of either.
    let mut asked = BootTime::now();
    for store in [&one, &other, &one] {
        asked = BootTime::now();
        assert!(store.take_lease(lease("a", 1, ttl_ms)).await.unwrap().granted);
        for store in [&one, &other] {
            assert!(!store.take_lease(lease("b", 0, ttl_ms)).await.unwrap().granted);
        }
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !other.take_lease(lease("b", 0, 60_000)).await.unwrap().granted {
        assert!(tokio::time::Instant::now() < deadline, "it never ends");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(BootTime::now().since(asked) >= TTL, "not before its end");
    for store in [&one, &other] {
        assert!(!store.take_lease(lease("a", 1, ttl_ms)).await.unwrap().granted, "fenced");
        let seen = store.peek_lease("seed").await.unwrap();
        assert_eq!((seen.held, seen.term, seen.holder.as_str()), (true, 2, "b"));
    }
}

#[tokio::test]
async fn a_datastore_that_nobody_has_asked_yet_knows_when_a_lease_ends() {
    const TTL: Duration = Duration::from_secs(2);
    let database = Postgres::new();
    let [one, other] = two(&database).await;
    let taken = BootTime::now();
    assert!(one.take_lease(lease("a", 0, TTL.as_millis() as u32)).await.unwrap().granted);
    let late = TTL + 2 * leases::LOOK_EVERY;
    while BootTime::now().since(taken) < late {
        sleep(Duration::from_millis(5)).await;
    }
    // The first that it hears of it; else it would count the lease's whole time from here.
    let took_over = other.take_lease(lease("b", 0, 60_000)).await.unwrap();
    assert_eq!((took_over.granted, took_over.term), (true, 2));
}

#[tokio::test]
async fn what_one_datastore_has_told_to_be_over_no_other_renews() {
    let database = Postgres::new();
    let [one, other] = two(&database).await;
    assert!(one.take_lease(lease("a", 0, 50)).await.unwrap().granted);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while other.peek_lease("seed").await.unwrap().held {
        assert!(tokio::time::Instant::now() < deadline, "it never ends");
    }
    // A third one sees it for the first time, and doesn't count its time anew.
    let third = database.open().await;
    for store in [&one, &other, &third] {
        assert!(!store.take_lease(lease("a", 1, 60_000)).await.unwrap().granted);
        assert!(!store.peek_lease("seed").await.unwrap().held);
    }
}

#[tokio::test]
async fn deployments_wait_for_each_other_at_both_datastores() {
    let database = Postgres::new();
    let [one, other] = two(&database).await;
    let asset = |path: &str| Asset { path: path.to_owned(), ..Default::default() };
    let (sent, begun) = oneshot::channel();
    let (go_on, last) = oneshot::channel();
    let slow = stream::iter([Ok(asset("/a"))]).chain(Box::pin(stream::once(async move {
        sent.send(()).unwrap();
        last.await.unwrap()
    })));
    let first = tokio::spawn(async move { one.put_build("*", 0, slow).await });
    begun.await.unwrap();
    let second = tokio::spawn(async move { other.put_build("*", 0, stream::iter([Ok(asset("/c"))])).await });
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while database.run(waiting) == "0" {
        assert!(tokio::time::Instant::now() < deadline, "the second doesn't wait");
        sleep(Duration::from_millis(5)).await;
    }
    go_on.send(Ok(Asset { path: "/b".to_owned(), ..Default::default() })).unwrap();
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!((first.assets, second.assets), (2, 1));
    assert!(first.version < second.version);
}
