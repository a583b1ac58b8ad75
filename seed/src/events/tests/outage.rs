//! NATS goes away, and comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use protoplex_wire::cloud_event::{EventData, MAX_EVENT_BYTES};
use protoplex_wire::events::{Bus, Notice};
use protoplex_wire::proto::ListSubscriptionsRequest;
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::super::carrier::{Carrier, Interest, Start, Told};
use super::rig::{DEADLINE, Keeper, Rig, alone, event, events, named, take, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nats_that_goes_away_loses_nothing_and_holds_nobody() {
    let rig = Rig::start(Keeper::Nats).await;
    let nats = rig.nats.as_ref().unwrap();
    let (mut kept, mut alone) = (rig.subscribe(named("s", "a")).await, rig.subscribe(alone("a")).await);
    rig.publish(&events("a", 0..10)).await;
    assert_eq!(take(&mut kept, 5).await.len(), 5);
    assert_eq!(take(&mut alone, 10).await.len(), 10);

    nats.kill();
    let refused = until("NATS is known to be away", async || {
        let began = Instant::now();
        let refused = rig.try_publish(&events("a", 10..11)).await.err()?;
        assert!(began.elapsed() < Duration::from_secs(9), "answered in time");
        Some(refused.to_string())
    })
    .await;
    assert!(refused.contains("NATS"), "{refused}");
    // Where nobody answers what is published is tried again until it is kept.
    let bus: Bus = rig.bus.clone();
    let waiting =
        tokio::spawn(async move { bus.publish(&events("a", 10..20), Duration::ZERO, DEADLINE).await });

    nats.resume();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 10);
    let mut ids: Vec<u32> = Vec::new();
    while ids.iter().max() != Some(&19) {
        ids.extend(take(&mut kept, 1).await.iter().map(|id| id.parse::<u32>().unwrap()));
    }
    for n in 5..20 {
        assert!(ids.contains(&n), "{n} was not delivered: {ids:?}");
    }
    assert_eq!(take(&mut alone, 10).await, (10..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nats_may_come_after_the_seed() {
    let rig = Rig::start(Keeper::Nats).await;
    let nats = rig.nats.as_ref().unwrap();
    nats.kill();
    let mut rig = rig;
    rig.kill_seed();
    rig.start_seed().await;
    let refused = until("the seed answers", async || {
        let refused = rig.try_publish(&events("a", 0..1)).await.err()?.to_string();
        refused.contains("NATS is away").then_some(refused)
    })
    .await;
    assert!(refused.contains("events.nats"), "{refused}");
    rig.nats.as_ref().unwrap().resume();
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    rig.publish(&events("a", 0..1)).await;
    let notice = timeout(DEADLINE, subscriber.next()).await.unwrap().unwrap();
    assert!(matches!(notice, Notice::Event(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn due_events_that_nats_does_not_take_hold_no_others_up() {
    let mut rig = Rig::start(Keeper::Nats).await;
    rig.nats.as_ref().unwrap().kill();
    rig.kill_seed();
    rig.start_seed().await;
    // Nobody knows yet what NATS takes. More than the datastore gives at once.
    let large = EventData::json(&"x".repeat(MAX_EVENT_BYTES - 200)).unwrap();
    for n in 0..5 {
        let large = event("a", &format!("large {n}")).with_data("text/plain", large.clone());
        rig.bus.publish(&[large], Duration::from_millis(1), DEADLINE).await.unwrap();
    }
    rig.bus.publish(&events("a", 0..2), Duration::from_millis(1), DEADLINE).await.unwrap();
    rig.nats.as_ref().unwrap().resume();
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    assert_eq!(take(&mut subscriber, 2).await, ["0", "1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dead_events_that_cannot_be_counted_are_not_told_as_none() {
    let mut rig = Rig::start(Keeper::Nats).await;
    let _subscriber = rig.subscribe(named("s", "a")).await;
    let list = rig.bus.client().list_subscriptions(ListSubscriptionsRequest {}).await.unwrap().into_inner();
    assert_eq!((list.subscriptions.len(), list.subscriptions[0].dead), (1, 0));
    rig.kill_datastore();
    let refused = rig.bus.client().list_subscriptions(ListSubscriptionsRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("the datastore"), "{refused:?}");
}

#[tokio::test]
async fn nats_that_is_silent_keeps_nobody_longer_than_one_that_is_away() {
    let rig = Rig::start(Keeper::Nats).await;
    let carrier = rig.nats_carrier().await;
    until("NATS is connected", async || carrier.connection()).await;
    rig.nats.as_ref().unwrap().stop();
    tokio::time::pause();
    let began = Instant::now();
    // They wait for one another's answer.
    let all = tokio::join!(carrier.subscriptions(), carrier.subscriptions(), carrier.subscriptions());
    for refused in <[_; 3]>::from(all) {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("NATS is away"), "{refused}");
    }
    // By the clock of the test, which passes only where all wait.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

/// In a runtime that does nothing any more once its last call has returned, as a process that ends.
#[test]
fn what_is_out_at_the_end_of_a_seed_is_given_back_before() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (outside, ending) = (tokio::runtime::Runtime::new().unwrap(), runtime());
    // Nobody waits for as long as this.
    let rig = outside.block_on(Rig::start_with(Keeper::Nats, |raw| raw.ack_timeout_ms = 600_000));
    outside.block_on(rig.publish(&events("a", 0..3)));
    let interest = Interest {
        name: "s".to_owned(),
        patterns: vec!["a".parse().unwrap()],
        start: Start::Earliest,
        window: 10,
    };
    ending.block_on(async {
        let carrier = rig.nats_carrier().await;
        let mut membership = carrier.subscribe(interest).await.unwrap();
        for _ in 0..3 {
            let told = timeout(DEADLINE, membership.told.recv()).await.unwrap();
            assert!(matches!(told, Some(Told::Event(_))), "{told:?}");
        }
        drop(membership);
        carrier.end().await;
    });
    drop(ending);
    outside.block_on(async {
        let mut heir = rig.subscribe(named("s", "a")).await;
        // JetStream may give one twice that it gives back.
        let mut ids = BTreeSet::new();
        while ids.len() < 3 {
            ids.extend(take(&mut heir, 1).await);
        }
    });
}
