//! What every log of events has to keep, as tests against the trait. A database passes by `event_contract!(its test
//! database)`.

use std::collections::HashMap;
use std::sync::Arc;

use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::proto::{
    AppendEventsRequest, Asset, ChangeHandlersRequest, DeadEvent, DueEventsReply, DueEventsRequest, Handler,
    ListDeadEventsRequest, LoggedEvent, NewEvent, PostponeEventsRequest, PutSubscriptionRequest,
    ReadEventsReply, ReadEventsRequest, SubscriptionMove, TakeLeaseRequest, TrimEventsRequest,
};

use super::{EventLog, MAX_DEAD, PAGE_BYTES};
use crate::store::contract::Database;
use crate::store::{Store, StoreError, StoreResult};

macro_rules! event_contract {
    ($database:expr) => {
        event_contract! { @tests $database;
            events_are_kept_in_order_and_outlive_a_crash
            a_repeated_event_is_kept_once
            appenders_at_once_leave_no_hole_and_no_double
            a_term_that_is_over_appends_nothing
            a_page_has_a_limit_in_bytes_and_one_event_at_least
            the_oldest_go_by_number_bytes_and_age
            delayed_events_wait_and_outlive_a_crash
            what_is_due_comes_in_pages_of_a_bounded_size
            due_events_that_are_too_large_hold_nothing_up
            subscriptions_keep_their_position
            dead_events_are_listed_and_bounded
            changes_announce_themselves
            keys_of_another_length_are_refused
        }
    };
    (@tests $database:expr; $($test:ident)+) => {
        $(
            #[tokio::test]
            async fn $test() {
                $crate::event_log::contract::$test(&$database).await;
            }
        )+
    };
}
pub(crate) use event_contract;

fn new(id: &str) -> NewEvent {
    sized(id, id.len())
}

/// An event of so many bytes.
fn sized(id: &str, bytes: usize) -> NewEvent {
    let key = CloudEvent::new("/test", "test").with_id(id).key().to_vec();
    let mut event = id.as_bytes().to_vec();
    event.resize(bytes, b' ');
    NewEvent { key, event }
}

async fn append(store: &impl EventLog, term: u64, events: Vec<NewEvent>) -> StoreResult<Vec<u64>> {
    Ok(store.append_events(AppendEventsRequest { term, events }).await?.positions)
}

async fn read(store: &impl EventLog, after: u64) -> ReadEventsReply {
    store.read_events(ReadEventsRequest { after, limit: 1000 }).await.unwrap()
}

async fn due(store: &impl EventLog, limit: u32, max_event_bytes: u64) -> DueEventsReply {
    store.due_events(DueEventsRequest { limit, max_event_bytes }).await.unwrap()
}

fn ids(events: &[LoggedEvent]) -> Vec<String> {
    events.iter().map(|event| String::from_utf8_lossy(&event.event).trim().to_owned()).collect()
}

pub(crate) async fn events_are_kept_in_order_and_outlive_a_crash<D: Database>(database: &D) {
    let store = database.open().await;
    let empty = read(&*store, 0).await;
    assert_eq!((empty.events.len(), empty.earliest, empty.head), (0, 1, 0));
    assert_eq!(append(&*store, 1, vec![new("a"), new("b")]).await.unwrap(), [1, 2]);
    assert_eq!(append(&*store, 1, vec![new("c")]).await.unwrap(), [3]);
    drop(store);
    let store = database.open().await;
    let all = read(&*store, 0).await;
    assert_eq!((ids(&all.events), all.earliest, all.head), (vec!["a".into(), "b".into(), "c".into()], 1, 3));
    assert!(all.events.iter().all(|event| event.kept_at_ms > 0));
    assert_eq!(ids(&read(&*store, 1).await.events), ["b", "c"]);
    assert!(read(&*store, 3).await.events.is_empty());
}

pub(crate) async fn a_repeated_event_is_kept_once<D: Database>(database: &D) {
    let store = database.open().await;
    assert_eq!(append(&*store, 1, vec![new("a"), new("a"), new("b")]).await.unwrap(), [1, 0, 2]);
    assert_eq!(append(&*store, 1, vec![new("b"), new("c")]).await.unwrap(), [0, 3]);
    drop(store);
    let store = database.open().await;
    assert_eq!(append(&*store, 1, vec![new("a")]).await.unwrap(), [0], "also after a restart");
    assert_eq!(ids(&read(&*store, 0).await.events), ["a", "b", "c"]);
}

