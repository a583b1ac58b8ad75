//! The life of one supervised process, as a pure state machine.
//!
//! ```text
//!               ready            died                died too often
//!  STARTING ──────────► RUNNING ──────► BACKOFF ···► FATAL
//!   ▲ ▲  │                │  ▲            │            │
//!   │ │  └─ stop, drain ──┤  └── at once  │ its delay  │ start
//!   │ │         end       ▼               │ is over    │
//!   │ │               STOPPING ─► EXITED  │            │
//!   │ │                   │         │     │            │
//!   │ │                   ▼         │     │            │
//!   │ └─── start ──── STOPPED       │     │            │
//!   └───────────────────────────────┴─────┴────────────┘
//! ```
//!
//! Who was stopped can be started again, and so can who was drained, as long as it is looked after. A process that says
//! nothing for too long is stuck, and killed.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// From the order to end at once until the process is killed: time for a node to end its own children.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// A process that runs says something more often than that, or is stuck.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// What it may take to tell where.
const STACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Until it is tried again to start one that the system had nothing for.
const LACK_PAUSE: Duration = Duration::from_secs(1);
/// Until its first word.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a process is in its life; supervisord's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Ended as it was told to, by an operator who may want it back.
    Stopped,
    /// Runs, but was never ready yet.
    Starting,
    /// Runs, and has been ready.
    Running,
    /// Died; waits until it is started again.
    Backoff,
    /// Told to end.
    Stopping,
    /// Ended as it was told to.
    Exited,
    /// Died too often; not started again by itself.
    Fatal,
}

impl State {
    /// Whether nothing will happen to the process by itself any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Exited | Self::Fatal)
    }

    /// Whether there is a process that may be given work.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Backoff => "BACKOFF",
            Self::Stopping => "STOPPING",
            Self::Exited => "EXITED",
            Self::Fatal => "FATAL",
        })
    }
}

/// How hard to try.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The death within [`Policy::window`] that makes the process [`State::Fatal`].
    pub deaths: usize,
    /// For how long a death counts.
    pub window: Duration,
    /// Before the second restart within the window (the first is at once); doubled for each further one.
    pub first_delay: Duration,
    /// From the order to drain until the process is killed.
    pub stop_timeout: Duration,
}

impl Policy {
    /// Five deaths in a minute are too many; a process that drains is killed after `stop_timeout`.
    pub fn new(stop_timeout: Duration) -> Self {
        Self {
            deaths: 5,
            window: Duration::from_mins(1),
            first_delay: Duration::from_millis(250),
            stop_timeout,
        }
    }
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It says anything at all.
    Heard,
    /// It reports itself ready.
    Ready,
    /// It is about to end in good order, by a wish that it was told of directly.
    Leaves,
    /// It has ended, or could not be started.
    Died,
    /// It could not be started for want of something that the system has none of just now: no fault of its program.
    Lacking,
    /// It should run, although it was stopped, was drained, or died too often.
    Start,
    /// It should end in good order, and may be wanted again.
    Stop,
    /// It should end now, and may be wanted again.
    Cut,
    /// It should end in good order.
    Drain,
    /// It should end now.
    End,
    /// [`Life::deadline`] has come.
    Deadline,
}

/// What is to be done to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start it.
    Spawn,
    /// Tell it to drain.
    Drain,
    /// Tell it to end at once.
    End,
    /// Kill it.
    Kill,
    /// Have it tell where it is stuck, and end.
    Quit,
}

/// What becomes of a process that is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum After {
    Stopped,
    Exited,
    /// It was wanted again before it had ended.
    Again,
}

/// A life as another image of the supervisor's program goes on with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Past {
    state: State,
    after: After,
    /// In so many milliseconds.
    deadline_ms: Option<u64>,
    restarts: u32,
}

/// The life of one process.
#[derive(Debug)]
pub struct Life {
    policy: Policy,
    state: State,
    after: After,
    deadline: Option<Instant>,
    /// When it is taken for stuck.
    silent: Option<Instant>,
    deaths: VecDeque<Instant>,
    restarts: u32,
}

