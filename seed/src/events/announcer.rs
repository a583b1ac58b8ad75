//! What the seed itself has to tell: which nodes have joined, left and been lost.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::proto::{JoinHello, NewEvent, PostponeEventsRequest};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::Code;

use crate::datastores::{Datastores, call, limited};

/// Events that wait for the datastore; any more are not told.
pub(crate) const MAX_ANNOUNCEMENTS: usize = 1024;
const RETRY: Duration = Duration::from_secs(1);

/// The way to [`announce`], for whom nothing may stop. Clones share it.
#[derive(Clone)]
pub(crate) struct Announcements(pub(crate) mpsc::Sender<CloudEvent>);

impl Announcements {
    /// A node has joined, at first or anew.
    pub(crate) fn joined(&self, node: &JoinHello) {
        self.tell("node.joined", node);
    }

    /// A node is gone: in good order where it drained, else it is lost.
    pub(crate) fn gone(&self, node: &JoinHello, drained: bool) {
        self.tell(if drained { "node.left" } else { "node.lost" }, node);
    }

    fn tell(&self, topic: &str, node: &JoinHello) {
        let data = json!({
            "node": node.node,
            "kind": node.kind,
            "version": node.version,
            "pid": node.pid,
            "region": node.region,
            "zone": node.zone,
            "meta": node.meta,
        });
        let event = CloudEvent::new("/seed", topic)
            .with_subject(format!("node/{}", node.node))
            .with_data("application/json", EventData::json(&data).unwrap_or_default());
        if self.0.try_send(event).is_err() {
            tracing::warn!(who = node.node, topic, "an event is not published: too many wait");
        }
    }
}

/// Has the datastore keep what is told, so that it is published whatever becomes of this seed.
pub(crate) async fn announce(datastores: Arc<Datastores>, mut events: mpsc::Receiver<CloudEvent>) {
    let mut complaint = String::new();
    while let Some(event) = events.recv().await {
        let json = match event.to_json() {
            Ok(json) => json,
            Err(error) => {
                tracing::warn!(%error, "an event is not published");
                continue;
            }
        };
        let new = NewEvent { key: event.key().to_vec(), event: json };
        let request = PostponeEventsRequest { events: vec![new], delay_ms: 0 };
        loop {
            let kept = call(datastores.events().postpone_events(limited(request.clone()))).await;
            let Err(status) = kept else { break complaint.clear() };
            if status.code() == Code::InvalidArgument {
                tracing::error!(reason = status.message(), "an event that the datastore refuses is dropped");
                break;
            }
            // Repeated, it is known by its key.
            if complaint != status.message() {
                status.message().clone_into(&mut complaint);
                tracing::warn!(reason = complaint, "who joins and leaves can't be told; trying again");
            }
            sleep(RETRY).await;
        }
    }
}