pub(crate) async fn appenders_at_once_leave_no_hole_and_no_double<D: Database>(database: &D) {
    let store = database.open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for appender in 0..8 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for n in 0..5 {
                let events = vec![new(&format!("{appender}-{n}")), new(&format!("shared-{n}"))];
                append(&*store, 1, events).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let all = read(&*store, 0).await;
    let positions: Vec<_> = all.events.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=45).collect::<Vec<_>>());
    for appender in 0..8 {
        let prefix = format!("{appender}-");
        let own: Vec<_> = ids(&all.events).into_iter().filter(|id| id.starts_with(&prefix)).collect();
        assert_eq!(own, (0..5).map(|n| format!("{appender}-{n}")).collect::<Vec<_>>());
    }
}

pub(crate) async fn a_term_that_is_over_appends_nothing<D: Database>(database: &D) {
    let store = database.open().await;
    let lease = |holder: &str| TakeLeaseRequest {
        name: "seed".to_owned(),
        holder: holder.to_owned(),
        ttl_ms: 60_000,
        term: 0,
    };
    let first = store.take_lease(lease("a")).await.unwrap();
    append(&*store, first.term, vec![new("a")]).await.unwrap();
    let second = store.take_lease(lease("a")).await.unwrap();
    assert!(second.term > first.term);
    let late = append(&*store, first.term, vec![new("b")]).await;
    assert!(matches!(late, Err(StoreError::Fenced(_))), "{late:?}");
    append(&*store, second.term, vec![new("b")]).await.unwrap();
}

pub(crate) async fn a_page_has_a_limit_in_bytes_and_one_event_at_least<D: Database>(database: &D) {
    let store = database.open().await;
    let half = usize::try_from(PAGE_BYTES).unwrap() / 2;
    let events = (0..4).map(|n| sized(&n.to_string(), half)).collect();
    append(&*store, 1, events).await.unwrap();
    append(&*store, 1, vec![sized("large", half * 3), sized("next", half * 3)]).await.unwrap();
    assert_eq!(ids(&read(&*store, 0).await.events), ["0", "1", "2"]);
    assert_eq!(ids(&read(&*store, 4).await.events), ["large"]);
    let two = store.read_events(ReadEventsRequest { after: 0, limit: 2 }).await.unwrap();
    assert_eq!(two.events.len(), 2);
}

pub(crate) async fn the_oldest_go_by_number_bytes_and_age<D: Database>(database: &D) {
    let store = database.open().await;
    let far = u64::MAX;
    let trim = async |max_events, max_bytes, max_age_ms| {
        let request = TrimEventsRequest { max_age_ms, max_events, max_bytes };
        store.trim_events(request, unix_ms_now()).await.unwrap()
    };
    assert_eq!(trim(1, 1, 0).await.dropped, 0, "there is none");
    append(&*store, 1, (0..10).map(|n| sized(&n.to_string(), 100)).collect()).await.unwrap();
    assert_eq!(trim(far, far, far).await.dropped, 0);
    assert_eq!(trim(8, far, far).await.dropped, 2);
    assert_eq!(trim(far, 500, far).await.dropped, 3);
    let left = read(&*store, 0).await;
    assert_eq!(
        (ids(&left.events), left.earliest),
        (["5", "6", "7", "8", "9"].map(str::to_owned).to_vec(), 6)
    );
    let all = trim(0, far, far).await;
    assert_eq!((all.dropped, all.more), (5, false));
    let none = read(&*store, 0).await;
    assert_eq!((none.events.len(), none.earliest, none.head), (0, 11, 10));
    assert_eq!(append(&*store, 1, vec![new("x")]).await.unwrap(), [11], "positions go on");
    crate::store::contract::until("an event is older than a millisecond", async || {
        (trim(far, far, 1).await.dropped == 1).then_some(())
    })
    .await;
}

