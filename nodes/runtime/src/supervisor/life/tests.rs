//! The life of a process under a clock of its own.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A life, its clock, and whether the process that it rules really lives.
struct World {
    life: Life,
    now: Instant,
    alive: bool,
}

impl World {
    fn new() -> Self {
        Self { life: Life::new(Policy::new(Duration::from_secs(30))), now: Instant::now(), alive: true }
    }

    fn take(&mut self, event: Event) -> Option<Order> {
        if event == Event::Died {
            self.alive = false;
        }
        let order = self.life.take(event, self.now);
        if order == Some(Order::Spawn) {
            assert!(!self.alive, "never two processes at once");
            self.alive = true;
        }
        order
    }

    fn wait(&mut self) -> Option<Order> {
        self.now = self.life.deadline().expect("something is waited for");
        self.take(Event::Deadline)
    }
}

#[test]
fn the_first_death_is_followed_by_a_restart_at_once_then_by_doubling_pauses_then_by_none() {
    let mut world = World::new();
    assert_eq!(world.take(Event::Ready), None);
    assert_eq!(world.life.state(), State::Running);
    assert_eq!(world.take(Event::Died), Some(Order::Spawn));
    for pause in [250, 500, 1000] {
        let died = world.now;
        assert_eq!(world.take(Event::Died), None);
        assert_eq!(world.life.state(), State::Backoff);
        assert_eq!(world.life.deadline(), Some(died + pause * MS));
        assert_eq!(world.wait(), Some(Order::Spawn));
        assert_eq!(world.life.state(), State::Starting);
    }
    assert_eq!(world.take(Event::Died), None);
    assert_eq!((world.life.state(), world.life.restarts()), (State::Fatal, 4));
    for event in [Event::Ready, Event::Drain, Event::End, Event::Deadline] {
        assert_eq!(world.take(event), None);
    }
    assert_eq!(world.life.state(), State::Fatal);
}

#[test]
fn deaths_are_forgotten_after_a_minute() {
    let mut world = World::new();
    for _ in 0..100 {
        assert_eq!(world.take(Event::Died), Some(Order::Spawn), "as if it were the first");
        world.now += Duration::from_secs(60);
    }
    assert_eq!(world.life.restarts(), 100);
}

#[test]
fn a_drain_that_does_not_end_is_ended_by_force() {
    let mut world = World::new();
    assert_eq!(world.take(Event::Drain), Some(Order::Drain));
    assert_eq!(world.take(Event::Drain), None);
    assert_eq!(world.take(Event::Ready), None);
    assert_eq!(world.life.state(), State::Stopping);
    assert_eq!(world.life.deadline(), Some(world.now + Duration::from_secs(30)));
    assert_eq!(world.wait(), Some(Order::Kill));
    assert_eq!(world.take(Event::Died), None);
    assert_eq!(world.life.state(), State::Exited);
}

#[test]
fn an_end_is_quick_even_in_a_drain() {
    let mut world = World::new();
    world.take(Event::Drain);
    world.now += Duration::from_secs(3);
    assert_eq!(world.take(Event::End), Some(Order::End));
    assert_eq!(world.life.deadline(), Some(world.now + Duration::from_secs(1)));
    let deadline = world.life.deadline();
    world.now += 500 * MS;
    assert_eq!(world.take(Event::End), Some(Order::End));
    assert_eq!(world.life.deadline(), deadline, "asking again gives it no more time");
    assert_eq!(world.wait(), Some(Order::Kill));
}

#[test]
fn a_process_that_waits_for_its_restart_is_just_not_started() {
    for event in [Event::Drain, Event::End] {
        let mut world = World::new();
        world.take(Event::Died);
        world.take(Event::Died);
        assert_eq!(world.life.state(), State::Backoff);
        assert_eq!(world.take(event), None);
        assert_eq!((world.life.state(), world.life.deadline()), (State::Exited, None));
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Died),
        4 => Just(Event::Ready),
        4 => Just(Event::Deadline),
        1 => Just(Event::Drain),
        1 => Just(Event::End),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(happenings in prop::collection::vec((event(), 0..40_000_u32), 1..200)) {
        let mut world = World::new();
        let (mut told, mut killed) = (false, false);
        let mut deaths = Vec::new();
        for (event, pause) in happenings {
            world.now += pause * MS;
            if event == Event::Died && !world.alive {
                continue;
            }
            let before = world.life.state();
            let order = world.take(event);
            told |= matches!(event, Event::Drain | Event::End) && !before.is_final();
            killed |= order == Some(Order::Kill);
            if event == Event::Died && !told {
                deaths.push(world.now);
            }
            let recent = deaths.iter().filter(|death| world.now - **death < Duration::from_secs(60)).count();
            prop_assert!(!(told && order == Some(Order::Spawn)), "who was told to end is not started again");
            prop_assert_eq!(world.life.state() == State::Fatal && !before.is_final(), recent >= 5 && event == Event::Died && !told && !before.is_final());
            let state = world.life.state();
            prop_assert_eq!(world.alive, matches!(state, State::Starting | State::Running | State::Stopping));
            let waits = state == State::Backoff || state == State::Stopping && !killed;
            prop_assert_eq!(world.life.deadline().is_some(), waits, "nothing is waited for without a limit");
            prop_assert!(!before.is_final() || state == before, "the end is the end");
        }
    }
}
