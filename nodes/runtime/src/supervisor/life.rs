//! The life of one supervised process, as a pure state machine.
//!
//! ```text
//!              ready            died                died too often
//!  STARTING ─────────► RUNNING ──────► BACKOFF ···► FATAL
//!     ▲  │                │  ▲            │
//!     │  └── drain, end ──┤  └── at once  │ its delay is over
//!     │                   ▼               │
//!     │                STOPPING ──────────│──► EXITED
//!     └───────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// From the order to end at once until the process is killed: time for a node to end its own children.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a process is in its life; supervisord's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
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
    /// Died too often; not started again.
    Fatal,
}

impl State {
    /// Whether nothing will happen to the process any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Exited | Self::Fatal)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
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
    /// It reports itself ready.
    Ready,
    /// It has ended, or could not be started.
    Died,
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
}

/// The life of one process.
#[derive(Debug)]
pub struct Life {
    policy: Policy,
    state: State,
    deadline: Option<Instant>,
    deaths: VecDeque<Instant>,
    restarts: u32,
}

impl Life {
    /// A process that is being started: the caller spawns it.
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::Starting, deadline: None, deaths: VecDeque::new(), restarts: 0 }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// When [`Event::Deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What follows from an event. Events that have no meaning in the present state change nothing.
    pub fn take(&mut self, event: Event, now: Instant) -> Option<Order> {
        match (self.state, event) {
            (State::Starting, Event::Ready) => self.enter(State::Running, None, None),
            (State::Starting | State::Running, Event::Died) => self.died(now),
            (State::Starting | State::Running, Event::Drain) => {
                self.enter(State::Stopping, Some(now + self.policy.stop_timeout), Some(Order::Drain))
            }
            (State::Starting | State::Running, Event::End) => {
                self.enter(State::Stopping, Some(now + END_TIMEOUT), Some(Order::End))
            }
            (State::Stopping, Event::End) => {
                self.deadline = self.deadline.map(|deadline| deadline.min(now + END_TIMEOUT));
                Some(Order::End)
            }
            (State::Stopping, Event::Died) | (State::Backoff, Event::Drain | Event::End) => {
                self.enter(State::Exited, None, None)
            }
            (State::Stopping, Event::Deadline) if self.is_due(now) => {
                self.deadline = None;
                Some(Order::Kill)
            }
            (State::Backoff, Event::Deadline) if self.is_due(now) => self.start_again(),
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
            return self.enter(State::Fatal, None, None);
        }
        if deaths == 1 {
            return self.start_again();
        }
        let doublings = u32::try_from(deaths - 2).unwrap_or(u32::MAX);
        let delay = self.policy.first_delay.saturating_mul(2_u32.saturating_pow(doublings));
        self.enter(State::Backoff, Some(now + delay), None)
    }

    fn start_again(&mut self) -> Option<Order> {
        self.restarts += 1;
        self.enter(State::Starting, None, Some(Order::Spawn))
    }

    fn is_due(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn enter(&mut self, state: State, deadline: Option<Instant>, order: Option<Order>) -> Option<Order> {
        self.state = state;
        self.deadline = deadline;
        order
    }
}

#[cfg(test)]
mod tests;
