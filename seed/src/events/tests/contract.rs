//! What the bus promises, whatever keeps its events.

use std::collections::BTreeSet;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::events::{Notice, Start, Subscription};
use protoplex_wire::identity::Kind;
use protoplex_wire::join::Standing;
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::{
    Handler, HandlerChanges, JoinHello, ListDeadEventsRequest, ListSubscriptionsRequest, NodeState,
    PublishRequest, RemoveSubscriptionRequest,
};
use protoplex_wire::seeds::Seeds;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::rig::{
    ACK_TIMEOUT, DEADLINE, Keeper, MAX_ATTEMPTS, Rig, alone, delivery, event, events, id, is_quiet, named,
    take, until,
};

pub(super) async fn events_reach_whoever_subscribes_in_their_order(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut one = rig.subscribe(alone("file.*")).await;
    let mut rest = rig.subscribe(alone("file.#")).await;
    let mut two = rig
        .subscribe(Subscription { patterns: vec!["file.stored".into(), "build.#".into()], ..alone("") })
        .await;
    let kept = rig
        .publish(&[
            event("file.stored", "1"),
            event("file", "2"),
            event("other.stored", "3"),
            event("file.lost.twice", "4"),
            event("file.lost", "5"),
            event("build", "6"),
        ])
        .await;
    let positions: Vec<_> = kept.iter().map(|kept| kept.position).collect();
    assert!(positions.is_sorted() && positions[0] > 0 && kept.iter().all(|kept| !kept.repeated), "{kept:?}");
    assert_eq!(take(&mut one, 2).await, ["1", "5"]);
    assert_eq!(take(&mut two, 2).await, ["1", "6"]);
    let first = delivery(&mut rest).await;
    assert_eq!((first.position, first.attempt), (positions[0], 1));
    assert!(first.kept_at_ms > 1_600_000_000_000);
    let read = CloudEvent::from_json(&first.event).unwrap();
    assert!(matches!(read.data(), EventData::Json(data) if data.get() == "\"1\""));
    rest.ack(&first).await;
    assert_eq!(take(&mut rest, 3).await, ["2", "4", "5"]);
    assert!(is_quiet(&mut one).await && is_quiet(&mut two).await && is_quiet(&mut rest).await);
}

pub(super) async fn a_subscription_begins_where_it_says(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let kept = rig.publish(&events("a", 0..4)).await;
    let mut newest = rig.subscribe(alone("a")).await;
    let mut earliest = rig.subscribe(Subscription { start: Start::Earliest, ..alone("a") }).await;
    let mut after = rig.subscribe(Subscription { start: Start::After(kept[1].position), ..alone("a") }).await;
    rig.publish(&events("a", 4..5)).await;
    assert_eq!(take(&mut newest, 1).await, ["4"]);
    assert_eq!(take(&mut earliest, 5).await, ["0", "1", "2", "3", "4"]);
    assert_eq!(take(&mut after, 3).await, ["2", "3", "4"]);
}

pub(super) async fn a_repeated_event_is_published_once(keeper: Keeper) {
    let mut rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(alone("a")).await;
    rig.publish(&events("a", 0..2)).await;
    let again = rig.publish(&events("a", 1..3)).await;
    assert_eq!(again.iter().map(|kept| kept.repeated).collect::<Vec<_>>(), [true, false]);
    assert_eq!(take(&mut subscriber, 3).await, ["0", "1", "2"]);
    rig.kill_seed();
    rig.start_seed().await;
    assert!(rig.publish(&events("a", 2..3)).await[0].repeated, "also after a restart");
    assert!(is_quiet(&mut subscriber).await || is_quiet(&mut subscriber).await);
}

