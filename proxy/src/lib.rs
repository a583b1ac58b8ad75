//! The proxy: brings each request to the member that shall answer it, and gets out of the way.
//!
//! A request meets the modules below in this order. Its [`target`] must mean the same to every server; its host and path
//! choose a handler in the [`table`]; the handler's template makes its [`key`]; the key's owner, or a [`placement`] of our own among those in good
//! [`health`], is who gets it; the [`relay`] lists these
//! steps and carries request and answer, keeping a [`replay`] of the request in case its owner has just changed. Where
//! no member answers, a [`refusal`] says why.

pub mod config;
pub mod health;
mod hot_keys;
pub mod key;
mod meters;
pub mod placement;
mod refusal;
mod relay;
mod replay;
pub mod serve;
pub mod table;
pub mod target;
