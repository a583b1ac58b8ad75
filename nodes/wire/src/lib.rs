//! What passes between nodes: the protocol, the identities that protect it, and the pure rules that both of its ends keep.
//!
//! A node's parent holds [`join`], each of its children holds [`follow`]. Whoever is a member of a pool keeps its lease
//! and its keys in a [`holder`]. Whatever happens is a [`cloud_event`], and [`events`] bring it to whoever
//! subscribes to its [`topic`]. Nothing here knows what a node does with a request.
//!
//! Who somebody is says its [`identity`], to which it comes by [`enrolment`] with a [`join_token`]; the [`gate`] of each
//! gRPC port looks at it, and lets pass what the [`permissions`] of its kind are.

pub mod backoff;
pub mod clock;
pub mod cloud_event;
pub mod enrolment;
pub mod events;
pub mod follow;
pub mod gate;
pub mod holder;
pub mod identity;
pub mod join;
pub mod join_token;
pub mod owners;
pub mod pattern;
pub mod permissions;
pub mod seeds;
pub mod topic;

/// The messages and services of `proto/protoplex/v1`, as generated.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated code; the .proto files are its documentation"
)]
pub mod proto {
    tonic::include_proto!("protoplex.v1");
}
