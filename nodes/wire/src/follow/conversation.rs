//! One link after the other: hello, then whatever comes, in order.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::questions::MAX_QUESTIONS;
use super::{Builds, LocateError, Shared};
use crate::backoff::Backoff;
use crate::clock::BootTime;
use crate::holder::Holder;
use crate::owners::Owner;
use crate::proto;
use crate::proto::datastore_client::DatastoreClient;
use crate::proto::{
    Build, FollowHello, FollowReply, FollowRequest, FollowWelcome, Known, Located, Owned, OwnedKey,
    follow_reply, follow_request, located,
};

/// Messages that may wait for a slow link; past that it is closed and opened anew.
const OUTGOING: usize = 2 * MAX_QUESTIONS;
/// A seed that takes the connection but does not welcome within this time is taken for dead.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);
/// Keys in one message of the report.
const REPORT_CHUNK: usize = 1000;

pub(super) async fn keep_open(shared: Rc<Shared>) {
    let mut backoff = Backoff::default();
    while !shared.left.get() {
        let ended = converse(&shared, &mut backoff).await;
        if !shared.left.get() {
            match ended {
                Ok(()) => debug!("the link to the seed ended"),
                Err(status) if is_refusal(&status) => shared.refused(status.message()),
                Err(status) => debug!(reason = status.message(), "no link to the seed"),
            }
        }
        shared.disconnected();
        if shared.left.get() {
            return;
        }
        // Both arms are cancel-safe.
        tokio::select! {
            () = sleep(backoff.next_delay()) => {}
            () = shared.retry.notified() => {}
        }
    }
}

/// Does the seed say what its operator has to change, so that trying again alone may not help?
pub(crate) fn is_refusal(status: &Status) -> bool {
    let own_fault = [Code::InvalidArgument, Code::Unauthenticated, Code::ResourceExhausted];
    status.code() == Code::FailedPrecondition || own_fault.contains(&status.code())
}

async fn converse(shared: &Shared, backoff: &mut Backoff) -> Result<(), Status> {
    let (outgoing, requests) = mpsc::channel(OUTGOING);
    let opening = tokio_stream::iter(shared.opening());
    let requests = opening.chain(ReceiverStream::new(requests));
    let mut seed = shared.seed.clone();

    let silent = |_| Status::deadline_exceeded("the seed does not welcome");
    let mut replies = timeout(WELCOME_TIMEOUT, seed.follow(requests)).await.map_err(silent)??.into_inner();
    let first = timeout(WELCOME_TIMEOUT, replies.next()).await.map_err(silent)?;
    let Some(follow_reply::Message::Welcome(welcome)) = first.transpose()?.and_then(|reply| reply.message)
    else {
        return Err(Status::internal("the seed's first message is no welcome"));
    };
    if shared.left.get() {
        // It has left while it was greeted. The end of this link makes the seed give it no key.
        return Ok(());
    }
    shared.welcomed(&welcome, outgoing);
    backoff.reset();

    loop {
        tokio::select! {
            reply = replies.next() => match reply {
                Some(reply) => shared.told(reply?),
                None => return Ok(()),
            },
            () = shared.close.notified() => return Ok(()),
        }
    }
}

impl Shared {
    pub(super) fn with_holder<T>(&self, act: impl FnOnce(&mut Holder, BootTime) -> T) -> Option<T> {
        let result = act(self.holder.borrow_mut().as_mut()?, BootTime::now());
        Some(result)
    }

    /// As [`Self::with_holder`], for inputs after which the lease's task and waiting requests have to look again.
    pub(super) fn tell_holder(&self, tell: impl FnOnce(&mut Holder, BootTime)) {
        self.with_holder(tell);
        self.holder_changed.send_replace(());
    }

    /// Hello, and for a member everything that it owns.
    fn opening(&self) -> Vec<FollowRequest> {
        let mut hello = FollowHello {
            node: self.who.node.clone(),
            child: self.who.child,
            kind: self.who.kind.clone(),
            zone: self.who.zone.clone(),
            since: Some(self.position.get()),
            member: self.who.member.clone(),
            incarnation: 0,
            attempt: 0,
        };
        let mut owned = Vec::new();
        self.with_holder(|holder, now| {
            holder.hello(now);
            hello.incarnation = holder.incarnation();
            hello.attempt = holder.attempt();
            owned.extend(holder.keys().map(|(key, epoch)| OwnedKey { key: key.to_owned(), epoch }));
        });
        let mut messages = vec![follow_request::Message::Hello(hello)];
        if self.who.member.is_some() {
            let chunks = owned.chunks(REPORT_CHUNK).map(|keys| Owned { keys: keys.to_vec(), last: false });
            messages.extend(chunks.map(follow_request::Message::Owned));
            messages.push(follow_request::Message::Owned(Owned { keys: Vec::new(), last: true }));
        }
        messages.into_iter().map(|message| FollowRequest { message: Some(message) }).collect()
    }

