//! Tests of the whole: real clusters of the binary, spoken to by clients that are not ours.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browser;
mod changes;
mod command_line;
mod crashes;
mod databases;
mod discovery;
mod downloads;
mod drains;
mod edge_input;
mod events;
mod fair_share;
mod faults;
mod first_page;
mod handlers;
mod identity;
mod keyed_requests;
mod large_upload;
mod logs;
mod moving_keys;
mod outside;
mod outside_rooms;
mod privileges;
mod running;
mod s3;
mod seeds;
mod traces;
mod uploads;
mod workspace;

use protoplex_testkit::cluster::{Cluster, Plan};
use protoplex_testkit::curl::{Answer, curl};

/// A cluster of this binary with two children a node.
fn plan() -> Plan {
    Plan::new(env!("CARGO_BIN_EXE_protoplex"))
}

fn start() -> Cluster {
    plan().start()
}

/// GET with more arguments for curl.
fn get(url: &str, more: &[&str]) -> Answer {
    curl([more, &[url]].concat())
}

/// PUT of these bytes with the cluster's own token.
fn put(cluster: &Cluster, path: &str, body: &[u8], more: &[&str]) -> Answer {
    put_with(cluster, cluster.token(), path, body, more)
}

fn put_with(cluster: &Cluster, token: &str, path: &str, body: &[u8], more: &[&str]) -> Answer {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), body).unwrap();
    let (url, bearer) = (format!("{}{path}", cluster.http()), format!("Authorization: Bearer {token}"));
    let arguments = ["-T", file.path().to_str().unwrap(), "-H", &bearer, &url];
    curl([&arguments, more].concat())
}

/// A token with these flags of `token create`.
fn token(cluster: &Cluster, flags: &[&str]) -> String {
    let created = cluster.json(&[&["token", "create"], flags].concat());
    created["token"].as_str().unwrap().to_owned()
}

/// Bytes that don't compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}
