//! Keeps processes alive: the children of a node, and the nodes of `protoplex up`.
//!
//! [`Life`] is the rule (pure, with time as an argument), [`Process`] carries it out on real processes.

mod life;
mod process;
mod program;

pub use life::{Event, Life, Order, Policy, State};
pub use process::{Process, Status};
pub use program::Program;
