//! The link that a node's parent holds to the seed: who the node is, then its state as it changes and as a heartbeat.

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::clock::BootTime;
use crate::follow::is_refusal;
use crate::identity::{Identity, is_foreign};
use crate::proto::seed_client::SeedClient;
use crate::proto::{Directory, JoinHello, JoinRequest, JoinWelcome, NodeState, join_reply, join_request};
use crate::seeds::{Redirect, Search, Seeds};

/// Messages that may wait for a slow link. Only the newest state matters, so it is small.
const OUTGOING: usize = 4;
/// A seed that takes the connection but does not welcome within this time is taken for dead.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);

/// A seed that is not reached is complained of after this time, which others of its machine take to start, too,
const COMPLAIN_AFTER: Duration = Duration::from_secs(5);
/// and then so often.
const COMPLAIN_EVERY: Duration = Duration::from_mins(10);

/// Whether a node reaches a seed, as its parent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// A seed is there.
    pub reached: bool,
    /// It is there, but does not lead, and knows of none that does.
    pub idle: bool,
    /// Since when no seed has been there that leads; nothing where one is.
    pub lost_since: Option<BootTime>,
    /// Where the seed is, or was last; empty before there was any.
    pub seed: String,
    /// The term in which it leads, or led.
    pub term: u64,
    /// What the last attempt failed of.
    pub why: String,
    /// A seed has welcomed the node, ever.
    pub welcomed: bool,
    /// Why a seed refuses the node, until one welcomes it; empty where none does.
    pub refusal: String,
}

impl Standing {
    /// No seed was reached yet.
    #[must_use]
    pub fn new(now: BootTime) -> Self {
        Self {
            reached: false,
            idle: false,
            lost_since: Some(now),
            seed: String::new(),
            term: 0,
            why: String::new(),
            welcomed: false,
            refusal: String::new(),
        }
    }

    /// A seed refuses the node, and none has ever welcomed it: no name of the cluster's is its own.
    #[must_use]
    pub fn is_stranger(&self) -> bool {
        !self.welcomed && !self.refusal.is_empty()
    }

    /// Says whether that is news.
    fn turn(&mut self, reached: bool, idle: bool) -> bool {
        let turned = (self.reached, self.idle) != (reached, idle);
        (self.reached, self.idle) = (reached, idle);
        if reached && !idle {
            self.lost_since = None;
        } else if self.lost_since.is_none() {
            self.lost_since = Some(BootTime::now());
        }
        turned
    }
}

/// Holds the link for as long as this future runs: reconnects for ever, with jittered back-off, to whichever of the seeds
/// leads. Whenever the hello is another one the seed is told anew. `standing` is told how it goes.
///
/// # Errors
/// One of the configured seeds is no address.
pub async fn hold(
    identity: Identity,
    seeds: Seeds,
    hello: watch::Receiver<JoinHello>,
    state: watch::Receiver<NodeState>,
    standing: watch::Sender<Standing>,
) -> Result<(), tonic::transport::Error> {
    seeds.configured().iter().try_for_each(|seed| identity.channel(seed).map(drop))?;
    let search = Search::new(seeds.remembered());
    let (joined, foreign, complained) = (false, None, None);
    let mut link = Link { identity, seeds, search, hello, state, standing, joined, foreign, complained };
    let mut backoff = Backoff::default();
    let mut round = Instant::now();
    link.begin_round().await;
    loop {
        let Some(seed) = link.search.next_seed() else {
            tokio::time::sleep(backoff.next_delay_after(round.elapsed())).await;
            round = Instant::now();
            link.begin_round().await;
            continue;
        };
        let ended = link.converse(&seed).await;
        if std::mem::take(&mut link.joined) {
            backoff.reset();
            round = Instant::now();
            link.ended(&seed, ended, true);
        } else {
            link.ended(&seed, ended, false);
        }
    }
}

