//! Keeps a member's lease: does what its holder asks for, whether or not there is a link.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{SEED_LEASE, Shared};
use crate::clock::BootTime;
use crate::holder::{Lost, Step};
use crate::proto::{PeekLeaseReply, PeekLeaseRequest, Renew, follow_request};

/// The datastore must say quickly whether a seed leads, or it says nothing.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Sleeps are cut to this, as tokio's clock stands still while the machine is suspended and the lease's doesn't.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

pub(super) async fn keep(shared: Rc<Shared>) {
    let mut changes = shared.holder_changed.subscribe();
    loop {
        while let Some(step) = shared.with_holder(|holder, now| holder.poll(now)).flatten() {
            act(&shared, step);
        }
        // Only now: whoever leaves is told that it owns nothing any more, as at any other loss.
        if shared.left.get() {
            return;
        }
        let next = shared.with_holder(|holder, now| holder.next_poll().map(|next| next.since(now))).flatten();
        let wait = async {
            match next {
                Some(wait) => sleep(wait.min(LONGEST_SLEEP)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = wait => {}
            _ = changes.changed() => {}
        }
    }
}

fn act(shared: &Rc<Shared>, step: Step) {
    match step {
        Step::Lost(lost) => {
            if matches!(lost, Lost::All { .. }) && !shared.left.get() {
                warn!("no key is served until the seed assigns some anew");
            }
            // Nobody may care, as in a side-car.
            let _ = shared.tell_lost.send(lost);
        }
        Step::Rejoin => shared.close.notify_one(),
        Step::Renew { sequence } => drop(shared.say(follow_request::Message::Renew(Renew { sequence }))),
        Step::AskDatastore => drop(tokio::task::spawn_local(ask_datastore(Rc::clone(shared)))),
    }
}

/// Goes on for another lease if no seed leads: any later one waits a whole lease before it assigns unreported keys. Of
/// several datastores, which are of one database, the first that answers decides: the one that the seed used may have
/// died with it.
async fn ask_datastore(shared: Rc<Shared>) {
    let datastores = shared.datastores.borrow().clone();
    for (address, mut datastore) in datastores {
        let asked_at = BootTime::now();
        let question = PeekLeaseRequest { name: SEED_LEASE.to_owned() };
        match timeout(ASK_TIMEOUT, datastore.peek_lease(question)).await {
            Ok(Ok(lease)) => return answered(&shared, &lease.into_inner(), asked_at),
            Ok(Err(status)) => debug!(address, reason = status.message(), "cannot ask the datastore"),
            Err(_) => debug!(address, "the datastore does not answer"),
        }
    }
}

fn answered(shared: &Shared, lease: &PeekLeaseReply, asked_at: BootTime) {
    if !lease.held {
        shared.with_holder(|holder, now| holder.unseeded(asked_at, now));
        return;
    }
    debug!(seed = lease.holder, "a seed leads, but does not answer here");
    let left = Duration::from_millis(lease.left_ms.into());
    shared.tell_holder(|holder, now| holder.seeded(asked_at, left, now));
    // It may have come this moment, and the lease here may end before the back-off does.
    shared.elected(&lease.holder, lease.term);
}
