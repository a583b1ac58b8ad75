//! The row `seed` in the datastore: whoever holds it leads.
//!
//! A seed that doesn't hold the row asks for it again and again, which is all that an understudy does: routes, builds and
//! members are read when it gets it, in one call, and who owns what the members report. So there is no copy to keep.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::proto::{LoadRoutesReply, LoadRoutesRequest, TakeLeaseReply, TakeLeaseRequest};
use protoplex_wire::seeds::{self, Redirect, Seeds};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tonic::{Code, Response, Status};

use crate::cluster::{Cluster, Handle, Lead, Renewal};
use crate::datastores::{Datastores, call, call_within, limited};
use crate::role::Role;

/// The row's life once all members are back.
const TTL: Duration = Duration::from_secs(3);
/// The same while members are expected back: a seed that dies then must not hold the row against their leases.
const RECOVERY_TTL: Duration = Duration::from_secs(1);
/// A cluster's task that has taken no renewal for so long beyond the lead does nothing any more. The report of a million keys takes
/// a second.
pub(crate) const STUCK: Duration = Duration::from_secs(30);
/// Wait after a refusal or an error.
const RETRY: Duration = Duration::from_millis(250);

/// Who wants to lead, and what it needs for that.
pub(crate) struct Candidate {
    /// How it calls itself in the row.
    pub(crate) holder: String,
    pub(crate) datastores: Arc<Datastores>,
    pub(crate) cluster: Handle,
    /// What this seed is by its core.
    pub(crate) leading: watch::Receiver<Lead>,
    /// What the core goes on by.
    pub(crate) renewals: watch::Sender<Renewal>,
    /// Where other seeds are: the node's own link to the one that leads keeps that up to date.
    pub(crate) seeds: Seeds,
    /// The row may be to be had, or this seed may have lost it: ask now.
    pub(crate) nudge: Arc<Notify>,
    /// No more: the row is to be given up.
    pub(crate) ending: watch::Receiver<bool>,
    /// [`STUCK`].
    pub(crate) stuck: Duration,
}

/// What became of one.
enum Turn {
    /// This seed leads on; the next one is due then, or as soon as its core leads no more.
    Leads(Duration),
    /// It does not; the next one is due then.
    Waits(Duration),
    /// The cluster's task is gone: so is the seed.
    Ending,
}

/// Why this seed can't lead.
enum Failure {
    Datastore(Status),
    /// By its own fault, or its datastore's slowness.
    Own(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Datastore(status)
    }
}

impl Candidate {
    /// Takes and keeps the row until it is ending. Without a datastore it tries for ever.
    pub(crate) async fn lead(mut self) {
        let mut complaint = String::new();
        while !*self.ending.borrow() {
            let turn = self.turn().await;
            if turn.is_ok() {
                complaint.clear();
                self.datastores.note("");
            }
            let leads = matches!(turn, Ok(Turn::Leads(_)));
            let wait = match turn {
                Ok(Turn::Leads(wait) | Turn::Waits(wait)) => wait,
                Ok(Turn::Ending) => return,
                Err(Failure::Datastore(status)) if self.datastores.give_up(&status) => Duration::ZERO,
                Err(failure) => {
                    self.complain(&mut complaint, failure);
                    RETRY
                }
            };
            // Every arm is cancel-safe.
            tokio::select! {
                () = sleep(wait) => {}
                () = self.nudge.notified() => {}
                _ = self.leading.wait_for(|lead| lead.term.is_none()), if leads => {}
                _ = self.ending.wait_for(|ending| *ending) => {}
            }
        }
    }

    /// Says so, unless it said the same just before.
    fn complain(&self, before: &mut String, failure: Failure) {
        let datastore = self.datastores.addresses().swap_remove(0);
        let (reason, what) = match &failure {
            Failure::Own(reason) => (reason.as_str(), "this seed can't lead"),
            Failure::Datastore(status) => match status.code() {
                Code::Unavailable | Code::DeadlineExceeded => (status.message(), "can't reach the datastore"),
                _ => (status.message(), "the datastore does not let this seed lead"),
            },
        };
        if before == reason {
            return;
        }
        reason.clone_into(before);
        tracing::warn!(datastore, reason, "{what}; trying again");
        self.datastores.note(&match failure {
            Failure::Own(reason) => reason,
            Failure::Datastore(status) => format!("its datastore at {datastore}: {}", status.message()),
        });
    }