pub(super) async fn a_name_goes_on_where_it_was(keeper: Keeper) {
    let mut rig = Rig::start(keeper).await;
    rig.publish(&events("a", 0..4)).await;
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    assert_eq!(take(&mut subscriber, 2).await, ["0", "1"]);
    let position = async |rig: &Rig| {
        let list = rig.bus.client().list_subscriptions(ListSubscriptionsRequest {}).await.ok()?.into_inner();
        let found = list.subscriptions.into_iter().find(|it| it.name == "s")?;
        assert_eq!(found.patterns, ["a"]);
        Some(found.position)
    };
    until("the position is kept", async || (position(&rig).await? >= 2).then_some(())).await;
    drop(subscriber);
    rig.kill_seed();
    rig.start_seed().await;
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    if matches!(keeper, Keeper::Nats) {
        // What a killed seed had on its way JetStream may give again, in any order.
        let mut rest = BTreeSet::new();
        while rest.len() < 2 {
            rest.extend(take(&mut subscriber, 1).await);
        }
        assert_eq!(rest.into_iter().collect::<Vec<_>>(), ["2", "3"]);
        rig.publish(&events("a", 4..5)).await;
        while take(&mut subscriber, 1).await != ["4"] {}
        return;
    }
    assert_eq!(take(&mut subscriber, 2).await, ["2", "3"]);
    rig.publish(&events("a", 4..5)).await;
    assert_eq!(take(&mut subscriber, 1).await, ["4"]);
    assert!(is_quiet(&mut subscriber).await);
}

pub(super) async fn what_a_name_has_yet_to_acknowledge_sets_it_not_back(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let before = rig.publish(&events("a", 0..3)).await[2].position;
    let mut subscriber = rig.subscribe(Subscription { start: Start::Newest, ..named("s", "a") }).await;
    rig.publish(&events("a", 3..4)).await;
    let first = delivery(&mut subscriber).await;
    let list = rig.bus.client().list_subscriptions(ListSubscriptionsRequest {}).await.unwrap().into_inner();
    assert_eq!((first.position, list.subscriptions[0].position), (before + 1, before));
}

pub(super) async fn who_is_slow_is_not_hurried(keeper: Keeper) {
    const EVENTS: u32 = 8;
    let timeout = Duration::from_secs(3);
    let rig = Rig::start_with(keeper, |raw| raw.ack_timeout_ms = timeout.as_millis() as u32).await;
    let mut slow = rig.subscribe(named("s", "a")).await;
    rig.publish(&events("a", 0..EVENTS)).await;
    let (began, mut got) = (Instant::now(), Vec::new());
    for _ in 0..EVENTS {
        got.extend(take(&mut slow, 1).await);
        // Its work.
        sleep(timeout / 4).await;
    }
    assert!(began.elapsed() > timeout);
    assert_eq!(got, (0..EVENTS).map(|n| n.to_string()).collect::<Vec<_>>(), "each once, in order");
    assert!(is_quiet(&mut slow).await);
}

pub(super) async fn what_nobody_came_to_is_no_attempt(keeper: Keeper) {
    const EVENTS: u32 = 3 * MAX_ATTEMPTS;
    let rig = Rig::start(keeper).await;
    rig.publish(&events("a", 0..EVENTS)).await;
    let mut got = BTreeSet::new();
    while got.len() < EVENTS as usize {
        // Each has all that is left on its way to it, and leaves behind the first.
        let mut subscriber = rig.subscribe(named("s", "a")).await;
        got.extend(take(&mut subscriber, 1).await);
        subscriber.close().await;
    }
    let request = ListDeadEventsRequest { subscription: "s".to_owned(), limit: 0 };
    assert_eq!(rig.bus.client().list_dead_events(request).await.unwrap().into_inner().events, []);
}

pub(super) async fn a_group_shares_its_events(keeper: Keeper) {
    const EVENTS: u32 = 60;
    let rig = Rig::start(keeper).await;
    let group = || Subscription { window: 4, ..named("g", "a.#") };
    let (mut one, mut two) = (rig.subscribe(group()).await, rig.subscribe(group()).await);
    let mut other = rig.subscribe(named("h", "a.#")).await;
    rig.publish(&events("a.b", 0..EVENTS)).await;
    let (mut by_one, mut by_two) = (BTreeSet::new(), BTreeSet::new());
    let all = async {
        while by_one.len() + by_two.len() < EVENTS as usize {
            let (notice, is_one) = tokio::select! {
                notice = one.next() => (notice, true),
                notice = two.next() => (notice, false),
            };
            let Notice::Event(delivery) = notice.unwrap() else { continue };
            let (subscriber, set) = if is_one { (&mut one, &mut by_one) } else { (&mut two, &mut by_two) };
            assert!(set.insert(id(&delivery)));
            subscriber.ack(&delivery).await;
        }
    };
    timeout(DEADLINE, all).await.unwrap();
    assert!(by_one.is_disjoint(&by_two), "each event goes to one of them");
    assert!(by_one.len() > 5 && by_two.len() > 5, "both have some: {} and {}", by_one.len(), by_two.len());
    assert_eq!(take(&mut other, EVENTS as usize).await.len(), EVENTS as usize, "another group has all");
}

