//! The load that wrk doesn't make: full TLS handshakes one after the other, and idle connections by the thousand.
//!
//!   client handshake ADDRESS TASKS SECONDS PATH        prints one JSON line
//!   client idle ADDRESS CONNECTIONS PATH plain|tls     prints "ready", then holds them until its stdin ends

mod handshake;
mod idle;
mod tls;

use std::net::SocketAddr;

use anyhow::{Result, bail};
use tokio::task::LocalSet;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        match words[..] {
            ["handshake", address, tasks, seconds, path] => {
                let tally = handshake::run(address.parse()?, tasks.parse()?, seconds.parse()?, path).await?;
                println!("{tally}");
                Ok(())
            }
            ["idle", address, connections, path, scheme @ ("plain" | "tls")] => {
                let address: SocketAddr = address.parse()?;
                idle::run(address, connections.parse()?, path, scheme == "tls").await
            }
            _ => bail!("see the head of main.rs"),
        }
    })
}
