//! Leases. Those that have to last through a test last a minute.

use std::time::Duration;

use futures_util::stream;
use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{
    Asset, ChangeHandlersRequest, Member, PeekLeaseReply, PutMemberRequest, ReleaseLeaseRequest,
    RemoveMemberRequest, TakeLeaseReply, TakeLeaseRequest,
};

use super::handlers::handler;
use super::{Database, until};
use crate::store::{Store, StoreError};

const LONG_MS: u32 = 60_000;

async fn take<S: Store>(store: &S, holder: &str, term: u64, ttl_ms: u32) -> TakeLeaseReply {
    let request = TakeLeaseRequest { name: "seed".to_owned(), holder: holder.to_owned(), ttl_ms, term };
    store.take_lease(request).await.unwrap()
}

async fn peek<S: Store>(store: &S) -> PeekLeaseReply {
    store.peek_lease("seed").await.unwrap()
}

/// Term and holder of a lease of [`LONG_MS`] that is held.
async fn held<S: Store>(store: &S) -> (u64, String) {
    let PeekLeaseReply { held, term, holder, left_ms } = peek(store).await;
    assert!(held && (1..=LONG_MS + 1).contains(&left_ms), "{held} {left_ms}");
    (term, holder)
}

pub(crate) async fn one_of_many_takes_a_lease(database: &impl Database) {
    let store = database.open().await;
    assert_eq!(peek(&*store).await, PeekLeaseReply::default());
    let holders: Vec<_> = (0..16).map(|n| format!("seed-{n}")).collect();
    let replies =
        futures_util::future::join_all(holders.iter().map(|holder| take(&*store, holder, 0, LONG_MS))).await;
    assert_eq!(replies.iter().filter(|reply| reply.granted).count(), 1);
    let winner = &replies.iter().find(|reply| reply.granted).unwrap().holder;
    for reply in &replies {
        assert_eq!((reply.term, &reply.holder), (1, winner), "everybody is told who has it");
        assert!((1..=LONG_MS + 1).contains(&reply.left_ms));
    }
    assert_eq!(held(&*store).await, (1, winner.clone()));
}

pub(crate) async fn a_renewal_keeps_the_term(database: &impl Database) {
    let store = database.open().await;
    let unknown = take(&*store, "a", 1, LONG_MS).await;
    assert!(!unknown.granted, "what was never taken can't be renewed");
    assert!(take(&*store, "a", 0, LONG_MS).await.granted);
    for _ in 0..3 {
        let renewed = take(&*store, "a", 1, LONG_MS).await;
        assert_eq!((renewed.granted, renewed.term, renewed.left_ms), (true, 1, LONG_MS));
    }
    for (holder, term) in [("a", 2), ("b", 1), ("b", 0)] {
        let refused = take(&*store, holder, term, LONG_MS).await;
        assert_eq!((refused.granted, refused.term, refused.holder.as_str()), (false, 1, "a"));
    }
}

pub(crate) async fn the_same_holder_takes_it_anew_at_once(database: &impl Database) {
    let store = database.open().await;
    for term in 1..=3 {
        let taken = take(&*store, "a", 0, LONG_MS).await;
        assert_eq!((taken.granted, taken.term), (true, term));
    }
    assert!(!take(&*store, "a", 2, LONG_MS).await.granted, "an older self is fenced");
}

pub(crate) async fn a_lease_ends(database: &impl Database) {
    let store = database.open().await;
    let start = BootTime::now();
    take(&*store, "a", 0, 100).await;
    let taken =
        until("b has it", async || Some(take(&*store, "b", 0, LONG_MS).await).filter(|r| r.granted)).await;
    assert!(BootTime::now().since(start) >= Duration::from_millis(100), "not before its end");
    assert_eq!(taken.term, 2);
    assert!(!take(&*store, "a", 1, LONG_MS).await.granted);
    assert_eq!(held(&*store).await, (2, "b".to_owned()));
}

pub(crate) async fn an_ended_lease_is_not_renewed(database: &impl Database) {
    let store = database.open().await;
    take(&*store, "a", 0, 1).await;
    // A refused take tells that the lease is over without taking it; `peek` would end it.
    let over =
        until("over", async || Some(take(&*store, "b", 9, 1).await).filter(|reply| reply.left_ms == 0)).await;
    assert!(!over.granted);
    until("its last millisecond is over", async || {
        Some(take(&*store, "a", 1, 1).await).filter(|reply| !reply.granted)
    })
    .await;
    let anew = take(&*store, "a", 0, LONG_MS).await;
    assert_eq!((anew.granted, anew.term), (true, 2));
}

pub(crate) async fn peeking_ends_a_lease_for_good(database: &impl Database) {
    let store = database.open().await;
    take(&*store, "a", 0, 1).await;
    let told = until("over", async || Some(peek(&*store).await).filter(|reply| !reply.held)).await;
    assert_eq!((told.term, told.holder.as_str()), (1, "a"));
    assert!(!take(&*store, "a", 1, LONG_MS).await.granted);
    drop(store);

    // Although a restarted store doesn't know when a lease ended, this one it doesn't revive.
    let store = database.open().await;
    assert!(!peek(&*store).await.held);
    assert!(!take(&*store, "a", 1, LONG_MS).await.granted);
    let taken = take(&*store, "b", 0, LONG_MS).await;
    assert_eq!((taken.granted, taken.term), (true, 2));
}