pub(crate) async fn delayed_events_wait_and_outlive_a_crash<D: Database>(database: &D) {
    let store = database.open().await;
    let postpone = async |store: &D::Store, id: &str, delay_ms| {
        let request = PostponeEventsRequest { events: vec![new(id)], delay_ms };
        store.postpone_events(request).await.unwrap()
    };
    let later = postpone(&store, "later", 200).await;
    assert!(!later.repeated[0] && later.due_at_ms > 0);
    assert!(postpone(&store, "later", 0).await.repeated[0], "it waits already");
    postpone(&store, "much later", 3_600_000).await;
    postpone(&store, "now", 0).await;
    drop(store);
    let store = database.open().await;
    let waiting = async || {
        let due = due(&*store, 10, 0).await.events;
        due.into_iter().map(|it| (it.number, String::from_utf8(it.event).unwrap())).collect::<Vec<_>>()
    };
    let both = crate::store::contract::until("the second is due", async || {
        let due = waiting().await;
        (due.len() == 2).then_some(due)
    })
    .await;
    assert_eq!([&both[0].1, &both[1].1], ["now", "later"], "in the order of their times");
    store.drop_due(vec![both[0].0]).await.unwrap();
    store.drop_due(vec![both[0].0]).await.unwrap();
    assert_eq!(waiting().await.len(), 1);
    assert!(!postpone(&store, "now", 3_600_000).await.repeated[0], "it waits no longer");
}

pub(crate) async fn what_is_due_comes_in_pages_of_a_bounded_size<D: Database>(database: &D) {
    let store = database.open().await;
    let third = usize::try_from(PAGE_BYTES).unwrap() / 3;
    let events = vec![sized("huge", third * 4), sized("a", third), sized("b", third), sized("c", third * 2)];
    store.postpone_events(PostponeEventsRequest { events, delay_ms: 0 }).await.unwrap();
    for expected in [1, 2, 1] {
        let due = due(&*store, 100, 0).await.events;
        assert_eq!(due.len(), expected);
        store.drop_due(due.into_iter().map(|it| it.number).collect()).await.unwrap();
    }
    assert!(due(&*store, 100, 0).await.events.is_empty());
}

pub(crate) async fn due_events_that_are_too_large_hold_nothing_up<D: Database>(database: &D) {
    let store = database.open().await;
    let most = usize::try_from(PAGE_BYTES).unwrap() / 2;
    // More than one page of them, by number and by size.
    let mut events: Vec<_> = (0..3).map(|n| sized(&format!("large {n}"), most + 1)).collect();
    events.extend([sized("just", most), sized("small", 5)]);
    store.postpone_events(PostponeEventsRequest { events, delay_ms: 0 }).await.unwrap();
    store
        .postpone_events(PostponeEventsRequest { events: vec![new("later")], delay_ms: 3_600_000 })
        .await
        .unwrap();
    let fit = due(&*store, 2, most as u64).await;
    let names: Vec<_> = fit.events.iter().map(|it| it.event.trim_ascii()).collect();
    assert_eq!((names, fit.larger), (vec![&b"just"[..], b"small"], 3));
    store.drop_due(fit.events.iter().map(|it| it.number).collect()).await.unwrap();
    let none = due(&*store, 2, most as u64).await;
    assert_eq!((none.events.len(), none.larger), (0, 3));
    // Somebody may take them later, one page after the other.
    assert_eq!(due(&*store, 2, most as u64 + 1).await.events[0].event.trim_ascii(), b"large 0");
    assert_eq!(due(&*store, 2, 0).await.larger, 0);
}

pub(crate) async fn subscriptions_keep_their_position<D: Database>(database: &D) {
    let store = database.open().await;
    append(&*store, 1, vec![new("a"), new("b")]).await.unwrap();
    let put = async |store: &D::Store, name: &str, after| {
        let patterns = vec!["file.*".to_owned(), "#".to_owned()];
        store
            .put_subscription(PutSubscriptionRequest { name: name.to_owned(), patterns, after })
            .await
            .unwrap()
    };
    let newest = put(&store, "newest", None).await;
    assert_eq!((newest.position, newest.patterns.len()), (2, 2));
    assert_eq!(put(&store, "earliest", Some(0)).await.position, 0);
    assert_eq!(put(&store, "future", Some(99)).await.position, 2, "not before its time");
    let move_to = |name: &str, position| SubscriptionMove { name: name.to_owned(), position };
    let moves = vec![move_to("earliest", 2), move_to("newest", 1), move_to("nobody", 5)];
    store.move_subscriptions(moves).await.unwrap();
    drop(store);
    let store = database.open().await;
    assert_eq!(put(&store, "earliest", Some(0)).await.position, 2, "it has a position already");
    let list = store.list_subscriptions().await.unwrap();
    let listed: Vec<_> = list.subscriptions.iter().map(|it| (it.name.as_str(), it.position)).collect();
    assert_eq!(listed, [("earliest", 2), ("future", 2), ("newest", 2)], "none goes back");
    assert_eq!((list.head, list.earliest), (2, 1));
    assert_eq!(list.subscriptions[0].patterns, ["file.*", "#"]);
    store.remove_subscription("newest").await.unwrap();
    assert!(matches!(store.remove_subscription("newest").await, Err(StoreError::NotFound(_))));
}

