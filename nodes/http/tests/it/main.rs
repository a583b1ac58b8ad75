//! The server and the upstream pool from outside: real sockets, crafted bytes, curl.

#![expect(clippy::unwrap_used, reason = "what fails in a test's own helpers fails the test")]

mod bad_input;
mod bodies;
mod clients;
mod drain;
mod drain_streams;
mod drain_tunnels;
mod frames;
mod fronts;
mod http2;
mod kit;
mod logging;
mod misbehaving_clients;
mod misbehaving_upstreams;
mod names;
mod overload;
mod pipelining;
mod recalls;
mod slow_readers;
mod stage;
mod tls;
mod traces;
mod traps;
mod upgrade;
mod upstream;
