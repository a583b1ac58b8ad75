//! The link that a node's parent holds to the seed: who the node is, then its state as it changes and as a heartbeat.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::follow::is_refusal;
use crate::identity::{Identity, TrustedChannel};
use crate::proto::seed_client::SeedClient;
use crate::proto::{JoinHello, JoinRequest, NodeState, join_reply, join_request};

/// Messages that may wait for a slow link. Only the newest state matters, so it is small.
const OUTGOING: usize = 4;
/// Used until the seed has told its own.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Holds the link for as long as this future runs: reconnects for ever, with jittered back-off. Whenever the hello is
/// another one the seed is told anew.
pub async fn hold(
    identity: Identity,
    seed: String,
    mut hello: watch::Receiver<JoinHello>,
    mut state: watch::Receiver<NodeState>,
) -> Result<(), tonic::transport::Error> {
    let client = SeedClient::new(identity.channel(&seed)?);
    let mut link = Progress::default();
    loop {
        let ended = converse(client.clone(), &mut hello, &mut state, &mut link).await;
        let joined = std::mem::take(&mut link.joined);
        match ended {
            Ok(()) => debug!(%seed, "the seed closed the link"),
            Err(status) if is_refusal(&status) => {
                if link.refusal != status.message() {
                    link.refusal = status.message().to_owned();
                    warn!(%seed, reason = link.refusal, "the seed refuses this node");
                }
            }
            Err(status) if joined => warn!(%seed, reason = status.message(), "lost the seed"),
            Err(status) => debug!(%seed, reason = status.message(), "no seed"),
        }
        tokio::time::sleep(link.backoff.next_delay()).await;
    }
}

/// How far this link and those before it have come.
#[derive(Default)]
struct Progress {
    backoff: Backoff,
    joined: bool,
    /// What was last complained of.
    refusal: String,
}

async fn converse(
    mut client: SeedClient<TrustedChannel>,
    hello: &mut watch::Receiver<JoinHello>,
    state: &mut watch::Receiver<NodeState>,
    link: &mut Progress,
) -> Result<(), Status> {
    let (outgoing, requests) = mpsc::channel(OUTGOING);
    let closed = |_| Status::unavailable("the link broke");
    let say = |message| outgoing.send(JoinRequest { message: Some(message) });

    let first = hello.borrow_and_update().clone();
    say(join_request::Message::Hello(first)).await.map_err(closed)?;
    let mut replies = client.join(ReceiverStream::new(requests)).await?.into_inner();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            reply = replies.next() => {
                let Some(reply) = reply else { return Ok(()) };
                if let Some(join_reply::Message::Welcome(welcome)) = reply?.message {
                    info!(term = welcome.term, "joined");
                    link.joined = true;
                    link.refusal.clear();
                    link.backoff.reset();
                    heartbeat = tokio::time::interval(Duration::from_millis(welcome.heartbeat_ms.max(100).into()));
                }
                continue;
            }
            changed = hello.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let anew = hello.borrow_and_update().clone();
                say(join_request::Message::Hello(anew)).await.map_err(closed)?;
                continue;
            }
            _ = heartbeat.tick() => {}
            changed = state.changed() => if changed.is_err() { return Ok(()) },
        }
        let now = state.borrow_and_update().clone();
        say(join_request::Message::State(now)).await.map_err(closed)?;
    }
}