struct Link {
    identity: Identity,
    seeds: Seeds,
    search: Search,
    hello: watch::Receiver<JoinHello>,
    state: watch::Receiver<NodeState>,
    standing: watch::Sender<Standing>,
    joined: bool,
    /// That a seed of this round is of another cluster: time mends that of the others alone.
    foreign: Option<String>,
    /// When it was last said that there is no link, since there was one.
    complained: Option<BootTime>,
}

impl Link {
    async fn begin_round(&mut self) {
        let configured = self.seeds.resolve().await;
        self.search.begin(&configured);
        self.foreign = None;
    }

    fn ended(&mut self, seed: &str, ended: Result<(), Status>, joined: bool) {
        let foreign = ended.as_ref().is_err_and(|status| is_foreign(status));
        let why = match &ended {
            Ok(()) => "the seed closed the link",
            Err(_) if foreign => &self.seeds.data().map_or_else(
                || "it is of another cluster than this node's credentials".to_owned(),
                |data| {
                    format!(
                        "it is of another cluster than the credentials in {}",
                        data.join("cluster").display()
                    )
                },
            ),
            Err(status) => status.message(),
        };
        if foreign {
            self.foreign = Some(format!("{seed}: {why}"));
        }
        let redirect = ended.as_ref().err().and_then(Redirect::of);
        let refused = ended.as_ref().is_err_and(is_refusal);
        // What doesn't pass is not hidden by what does.
        let foreign_one = self.foreign.clone().filter(|_| !joined && !refused);
        let why = foreign_one.as_deref().unwrap_or(why);
        let refused_anew = refused && self.standing.borrow().refusal != why;
        self.standing.send_if_modified(|standing| {
            let news = standing.why != why || refused_anew;
            standing.why = why.to_owned();
            if refused {
                standing.refusal = why.to_owned();
            }
            // A hand-over is no loss.
            (redirect.is_none() && standing.turn(false, false)) || news
        });
        match ended {
            Err(_) if refused_anew => warn!(%seed, reason = why, "the seed refuses this node"),
            Err(_) if refused => {}
            Err(_) if joined && redirect.is_none() => {
                self.complained = Some(BootTime::now());
                warn!(%seed, reason = why, "lost the seed");
            }
            Err(_) if redirect.is_none() && self.complains(foreign) => {
                warn!(%seed, reason = why, "can't join the seed, trying again");
            }
            _ => debug!(%seed, reason = why, "no link to the seed"),
        }
        if let Some(Redirect { address, term }) = redirect
            && term >= self.standing.borrow().term
        {
            self.search.redirected(&address);
        }
    }

    /// Whether it is time to say that no seed is reached. One of another cluster is no matter of time.
    fn complains(&mut self, foreign: bool) -> bool {
        let now = BootTime::now();
        let is_time = match (self.complained, self.standing.borrow().lost_since) {
            (Some(last), _) => now.since(last) >= COMPLAIN_EVERY,
            (None, Some(lost)) => foreign || now.since(lost) >= COMPLAIN_AFTER,
            (None, None) => foreign,
        };
        if is_time {
            self.complained = Some(now);
        }
        is_time
    }