pub(super) async fn what_a_lost_member_had_is_for_others(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    rig.publish(&events("a", 0..3)).await;
    let mut lost = rig.subscribe(named("g", "a")).await;
    for _ in 0..3 {
        delivery(&mut lost).await;
    }
    let mut heir = rig.subscribe(named("g", "a")).await;
    drop(lost);
    let mut inherited = Vec::new();
    while inherited.iter().collect::<BTreeSet<_>>().len() < 3 {
        inherited.extend(take(&mut heir, 1).await);
    }
    // JetStream may give one twice that it gives back.
    assert!(inherited.len() == 3 || matches!(keeper, Keeper::Nats), "{inherited:?}");
}

pub(super) async fn what_is_not_answered_in_time_is_for_others(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut stuck = rig.subscribe(Subscription { window: 1, ..named("g", "a") }).await;
    rig.publish(&events("a", 0..1)).await;
    let began = Instant::now();
    delivery(&mut stuck).await;
    let mut other = rig.subscribe(named("g", "a")).await;
    // The stuck one may be given it once more; it answers to nothing.
    let again = tokio::select! {
        again = delivery(&mut other) => again,
        again = delivery(&mut stuck) => again,
    };
    assert!(again.attempt == 2 && id(&again) == "0", "{again:?}");
    assert!(began.elapsed() >= ACK_TIMEOUT * 9 / 10, "not before its time");
}

pub(super) async fn an_event_that_fails_again_and_again_is_put_aside(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    rig.publish(&events("a", 0..3)).await;
    let mut attempts = Vec::new();
    let mut done = BTreeSet::new();
    while attempts.len() < MAX_ATTEMPTS as usize || done.len() < 2 {
        let delivery = delivery(&mut subscriber).await;
        if id(&delivery) == "1" {
            attempts.push(delivery.attempt);
            subscriber.nack(&delivery, Duration::from_millis(50)).await;
        } else {
            done.insert(id(&delivery));
            subscriber.ack(&delivery).await;
        }
    }
    assert_eq!(attempts, (1..=MAX_ATTEMPTS).collect::<Vec<_>>());
    let request = || ListDeadEventsRequest { subscription: "s".to_owned(), limit: 0 };
    let dead = until("it is put aside", async || {
        let dead = rig.bus.client().list_dead_events(request()).await.ok()?.into_inner().events;
        dead.into_iter().next()
    })
    .await;
    assert_eq!((dead.attempts, CloudEvent::from_json(&dead.event).unwrap().id()), (MAX_ATTEMPTS, "1"));
    assert!(is_quiet(&mut subscriber).await, "it comes no more");
    let list = rig.bus.client().list_subscriptions(ListSubscriptionsRequest {}).await.unwrap().into_inner();
    assert_eq!((list.subscriptions[0].dead, list.subscriptions[0].subscribers), (1, 1));
    rig.publish(&events("a", 3..4)).await;
    assert_eq!(take(&mut subscriber, 1).await, ["3"], "and holds nothing up");
}

pub(super) async fn nobody_has_more_than_its_window(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut slow = rig.subscribe(Subscription { window: 2, ..alone("a") }).await;
    rig.publish(&events("a", 0..50)).await;
    let (first, second) = (delivery(&mut slow).await, delivery(&mut slow).await);
    assert!(is_quiet(&mut slow).await);
    slow.ack(&first).await;
    slow.ack(&second).await;
    let rest = take(&mut slow, 48).await;
    assert_eq!(rest, (2..50).map(|n| n.to_string()).collect::<Vec<_>>(), "and loses nothing");
}

pub(super) async fn delayed_events_come_in_time_and_outlive_the_seed(keeper: Keeper) {
    const DELAY: Duration = Duration::from_millis(1500);
    let mut rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    let began = Instant::now();
    let kept = rig.bus.publish(&events("a", 0..1), DELAY, DEADLINE).await.unwrap();
    assert!(kept[0].due_at_ms > 0 && kept[0].position == 0);
    assert!(rig.bus.publish(&events("a", 0..1), DELAY, DEADLINE).await.unwrap()[0].repeated);
    rig.publish(&events("a", 1..2)).await;
    assert_eq!(take(&mut subscriber, 1).await, ["1"]);
    rig.kill_seed();
    rig.start_seed().await;
    // The answer to the other may have been lost with the seed.
    while take(&mut subscriber, 1).await != ["0"] {}
    assert!(began.elapsed() >= DELAY, "{:?}", began.elapsed());
}

