//! Starts real clusters on free ports, for tests of the whole: the binary itself, run as an operator runs it.
//!
//! A [`cluster`] takes its [`ports`], tests speak to it with [`curl`] and wait for what they expect with [`until()`].

pub mod cluster;
pub mod curl;
pub mod machines;
pub mod nats;
pub mod ports;
pub mod postgres;
pub mod s3;
mod wait;

pub use wait::until;
