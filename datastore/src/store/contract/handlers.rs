//! The table of handlers: changed whole or not at all, and what is kept of its versions.

use protoplex_wire::proto::{ChangeHandlersRequest, Handler, Placement};

use super::{Database, both};
use crate::store::{HANDLER_VERSIONS, Store, StoreError, StoreResult};

pub(super) fn handler(name: &str, host: &str, path: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        host: host.to_owned(),
        path: path.to_owned(),
        key: "room:{room}".to_owned(),
        pool: "rooms".to_owned(),
        placement: Placement::Owned.into(),
        ..Default::default()
    }
}

/// Puts one handler, whatever the table's version is.
pub(crate) async fn put<S: Store>(store: &S, handler: Handler) -> StoreResult<u64> {
    let base = store.load_routes().await?.table_version;
    store.change_handlers(ChangeHandlersRequest { base, put: vec![handler], ..Default::default() }).await
}

async fn remove<S: Store>(store: &S, name: &str) -> StoreResult<u64> {
    let base = version(store).await;
    let remove = vec![name.to_owned()];
    store.change_handlers(ChangeHandlersRequest { base, remove, ..Default::default() }).await
}

async fn version<S: Store>(store: &S) -> u64 {
    store.load_routes().await.unwrap().table_version
}

/// Name, path and `since` of each, as they are now.
async fn table<S: Store>(store: &S) -> Vec<(String, String, u64)> {
    rows(store.load_routes().await.unwrap().handlers)
}

fn rows(handlers: Vec<Handler>) -> Vec<(String, String, u64)> {
    handlers.into_iter().map(|handler| (handler.name, handler.path, handler.since)).collect()
}

fn row(name: &str, path: &str, since: u64) -> (String, String, u64) {
    (name.to_owned(), path.to_owned(), since)
}

pub(crate) async fn handlers_come_and_go(database: &impl Database) {
    let store = database.open().await;
    let empty = store.load_routes().await.unwrap();
    assert!(empty.handlers.is_empty() && empty.table_version == 1);
    let (b, a) = (handler("b", "*", "/b/{room}"), handler("a", "*", "/a/{room}"));
    assert_eq!(put(&*store, b.clone()).await.unwrap(), 2);
    assert_eq!(put(&*store, Handler { disabled: true, ..a.clone() }).await.unwrap(), 3);
    let loaded = store.load_routes().await.unwrap();
    let b = Handler { since: 2, ..b };
    assert_eq!(loaded.handlers, vec![Handler { since: 3, disabled: true, ..a }, b.clone()]);
    assert_eq!(loaded.table_version, 3);

    assert_eq!(remove(&*store, "a").await.unwrap(), 4);
    assert_eq!(store.load_routes().await.unwrap().handlers, vec![b]);
    let gone = remove(&*store, "a").await;
    assert!(matches!(&gone, Err(StoreError::NotFound(text)) if text.contains("\"a\"")), "{gone:?}");
    assert_eq!(version(&*store).await, 4);
}

pub(crate) async fn conflicting_handlers_are_refused(database: &impl Database) {
    let store = database.open().await;
    put(&*store, handler("a", "*", "/a")).await.unwrap();
    let error = put(&*store, handler("b", "*", "/a")).await;
    let told = |text: &str| text == "handler \"a\" has */a already";
    assert!(matches!(&error, Err(StoreError::AlreadyExists(text)) if told(text)), "{error:?}");
    assert!(matches!(put(&*store, handler("", "*", "/c")).await, Err(StoreError::Invalid(_))));
    put(&*store, handler("b", "example.com", "/a")).await.unwrap();
    assert_eq!(version(&*store).await, 3);
}

pub(crate) async fn one_of_two_concurrent_handlers_wins(database: &impl Database) {
    let store = database.open().await;
    let change = |name: &str| {
        let put = vec![handler(name, "*", &format!("/{name}"))];
        store.change_handlers(ChangeHandlersRequest { base: 1, put, ..Default::default() })
    };
    let outcomes = both(change("a"), change("b")).await;
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Ok(2))).count(), 1);
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(StoreError::Conflict(_)))), "{outcomes:?}");
    assert_eq!(table(&*store).await.len(), 1);
}

