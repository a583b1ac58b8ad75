//! The planned end of a lead: no more assignments, then the row is free, an understudy takes it, and everybody goes there.
//!
//! Members keep their keys and go on serving all the while; questions that come are left to whoever leads next. Only then
//! the links end, each with the address of the new leader, so that nobody has to search, and no question is lost.

use std::time::Duration;

use protoplex_wire::follow::SEED_LEASE;
use protoplex_wire::identity::Identity;
use protoplex_wire::proto::understudy_client::UnderstudyClient;
use protoplex_wire::proto::{LeaderReply, ReleaseLeaseRequest, TakeOverRequest};
use protoplex_wire::seeds::Redirect;
use tokio::time::{Instant, timeout};
use tonic::Request;

use crate::cluster::Handle;
use crate::datastores::{Datastores, call, limited};

/// How long one understudy may take to lead, and how many are asked.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_millis(1000);
const MAX_ASKED: usize = 3;

/// Gives the lead up, where this seed has it, and sends everybody to the seed that has taken it.
pub(crate) async fn hand_over(
    holder: String,
    identity: &Identity,
    datastores: &Datastores,
    cluster: &Handle,
) {
    let began = Instant::now();
    let Some(Some((term, understudies))) = cluster.ask(|cluster, _| cluster.begin_hand_over()).await else {
        return;
    };
    let release = ReleaseLeaseRequest { name: SEED_LEASE.to_owned(), holder, term };
    if let Err(status) = call(datastores.client().release_lease(limited(release))).await {
        // It ends by itself.
        tracing::warn!(reason = status.message(), "the datastore did not take the lead back");
    }
    let mut successor = None;
    for address in understudies.iter().take(MAX_ASKED) {
        match take_over(identity, address, term).await {
            Ok(LeaderReply { leading: true, term, .. }) => {
                successor = Some(Redirect { address: address.clone(), term });
                break;
            }
            // Another one was faster.
            Ok(LeaderReply { address, term: newer, .. }) if !address.is_empty() && newer > term => {
                successor = Some(Redirect { address, term: newer });
                break;
            }
            Ok(_) => tracing::warn!(address, "this understudy does not take over"),
            Err(why) => tracing::warn!(address, why, "this understudy does not take over"),
        }
    }
    let leader = successor.as_ref().map_or("none", |leader| &leader.address).to_owned();
    tracing::info!(term, leader, took_ms = began.elapsed().as_millis(), "the lead was handed over");
    cluster.ask(move |cluster, _| cluster.end_hand_over(successor)).await;
}

async fn take_over(identity: &Identity, address: &str, term: u64) -> Result<LeaderReply, String> {
    let channel = identity.channel(address).map_err(|error| error.to_string())?;
    let mut understudy = UnderstudyClient::new(channel);
    let asked = understudy.take_over(Request::new(TakeOverRequest { term }));
    match timeout(TAKE_OVER_TIMEOUT, asked).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}
