//! One link after the other: hello, then whatever comes, in order.

use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::questions::{Closed, MAX_QUESTIONS};
use super::{Builds, LocateError, MAX_MESSAGE_BYTES, Shared, Wanted};
use crate::backoff::Backoff;
use crate::clock::BootTime;
use crate::holder::Holder;
use crate::owners::Owner;
use crate::proto;
use crate::proto::datastore_client::DatastoreClient;
use crate::proto::seed_client::SeedClient;
use crate::proto::{
    Build, Draining, FollowHello, FollowReply, FollowRequest, FollowWelcome, Invalidate, Known, Located,
    Owned, OwnedKey, Table, Yield, follow_reply, follow_request, located,
};
use crate::seeds::{self, Redirect};

/// Messages that may wait for a slow link; past that it is closed and opened anew.
const OUTGOING: usize = 2 * MAX_QUESTIONS;
/// A seed that takes the connection but does not welcome within this time is taken for dead.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(3);
/// Datastores that are kept in mind.
const MAX_DATASTORES: usize = 16;
/// Keys in one message of the report.
const REPORT_CHUNK: usize = 1000;

pub(super) async fn keep_open(shared: Rc<Shared>) {
    let mut backoff = Backoff::default();
    let mut round = Instant::now();
    shared.begin_round().await;
    while !shared.left.get() {
        if let Some(leader) = shared.elected.take() {
            shared.search.borrow_mut().elected(&leader);
        }
        let next = shared.search.borrow_mut().next_seed();
        let Some(address) = next else {
            // Both arms are cancel-safe.
            tokio::select! {
                () = sleep(backoff.next_delay_after(round.elapsed())) => {}
                () = shared.retry.notified() => {}
            }
            round = Instant::now();
            shared.begin_round().await;
            continue;
        };
        let ended = converse(&shared, &address, &mut backoff).await;
        if !shared.left.get() {
            match ended {
                Ok(()) => debug!(address, "the link to the seed ended"),
                Err(status) if is_refusal(&status) => shared.refused(status.message()),
                Err(status) => {
                    debug!(address, reason = status.message(), "no link to the seed");
                    if let Some(Redirect { address, term }) = Redirect::of(&status)
                        && term >= shared.term.get()
                    {
                        shared.note_term(term);
                        shared.search.borrow_mut().redirected(&address);
                    }
                }
            }
        }
        if shared.disconnected() {
            round = Instant::now();
        }
    }
}

/// Does the seed say what its operator has to change, so that trying again alone may not help?
pub(crate) fn is_refusal(status: &Status) -> bool {
    let own_fault =
        [Code::InvalidArgument, Code::Unauthenticated, Code::PermissionDenied, Code::ResourceExhausted];
    status.code() == Code::FailedPrecondition || own_fault.contains(&status.code())
}