pub(crate) async fn dead_events_are_listed_and_bounded<D: Database>(database: &D) {
    let store = database.open().await;
    let patterns = vec!["#".to_owned()];
    let request = PutSubscriptionRequest { name: "s".to_owned(), patterns, after: None };
    store.put_subscription(request).await.unwrap();
    let dead = |position| DeadEvent {
        subscription: "s".to_owned(),
        position,
        attempts: 5,
        event: b"x".to_vec(),
        ..Default::default()
    };
    for position in (1..=MAX_DEAD.cast_unsigned() + 2).chain([3]) {
        store.bury_event(dead(position)).await.unwrap();
    }
    let list = async |limit| {
        let request = ListDeadEventsRequest { subscription: "s".to_owned(), limit };
        store.list_buried(request).await.unwrap()
    };
    let first = list(2).await;
    assert_eq!(first.iter().map(|it| it.position).collect::<Vec<_>>(), [3, 4], "the oldest are gone");
    assert!(first[0].attempts == 5 && first[0].event == b"x" && first[0].died_at_ms > 0);
    let subscriptions = store.list_subscriptions().await.unwrap().subscriptions;
    assert_eq!(subscriptions[0].dead, MAX_DEAD.cast_unsigned());
    // Another carrier has subscriptions that the datastore doesn't know; these are more than a page.
    let event = vec![b'x'; usize::try_from(PAGE_BYTES).unwrap() / 2];
    for position in 1..=3 {
        let large = DeadEvent { subscription: "large".to_owned(), event: event.clone(), ..dead(position) };
        store.bury_event(large).await.unwrap();
    }
    let counts = store.count_buried().await.unwrap();
    let expected = [("s".to_owned(), MAX_DEAD.cast_unsigned()), ("large".to_owned(), 3)];
    assert_eq!(counts, HashMap::from(expected));
    store.remove_subscription("s").await.unwrap();
    assert!(list(0).await.is_empty());
    assert_eq!(store.count_buried().await.unwrap().get("s"), None);
}

pub(crate) async fn changes_announce_themselves<D: Database>(database: &D) {
    let store = database.open().await;
    let handler = Handler { name: "h".to_owned(), path: "/".to_owned(), ..Default::default() };
    let change =
        ChangeHandlersRequest { base: 1, put: vec![handler], operator: "ada".into(), ..Default::default() };
    store.change_handlers(change.clone()).await.unwrap();
    store.change_handlers(change).await.unwrap_err();
    let assets = futures_util::stream::iter([Ok(Asset { path: "/a".to_owned(), ..Default::default() })]);
    store.put_build("*", 0, assets).await.unwrap();
    let file =
        crate::store::contract::put(&*store, "/files/a", crate::store::contract::content('a', 3)).await;
    let reference = file.file.unwrap().reference;
    store.mark_stored(&reference).await.unwrap();
    store.mark_stored(&reference).await.unwrap();
    let due = due(&*store, 10, 0).await.events;
    let events: Vec<_> = due.iter().map(|it| CloudEvent::from_json(&it.event).unwrap()).collect();
    let topics: Vec<_> = events.iter().map(CloudEvent::topic).collect();
    assert_eq!(topics, ["handlers.changed", "build.deployed", "upload.finished", "file.stored"]);
    assert_eq!(events[3].subject(), Some(format!("file/{reference}").as_str()));
}

pub(crate) async fn keys_of_another_length_are_refused<D: Database>(database: &D) {
    let store = database.open().await;
    let short = NewEvent { key: vec![1; 31], event: b"x".to_vec() };
    let refused = append(&*store, 1, vec![new("a"), short]).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))));
    assert_eq!(read(&*store, 0).await.head, 0, "all or none");
}
