//! What every node is made of: its configuration, its processes, its sockets, its drain and its meta port.
//!
//! A node's *parent* reads the configuration ([`config`]), takes its name, its ports and its place in the data directory,
//! or says why not ([`start`]), and then keeps its *children* alive ([`parent`], [`supervisor`]) until it is told to
//! [`drain`]. A child is the same executable once more ([`child`]); all that it knows it is told through its [`context`].
//! Nodes of a single process ([`solo`]) are parents without children. The parent answers for all of them on the
//! [`meta`] port.

pub mod account;
pub mod child;
mod children;
pub mod commands;
pub mod config;
pub mod context;
mod control;
pub mod descriptors;
pub mod drain;
mod exposition;
mod interface;
pub mod log_file;
mod mask;
pub mod memory;
pub mod meta;
pub mod network;
mod node;
mod orders;
pub mod parent;
mod procfs;
pub mod running;
mod seeds;
pub mod signals;
mod sockets;
pub mod solo;
pub mod start;
pub mod supervisor;
mod sys;
mod systemd;
pub mod telemetry;
pub mod upgrade;
