//! The datastore node: all structured data of a cluster (files, sites, upload tokens, handlers, builds, members,
//! leases), behind one small trait, served to the other nodes over TLS.
//!
//! What a database has to do is said by [`store`]; the rules that every database shares (tokens, uploads, files, leases,
//! builds) are plain functions on plain data. [`sqlite`] is the database of one machine, [`postgres`] that of many.

pub mod archive;
pub mod config;
pub mod event_log;
pub mod serve;
pub mod store;

mod announce;
mod builds;
mod file;
mod handlers;
mod join_token;
mod lease;
mod scope;
mod token;
mod upload;

pub mod postgres;
pub mod sqlite;
