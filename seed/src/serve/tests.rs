//! The seed as other nodes meet it: real TLS, real gRPC, the real datastore, the links that nodes really use.

mod handlers;
mod lead;
mod owners;
mod paused;
mod rig;
mod strangers;
mod understudies;
