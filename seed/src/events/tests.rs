//! The bus as its users meet it: a real seed and datastore, and the client that nodes and commands use. One contract,
//! whatever keeps the events.

mod contract;
mod outage;
mod rig;

macro_rules! contract {
    ($($kind:ident: $keeper:expr;)+) => {
        $(contract! { @tests $kind $keeper;
            events_reach_whoever_subscribes_in_their_order
            a_subscription_begins_where_it_says
            a_repeated_event_is_published_once
            a_name_goes_on_where_it_was
            what_a_name_has_yet_to_acknowledge_sets_it_not_back
            a_group_shares_its_events
            who_is_slow_is_not_hurried
            what_nobody_came_to_is_no_attempt
            what_a_lost_member_had_is_for_others
            what_is_not_answered_in_time_is_for_others
            an_event_that_fails_again_and_again_is_put_aside
            nobody_has_more_than_its_window
            delayed_events_come_in_time_and_outlive_the_seed
            a_killed_seed_loses_nothing_that_was_acknowledged
            what_is_kept_no_longer_is_told
            what_makes_no_sense_is_refused
            a_name_has_one_subscriber_where_it_wants_to
            a_removed_subscription_tells_its_subscribers
            large_events_and_batches_pass
            the_cluster_tells_what_happens;
        })+
    };
    (@tests $kind:ident $keeper:expr; $($test:ident)+;) => {
        mod $kind {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
                async fn $test() {
                    super::contract::$test($keeper).await;
                }
            )+
        }
    };
}

contract! {
    kept_in_sqlite: super::rig::Keeper::Sqlite;
    kept_in_postgres: super::rig::Keeper::Postgres;
    carried_by_nats: super::rig::Keeper::Nats;
}
