//! The seed's core and the holders together, through every fault that their network, clocks and processes can have.
//!
//! Claims: never two holders at once that would serve one key; nobody uses an answer for a key that was taken from its
//! owner as idle; two lease times after the last fault every key that is asked for is served; seeds that die, pause, hand
//! over or lose their links move no key; a handler whose operator was told that it is there is there, and whoever leads
//! routes by it. `PROTOPLEX_SIMULATIONS` sets the number of seeds (default 1,000), `PROTOPLEX_SIMULATION` runs one and
//! prints it.

mod askers;
mod datastore;
mod faults;
mod handlers;
mod member;
mod network;
mod random;
mod seed;
mod world;

use std::time::{Duration, Instant};

use world::{Tally, Verdict, World};

/// What members are told of their lease.
const LEASE: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Who comes and goes within this moves no key.
const SETTLING: Duration = Duration::from_secs(1);
/// An answer may be used so long without asking again.
const IDLE: Duration = Duration::from_secs(2);
/// The leader's row.
const TTL: Duration = Duration::from_secs(3);
/// The same while members are expected back: a seed that dies then must not hold the row against their leases.
const RECOVERY_TTL: Duration = Duration::from_secs(1);
/// A machine's clock runs wrong by at most this.
const DRIFT_PERCENT: u64 = 5;

/// A bug on purpose, which the simulation must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// None.
    None,
    /// The seed counts shorter leases than it tells: it reassigns before the lease ends.
    ShortLease,
    /// A new term expects nobody back.
    NoRecovery,
    /// A leader goes on for a while after its row is over.
    LeadOn,
    /// A member goes on whatever the datastore says of the seed's row.
    AlwaysUnseeded,
    /// The seed tells processes apart by their name alone: each process of a name is of one instance.
    NameOnly,
    /// Leases are counted by the wall clock, which is set now and then.
    WallClock,
    /// A member that is asked for a key says that it gives it up, and serves it on.
    KeepsServing,
    /// The seed takes keys for idle sooner than it tells those who use its answers.
    HastyIdle,
    /// Who uses a key for long asks only once.
    AsksOnce,
    /// A seed tells the operator that a change is made before the datastore says so.
    EarlyWord,
    /// The datastore takes a change of handlers whichever version it was made of.
    AnyVersion,
    /// The datastore takes changes of seeds that lead no more.
    AnyTerm,
}

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    /// Every kind.
    All,
    /// Only the seeds and their links suffer, and now and then one hands over: then no key may move.
    SeedOnly,
}

fn run(seed: u64, faults: Faults, plant: Plant) -> World {
    let mut world = World::new(seed, faults, plant, false);
    world.run();
    world
}

/// Runs the seed again, with the last lines of its trace.
fn explain(seed: u64, faults: Faults, plant: Plant, lines: usize) -> String {
    let mut world = World::new(seed, faults, plant, true);
    world.run();
    let verdict = world.verdict.as_ref().map_or("no failure", |verdict| verdict.0.as_str());
    format!("{}\nseed {seed} ({faults:?}, {plant:?}): {verdict}", world.last_events(lines))
}

fn count() -> u64 {
    std::env::var("PROTOPLEX_SIMULATIONS")
        .map_or(1_000, |text| text.parse().expect("PROTOPLEX_SIMULATIONS is a number"))
}

fn all_pass(faults: Faults) {
    if let Ok(seed) = std::env::var("PROTOPLEX_SIMULATION") {
        let seed = seed.parse().expect("PROTOPLEX_SIMULATION is a number");
        println!("{}", explain(seed, faults, Plant::None, usize::MAX));
        return;
    }
    let started = Instant::now();
    let (mut steps, mut served, mut told) = (0, 0, Tally::default());
    for seed in 0..count() {
        let world = run(seed, faults, Plant::None);
        if let Some(Verdict(why)) = &world.verdict {
            panic!("{}\n{why}", explain(seed, faults, Plant::None, 120));
        }
        steps += world.steps;
        served += world.served;
        told += world.tally;
    }
    println!("{} seeds, {steps} steps, {served} requests served, {told:?}, {:?}", count(), started.elapsed());
    if faults == Faults::All {
        let Tally { idle, moved, drained, handlers, handed_over } = told;
        let all = [idle, moved, drained, handlers, handed_over];
        assert!(all.iter().all(|each| each * 20 > count()), "something hardly ever happens: {told:?}");
    }
    assert!(served > count() * 50, "the simulated cluster hardly serves anything");
}

/// The first seed below `within` at which this claim fails.
fn found(plant: Plant, within: u64, claim: &str) -> Option<u64> {
    let found = (0..within).find(|seed| {
        let world = run(*seed, Faults::All, plant);
        world.verdict.is_some_and(|Verdict(why)| why.starts_with(claim))
    });
    println!("{plant:?}: found at seed {found:?}");
    found
}

const TWO_HOLDERS: &str = "two holders";
const STILL_USED: &str = "still used";
const LOST_HANDLER: &str = "lost handler";

#[test]
fn never_two_owners_and_every_key_is_owned_again() {
    all_pass(Faults::All);
}

#[test]
fn a_seed_that_dies_pauses_or_hands_over_moves_no_key() {
    all_pass(Faults::SeedOnly);
}

#[test]
fn it_finds_a_seed_that_reassigns_before_the_lease_ends() {
    assert!(found(Plant::ShortLease, 200, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_a_new_term_that_waits_for_nobody() {
    assert!(found(Plant::NoRecovery, 200, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_two_processes_of_one_name_that_are_taken_for_one() {
    assert!(found(Plant::NameOnly, 200, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_a_leader_that_goes_on_without_its_row() {
    assert!(found(Plant::LeadOn, 1_000, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_members_that_go_on_although_a_seed_leads() {
    assert!(found(Plant::AlwaysUnseeded, 200, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_leases_that_are_counted_by_a_clock_that_people_set() {
    assert!(found(Plant::WallClock, 200, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_a_member_that_serves_what_it_gave_up() {
    assert!(found(Plant::KeepsServing, 500, TWO_HOLDERS).is_some());
}

#[test]
fn it_finds_a_seed_that_takes_keys_for_idle_too_soon() {
    assert!(found(Plant::HastyIdle, 500, STILL_USED).is_some());
}

#[test]
fn it_finds_users_of_a_key_who_do_not_say_that_they_use_it() {
    assert!(found(Plant::AsksOnce, 500, STILL_USED).is_some());
}

#[test]
fn it_finds_a_seed_that_speaks_before_the_datastore() {
    assert!(found(Plant::EarlyWord, 500, LOST_HANDLER).is_some());
}

#[test]
fn it_finds_a_datastore_that_takes_changes_of_a_seed_that_leads_no_more() {
    assert!(found(Plant::AnyTerm, 1_000, LOST_HANDLER).is_some());
}

#[test]
fn it_finds_a_datastore_that_takes_changes_of_another_version() {
    assert!(found(Plant::AnyVersion, 500, LOST_HANDLER).is_some());
}