    /// One renewal, or one attempt to begin a term. A renewal never waits for the cluster's task: that may have the report
    /// of a million keys in hand, and would lose its lead over it.
    async fn turn(&self) -> Result<Turn, Failure> {
        if self.leading.has_changed().is_err() {
            return Ok(Turn::Ending);
        }
        let Lead { term, recovering, until } = *self.leading.borrow();
        let fresh = term.is_none();
        let ttl = if fresh || recovering { RECOVERY_TTL } else { TTL };
        if until.is_some_and(|until| BootTime::now().since(until) > self.stuck) {
            return Err(Failure::Own(
                "the task that knows the cluster takes no renewals any more".to_owned(),
            ));
        }
        let (reply, mut until) = self.take(term.unwrap_or(0), ttl).await?;
        if !reply.granted {
            return Ok(Turn::Waits(self.refused(reply).await));
        }
        let term = reply.term;
        let datastores = self.datastores.addresses();
        if fresh {
            let loaded = load(&self.datastores).await?;
            // What was read may have taken most of that time.
            let (reply, renewed) = self.take(term, ttl).await?;
            if !reply.granted {
                let is_over = reply.left_ms == 0 || reply.holder == self.holder;
                let wait = self.refused(reply).await;
                return if is_over { Err(too_slow()) } else { Ok(Turn::Waits(wait)) };
            }
            until = renewed;
            if BootTime::now() >= until {
                return Err(too_slow());
            }
            let others = self.seeds.remembered();
            let lead = move |cluster: &mut Cluster, now| {
                cluster.know(others, datastores);
                cluster.lead(term, until, loaded, now)
            };
            match self.cluster.ask(lead).await {
                Some(true) => {}
                Some(false) => {
                    let late =
                        "the task that knows the cluster was so busy that this lead was over before it began";
                    return Err(Failure::Own(late.to_owned()));
                }
                None => return Ok(Turn::Ending),
            }
        } else {
            self.renewals.send_replace(Renewal { term, until, datastores });
        }
        if fresh {
            // That was a short one, and the cluster's task has much to do now.
            return Ok(Turn::Leads(Duration::ZERO));
        }
        // Counted as the lease is: an answer that took long, from a datastore that only just started, leaves little of it.
        let due = until - ttl * 9 / 10 + ttl / 3;
        Ok(Turn::Leads(due.since(BootTime::now())))
    }

    /// Asks for the row; answers until when it is this seed's, if it is.
    async fn take(&self, term: u64, ttl: Duration) -> Result<(TakeLeaseReply, BootTime), Status> {
        let request = TakeLeaseRequest {
            name: SEED_LEASE.to_owned(),
            holder: self.holder.clone(),
            ttl_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            term,
        };
        let mut datastore = self.datastores.client();
        let sent_at = BootTime::now();
        let reply = call_within(self.datastores.patience(), datastore.take_lease(limited(request))).await?;
        // Nine tenths, as members count: this clock may run slower than the datastore's.
        Ok((reply, sent_at + ttl * 9 / 10))
    }

    /// Another seed leads, or this one's term is over; answers when to ask again.
    async fn refused(&self, TakeLeaseReply { term, holder, left_ms, .. }: TakeLeaseReply) -> Duration {
        let left = Duration::from_millis(left_ms.into());
        // By its own name only this seed's last term: it takes its own row anew at once.
        let other = (holder != self.holder && left_ms > 0).then(|| {
            let address = seeds::address_of(&holder).unwrap_or_default().to_owned();
            Role::Understudy { holder, leader: Redirect { address, term } }
        });
        let known = other.is_some();
        self.cluster.tell(move |cluster, now| cluster.led_by(other, now + left)).await;
        // Nobody renews what is about to end, so it is worth being there then.
        if known { RETRY.min(left + Duration::from_millis(1)) } else { RETRY / 10 }
    }
}

fn too_slow() -> Failure {
    let ms = (RECOVERY_TTL * 9 / 10).as_millis();
    Failure::Own(format!(
        "its datastore takes longer for an answer than the {ms} ms for which it may lead by that"
    ))
}

/// Handlers, builds and members as the datastore holds them.
pub(crate) async fn load(datastores: &Datastores) -> Result<LoadRoutesReply, Status> {
    call(datastores.client().load_routes(limited(LoadRoutesRequest {}))).await
}

/// The answer to a change that this seed makes as the one that leads.
pub(crate) async fn led<T>(
    cluster: &Handle,
    change: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match call(change).await {
        Err(status) if fenced(&status, cluster).await => {
            Err(Status::unavailable("another seed leads since a moment ago; try again"))
        }
        outcome => outcome,
    }
}

/// A change that was refused because another seed has led since ends the lead at once.
pub(crate) async fn fenced(status: &Status, cluster: &Handle) -> bool {
    let Some(newer) = seeds::newer_term(status) else { return false };
    cluster.tell(move |cluster, _| cluster.overtaken(newer)).await;
    true
}
