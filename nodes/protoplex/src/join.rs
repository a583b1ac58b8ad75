//! `protoplex join`: the side-car of a user's HTTP server. It holds the server's membership while the server is healthy.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use protoplex_runtime::signals::StopSignals;
use protoplex_wire::enrolment::keep_renewed;
use protoplex_wire::follow::{Follower, Link};
use protoplex_wire::identity::{Identity, Kind, new_instance};
use protoplex_wire::pattern::MAX_NAME_BYTES;
use protoplex_wire::proto::Member;
use protoplex_wire::seeds::Seeds;
use reqwest::Url;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::cli::{Common, Join};
use crate::cluster::Cluster;
use crate::output;

/// Checks in a row that must fail before the server is taken out.
const FAILURES_TO_LEAVE: u32 = 2;
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// What is under way at the server has so long to end before a key is another's: less than the seed waits for it.
const MOVING_GRACE: Duration = Duration::from_millis(500);

/// Runs the command until Ctrl-C or SIGTERM.
pub(crate) async fn run(common: &Common, command: Join) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let own = cluster.identity().certificate().peer;
    // Credentials are for one name: its members are known by it.
    let enrolled = (own.kind == Kind::Backend).then_some(own.node);
    let backend = Backend::parse(&command, enrolled.as_deref()).await?;
    let sidecar = Sidecar {
        identity: cluster.identity().clone(),
        seeds: cluster.seeds().clone(),
        interval: command.interval,
        json: common.json,
        capacity: command.capacity,
        movable: command.movable,
        drain: command.drain,
        backend,
        enrolled,
    };
    let (identity, seeds) = (sidecar.identity.clone(), sidecar.seeds.clone());
    let folder = common.credentials.clone().unwrap_or_default();
    let renewed = keep_renewed(identity, &folder, seeds);
    let local = LocalSet::new();
    tokio::select! {
        ended = local.run_until(sidecar.run()) => ended,
        () = renewed => Ok(()),
    }
}

struct Sidecar {
    identity: Identity,
    seeds: Seeds,
    interval: Duration,
    json: bool,
    capacity: u32,
    movable: bool,
    drain: Duration,
    backend: Backend,
    /// The name that its credentials are for; an operator's are for any.
    enrolled: Option<String>,
}

impl Sidecar {
    async fn run(self) -> anyhow::Result<()> {
        let mut stop = StopSignals::take()?;
        loop {
            tokio::select! {
                () = self.until_healthy() => {}
                _ = stop.next() => return Ok(()),
            }
            let link = Link::open(&self.identity, self.seeds.clone(), self.follower())?;
            link.set_capacity(self.capacity);
            let moving = self.give_up_by(&link);
            let reason = tokio::select! {
                reason = self.while_healthy(&link, moving) => reason,
                _ = stop.next() => {
                    tokio::select! {
                        () = link.part_with_all(self.drain, |_, _| {}) => {}
                        // Whoever asks twice is in a hurry.
                        _ = stop.next() => {}
                    }
                    link.leave().await;
                    self.say("left", "");
                    return Ok(());
                }
            };
            link.leave().await;
            self.say("left", &reason);
        }
    }

    /// Idle keys are given up at once. Those that move come out here, where they may.
    fn give_up_by(&self, link: &Link) -> UnboundedReceiver<(String, u64)> {
        let (tell_moving, moving) = unbounded_channel();
        if self.movable {
            link.yield_by(move |wanted| {
                if !wanted.idle {
                    let _ = tell_moving.send((wanted.key.to_owned(), wanted.epoch));
                }
                wanted.idle
            });
        }
        moving
    }

    fn follower(&self) -> Follower {
        let member = &self.backend.member;
        Follower {
            node: self.enrolled.clone().unwrap_or_else(|| node_name(&member.instance, &member.id)),
            child: 0,
            kind: "backend".to_owned(),
            zone: member.zone.clone(),
            member: Some(member.clone()),
        }
    }

    async fn until_healthy(&self) {
        let mut said = false;
        let mut ticks = interval(self.interval);
        loop {
            ticks.tick().await;
            match self.backend.check().await {
                Ok(()) => return,
                Err(reason) if !said => {
                    said = true;
                    self.say("waiting", &reason);
                }
                Err(_) => {}
            }
        }
    }

