//! Handlers, members, and what a seed loads when it starts.

use protoplex_wire::proto::{Handler, Member, Placement, PutMemberRequest, RemoveMemberRequest};

use super::{Database, both};
use crate::store::{Store, StoreError};

fn handler(name: &str, host: &str, path: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        host: host.to_owned(),
        path: path.to_owned(),
        key: "room:{room}".to_owned(),
        pool: "rooms".to_owned(),
        placement: Placement::Owned.into(),
    }
}

pub(crate) async fn handlers_come_and_go(database: &impl Database) {
    let store = database.open().await;
    let empty = store.load_routes().await.unwrap();
    assert!(empty.handlers.is_empty() && empty.table_version > 0);
    let (b, a) = (handler("b", "*", "/b/{room}"), handler("a", "*", "/a/{room}"));
    let one = store.put_handler(b.clone()).await.unwrap();
    let two = store.put_handler(a.clone()).await.unwrap();
    assert!(empty.table_version < one && one < two);
    let loaded = store.load_routes().await.unwrap();
    assert_eq!((loaded.handlers, loaded.table_version), (vec![a, b.clone()], two));

    let three = store.remove_handler("a").await.unwrap();
    assert!(three > two);
    assert_eq!(store.load_routes().await.unwrap().handlers, vec![b]);
    let gone = store.remove_handler("a").await;
    assert!(matches!(&gone, Err(StoreError::NotFound(text)) if text.contains("\"a\"")), "{gone:?}");
    assert_eq!(store.load_routes().await.unwrap().table_version, three);
}

pub(crate) async fn conflicting_handlers_are_refused(database: &impl Database) {
    let store = database.open().await;
    let version = store.put_handler(handler("a", "*", "/a")).await.unwrap();
    for (conflicting, why) in [
        (handler("a", "*", "/other"), "there is a handler \"a\" already"),
        (handler("b", "*", "/a"), "handler \"a\" has */a already"),
    ] {
        let error = store.put_handler(conflicting).await;
        assert!(matches!(&error, Err(StoreError::AlreadyExists(text)) if text == why), "{error:?}");
    }
    assert!(matches!(store.put_handler(handler("", "*", "/c")).await, Err(StoreError::Invalid(_))));
    assert_eq!(store.load_routes().await.unwrap().table_version, version);
    store.put_handler(handler("b", "example.com", "/a")).await.unwrap();
}

pub(crate) async fn one_of_two_concurrent_handlers_wins(database: &impl Database) {
    let store = database.open().await;
    let outcomes =
        both(store.put_handler(handler("a", "*", "/a")), store.put_handler(handler("b", "*", "/a"))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert_eq!(store.load_routes().await.unwrap().handlers.len(), 1);
}

fn member(id: &str, address: &str) -> Member {
    let [id, pool, zone, instance] = [id, "rooms", "a", address].map(ToOwned::to_owned);
    Member { id, pool, address: address.to_owned(), zone, instance }
}

pub(crate) async fn the_higher_revision_of_a_member_stays(database: &impl Database) {
    let store = database.open().await;
    let put = async |member: &Member, revision| {
        store.put_member(PutMemberRequest { member: Some(member.clone()), revision }).await
    };
    let remove = async |id: &str, revision| {
        let request = RemoveMemberRequest { pool: "rooms".to_owned(), id: id.to_owned(), revision };
        store.remove_member(request).await.unwrap();
    };
    let members = async || store.load_routes().await.unwrap().members;

    let (old, new) = (member("m", "127.0.0.1:1"), member("m", "127.0.0.1:2"));
    put(&old, 5).await.unwrap();
    put(&new, 6).await.unwrap();
    put(&old, 5).await.unwrap();
    assert_eq!(members().await, vec![new.clone()], "a late put changes nothing");
    remove("m", 5).await;
    assert_eq!(members().await, vec![new.clone()], "nor does a late removal");
    put(&old, 6).await.unwrap();
    assert_eq!(members().await, vec![old.clone()], "the same revision is a repeated call");
    let other = member("n", "127.0.0.1:3");
    put(&other, 1).await.unwrap();
    remove("m", 6).await;
    remove("m", 6).await;
    assert_eq!(members().await, vec![other]);
    assert!(matches!(put(&member("", ""), 7).await, Err(StoreError::Invalid(_))));
    let nobody = PutMemberRequest { member: None, revision: 7 };
    assert!(matches!(store.put_member(nobody).await, Err(StoreError::Invalid(_))));
}

pub(crate) async fn routes_outlive_a_crash(database: &impl Database) {
    let store = database.open().await;
    store.put_handler(handler("a", "*", "/a")).await.unwrap();
    let request = PutMemberRequest { member: Some(member("m", "127.0.0.1:1")), revision: 1 << 40 };
    store.put_member(request).await.unwrap();
    let before = store.load_routes().await.unwrap();
    drop(store);
    assert_eq!(database.open().await.load_routes().await.unwrap(), before);
}
