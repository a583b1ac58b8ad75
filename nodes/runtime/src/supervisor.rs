//! Keeps processes alive: the children of a node, and the nodes of `protoplex up`.
//!
//! [`Life`] is the rule (pure, with time as an argument), [`Process`] carries it out on real processes.

mod child;
mod keeper;
mod life;
mod process;
mod program;

pub(crate) use life::Past;
pub use life::{Event, Life, Order, Policy, State};
pub(crate) use process::{Paused, Snapshot};
pub use process::{Process, Status};
pub(crate) use program::Inherited;
pub use program::Program;