pub(super) async fn a_killed_seed_loses_nothing_that_was_acknowledged(keeper: Keeper) {
    const PUBLISHERS: u32 = 3;
    let mut rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(named("s", "run.*")).await;
    let (stop, stopped) = watch::channel(false);
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let (bus, stopped) = (rig.bus.clone(), stopped.clone());
        publishers.spawn(async move {
            let mut acknowledged = Vec::new();
            let mut n = 0_u32;
            while !*stopped.borrow() {
                let id = format!("{publisher}-{n:06}");
                // One after the other, each until it is kept: so their order is promised.
                bus.publish(&[event("run.x", &id)], Duration::ZERO, DEADLINE).await.unwrap();
                acknowledged.push(id);
                n += 1;
            }
            acknowledged
        });
    }
    let mut got = Vec::new();
    for _ in 0..2 {
        got.extend(take(&mut subscriber, 100).await);
        rig.kill_seed();
        rig.start_seed().await;
    }
    got.extend(take(&mut subscriber, 100).await);
    stop.send_replace(true);
    let acknowledged: Vec<_> = publishers.join_all().await;
    let missing = |got: &[String]| {
        let got: BTreeSet<_> = got.iter().collect();
        acknowledged.iter().flatten().filter(|id| !got.contains(id)).count()
    };
    while missing(&got) > 0 {
        got.extend(take(&mut subscriber, 1).await);
    }
    for own in acknowledged {
        assert!(own.len() > 10, "each has published");
        let prefix = &own[0][..2];
        let mut seen = BTreeSet::new();
        let first_times: Vec<_> =
            got.iter().filter(|id| id.starts_with(prefix) && seen.insert(*id)).collect();
        // What JetStream has given to a seed that died comes again after its time, behind later ones.
        let is_in_order = first_times.is_sorted() || matches!(keeper, Keeper::Nats);
        assert!(is_in_order, "what one publisher has published comes in its order");
    }
}

pub(super) async fn what_is_kept_no_longer_is_told(keeper: Keeper) {
    let rig = Rig::start_with(keeper, |raw| raw.max_events = 20).await;
    let kept = rig.publish(&events("a", 0..50)).await;
    let oldest = kept[30].position;
    until("the oldest are dropped", async || {
        let list = rig.bus.client().list_subscriptions(ListSubscriptionsRequest {}).await.ok()?.into_inner();
        (list.earliest == oldest).then_some(())
    })
    .await;
    let mut late = rig.subscribe(Subscription { start: Start::After(kept[0].position), ..alone("a") }).await;
    let Notice::Lost(lost) = timeout(DEADLINE, late.next()).await.unwrap().unwrap() else {
        panic!("it is told first");
    };
    assert_eq!((lost.first, lost.last), (kept[1].position, oldest - 1));
    assert_eq!(take(&mut late, 20).await[0], "30");
    let mut earliest = rig.subscribe(Subscription { start: Start::Earliest, ..alone("a") }).await;
    assert_eq!(take(&mut earliest, 20).await[0], "30", "nothing is lost of what was asked for");
}

pub(super) async fn what_makes_no_sense_is_refused(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    rig.publish(&events("a", 0..1)).await;
    rig.subscribe(named("taken", "a")).await;
    let many = vec!["a".to_owned(); 33];
    for (subscription, code, text) in [
        (alone("a..b"), Code::InvalidArgument, "no word between the dots"),
        (alone("#.a"), Code::InvalidArgument, "comes last"),
        (Subscription { patterns: vec![], ..alone("a") }, Code::InvalidArgument, "1 to 32 patterns"),
        (Subscription { patterns: many, ..alone("a") }, Code::InvalidArgument, "1 to 32 patterns"),
        (named("a.b", "a"), Code::InvalidArgument, "subscription name"),
        (Subscription { window: 0, ..alone("a") }, Code::InvalidArgument, "window"),
        (Subscription { window: 1025, ..alone("a") }, Code::InvalidArgument, "window"),
        (named("taken", "b"), Code::FailedPrecondition, "is for a:"),
    ] {
        let mut subscriber = rig.bus.subscribe(subscription);
        let status = timeout(DEADLINE, subscriber.next()).await.unwrap().unwrap_err();
        assert!(status.code() == code && status.message().contains(text), "{status:?}");
    }
    let bad = vec![event("a", "x").to_json().unwrap(), b"{}".to_vec()];
    let status = rig.bus.client().publish(PublishRequest { events: bad, delay_ms: 0 }).await.unwrap_err();
    assert!(
        status.code() == Code::InvalidArgument && status.message().starts_with("event 2: "),
        "{status:?}"
    );
    let remove = RemoveSubscriptionRequest { name: "nobody".to_owned() };
    assert_eq!(rig.bus.client().remove_subscription(remove).await.unwrap_err().code(), Code::NotFound);
    let long = rig.bus.publish(&events("a", 5..6), Duration::from_secs(366 * 86_400), Duration::ZERO).await;
    assert!(long.unwrap_err().to_string().contains("a year"));
    let mut all = rig.subscribe(Subscription { start: Start::Earliest, ..alone("a") }).await;
    assert_eq!(take(&mut all, 1).await, ["0"]);
    assert!(is_quiet(&mut all).await, "nothing of what was refused was published");
}

