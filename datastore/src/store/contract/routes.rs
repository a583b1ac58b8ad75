//! Members, and what a seed loads when it starts.

use protoplex_wire::proto::{Member, PutMemberRequest, RemoveMemberRequest};

use super::Database;
use super::handlers::{handler, put};
use crate::store::{Store, StoreError};

fn member(id: &str, address: &str) -> Member {
    let [id, pool, zone, instance] = [id, "rooms", "a", address].map(ToOwned::to_owned);
    Member { id, pool, address: address.to_owned(), zone, instance }
}

pub(crate) async fn the_higher_revision_of_a_member_stays(database: &impl Database) {
    let store = database.open().await;
    let put = async |member: &Member, revision| {
        store.put_member(PutMemberRequest { member: Some(member.clone()), revision, term: 0 }).await
    };
    let remove = async |id: &str, revision| {
        let request = RemoveMemberRequest { pool: "rooms".to_owned(), id: id.to_owned(), revision, term: 0 };
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
    let nobody = PutMemberRequest { member: None, revision: 7, term: 0 };
    assert!(matches!(store.put_member(nobody).await, Err(StoreError::Invalid(_))));
}

pub(crate) async fn routes_outlive_a_crash(database: &impl Database) {
    let store = database.open().await;
    put(&*store, handler("a", "*", "/a")).await.unwrap();
    let request = PutMemberRequest { member: Some(member("m", "127.0.0.1:1")), revision: 1 << 40, term: 0 };
    store.put_member(request).await.unwrap();
    let before = store.load_routes().await.unwrap();
    drop(store);
    assert_eq!(database.open().await.load_routes().await.unwrap(), before);
}
