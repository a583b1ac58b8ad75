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
        let now = Instant::now();
        Self { life: Life::new(Policy::new(Duration::from_secs(30)), now), now, alive: true }
    }

    fn take(&mut self, event: Event) -> Option<Order> {
        if matches!(event, Event::Died | Event::Lacking) {
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

/// Two seconds without a file to spare, and a child was given up for good.
#[test]
fn what_the_system_lacks_is_waited_for_and_no_death() {
    let mut world = World::new();
    for _ in 0..100 {
        let tried = world.now;
        assert_eq!(world.take(Event::Lacking), None);
        assert_eq!((world.life.state(), world.life.deadline()), (State::Backoff, Some(tried + 1000 * MS)));
        assert_eq!(world.wait(), Some(Order::Spawn));
    }
    assert_eq!(world.take(Event::Ready), None);
    assert_eq!(world.life.state(), State::Running);
    assert_eq!(world.take(Event::Died), Some(Order::Spawn), "the first death");
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
    assert_eq!(world.take(Event::Start), Some(Order::Spawn), "an operator may try again");
    assert_eq!(world.take(Event::Died), Some(Order::Spawn), "and then nothing is held against it");
}

#[test]
fn who_was_stopped_or_drained_can_be_started_again() {
    for (event, state) in [(Event::Stop, State::Stopped), (Event::Drain, State::Exited)] {
        let mut world = World::new();
        assert_eq!(world.take(event), Some(Order::Drain));
        assert_eq!(world.take(Event::Died), None);
        assert_eq!((world.life.state(), world.life.deadline()), (state, None));
        assert_eq!(world.take(Event::Stop), None);
        assert_eq!(world.life.state(), state);
        assert_eq!(world.take(Event::Start), Some(Order::Spawn));
        assert_eq!(world.life.state(), State::Starting);
    }
}

#[test]
fn who_is_wanted_again_while_it_stops_is_started_once_it_has() {
    let mut world = World::new();
    world.take(Event::Stop);
    assert_eq!(world.take(Event::Start), None);
    assert_eq!(world.take(Event::Died), Some(Order::Spawn));
    world.take(Event::Cut);
    assert_eq!(world.life.deadline(), Some(world.now + END_TIMEOUT));
    world.take(Event::Start);
    world.take(Event::Drain);
    assert_eq!(world.take(Event::Died), None, "the last wish counts");
    assert_eq!(world.life.state(), State::Exited);
}

#[test]
fn who_leaves_by_itself_is_not_started_again() {
    let mut world = World::new();
    world.take(Event::Ready);
    assert_eq!(world.take(Event::Leaves), None);
    assert_eq!(world.life.state(), State::Stopping);
    assert_eq!(world.take(Event::Died), None);
    assert_eq!(world.life.state(), State::Exited);
}

#[test]
fn a_process_that_falls_silent_is_killed_and_started_again() {
    let mut world = World::new();
    assert_eq!(world.life.deadline(), Some(world.now + START_TIMEOUT), "it may take its time to begin");
    world.take(Event::Heard);
    world.take(Event::Ready);
    for _ in 0..100 {
        world.now += Duration::from_secs(9);
        assert_eq!(world.take(Event::Deadline), None);
        world.take(Event::Heard);
    }
    assert_eq!(world.life.deadline(), Some(world.now + SILENCE_LIMIT));
    assert_eq!(world.wait(), Some(Order::Quit));
    assert_eq!(world.life.deadline(), Some(world.now + STACK_TIMEOUT));
    assert_eq!(world.wait(), Some(Order::Kill), "it may be too stuck even for that");
    assert_eq!(world.life.deadline(), None);
    assert_eq!(world.take(Event::Died), Some(Order::Spawn));
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
    assert_eq!(world.life.deadline(), None);
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
        8 => Just(Event::Heard),
        4 => Just(Event::Died),
        4 => Just(Event::Ready),
        4 => Just(Event::Deadline),
        1 => Just(Event::Leaves),
        1 => Just(Event::Start),
        1 => Just(Event::Stop),
        1 => Just(Event::Cut),
        1 => Just(Event::Drain),
        1 => Just(Event::End),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(happenings in prop::collection::vec((event(), 0..40_000_u32), 1..200)) {
        let mut world = World::new();
        // Whether it should run, whether its process was killed, and the deaths that nobody wished for.
        let (mut wanted, mut killed, mut deaths) = (true, false, Vec::new());
        for (event, pause) in happenings {
            world.now += pause * MS;
            if event == Event::Died && !world.alive {
                continue;
            }
            let before = world.life.state();
            let order = world.take(event);
            let state = world.life.state();
            match event {
                Event::Start => wanted = true,
                Event::Stop | Event::Cut | Event::Drain | Event::End => wanted = false,
                Event::Leaves if before.is_up() => wanted = false,
                Event::Died if before.is_up() => deaths.push(world.now),
                _ => {}
            }
            killed = (killed || matches!(order, Some(Order::Kill))) && order != Some(Order::Spawn);
            if event == Event::Start && order == Some(Order::Spawn) && before != State::Backoff {
                deaths.clear();
            }
            let recent = deaths.iter().filter(|death| world.now - **death < Duration::from_secs(60)).count();
            prop_assert!(wanted || order != Some(Order::Spawn), "who was told to end is not started again");
            prop_assert_eq!(state == State::Fatal && before != State::Fatal, recent >= 5 && event == Event::Died && before.is_up());
            prop_assert_eq!(world.alive, state.is_up() || state == State::Stopping);
            let waits = world.life.deadline().is_some();
            prop_assert!(waits || killed || state.is_final(), "nothing is waited for without a limit");
            prop_assert!(!waits || !state.is_final(), "the end is the end");
            prop_assert!(!before.is_final() || state == before || event == Event::Start || event != Event::Died, "the end is the end");
        }
    }
}