pub(super) async fn a_name_has_one_subscriber_where_it_wants_to(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let exclusive = || Subscription { exclusive: true, ..named("s", "a") };
    let first = rig.subscribe(exclusive()).await;
    for other in [exclusive(), named("s", "a")] {
        let status = timeout(DEADLINE, rig.bus.subscribe(other).next()).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
    }
    drop(first);
    until("the name is free again", async || {
        let mut next = rig.bus.subscribe(exclusive());
        next.connect(Instant::now() + DEADLINE).await.ok()
    })
    .await;
}

pub(super) async fn a_removed_subscription_tells_its_subscribers(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(named("s", "a")).await;
    rig.publish(&events("a", 0..1)).await;
    assert_eq!(take(&mut subscriber, 1).await, ["0"]);
    let remove = RemoveSubscriptionRequest { name: "s".to_owned() };
    rig.bus.client().remove_subscription(remove).await.unwrap();
    let status = timeout(DEADLINE, subscriber.next()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let mut anew = rig.subscribe(named("s", "#")).await;
    assert_eq!(take(&mut anew, 1).await, ["0"], "another one begins anew");
}

pub(super) async fn large_events_and_batches_pass(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(alone("a")).await;
    let large = |n: u32| {
        event("a", &n.to_string()).with_data("text/plain", EventData::json(&"x".repeat(900 << 10)).unwrap())
    };
    rig.publish(&(0..8).map(large).collect::<Vec<_>>()).await;
    rig.publish(&events("a", 8..2008)).await;
    assert_eq!(take(&mut subscriber, 2008).await, (0..2008).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub(super) async fn the_cluster_tells_what_happens(keeper: Keeper) {
    let rig = Rig::start(keeper).await;
    let mut subscriber = rig.subscribe(named("s", "#")).await;
    let hello = JoinHello {
        node: "proxy-1".to_owned(),
        kind: "proxy".to_owned(),
        instance: "x".to_owned(),
        ..JoinHello::default()
    };
    let (hello, state) = (watch::Sender::new(hello), watch::Sender::new(NodeState::default()));
    let address = rig.seed_address.to_string();
    let standing = watch::Sender::new(Standing::new(BootTime::now()));
    let joined = protoplex_wire::join::hold(
        rig.identity.issue(Kind::Proxy, "proxy-1").unwrap(),
        Seeds::only(vec![address.clone()]),
        hello.subscribe(),
        state.subscribe(),
        standing,
    );
    let joined = tokio::spawn(joined);
    let mut next = async || {
        let delivery = delivery(&mut subscriber).await;
        subscriber.ack(&delivery).await;
        let event = CloudEvent::from_json(&delivery.event).unwrap();
        (event.topic().to_owned(), event.subject().unwrap_or_default().to_owned())
    };
    assert_eq!(next().await, ("node.joined".to_owned(), "node/proxy-1".to_owned()));
    joined.abort();
    assert_eq!(next().await.0, "node.lost");
    let handler = Handler {
        name: "h".into(),
        host: "*".into(),
        path: "/".into(),
        pool: "p".into(),
        placement: 3,
        ..Default::default()
    };
    let changes = HandlerChanges { add: vec![handler], operator: "ada".into(), ..Default::default() };
    let mut operator = OperatorClient::new(rig.identity.channel(&address).unwrap());
    operator.change_handlers(changes).await.unwrap();
    assert_eq!(next().await.0, "handlers.changed");
}
