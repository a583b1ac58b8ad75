//! What a datastore answers before its database has ever been there: that it is away, and why.

use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use protoplex_runtime::context::Context;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::Identity;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Status;
use tonic::service::Routes;

use super::RunError;
use crate::postgres::{PgStore, Target};
use crate::store::StoreError;

/// What connections of that time may take for their end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens the database as soon as it is there; answers until then.
pub(super) async fn open(
    target: &Target,
    listener: &TcpListener,
    identity: &Identity,
    context: &Context,
) -> Result<PgStore, RunError> {
    let away = watch::Sender::new(None);
    let there = watch::Sender::new(false);
    let opening = async {
        let opened = PgStore::open_patiently(target, |reason| {
            tell(context, Some(reason));
            away.send_replace(Some(reason.to_owned()));
        });
        let opened = opened.await;
        there.send_replace(true);
        opened
    };
    let (store, answered) =
        tokio::join!(opening, answer(listener, identity, away.subscribe(), there.subscribe()));
    answered?;
    Ok(store?)
}

/// Tells whether the database is there, as operators see it.
pub(super) fn tell(context: &Context, away: Option<&str>) {
    context.ready(away.is_none());
    context.hindrance(away.map_or_else(String::new, |reason| format!("the database is away: {reason}")));
    context.detail("database", away.map_or("reached".to_owned(), |reason| format!("away: {reason}")));
}

/// Answers from the first reason on, until the database is there.
async fn answer(
    listener: &TcpListener,
    identity: &Identity,
    mut away: watch::Receiver<Option<String>>,
    mut there: watch::Receiver<bool>,
) -> Result<(), RunError> {
    // Errors can't be: the senders are held as long. Either arm may be dropped.
    tokio::select! {
        biased;
        _ = there.wait_for(|there| *there) => return Ok(()),
        _ = away.wait_for(Option::is_some) => {}
    }
    let gate = Gate::new(identity)?;
    let listener = listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let incoming = gate.incoming(tokio::net::TcpListener::from_std(listener)?);
    let refuse = async move || {
        let reason = away.borrow().clone().unwrap_or_default();
        Status::unavailable(StoreError::Away(reason).to_string()).into_http::<axum::body::Body>()
    };
    let (mut is_there, mut is_ending) = (there.clone(), there);
    let ended = async move { drop(is_there.wait_for(|there| *there).await) };
    let server = gate
        .server()
        .add_routes(Routes::from(Router::new().fallback(refuse)))
        .serve_with_incoming_shutdown(incoming, ended);
    let late = async {
        let _ = is_ending.wait_for(|there| *there).await;
        sleep(END_TIMEOUT).await;
    };
    tokio::select! {
        served = server => Ok(served?),
        () = late => Ok(()),
    }
}
