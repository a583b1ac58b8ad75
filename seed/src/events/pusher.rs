//! Publishes what waits in the datastore until its time has come: delayed events, and what the datastore itself tells.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::proto::{DropDueRequest, DueEvent, DueEventsReply, DueEventsRequest};
use tokio::time::sleep;

use super::carrier::{Carrier, CarrierError, Outgoing, Reign};
use crate::datastores::{Datastores, call, limited};

/// Taken at once.
const BATCH: u32 = 256;
/// How often it is looked what is due: so late an event may come.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(1);
const STUCK: &str = "due events are larger than NATS takes (max_payload), and wait until it does";

/// Publishes for as long as this future runs, while this seed leads. What is published and not dropped, for the seed dies
/// in between, is published again, and known by its source and id.
pub(crate) async fn push(datastores: Arc<Datastores>, carrier: impl Carrier, mut leads: Reign) {
    let mut complaint = String::new();
    loop {
        if leads.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let pause = match turn(&datastores, &carrier).await {
            Ok(Turn { taken, stuck }) => {
                if stuck == 0 {
                    complaint.clear();
                } else if complaint != STUCK {
                    tracing::error!(stuck, "{STUCK}");
                    complaint = STUCK.to_owned();
                }
                if taken < BATCH as usize { LOOK_EVERY } else { Duration::ZERO }
            }
            Err(error) => {
                let error = error.to_string();
                if complaint != error {
                    tracing::warn!(reason = error, "due events can't be published; trying again");
                    complaint = error;
                }
                RETRY
            }
        };
        sleep(pause).await;
    }
}

struct Turn {
    /// How many were published.
    taken: usize,
    /// How many can't be, and stay.
    stuck: u64,
}

async fn turn(datastores: &Datastores, carrier: &impl Carrier) -> Result<Turn, CarrierError> {
    // The carrier's limit may be another one than when these were taken. The others don't wait for them.
    let most = carrier.max_event_bytes();
    let max_event_bytes = if most == usize::MAX { 0 } else { most as u64 };
    let request = DueEventsRequest { limit: BATCH, max_event_bytes };
    let DueEventsReply { events: due, larger } =
        call(datastores.events().due_events(limited(request))).await?;
    // A datastore of before doesn't leave them out.
    let (due, left): (Vec<_>, Vec<_>) = due.into_iter().partition(|due| due.event.len() <= most);
    let stuck = larger + left.len() as u64;
    if due.is_empty() {
        return Ok(Turn { taken: 0, stuck });
    }
    let (numbers, events): (Vec<_>, Vec<_>) =
        due.into_iter().map(|DueEvent { number, event }| (number, event)).unzip();
    let outgoing = |json: Vec<u8>| match CloudEvent::from_json(&json) {
        Ok(event) => Some(Outgoing::new(&event, json)),
        Err(error) => {
            tracing::error!(%error, "an event that can't be read is dropped");
            None
        }
    };
    let events: Vec<_> = events.into_iter().filter_map(outgoing).collect();
    if !events.is_empty() {
        carrier.publish(events).await?;
    }
    let taken = numbers.len();
    call(datastores.events().drop_due(limited(DropDueRequest { numbers }))).await?;
    Ok(Turn { taken, stuck })
}
