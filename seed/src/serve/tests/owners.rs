//! Who owns what, over restarts of the seed, absences of the datastore, and departures.

use protoplex_wire::follow::Link;
use protoplex_wire::holder::Fence;
use protoplex_wire::identity::LIVE_POOL;
use tokio::task::LocalSet;

use crate::role::Role;

use super::rig::{Rig, leads, until};

/// Asks for the keys 0 to `count`, each until it is owned; answers members and epochs.
async fn locate_all(asker: &Link, count: usize) -> Vec<(String, u64)> {
    let mut owners = Vec::new();
    for key in 0..count {
        let owner =
            until("the key is owned", async || asker.locate(LIVE_POOL, &key.to_string()).await.ok()).await;
        owners.push((owner.member.to_string(), owner.epoch));
    }
    owners
}

/// Waits until this many members are in the table.
async fn members(link: &Link, count: usize) {
    until("the members are in the table", async || {
        let table = link.table();
        (table.pools.iter().map(|pool| pool.members.len()).sum::<usize>() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_are_spread_and_each_is_served_by_its_owner_alone() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let _seed = rig.start_seed().await;
            let (one, two, asker) =
                (rig.follow("live-1", true), rig.follow("live-2", true), rig.follow("proxy-1", false));
            members(&asker, 2).await;
            let owners = locate_all(&asker, 20).await;
            for (key, (member, epoch)) in owners.iter().enumerate() {
                let key = key.to_string();
                let (owner, other) = if member == "live-1:0" { (&one, &two) } else { (&two, &one) };
                assert!(owner.admit(&key, *epoch).await);
                assert_ne!(other.check(&key, *epoch), Fence::Owned);
            }
            let of_one = owners.iter().filter(|(member, _)| member == "live-1:0").count();
            assert_eq!(of_one, 10, "the least loaded gets the next key");
            assert_eq!(rig.status().await.keys, 20);
        })
        .await;
}

#[tokio::test]
async fn a_seed_killed_and_restarted_moves_no_key() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            let (one, two, asker) =
                (rig.follow("live-1", true), rig.follow("live-2", true), rig.follow("proxy-1", false));
            members(&asker, 2).await;
            let before = locate_all(&asker, 20).await;
            for (key, (member, epoch)) in before.iter().enumerate() {
                let owner = if member == "live-1:0" { &one } else { &two };
                assert!(owner.admit(&key.to_string(), *epoch).await);
            }
            seed.kill();
            until("all have noticed", async || {
                (!one.connected() && !two.connected() && !asker.connected()).then_some(())
            })
            .await;
            assert_eq!(locate_all(&asker, 20).await, before, "what is known goes on");

            let seed = rig.start_seed().await;
            leads(&seed).await;
            until("all are back", async || {
                let status = rig.status().await;
                (status.keys == 20 && !status.recovering).then_some(())
            })
            .await;
            let fresh = rig.follow("proxy-2", false);
            assert_eq!(locate_all(&fresh, 20).await, before, "the same owners at the same epochs");
            for link in [&one, &two] {
                assert!(link.lost_keys().unwrap().try_recv().is_err(), "nothing was lost");
            }
        })
        .await;
}

#[tokio::test]
async fn keys_of_a_member_that_leaves_move_at_once_and_only_those() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let _seed = rig.start_seed().await;
            let (one, two, asker) =
                (rig.follow("live-1", true), rig.follow("live-2", true), rig.follow("proxy-1", false));
            members(&asker, 2).await;
            let before = locate_all(&asker, 10).await;
            one.leave().await;
            members(&asker, 1).await;
            let after = locate_all(&asker, 10).await;
            for (was, is) in before.iter().zip(&after) {
                assert_eq!(is.0, "live-2:0");
                assert_eq!(was.0 == "live-2:0", was == is, "{was:?} {is:?}");
            }
            assert!(two.admit("0", after[0].1).await);
        })
        .await;
}