async fn converse(shared: &Shared, address: &str, backoff: &mut Backoff) -> Result<(), Status> {
    let unusable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let channel = shared.identity.channel(address).map_err(unusable)?;
    let mut seed = SeedClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    // What was asked of an earlier attempt is not asked of this one.
    tokio::select! {
        biased;
        () = shared.close.notified() => {}
        () = std::future::ready(()) => {}
    }
    let (outgoing, requests) = mpsc::channel(OUTGOING);
    let opening = tokio_stream::iter(shared.opening());
    let requests = opening.chain(ReceiverStream::new(requests));

    let silent = |_| Status::deadline_exceeded("the seed does not welcome");
    let patience = shared.search.borrow().patience();
    // Who is asked has no effect yet: any arm may be dropped.
    let answered = tokio::select! {
        answered = timeout(patience, seed.follow(requests)) => answered.map_err(silent).flatten(),
        () = shared.close.notified() => Err(Status::deadline_exceeded("the seed is silent")),
        () = shared.called_from(address) => Err(Status::cancelled("another seed leads")),
    };
    if let Err(status) = &answered
        && (status.source().is_some() || status.code() == Code::DeadlineExceeded)
    {
        shared.search.borrow_mut().unanswered();
    }
    let mut replies = answered?.into_inner();
    let first = timeout(WELCOME_TIMEOUT, replies.next()).await.map_err(silent)?;
    let Some(follow_reply::Message::Welcome(welcome)) = first.transpose()?.and_then(|reply| reply.message)
    else {
        return Err(Status::internal("the seed's first message is no welcome"));
    };
    if shared.left.get() {
        // It has left while it was greeted. The end of this link makes the seed give it no key.
        return Ok(());
    }
    let term = welcome.position.map_or(0, |position| position.term);
    if term < shared.term.get() {
        return Err(Status::unavailable("the seed leads no more: another one has led since"));
    }
    shared.seed.replace(Some(seed));
    shared.search.borrow_mut().led(address);
    shared.link_term.set(term);
    shared.note_term(term);
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
        let membership = self.who.membership.as_ref();
        let mut hello = FollowHello {
            node: self.who.node.clone(),
            kind: self.who.kind.clone(),
            zone: self.who.zone.clone(),
            since: Some(self.position.get()),
            member: membership.map(|it| it.member.clone()),
            incarnation: 0,
            attempt: 0,
            capacity: membership.map_or(0, |it| it.capacity),
            yields: membership.is_some_and(|it| it.judge.is_some()),
        };
        let mut owned = Vec::new();
        self.with_holder(|holder, now| {
            holder.hello(now);
            hello.incarnation = holder.incarnation();
            hello.attempt = holder.attempt();
            owned.extend(holder.keys().map(|(key, epoch)| OwnedKey { key: key.to_owned(), epoch }));
        });
        let mut messages = vec![follow_request::Message::Hello(hello)];
        if membership.is_some() {
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
        let lease = Duration::from_millis(welcome.lease_ms.into());
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.into());
        self.tell_holder(|holder, now| holder.welcomed(lease, heartbeat, now));

        *self.outgoing.borrow_mut() = Some(outgoing);
        self.lost_since.set(None);
        self.refusal.send_if_modified(|refusal| refusal.take().is_some());
        self.connected.send_replace(true);
        if self.draining.get() {
            self.say(follow_request::Message::Draining(Draining {}));
        }
        let unanswered = self.questions.borrow_mut().unanswered();
        for question in unanswered {
            self.say(question);
        }
    }

    /// Says whether there was a link.
    pub(super) fn disconnected(&self) -> bool {
        self.outgoing.borrow_mut().take();
        if self.lost_since.get().is_none() {
            self.lost_since.set(Some(Instant::now()));
        }
        let lost = self.connected.send_if_modified(|connected| std::mem::replace(connected, false));
        if lost && !self.left.get() && self.refusal.borrow().is_none() {
            warn!("lost the seed: going on with what is known");
        }
        self.tell_holder(|holder, _| holder.disconnected());
        lost
    }

    /// Begins to look for the seed that leads, with the addresses that the configured ones have now.
    async fn begin_round(&self) {
        let configured = self.seeds.resolve().await;
        self.search.borrow_mut().begin(&configured);
    }

    /// The datastore names the holder of the leader's row.
    pub(super) fn elected(&self, holder: &str, term: u64) {
        self.note_term(term);
        if let Some(address) = seeds::address_of(holder) {
            self.elected.replace(Some(address.to_owned()));
        }
        self.retry.notify_one();
    }

    /// Returns when another seed than this one is known to lead. Cancel-safe.
    async fn called_from(&self, address: &str) {
        while self.elected.borrow().as_deref().is_none_or(|leader| leader == address) {
            self.retry.notified().await;
        }
    }

    /// A seed leads in this term: a link to one of an older term ends.
    fn note_term(&self, term: u64) {
        self.term.set(term.max(self.term.get()));
        if self.link_term.get() < self.term.get() && self.outgoing.borrow().is_some() {
            self.close.notify_one();
        }
    }

    fn use_datastores(&self, addresses: impl Iterator<Item = String>) {
        let mut known = self.datastores.borrow_mut();
        let mut use_these = Vec::new();
        for address in addresses.take(MAX_DATASTORES) {
            if let Some(client) = known.iter().find(|(known, _)| *known == address) {
                use_these.push(client.clone());
                continue;
            }
            match self.identity.channel(&address) {
                Ok(channel) => use_these.push((address, DatastoreClient::new(channel))),
                Err(error) => warn!(address, %error, "the seed names no usable datastore"),
            }
        }
        *known = use_these;
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
        if self.link_term.get() < self.term.get() {
            // Another seed leads by now; this link is about to end.
            return;
        }
        match message {
            Message::Welcome(_) => {}
            Message::Directory(it) => {
                self.search.borrow_mut().told(it.seeds);
                self.use_datastores(it.datastores.into_iter());
            }
            Message::Table(table) => match Table::decode(table) {
                Ok(table) => drop(self.table.send_replace(Rc::new(table))),
                Err(error) => warn!(%error, "the seed's routing table can't be read: the last one goes on"),
            },
            Message::Build(build) => self.build(build),
            Message::Located(located) => self.located(located),
            Message::Known(known) => self.known(known),
            Message::Assigned(it) => self.tell_holder(|holder, now| holder.assigned(&it.key, it.epoch, now)),
            Message::Revoked(it) => self.tell_holder(|holder, _| {
                for key in it.keys {
                    holder.revoked(&key.key, key.epoch);
                }
            }),
            Message::Yield(it) => self.asked_to_yield(it),
            Message::Renewed(it) => self.tell_holder(|holder, now| holder.renewed(it.sequence, now)),
            Message::LeaseLost(_) => self.tell_holder(Holder::lease_lost),
            Message::Invalidate(it) => match Invalidate::decode(it) {
                Ok(it) => {
                    self.owners.borrow_mut().forget(&it.pool, &it.keys);
                    self.note_moved(&it.pool, &it.keys);
                    self.advance(it.sequence);
                }
                Err(error) => {
                    warn!(%error, "an invalidation can't be read: every owner is asked for anew");
                    self.owners.borrow_mut().doubt_all();
                    self.note_any_moved();
                }
            },
            Message::MemberGone(it) => {
                self.owners.borrow_mut().forget_member(&it.pool, &it.member);
                self.note_any_moved();
                self.advance(it.sequence);
            }
            Message::ResetOwners(it) => {
                self.owners.borrow_mut().doubt_all();
                self.note_any_moved();
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

    /// The seed asks for keys: gives up those that need not be kept.
    fn asked_to_yield(&self, Yield { keys, idle }: Yield) {
        let judge = self.who.membership.as_ref().and_then(|it| it.judge.as_ref());
        let given_up = |owned: &OwnedKey| {
            let OwnedKey { key, epoch } = owned;
            let wanted = Wanted { key, epoch: *epoch, idle };
            judge.map_or(idle, |judge| judge(wanted))
                && self.with_holder(|holder, _| holder.release(key, *epoch)) == Some(true)
        };
        let (keys, kept) = keys.into_iter().partition(given_up);
        // What moves may be given up later.
        self.say_released(keys, if idle { kept } else { Vec::new() });
    }

    /// What a sibling was answered. What this one knows to be refuted it does not believe again.
    fn known(&self, Known { pool, key, owner }: Known) {
        let mut owners = self.owners.borrow_mut();
        if let Some((owner, fresh)) =
            owner.and_then(owner_of).filter(|(owner, _)| owner.epoch > owners.refuted(&pool, &key))
        {
            owners.learn(&pool, &key, &owner, BootTime::now(), fresh);
        }
    }

    fn located(&self, located: Located) {
        let Some(Closed { pool, key, sent_at, waiting }) = self.questions.borrow_mut().close(located.id)
        else {
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
        let answer = answer.map(|(owner, fresh)| {
            if !fresh.is_zero() && self.shortest_fresh.get().is_none_or(|shortest| fresh < shortest) {
                self.shortest_fresh.set(Some(fresh));
            }
            self.owners.borrow_mut().learn(&pool, &key, &owner, sent_at, fresh);
            owner
        });
        for waiter in waiting {
            // Whoever asked may have gone.
            let _ = waiter.send(answer.clone());
        }
    }
}

/// The owner, and for how long the answer is fresh. Nothing where its address is none.
fn owner_of(owner: proto::Owner) -> Option<(Owner, Duration)> {
    let proto::Owner { member, address, epoch, fresh_ms } = owner;
    let owner = Owner { member: member.into(), address: address.parse().ok()?, epoch };
    Some((owner, Duration::from_millis(fresh_ms.into())))
}