pub(crate) async fn a_restart_holds_it_for_one_whole_life(database: &impl Database) {
    const TTL_MS: u32 = 300;
    let store = database.open().await;
    take(&*store, "a", 0, TTL_MS).await;
    drop(store);

    let start = BootTime::now();
    let store = database.open().await;
    let taken =
        until("b has it", async || Some(take(&*store, "b", 0, LONG_MS).await).filter(|r| r.granted)).await;
    assert!(BootTime::now().since(start) >= Duration::from_millis(TTL_MS.into()), "not before its end");
    assert_eq!(taken.term, 2);
}

pub(crate) async fn a_restart_lets_the_holder_go_on(database: &impl Database) {
    let store = database.open().await;
    take(&*store, "a", 0, LONG_MS).await;
    drop(store);

    let store = database.open().await;
    assert!(!take(&*store, "b", 0, LONG_MS).await.granted);
    let renewed = take(&*store, "a", 1, LONG_MS).await;
    assert_eq!((renewed.granted, renewed.term), (true, 1));
    let anew = take(&*store, "a", 0, LONG_MS).await;
    assert_eq!((anew.granted, anew.term), (true, 2));
}

pub(crate) async fn a_released_lease_is_anybodys_at_once(database: &impl Database) {
    let store = database.open().await;
    let release = async |holder: &str, term| {
        let request = ReleaseLeaseRequest { name: "seed".to_owned(), holder: holder.to_owned(), term };
        store.release_lease(request).await.unwrap();
    };
    release("a", 1).await;
    assert_eq!(peek(&*store).await, PeekLeaseReply::default(), "what isn't there can't be released");
    assert!(take(&*store, "a", 0, LONG_MS).await.granted);
    for (holder, term) in [("b", 1), ("a", 2), ("a", 0)] {
        release(holder, term).await;
        assert_eq!(held(&*store).await, (1, "a".to_owned()), "{holder} {term}");
    }
    release("a", 1).await;
    release("a", 1).await;
    assert!(!peek(&*store).await.held);
    assert!(!take(&*store, "a", 1, LONG_MS).await.granted, "it is over for good");
    let taken = take(&*store, "b", 0, LONG_MS).await;
    assert_eq!((taken.granted, taken.term), (true, 2));
    release("a", 1).await;
    assert_eq!(held(&*store).await, (2, "b".to_owned()), "a late release takes nothing from a successor");
}

pub(crate) async fn what_an_older_term_wants_changed_stays(database: &impl Database) {
    let store = database.open().await;
    let member = |id: &str| Member { id: id.to_owned(), pool: "rooms".to_owned(), ..Member::default() };
    let put = |id: &str, term| PutMemberRequest { member: Some(member(id)), revision: 1 << 50, term };
    let remove = |id: &str, term| RemoveMemberRequest {
        pool: "rooms".to_owned(),
        id: id.to_owned(),
        revision: 1 << 50,
        term,
    };
    let change = |name: &str, base, term| ChangeHandlersRequest {
        base,
        put: vec![handler(name, "*", &format!("/{name}"))],
        term,
        ..ChangeHandlersRequest::default()
    };
    assert!(take(&*store, "a", 0, LONG_MS).await.granted);
    store.put_member(put("m", 1)).await.unwrap();
    let version = store.change_handlers(change("one", 1, 1)).await.unwrap();
    assert!(take(&*store, "a", 0, LONG_MS).await.granted, "the second term begins");
    let before = store.load_routes().await.unwrap();

    assert!(matches!(store.put_member(put("n", 1)).await, Err(StoreError::Fenced(2))));
    assert!(matches!(store.remove_member(remove("m", 1)).await, Err(StoreError::Fenced(2))));
    let changed = store.change_handlers(change("two", version, 1)).await;
    assert!(matches!(changed, Err(StoreError::Fenced(2))), "{changed:?}");
    let asset = Asset { path: "/a".to_owned(), ..Asset::default() };
    let built = store.put_build("*", 1, stream::iter([Ok(asset)])).await;
    assert!(matches!(built, Err(StoreError::Fenced(2))), "{built:?}");
    assert_eq!(store.load_routes().await.unwrap(), before, "nothing has changed");

    // The present term may, and so may tools that are no seed.
    store.put_member(put("n", 2)).await.unwrap();
    store.remove_member(remove("m", 0)).await.unwrap();
    store.change_handlers(change("two", version, 2)).await.unwrap();
}

pub(crate) async fn senseless_leases_are_refused(database: &impl Database) {
    let store = database.open().await;
    let good = TakeLeaseRequest { name: "seed".to_owned(), holder: "a".to_owned(), ttl_ms: 1, term: 0 };
    let table = [
        TakeLeaseRequest { name: String::new(), ..good.clone() },
        TakeLeaseRequest { holder: String::new(), ..good.clone() },
        TakeLeaseRequest { ttl_ms: 0, ..good.clone() },
        TakeLeaseRequest { ttl_ms: 600_001, ..good },
    ];
    for request in table {
        let error = store.take_lease(request).await;
        assert!(matches!(error, Err(StoreError::Invalid(_))), "{error:?}");
    }
    assert_eq!(peek(&*store).await, PeekLeaseReply::default());
}
