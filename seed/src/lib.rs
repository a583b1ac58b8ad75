//! The seed: who is a member, which key is whose, where requests go, which app build is current.
//!
//! [`serve`] takes the links of all nodes, and of servers of any language from [`outside`], and hands what they say to one task, the [`cluster`], which no lock and no
//! wait ever stops. [`ownership`] is its pure core; [`handlers`] are the rules for handlers, [`routes`] those that there
//! are, and the builds, [`nodes`] those that have joined; the [`followers`] are told what comes of it. What has to last is the datastore's, and [`leader`] keeps the row
//! there that makes this seed the one that leads, while any others are
//! its [`understudy`]; its [`handover`] gives the lead to one of them. What a restart should find again is in a [`snapshot`].
//! [`events`] is the bus that the cluster's nodes, and its users, publish on and subscribe to.

pub mod config;
pub mod events;
pub mod handlers;
pub mod role;
pub mod serve;

mod claims;
mod cluster;
mod datastores;
mod enrolment;
mod errands;
mod followers;
mod handover;
mod hot_keys;
mod leader;
mod link;
mod nodes;
mod operator;
mod outside;
pub mod ownership;
mod places;
#[cfg(test)]
mod rig;
mod routes;
mod snapshot;
mod understudy;
