//! A live node: channels in memory, each owned by one child, published to and subscribed to by the Mercure protocol; and
//! the registrations by which caches elsewhere are told what is no longer so.
//!
//! A request passes [`request`]'s list of steps: it is fenced (only the owner of a key at its epoch serves it), routed,
//! authorised by its [`token`], then acts on the [`tenure`] of its key: on its [`channel`], or as a registrant.

mod config;
mod serve;

mod cors;
mod mercure;
mod refusal;
mod request;
mod selector;
mod token;

mod channel;
mod elsewhere;
mod frame;
mod merged;
mod subscription;
mod tenure;

mod registrants;
mod registrations;

use http::HeaderName;

pub use config::{Config, Raw, RawHistory};
pub use serve::{LiveError, child, spec};

/// The key that a proxy routed a request by.
const PROTOPLEX_KEY: HeaderName = HeaderName::from_static("protoplex-key");
/// The epoch at which the proxy knows its owner.
const PROTOPLEX_EPOCH: HeaderName = HeaderName::from_static("protoplex-epoch");
/// Tells a proxy that a 421 denies the key's ownership, so that it asks the seed for the owner anew.
const PROTOPLEX_MISDIRECTED: HeaderName = HeaderName::from_static("protoplex-misdirected");