    async fn converse(&mut self, seed: &str) -> Result<(), Status> {
        let unusable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let mut client = SeedClient::new(self.identity.channel(seed).map_err(unusable)?);
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let closed = |_| Status::unavailable("the link broke");
        let say = |message| outgoing.send(JoinRequest { message: Some(message) });

        let first = self.hello.borrow_and_update().clone();
        say(join_request::Message::Hello(first)).await.map_err(closed)?;
        let silent = |_| Status::deadline_exceeded("the seed does not welcome");
        let answered = timeout(self.search.patience(), client.join(ReceiverStream::new(requests))).await;
        let answered = answered.map_err(silent).flatten();
        if let Err(status) = &answered
            && (status.source().is_some() || status.code() == Code::DeadlineExceeded)
        {
            self.search.unanswered();
        }
        let mut replies = answered?.into_inner();
        let welcome = timeout(WELCOME_TIMEOUT, replies.next()).await.map_err(silent)?;
        let welcome = welcome.transpose()?.and_then(|reply| reply.message);
        let Some(join_reply::Message::Welcome(welcome)) = welcome else {
            return Err(Status::internal("the seed's first message is no welcome"));
        };
        self.welcomed(seed, welcome)?;
        let mut heartbeat =
            tokio::time::interval(Duration::from_millis(welcome.heartbeat_ms.max(100).into()));
        loop {
            tokio::select! {
                reply = replies.next() => {
                    let Some(reply) = reply else { return Ok(()) };
                    self.told(reply?.message);
                    continue;
                }
                changed = self.hello.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let anew = self.hello.borrow_and_update().clone();
                    say(join_request::Message::Hello(anew)).await.map_err(closed)?;
                    continue;
                }
                _ = heartbeat.tick() => {}
                changed = self.state.changed() => if changed.is_err() { return Ok(()) },
            }
            let now = self.state.borrow_and_update().clone();
            say(join_request::Message::State(now)).await.map_err(closed)?;
        }
    }

    fn welcomed(&mut self, seed: &str, welcome: JoinWelcome) -> Result<(), Status> {
        // One that leads nothing tells the last term that it knows.
        if !welcome.idle && welcome.term < self.standing.borrow().term {
            return Err(Status::unavailable("the seed leads no more: another one has led since"));
        }
        info!(seed, term = welcome.term, "joined");
        self.joined = true;
        self.complained = None;
        self.search.led(seed);
        self.standing.send_modify(|standing| {
            standing.turn(true, welcome.idle);
            standing.seed = seed.to_owned();
            standing.term = standing.term.max(welcome.term);
            standing.why.clear();
            standing.refusal.clear();
            standing.welcomed = true;
        });
        Ok(())
    }

    fn told(&mut self, message: Option<join_reply::Message>) {
        match message {
            Some(join_reply::Message::Seen(seen)) => {
                self.standing.send_if_modified(|standing| {
                    let leads_anew = seen.term > standing.term;
                    standing.term = standing.term.max(seen.term);
                    standing.turn(true, seen.idle) || leads_anew
                });
            }
            Some(join_reply::Message::Directory(Directory { seeds, .. })) => {
                if self.search.told(seeds.clone())
                    && let Err(error) = self.seeds.remember(&seeds)
                {
                    warn!(%error, "where seeds are is not remembered");
                }
            }
            Some(join_reply::Message::Welcome(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_rustls::rustls::{CertificateError, Error};

    use super::*;

    #[tokio::test]
    async fn that_a_seed_is_of_another_cluster_is_not_hidden_by_one_that_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let (_hello, hello) = watch::channel(JoinHello::default());
        let (_state, state) = watch::channel(NodeState::default());
        let mut link = Link {
            identity: Identity::open_or_create(folder.path()).unwrap(),
            seeds: Seeds::only(vec!["127.0.0.1:1".to_owned()]),
            search: Search::default(),
            hello,
            state,
            standing: watch::Sender::new(Standing::new(BootTime::now())),
            joined: false,
            foreign: None,
            complained: None,
        };
        let mut foreign = Status::unavailable("transport error");
        foreign.set_source(Arc::new(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
        let away = || Err(Status::unavailable("connection refused"));
        let why = |link: &Link| link.standing.borrow().why.clone();
        link.ended("a:1", Err(foreign), false);
        link.ended("b:1", away(), false);
        assert!(why(&link).starts_with("a:1: it is of another cluster than"), "{}", why(&link));
        link.ended("c:1", Err(Status::permission_denied("live-1 is revoked")), false);
        assert_eq!(link.standing.borrow().refusal, "live-1 is revoked");
        link.begin_round().await;
        link.ended("b:1", away(), false);
        assert_eq!(why(&link), "connection refused", "it may have been replaced");
    }
}