    /// Ends when the server is no longer healthy, with the reason.
    async fn while_healthy(&self, link: &Link, mut moving: UnboundedReceiver<(String, u64)>) -> String {
        let (mut connection, mut refusal) = (link.connection(), link.refusal());
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                Some(first) = moving.recv() => {
                    let mut keys = vec![first];
                    keys.extend(std::iter::from_fn(|| moving.try_recv().ok()));
                    let link = link.clone();
                    spawn_local(async move {
                        sleep(MOVING_GRACE).await;
                        link.release(keys);
                    });
                }
                _ = ticks.tick() => match self.backend.check().await {
                    Ok(()) => failures = 0,
                    Err(reason) => {
                        failures += 1;
                        if failures >= FAILURES_TO_LEAVE {
                            return reason;
                        }
                    }
                },
                _ = connection.changed() => {
                    let joined = *connection.borrow_and_update();
                    // Where the seed has said why, that is told below.
                    if joined || refusal.borrow().is_none() {
                        self.say(if joined { "joined" } else { "no seed" }, "");
                    }
                }
                _ = refusal.changed() => {
                    if let Some(reason) = &*refusal.borrow_and_update() {
                        self.say("refused", reason);
                    }
                }
            }
        }
    }

    /// One line, at once; whether anybody reads it changes nothing.
    fn say(&self, state: &str, reason: &str) {
        let Member { id, pool, address, .. } = &self.backend.member;
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let line = match state {
            _ if self.json => {
                json!({"member": id, "pool": pool, "address": address, "state": state, "reason": reason})
                    .to_string()
            }
            "joined" => format!("{id} is a member of pool {pool}, at {address}"),
            "left" => format!("{id} has left pool {pool}{because}"),
            "waiting" => format!("waiting for {address}{because}"),
            "refused" => format!("{id} is no member of pool {pool}{because}"),
            _ => format!("no seed that leads at {}: proxies go on with what they know", self.seeds),
        };
        let _ = output::write(format!("{line}\n").as_bytes());
    }
}

struct Backend {
    member: Member,
    address: SocketAddr,
    health: Option<Url>,
    client: reqwest::Client,
}

impl Backend {
    async fn parse(command: &Join, enrolled: Option<&str>) -> anyhow::Result<Self> {
        let url = &command.backend;
        let (host, port) = (url.host_str().context("the backend has no host")?, url.port().unwrap_or(80));
        let host = host.trim_matches(['[', ']']);
        let resolved = tokio::net::lookup_host((host, port)).await;
        let address = resolved.ok().and_then(|mut found| found.next());
        let address = address.with_context(|| format!("the host {host:?} of the backend has no address"))?;
        let health =
            command.health.as_ref().map(|path| url.join(path)).transpose().context("bad --health")?;
        let member = Member {
            id: command
                .id
                .clone()
                .unwrap_or_else(|| format!("{}/{host}:{port}", enrolled.unwrap_or(&command.pool))),
            pool: command.pool.clone(),
            address: address.to_string(),
            zone: command.zone.clone().unwrap_or_default(),
            // Nothing of a side-car outlives its process.
            instance: new_instance(),
        };
        let client = reqwest::Client::builder().timeout(CHECK_TIMEOUT).no_proxy().build()?;
        Ok(Self { member, address, health, client })
    }

    async fn check(&self) -> Result<(), String> {
        let Some(health) = &self.health else {
            return match timeout(CHECK_TIMEOUT, TcpStream::connect(self.address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("it does not take connections".to_owned()),
            };
        };
        match self.client.get(health.clone()).send().await {
            Ok(answer) if answer.status().is_server_error() => {
                Err(format!("its health is {}", answer.status()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A side-car counts as a node of its own, which no other is taken for: "rooms/127.0.0.1:3000" →
/// "join-0f3a9c24-rooms-127-0-0-1-3000".
fn node_name(instance: &str, member: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = format!("{instance:.8}-{member}").chars().map(plain).collect();
    format!("join-{name}").chars().take(MAX_NAME_BYTES).collect()
}