    fn welcomed(&self, welcome: &FollowWelcome, outgoing: mpsc::Sender<FollowRequest>) {
        let position = welcome.position.unwrap_or_default();
        if self.position.get().term == 0 {
            self.position.set(position);
        }
        info!(term = position.term, "following the seed");
        match self.identity.channel(&welcome.datastore) {
            Ok(channel) => drop(self.datastore.replace(Some(DatastoreClient::new(channel)))),
            Err(error) => warn!(address = welcome.datastore, %error, "the seed names no usable datastore"),
        }
        let lease = Duration::from_millis(welcome.lease_ms.into());
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.into());
        self.tell_holder(|holder, now| holder.welcomed(lease, heartbeat, now));

        *self.outgoing.borrow_mut() = Some(outgoing);
        self.lost_since.set(None);
        self.refusal.send_if_modified(|refusal| refusal.take().is_some());
        self.connected.send_replace(true);
        let unanswered = self.questions.borrow_mut().unanswered();
        for question in unanswered {
            self.say(question);
        }
    }

    pub(super) fn disconnected(&self) {
        self.outgoing.borrow_mut().take();
        if self.lost_since.get().is_none() {
            self.lost_since.set(Some(Instant::now()));
        }
        let lost = self.connected.send_if_modified(|connected| std::mem::replace(connected, false));
        if lost && !self.left.get() && self.refusal.borrow().is_none() {
            warn!("lost the seed: going on with what is known");
        }
        self.tell_holder(|holder, _| holder.disconnected());
    }

    /// Tells the operator, once for each reason.
    fn refused(&self, reason: &str) {
        let news = self.refusal.send_if_modified(|refusal| {
            let news = refusal.as_deref() != Some(reason);
            *refusal = Some(reason.to_owned());
            news
        });
        if news {
            warn!(reason, "the seed refuses this follower");
        }
    }

    /// Takes in one message; the order in which they come is the order in which they hold.
    fn told(&self, reply: FollowReply) {
        use follow_reply::Message;
        let Some(message) = reply.message else { return };
        match message {
            Message::Welcome(_) => {}
            Message::Table(table) => drop(self.table.send_replace(Rc::new(table))),
            Message::Build(build) => self.build(build),
            Message::Located(located) => self.located(located),
            Message::Known(known) => self.known(known),
            Message::Assigned(it) => self.tell_holder(|holder, now| holder.assigned(&it.key, it.epoch, now)),
            Message::Revoked(it) => self.tell_holder(|holder, _| {
                for key in it.keys {
                    holder.revoked(&key.key, key.epoch);
                }
            }),
            Message::Renewed(it) => self.tell_holder(|holder, now| holder.renewed(it.sequence, now)),
            Message::LeaseLost(_) => self.tell_holder(Holder::lease_lost),
            Message::Invalidate(it) => {
                self.owners.borrow_mut().forget(&it.pool, &it.key);
                self.advance(it.sequence);
            }
            Message::MemberGone(it) => {
                self.owners.borrow_mut().forget_member(&it.pool, &it.member);
                self.advance(it.sequence);
            }
            Message::ResetOwners(it) => {
                self.owners.borrow_mut().forget_all();
                self.position.set(it.position.unwrap_or_default());
            }
        }
    }

    fn advance(&self, sequence: u64) {
        let mut position = self.position.get();
        position.sequence = sequence;
        self.position.set(position);
    }

    fn build(&self, build: Build) {
        let mut builds = Builds::clone(&self.builds.borrow());
        builds.generation += 1;
        builds.current.retain(|current| current.host != build.host);
        if build.version != 0 {
            builds.current.push(build);
        }
        self.builds.send_replace(Rc::new(builds));
    }

    /// What a sibling was answered. What this one knows to be refuted it does not believe again.
    fn known(&self, Known { pool, key, owner }: Known) {
        let mut owners = self.owners.borrow_mut();
        if let Some(owner) =
            owner.and_then(owner_of).filter(|owner| owner.epoch > owners.refuted(&pool, &key))
        {
            owners.learn(&pool, &key, owner);
        }
    }

    fn located(&self, located: Located) {
        let Some((pool, key, waiting)) = self.questions.borrow_mut().close(located.id) else {
            return;
        };
        let answer = match located.result {
            Some(located::Result::Owner(owner)) => {
                owner_of(owner).ok_or_else(|| super::unavailable("the seed named no usable address"))
            }
            Some(located::Result::Unavailable(why)) => {
                let retry_after = Duration::from_millis(why.retry_after_ms.into());
                Err(LocateError { reason: why.reason, retry_after })
            }
            None => Err(super::unavailable("the seed's answer is empty")),
        };
        if let Ok(owner) = &answer {
            self.owners.borrow_mut().learn(&pool, &key, owner.clone());
        }
        for waiter in waiting {
            // Whoever asked may have gone.
            let _ = waiter.send(answer.clone());
        }
    }
}

/// Nothing where its address is none.
fn owner_of(owner: proto::Owner) -> Option<Owner> {
    let proto::Owner { member, address, epoch } = owner;
    Some(Owner { member: member.into(), address: address.parse().ok()?, epoch })
}
