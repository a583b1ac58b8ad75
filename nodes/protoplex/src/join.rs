//! `protoplex join`: the side-car of a user's HTTP server. It holds the server's membership while the server is healthy.

mod notify;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use protoplex_runtime::signals::StopSignals;
use protoplex_wire::enrolment::keep_renewed;
use protoplex_wire::follow::{Follower, Judge, Link, Membership};
use protoplex_wire::identity::{Identity, Kind, new_instance};
use protoplex_wire::proto::Member;
use protoplex_wire::seeds::Seeds;
use reqwest::Url;
use reqwest::redirect::Policy;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::cli::{Common, Join, Usage};
use crate::cluster::Cluster;
use crate::output;
use crate::rpc::why;
use notify::{Key, Notify};

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
    let notify = at_backend(&command.backend, "--notify", command.notify.as_deref())?;
    let notify = notify.map(|url| Notify::new(url, backend.client.clone()));
    let sidecar = Sidecar {
        identity: cluster.identity().clone(),
        seeds: cluster.seeds().clone(),
        interval: command.interval,
        json: common.json,
        capacity: command.capacity,
        movable: command.movable,
        notify,
        drain: command.drain,
        backend,
        enrolled,
    };
    let (identity, seeds) = (sidecar.identity.clone(), sidecar.seeds.clone());
    let folder = common.credentials.clone().unwrap_or_default();
    let renewed = keep_renewed(identity, &folder, seeds);
    if command.health.is_none() {
        let what = format!("checks of {} only that it accepts connections; see --health", command.backend);
        output::warn(common.json, &what);
    }
    let local = LocalSet::new();
    tokio::select! {
        ended = local.run_until(sidecar.run()) => ended,
        () = renewed => Ok(()),
    }
}

/// The address of a path at the backend, and nowhere else.
fn at_backend(backend: &Url, flag: &str, path: Option<&str>) -> anyhow::Result<Option<Url>> {
    let url = path.map(|path| backend.join(path)).transpose().with_context(|| format!("bad {flag}"))?;
    if url.as_ref().is_some_and(|url| url.origin() != backend.origin()) {
        return Err(Usage(format!("{flag} is a path of the backend itself, as in /healthz")).into());
    }
    Ok(url)
}

struct Sidecar {
    identity: Identity,
    seeds: Seeds,
    interval: Duration,
    json: bool,
    capacity: u32,
    movable: bool,
    notify: Option<Notify>,
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
            let (judge, asked) = self.judge();
            let link = Link::open(&self.identity, self.seeds.clone(), self.follower(judge))?;
            let reason = tokio::select! {
                reason = self.while_healthy(&link, asked) => reason,
                _ = stop.next() => {
                    tokio::select! {
                        () = self.part_with_all(&link) => {}
                        // Whoever asks twice is in a hurry.
                        _ = stop.next() => {}
                    }
                    self.part(&link, "").await;
                    return Ok(());
                }
            };
            self.part(&link, &reason).await;
        }
    }

    /// Leaves, and says so where it was a member.
    async fn part(&self, link: &Link, reason: &str) {
        let was_member = *link.connection().borrow();
        link.leave().await;
        if was_member {
            self.say("left", reason);
        }
    }

    /// Idle keys are given up at once, unless the server is to be asked. Those that move come out here, where they may; so
    /// do all that it is asked for.
    fn judge(&self) -> (Option<Judge>, UnboundedReceiver<Asked>) {
        let (tell_asked, asked) = unbounded_channel();
        let has_say = self.notify.is_some();
        let judge = (self.movable || has_say).then(|| -> Judge {
            Rc::new(move |wanted| {
                if has_say || !wanted.idle {
                    let key = Key { key: wanted.key.to_owned(), epoch: wanted.epoch };
                    let _ = tell_asked.send(Asked { key, idle: wanted.idle });
                }
                // What it has to be asked about may be given up later.
                wanted.idle && !has_say
            })
        });
        (judge, asked)
    }

    /// Gives up what was asked for, once nothing of it should be under way at the server any more.
    fn give_up(&self, link: &Link, asked: Vec<Asked>) {
        let (link, notify) = (link.clone(), self.notify.clone());
        spawn_local(async move {
            let (idle, moving): (Vec<_>, Vec<_>) = asked.into_iter().partition(|asked| asked.idle);
            let keys = |asked: Vec<Asked>| asked.into_iter().map(|asked| asked.key).collect::<Vec<_>>();
            if let Some(notify) = notify {
                notify.ask_for(&link, keys(moving), false).await;
                notify.ask_for(&link, keys(idle), true).await;
            } else {
                sleep(MOVING_GRACE).await;
                link.release(keys(moving).into_iter().map(|Key { key, epoch }| (key, epoch)));
            }
        });
    }

    async fn part_with_all(&self, link: &Link) {
        match &self.notify {
            Some(notify) => notify.ask_for_all(link, self.drain).await,
            None => link.part_with_all(self.drain, |_, _| {}).await,
        }
    }

    fn follower(&self, judge: Option<Judge>) -> Follower {
        let (member, capacity) = (self.backend.member.clone(), self.capacity);
        let follower = Follower::of_backend(Membership { member, capacity, judge });
        match &self.enrolled {
            Some(node) => Follower { node: node.clone(), ..follower },
            None => follower,
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
    async fn while_healthy(&self, link: &Link, mut asked: UnboundedReceiver<Asked>) -> String {
        if let (Some(lost), Some(notify)) = (link.lost_keys(), self.notify.clone()) {
            spawn_local(notify.tell_lost(lost));
        }
        let (mut connection, mut refusal) = (link.connection(), link.refusal());
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        loop {
            // Every arm is cancel-safe.
            tokio::select! {
                Some(first) = asked.recv() => {
                    let mut all = vec![first];
                    all.extend(std::iter::from_fn(|| asked.try_recv().ok()));
                    self.give_up(link, all);
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

/// A key that the seed asks for.
struct Asked {
    key: Key,
    idle: bool,
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
        let health = at_backend(url, "--health", command.health.as_deref())?;
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
        Ok(Self { member, address, health, client: client()? })
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
            Ok(answer) if answer.status().is_success() || answer.status().is_redirection() => Ok(()),
            Ok(answer) => Err(format!("its health is {}", answer.status())),
            Err(error) => Err(why(&error)),
        }
    }
}

/// Where a redirection leads may be another server: none is followed.
fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().timeout(CHECK_TIMEOUT).no_proxy().redirect(Policy::none()).build()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_an_answer_that_is_no_refusal_is_healthy() {
        for (answer, is_healthy) in [
            ("200 OK", true),
            ("204 No Content", true),
            ("302 Found", true),
            ("401 Unauthorized", false),
            ("404 Not Found", false),
            ("503 Service Unavailable", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                let answer = format!(
                    "HTTP/1.1 {answer}\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let health = Url::parse(&format!("http://{address}/healthz")).ok();
            let backend = Backend { member: Member::default(), address, health, client: client().unwrap() };
            let (checked, ()) = tokio::join!(backend.check(), server);
            assert_eq!(checked.is_ok(), is_healthy, "{answer}: {checked:?}");
        }
    }
}
