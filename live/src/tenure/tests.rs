use super::*;

const RETENTION: Retention = Retention { count: 8, bytes: 1024, age: Duration::from_secs(60) };

fn hold(tenures: &Tenures, key: &str, epoch: u64) -> Rc<Tenure> {
    tenures.hold(key, epoch, || RETENTION).unwrap()
}

#[tokio::test]
async fn an_idle_key_is_given_back_and_a_used_one_is_not() {
    let tenures = Tenures::new(10);
    let (used, _) = (hold(&tenures, "used", 1).employ(), hold(&tenures, "idle", 2));
    hold(&tenures, "history", 3).publish(Update::default());
    let now = Instant::now();
    assert!(tenures.sweep(now).is_empty(), "all are young");
    assert_eq!(tenures.sweep(now + LINGER), [("idle".into(), 2)]);
    assert_eq!(tenures.sweep(now + RETENTION.age), [("history".into(), 3)]);

    drop(used);
    let now = Instant::now();
    assert!(tenures.sweep(now).is_empty(), "its client may come back");
    assert_eq!(tenures.sweep(now + LINGER), [("used".into(), 1)]);
}

#[tokio::test]
async fn another_epoch_is_another_tenure() {
    let tenures = Tenures::new(1);
    let old = hold(&tenures, "key", 1);
    assert!(Rc::ptr_eq(&old, &hold(&tenures, "key", 1)));
    let new = hold(&tenures, "key", 2);
    assert_eq!((old.end(), new.end()), (Some(End::Revoked), None));
}

#[tokio::test]
async fn too_many_keys_are_refused() {
    let tenures = Tenures::new(1);
    hold(&tenures, "a", 1);
    assert!(tenures.hold("b", 2, || RETENTION).is_none());
}

#[tokio::test]
async fn what_ends_wakes_whoever_waits() {
    let tenures = Tenures::new(10);
    let (lost, kept) = (hold(&tenures, "lost", 1), hold(&tenures, "kept", 2));
    let waits = tokio::join!(lost.ended(), async { tenures.end_one("lost", End::Revoked, |_| true) });
    assert_eq!(waits.0, End::Revoked);
    tenures.end(End::Draining, |tenure| tenure.epoch == 2);
    assert_eq!(kept.ended().await, End::Draining);
    assert!(!Rc::ptr_eq(&kept, &hold(&tenures, "kept", 2)), "an ended tenure is not found again");
}
