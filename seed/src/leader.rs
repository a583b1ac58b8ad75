//! The row `seed` in the datastore: whoever holds it leads. Also the errands that the core has there.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::identity::TrustedChannel;
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::{
    LoadRoutesReply, LoadRoutesRequest, PutMemberRequest, RemoveMemberRequest, TakeLeaseRequest,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status};

use crate::cluster::{Errand, Handle};

/// The row's life once all members are back.
const TTL: Duration = Duration::from_secs(3);
/// The same while members are expected back: a seed that dies then must not hold the row against their leases.
const RECOVERY_TTL: Duration = Duration::from_secs(1);
/// How long the datastore may take for one call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a refusal or an error.
const RETRY: Duration = Duration::from_millis(250);
/// Errands under way at once.
const MAX_ERRANDS_IN_FLIGHT: usize = 32;

pub(crate) type Datastore = DatastoreClient<TrustedChannel>;

/// A request that the datastore has [`CALL_TIMEOUT`] for.
pub(crate) fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Takes and keeps the row for as long as this future runs. Without a datastore it tries for ever.
pub(crate) async fn lead(holder: String, address: String, mut datastore: Datastore, cluster: Handle) {
    let mut complaint = String::new();
    loop {
        let wait = match turn(&holder, &mut datastore, &cluster).await {
            Ok(wait) => {
                complaint.clear();
                wait
            }
            Err(status) => {
                if complaint != status.message() {
                    complaint = status.message().to_owned();
                    let away = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
                    tracing::warn!(
                        datastore = address,
                        reason = complaint,
                        "{}; trying again",
                        if away {
                            "can't reach the datastore"
                        } else {
                            "the datastore does not let this seed lead"
                        }
                    );
                }
                RETRY
            }
        };
        sleep(wait).await;
    }
}

/// One renewal, or one attempt to begin a term; answers when the next is due.
async fn turn(holder: &str, datastore: &mut Datastore, cluster: &Handle) -> Result<Duration, Status> {
    let leads = cluster.ask(|cluster, _| (cluster.core.leads(), cluster.core.recovering())).await;
    let (term, recovering) = leads.ok_or_else(|| Status::cancelled("the seed is ending"))?;
    let fresh = term.is_none();
    let ttl = if fresh || recovering { RECOVERY_TTL } else { TTL };
    let request = TakeLeaseRequest {
        name: SEED_LEASE.to_owned(),
        holder: holder.to_owned(),
        ttl_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
        term: term.unwrap_or(0),
    };
    let sent_at = BootTime::now();
    let reply = call(datastore.take_lease(limited(request))).await?;
    // Nine tenths, as members count: this clock may run slower than the datastore's.
    let until = sent_at + ttl * 9 / 10;
    if !reply.granted {
        cluster.tell(|cluster, _| cluster.core.step_down("another seed leads")).await;
        return Err(Status::failed_precondition(format!("{:?} holds the lease", reply.holder)));
    }
    let term = reply.term;
    if fresh {
        let loaded = load(datastore).await?;
        cluster.tell(move |cluster, now| cluster.lead(term, until, loaded, now)).await;
    } else if cluster.ask(move |cluster, now| cluster.core.lead_renewed(term, until, now)).await != Some(true)
    {
        return Ok(Duration::ZERO);
    }
    // Counted as the lease is: an answer that took long, from a datastore that only just started, leaves little of it.
    Ok((sent_at + ttl / 3).since(BootTime::now()))
}

/// Handlers, builds and members as the datastore holds them.
pub(crate) async fn load(datastore: &mut Datastore) -> Result<LoadRoutesReply, Status> {
    call(datastore.load_routes(limited(LoadRoutesRequest {}))).await
}

/// Does the core's errands for as long as there is one who sends them.
pub(crate) async fn run_errands(mut errands: mpsc::Receiver<Errand>, datastore: Datastore, cluster: Handle) {
    let slots = Arc::new(Semaphore::new(MAX_ERRANDS_IN_FLIGHT));
    while let Some(errand) = errands.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (datastore, cluster) = (datastore.clone(), cluster.clone());
        tokio::spawn(async move {
            run_errand(errand, datastore, cluster).await;
            drop(slot);
        });
    }
}

async fn run_errand(errand: Errand, mut datastore: Datastore, cluster: Handle) {
    match errand {
        Errand::Record { link, member, revision } => {
            let request = PutMemberRequest { member: Some(member), revision };
            let written = call(datastore.put_member(limited(request))).await;
            if let Err(status) = &written {
                tracing::warn!(reason = status.message(), "the datastore did not take a member");
            }
            let written = written.is_ok();
            cluster.tell(move |cluster, now| cluster.core.recorded(link, written, now)).await;
        }
        Errand::Erase { pool, id, revision } => {
            // A row that stays makes the next term wait for its member, and no more.
            let request = RemoveMemberRequest { pool, id, revision };
            if let Err(status) = call(datastore.remove_member(limited(request))).await {
                tracing::warn!(reason = status.message(), "the datastore did not remove a member");
            }
        }
    }
}

/// The answer to a call, within [`CALL_TIMEOUT`] whatever the connection does.
pub(crate) async fn call<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the datastore does not answer");
    Ok(timeout(CALL_TIMEOUT, answer).await.map_err(late)??.into_inner())
}