#[tokio::test]
async fn a_second_process_of_a_name_is_refused_with_what_to_do_until_the_first_has_left() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            let (one, asker) = (rig.follow("live-1", true), rig.follow("proxy-1", false));
            members(&asker, 1).await;
            let before = locate_all(&asker, 5).await;
            let two = rig.follow_as("live-1", "copied", true);
            until("it is told why", async || {
                let refusal = two.refusal().borrow().clone().unwrap_or_default();
                (refusal.contains("taken by another instance") && refusal.contains("--node")).then_some(())
            })
            .await;

            // To the next term both come, and only the one whom it expects is taken for the first.
            seed.kill();
            until("all have noticed", async || (!one.connected() && !asker.connected()).then_some(())).await;
            let seed = rig.start_seed().await;
            leads(&seed).await;
            until("it is back", async || {
                let status = rig.status().await;
                (status.keys == 5 && !status.recovering).then_some(())
            })
            .await;
            assert_eq!(locate_all(&rig.follow("proxy-2", false), 5).await, before);
            for (key, (_, epoch)) in before.iter().enumerate() {
                assert!(one.admit(&key.to_string(), *epoch).await);
            }
            assert!(!two.connected());

            one.leave().await;
            until("the name is free", async || two.connected().then_some(())).await;
            assert_eq!(*two.refusal().borrow(), None);
        })
        .await;
}

#[tokio::test]
async fn a_released_key_and_a_refuted_epoch_get_new_epochs() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let _seed = rig.start_seed().await;
            let (one, asker) = (rig.follow("live-1", true), rig.follow("proxy-1", false));
            members(&asker, 1).await;
            let first = locate_all(&asker, 1).await[0].1;
            assert!(one.admit("0", first).await);
            one.release([("0", first)]);
            let second = until("the release is known", async || {
                Some(locate_all(&asker, 1).await[0].1).filter(|epoch| *epoch > first)
            })
            .await;
            asker.refute(LIVE_POOL, "0", second);
            let third = locate_all(&asker, 1).await[0].1;
            assert!(third > second);
            assert!(one.admit("0", third).await);
            assert_eq!(one.check("0", second), Fence::Misdirected);
        })
        .await;
}

#[tokio::test]
async fn a_cluster_that_was_stopped_gives_each_member_its_keys_again() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let _datastore = rig.start_datastore().await;
            let seed = rig.start_seed().await;
            let (one, two, asker) =
                (rig.follow("live-1", true), rig.follow("live-2", true), rig.follow("proxy-1", false));
            members(&asker, 2).await;
            let before = locate_all(&asker, 10).await;
            one.leave().await;
            two.leave().await;
            seed.stop().await;

            let _seed = rig.start_seed().await;
            let (_one, _two) = (rig.follow("live-1", true), rig.follow("live-2", true));
            let fresh = rig.follow("proxy-2", false);
            members(&fresh, 2).await;
            let after = locate_all(&fresh, 10).await;
            for (was, is) in before.iter().zip(&after) {
                assert_eq!(was.0, is.0);
                assert!(is.1 > was.1, "at a new epoch");
            }
        })
        .await;
}

#[tokio::test]
async fn without_its_datastore_a_seed_is_not_ready_and_then_it_is() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::new();
            let seed = rig.start_seed().await;
            let asker = rig.follow("proxy-1", false);
            let refused = until("it is told that no seed leads", async || {
                asker.locate(LIVE_POOL, "0").await.err().filter(|error| error.reason.contains("away"))
            })
            .await;
            assert!(!asker.connected(), "a seed that does not lead has nothing to tell");
            assert!(refused.retry_after.as_millis() > 0);
            assert_eq!(*seed.role.borrow(), Role::Waiting);
            assert!(!rig.status().await.leading);

            let _datastore = rig.start_datastore().await;
            leads(&seed).await;
            let error = until("the pool is empty", async || {
                asker
                    .locate(LIVE_POOL, "0")
                    .await
                    .err()
                    .filter(|error| error.reason.contains("has no member now"))
            })
            .await;
            assert!(error.retry_after.as_millis() > 0);
            let _one = rig.follow("live-1", true);
            members(&asker, 1).await;
            locate_all(&asker, 1).await;
        })
        .await;
}