impl Life {
    /// A process that is being started: the caller spawns it.
    pub fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy,
            state: State::Starting,
            after: After::Exited,
            deadline: None,
            silent: Some(now + START_TIMEOUT),
            deaths: VecDeque::new(),
            restarts: 0,
        }
    }

    /// One that goes on. What the process said meanwhile waits to be read, and its deaths are forgotten: whatever caused
    /// them was another program.
    pub(crate) fn resumed(policy: Policy, past: &Past, now: Instant) -> Self {
        let rests = past.state.is_final() || past.state == State::Backoff;
        Self {
            policy,
            state: past.state,
            after: past.after,
            deadline: past.deadline_ms.map(|ms| now + Duration::from_millis(ms)),
            silent: (!rests).then(|| now + START_TIMEOUT),
            deaths: VecDeque::new(),
            restarts: past.restarts,
        }
    }

    /// For [`Life::resumed`].
    pub(crate) fn past(&self, now: Instant) -> Past {
        let ms = |deadline: Instant| deadline.saturating_duration_since(now).as_millis() as u64;
        Past {
            state: self.state,
            after: self.after,
            deadline_ms: self.deadline.map(ms),
            restarts: self.restarts,
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it rests, or will once it has ended: it was told to.
    pub(crate) fn is_to_rest(&self) -> bool {
        match self.state {
            State::Stopped | State::Exited => true,
            State::Stopping => self.after != After::Again,
            _ => false,
        }
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        [self.deadline, self.silent].into_iter().flatten().min()
    }

    /// What follows from an event. Events that have no meaning in the present state change nothing.
    pub fn take(&mut self, event: Event, now: Instant) -> Option<Order> {
        match (self.state, event) {
            (_, Event::Heard) => {
                self.silent = self.silent.map(|_| now + SILENCE_LIMIT);
                None
            }
            (State::Starting, Event::Ready) => {
                // Who is about to be killed is so all the same.
                self.state = State::Running;
                None
            }
            (State::Starting | State::Running, Event::Leaves) => self.stop(After::Exited, now, None),
            (State::Starting | State::Running, Event::Stop) => {
                self.stop(After::Stopped, now, Some(Order::Drain))
            }
            (State::Starting | State::Running, Event::Drain) => {
                self.stop(After::Exited, now, Some(Order::Drain))
            }
            (State::Starting | State::Running, Event::End) => {
                self.stop(After::Exited, now, Some(Order::End));
                self.deadline = Some(now + END_TIMEOUT);
                Some(Order::End)
            }
            (State::Starting | State::Running, Event::Cut) => {
                self.stop(After::Stopped, now, None);
                self.deadline = Some(now + END_TIMEOUT);
                Some(Order::End)
            }
            (State::Starting | State::Running, Event::Died) => self.died(now),
            (State::Starting, Event::Lacking) => {
                self.rest(State::Backoff);
                self.deadline = Some(now + LACK_PAUSE);
                None
            }
            (State::Stopping, Event::Start) => {
                self.after = After::Again;
                None
            }
            (State::Stopping, Event::Stop) => {
                self.after = After::Stopped;
                None
            }
            (State::Stopping, Event::Drain) => {
                self.after = After::Exited;
                None
            }
            (State::Stopping, Event::End | Event::Cut) => {
                self.after = if event == Event::Cut { After::Stopped } else { After::Exited };
                self.deadline = self.deadline.map(|deadline| deadline.min(now + END_TIMEOUT));
                Some(Order::End)
            }
            (State::Stopping, Event::Died) => match self.after {
                After::Stopped => self.rest(State::Stopped),
                After::Exited => self.rest(State::Exited),
                After::Again => self.start(now),
            },
            (State::Backoff | State::Fatal, Event::Stop | Event::Cut) => self.rest(State::Stopped),
            (State::Backoff | State::Stopped, Event::Drain | Event::End) => self.rest(State::Exited),
            (State::Stopped | State::Exited | State::Fatal, Event::Start) => {
                self.deaths.clear();
                self.start(now)
            }
            (State::Backoff, Event::Start) => self.start(now),
            (_, Event::Deadline) if is_due(self.silent, now) => {
                self.silent = None;
                self.deadline = Some(now + STACK_TIMEOUT);
                Some(Order::Quit)
            }
            (State::Backoff, Event::Deadline) if is_due(self.deadline, now) => self.start(now),
            (_, Event::Deadline) if is_due(self.deadline, now) => {
                self.deadline = None;
                self.silent = None;
                Some(Order::Kill)
            }
            _ => None,
        }
    }

    fn died(&mut self, now: Instant) -> Option<Order> {
        while self.deaths.front().is_some_and(|death| now.duration_since(*death) >= self.policy.window) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let deaths = self.deaths.len();
        if deaths >= self.policy.deaths {
            return self.rest(State::Fatal);
        }
        if deaths == 1 {
            return self.start(now);
        }
        let doublings = u32::try_from(deaths - 2).unwrap_or(u32::MAX);
        let delay = self.policy.first_delay.saturating_mul(2_u32.saturating_pow(doublings));
        self.rest(State::Backoff);
        self.deadline = Some(now + delay);
        None
    }

    fn start(&mut self, now: Instant) -> Option<Order> {
        self.restarts += 1;
        self.silent = Some(now + START_TIMEOUT);
        self.enter(State::Starting, Some(Order::Spawn))
    }

    fn stop(&mut self, after: After, now: Instant, order: Option<Order>) -> Option<Order> {
        self.after = after;
        self.enter(State::Stopping, order);
        self.deadline = Some(now + self.policy.stop_timeout);
        order
    }

    /// There is no process any more.
    fn rest(&mut self, state: State) -> Option<Order> {
        self.silent = None;
        self.enter(state, None)
    }

    fn enter(&mut self, state: State, order: Option<Order>) -> Option<Order> {
        self.state = state;
        self.deadline = None;
        order
    }
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

#[cfg(test)]
mod tests;
