//! Publishes what waits in the datastore until its time has come: delayed events, and what the datastore itself tells.

use std::time::Duration;

use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::proto::{DropDueRequest, DueEvent, DueEventsReply, DueEventsRequest};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

use super::carrier::{Carrier, CarrierError, EventLogs, Outgoing, Reign};

/// Taken at once.
const BATCH: u32 = 256;
/// How often it is looked what is due: so late an event may come.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const STUCK: &str = "due events are larger than NATS takes (max_payload), and wait until it does";

/// Publishes for as long as this future runs, while this seed leads. What is published and not dropped, for the seed dies
/// in between, is published again, and known by its source and id.
pub(crate) async fn push(datastore: EventLogs, carrier: impl Carrier, mut leads: Reign) {
    let mut complaint = String::new();
    loop {
        if leads.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let pause = match turn(&datastore, &carrier).await {
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

async fn turn(datastore: &EventLogs, carrier: &impl Carrier) -> Result<Turn, CarrierError> {
    // The carrier's limit may be another one than when these were taken. The others don't wait for them.
    let most = carrier.max_event_bytes();
    let max_event_bytes = if most == usize::MAX { 0 } else { most as u64 };
    let request = DueEventsRequest { limit: BATCH, max_event_bytes };
    let DueEventsReply { events: due, larger } = call(datastore.client().due_events(request)).await?;
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
    call(datastore.client().drop_due(DropDueRequest { numbers })).await?;
    Ok(Turn { taken, stuck })
}

async fn call<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("it does not answer");
    Ok(timeout(CALL_TIMEOUT, answer).await.map_err(late)??.into_inner())
}