pub(crate) async fn a_change_of_handlers_is_made_whole_or_not_at_all(database: &impl Database) {
    let store = database.open().await;
    put(&*store, handler("a", "*", "/a")).await.unwrap();
    put(&*store, handler("b", "*", "/b")).await.unwrap();
    put(&*store, handler("c", "*", "/c")).await.unwrap();
    let before = store.load_routes().await.unwrap();
    let change = |base, put: &[Handler], remove: &[&str]| {
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        let change = ChangeHandlersRequest { base, put: put.to_vec(), remove, ..Default::default() };
        store.change_handlers(change)
    };
    let (a, b) = (handler("a", "*", "/new"), handler("b", "*", "/c"));
    let stale = change(3, std::slice::from_ref(&a), &["b"]).await;
    assert!(matches!(&stale, Err(StoreError::Conflict(text)) if text.contains("version 4")), "{stale:?}");
    let taken = change(4, &[a.clone(), b.clone()], &[]).await;
    assert!(matches!(taken, Err(StoreError::AlreadyExists(_))), "{taken:?}");
    let gone = change(4, std::slice::from_ref(&a), &["b", "nobody"]).await;
    assert!(matches!(gone, Err(StoreError::NotFound(_))), "{gone:?}");
    for (put, remove) in
        [(vec![], vec![]), (vec![a.clone(), a.clone()], vec![]), (vec![a.clone()], vec!["a"])]
    {
        let senseless = change(4, &put, &remove).await;
        assert!(matches!(senseless, Err(StoreError::Invalid(_))), "{senseless:?}");
    }
    assert_eq!(store.load_routes().await.unwrap(), before);
    assert_eq!(store.handler_history().await.unwrap()[0].version, 4);

    let [a, b] = [handler("a", "*", "/b"), handler("b", "*", "/a")];
    assert_eq!(change(4, &[a, b], &["c"]).await.unwrap(), 5);
    assert_eq!(table(&*store).await, [row("a", "/b", 5), row("b", "/a", 5)], "they have swapped");
}

pub(crate) async fn each_version_of_the_handlers_is_read_back(database: &impl Database) {
    let store = database.open().await;
    let first = store.handler_history().await.unwrap();
    assert_eq!((first.len(), first[0].version), (1, 1));
    put(&*store, handler("a", "*", "/a")).await.unwrap();
    put(&*store, handler("b", "*", "/b")).await.unwrap();
    let put = vec![Handler { disabled: true, ..handler("a", "*", "/a2") }];
    let [operator, what] = ["ada@edge", "a is disabled"].map(ToOwned::to_owned);
    let remove = vec!["b".to_owned()];
    store
        .change_handlers(ChangeHandlersRequest { base: 3, put, remove, operator, what, term: 0 })
        .await
        .unwrap();
    drop(store);

    let store = database.open().await;
    let history = store.handler_history().await.unwrap();
    assert_eq!(history.iter().map(|it| it.version).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert_eq!((history[0].operator.as_str(), history[0].what.as_str()), ("ada@edge", "a is disabled"));
    assert!(history[0].changed_at_ms >= history[1].changed_at_ms && history[1].changed_at_ms > 0);
    let at = async |version| rows(store.handlers_at(version).await.unwrap());
    assert_eq!(at(1).await, []);
    assert_eq!(at(2).await, [row("a", "/a", 2)]);
    assert_eq!(at(3).await, [row("a", "/a", 2), row("b", "/b", 3)]);
    assert_eq!(at(4).await, [row("a", "/a2", 4)]);
    assert!(
        store.handlers_at(4).await.unwrap()[0].disabled && !store.handlers_at(3).await.unwrap()[0].disabled
    );
    for unknown in [0, 5, u64::MAX] {
        let error = store.handlers_at(unknown).await;
        assert!(matches!(error, Err(StoreError::NotFound(_) | StoreError::Invalid(_))), "{error:?}");
    }
}

pub(crate) async fn a_bounded_number_of_versions_is_kept(database: &impl Database) {
    let store = database.open().await;
    put(&*store, handler("stays", "*", "/stays")).await.unwrap();
    let last = HANDLER_VERSIONS + 5;
    for n in 3..=last {
        assert_eq!(put(&*store, handler("moves", "*", &format!("/{n}"))).await.unwrap(), n);
    }
    let history = store.handler_history().await.unwrap();
    let kept: Vec<_> = history.iter().map(|it| it.version).collect();
    assert_eq!(kept, (last - HANDLER_VERSIONS + 1..=last).rev().collect::<Vec<_>>());
    for version in kept {
        let table = rows(store.handlers_at(version).await.unwrap());
        assert_eq!(table, [row("moves", &format!("/{version}"), version), row("stays", "/stays", 2)]);
    }
    let gone = store.handlers_at(last - HANDLER_VERSIONS).await;
    assert!(matches!(&gone, Err(StoreError::NotFound(text)) if text.contains("6 to 105")), "{gone:?}");
}
