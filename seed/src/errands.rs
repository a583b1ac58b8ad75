//! The core's errands at the datastore: members' rows.

use std::sync::Arc;

use protoplex_wire::proto::{Member, PutMemberRequest, RemoveMemberRequest};
use tokio::sync::{Semaphore, mpsc};

use crate::cluster::Handle;
use crate::datastores::{Datastores, call, limited};
use crate::leader::fenced;
use crate::ownership::LinkId;

/// Those that wait.
pub(crate) const MAX_WAITING: usize = 16_384;
/// Those under way at once.
const MAX_IN_FLIGHT: usize = 32;

/// A row that the core wants written or removed.
#[derive(Debug)]
pub(crate) enum Errand {
    Record { link: LinkId, member: Member, revision: u64, term: u64 },
    Erase { pool: String, id: String, revision: u64, term: u64 },
}

/// Does the core's errands for as long as there is one who sends them.
pub(crate) async fn run(mut errands: mpsc::Receiver<Errand>, datastores: Arc<Datastores>, cluster: Handle) {
    let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    while let Some(errand) = errands.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (datastores, cluster) = (Arc::clone(&datastores), cluster.clone());
        tokio::spawn(async move {
            carry_out(errand, &datastores, cluster).await;
            drop(slot);
        });
    }
}

async fn carry_out(errand: Errand, datastores: &Datastores, cluster: Handle) {
    let mut datastore = datastores.client();
    match errand {
        Errand::Record { link, member, revision, term } => {
            let request = PutMemberRequest { member: Some(member), revision, term };
            let written = call(datastore.put_member(limited(request))).await;
            if let Err(status) = &written {
                tracing::warn!(reason = status.message(), "the datastore did not take a member");
                fenced(status, &cluster).await;
            }
            let written = written.is_ok();
            cluster.tell(move |cluster, now| cluster.core.recorded(link, written, now)).await;
        }
        Errand::Erase { pool, id, revision, term } => {
            // A row that stays makes the next term wait for its member, and no more.
            let request = RemoveMemberRequest { pool, id, revision, term };
            if let Err(status) = call(datastore.remove_member(limited(request))).await {
                tracing::warn!(reason = status.message(), "the datastore did not remove a member");
                fenced(&status, &cluster).await;
            }
        }
    }
}
