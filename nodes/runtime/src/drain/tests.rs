//! Drains and the tasks they wait for.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::*;

#[tokio::test]
async fn a_drain_is_seen_by_all_who_wait_and_by_all_who_come_later() {
    let (trigger, drain) = Drain::new();
    let waiting = tokio::spawn({
        let drain = drain.clone();
        async move { drain.started().await }
    });
    assert!(!drain.is_draining());
    trigger.pull();
    waiting.await.unwrap();
    assert!(drain.is_draining());
    drop(trigger);
    assert!(drain.started().now_or_never().is_some());
}

#[tokio::test]
async fn a_drain_that_nobody_can_start_does_not() {
    let (trigger, drain) = Drain::new();
    drop(trigger);
    assert!(!drain.is_draining());
    assert!(drain.started().now_or_never().is_none());
}

#[tokio::test]
async fn tasks_are_finished_when_the_last_one_ended_however_it_ended() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let tasks = Tasks::default();
            assert!(tasks.finished().now_or_never().is_some(), "none runs");
            let (release, released) = oneshot::channel::<()>();
            let inner = tasks.clone();
            tasks.spawn(async move {
                let _ = released.await;
                inner.spawn(async { panic!("as planned") });
            });
            assert_eq!(tasks.running(), 1);
            assert!(tasks.finished().now_or_never().is_none());
            release.send(()).unwrap();
            tokio::time::timeout(Duration::from_secs(10), tasks.finished()).await.unwrap();
            assert_eq!(tasks.running(), 0);
        })
        .await;
}
