//! Whether the server can be reached: asked for by a connection of its own, and said once when that changes.
//!
//! | state   | calls                    | goes on when                                             |
//! | ------- | ------------------------ | -------------------------------------------------------- |
//! | there   | are made                 | that connection is silent, or ends and there is no other |
//! | away    | are refused at once      | a new connection is answered                             |
//!
//! A call that fails for want of its connection only has the watcher look now: that may have been one connection's end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::connect::{CONNECT_TIMEOUT, Target};
use super::leases::{self, Sightings};
use super::{Named, open};
use crate::store::{StoreError, StoreResult};

/// How often a server that is away is looked for.
pub(super) const RETRY_EVERY: Duration = Duration::from_millis(500);
/// How often one that is there is asked whether it still is.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// What is known of the server.
#[derive(Debug)]
pub(super) struct Reach {
    target: String,
    away: watch::Sender<Option<String>>,
    doubt: Notify,
}

impl Reach {
    /// It was there a moment ago.
    pub(super) fn new(target: &Target) -> Self {
        Self { target: target.to_string(), away: watch::Sender::new(None), doubt: Notify::new() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.away.subscribe()
    }

    /// What the call comes to, or [`StoreError::Away`] as soon as the server is known to be away. Each arm may be
    /// dropped: a transaction is rolled back then, or its commit has happened and wasn't acknowledged.
    pub(super) async fn guard<T>(&self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let mut away = self.away.subscribe();
        let gone = async {
            loop {
                let reason = away.borrow_and_update().clone();
                if let Some(reason) = reason {
                    return reason;
                }
                if away.changed().await.is_err() {
                    // This holds the other end.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            reason = gone => Err(StoreError::Away(reason)),
            outcome = call => {
                if let Err(StoreError::Away(_) | StoreError::Busy) = &outcome {
                    self.doubt.notify_one();
                }
                outcome
            }
        }
    }

    fn lost(&self, reason: &str) {
        self.away.send_if_modified(|away| {
            let before = away.replace(reason.to_owned());
            if before.is_none() {
                tracing::error!(database = self.target, reason, "the database is away");
            }
            before.as_deref() != Some(reason)
        });
    }

    fn back(&self) {
        self.away.send_if_modified(|away| {
            let was_away = away.take().is_some();
            if was_away {
                tracing::info!(database = self.target, "the database is back");
            }
            was_away
        });
    }
}

/// The task that looks after [`Reach`], and at leases. It ends with this.
#[derive(Debug)]
pub(super) struct Watcher(Mutex<JoinHandle<()>>);

impl Watcher {
    pub(super) fn start(target: &Target, reach: &Arc<Reach>, pool: &PgPool, leases: &Arc<Sightings>) -> Self {
        let (target, reach) = (target.clone(), Arc::clone(reach));
        let (pool, leases) = (pool.clone(), Arc::clone(leases));
        Self(Mutex::new(tokio::spawn(async move {
            tokio::join!(look_after(target, Arc::clone(&reach), pool.clone()), see(&reach, &pool, &leases));
        })))
    }

    /// Ends it and waits until it has ended.
    pub(super) async fn stop(&self) {
        let mut task = self.0.lock().await;
        task.abort();
        if !task.is_finished() {
            // Only says that it was aborted.
            let _ = (&mut *task).await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.get_mut().abort();
    }
}

/// Looks at the leases while the server is there, so that their times are counted from their grants.
async fn see(reach: &Reach, pool: &PgPool, leases: &Sightings) {
    let away = reach.subscribe();
    loop {
        sleep(leases::LOOK_EVERY).await;
        if away.borrow().is_none() {
            // A look that fails is made up for by the next one.
            let _ = timeout(CONNECT_TIMEOUT, leases::look(pool, leases)).await;
        }
    }
}

async fn look_after(target: Target, reach: Arc<Reach>, pool: PgPool) {
    let mut connection = None;
    loop {
        match ask(&target, &mut connection).await {
            Ok(()) => {
                reach.back();
                // Either way the next look is due.
                let _ = timeout(ASK_EVERY, reach.doubt.notified()).await;
            }
            Err(reason) => {
                reach.lost(&reason);
                forget_idle(&pool);
                sleep(RETRY_EVERY).await;
            }
        }
    }
}

/// Asks over the connection that there is, or a new one.
async fn ask(target: &Target, connection: &mut Option<PgConnection>) -> Result<(), String> {
    if let Some(mut old) = connection.take() {
        match timeout(CONNECT_TIMEOUT, old.ping()).await {
            Ok(Ok(())) => {
                *connection = Some(old);
                return Ok(());
            }
            // Somebody may have ended this one alone.
            Ok(Err(_)) => {}
            Err(_) => return Err(silence().to_string()),
        }
    }
    let new = match connect(target).await {
        // Or a new one, in its first moment.
        Err(sqlx::Error::Database(_)) => connect(target).await,
        new => new,
    };
    *connection = Some(new.map_err(|error| error.to_string())?);
    Ok(())
}

/// A connection to a server that can be written to.
async fn connect(target: &Target) -> Result<PgConnection, sqlx::Error> {
    let mut new = target.connect().await?;
    let standby = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut new);
    if timeout(CONNECT_TIMEOUT, standby).await.unwrap_or_else(|_| Err(silence()))? {
        return Err(io::Error::other("it is a standby, which can't be written to").into());
    }
    if !hold(&mut new, "SELECT pg_try_advisory_lock_shared(hashtextextended('', $1))").await? {
        return Err(io::Error::other("everything in it is being moved, or replaced").into());
    }
    if let Some(to) = open::moved_to(&mut new).await? {
        return Err(io::Error::other(format!("everything was moved to {to}")).into());
    }
    Ok(new)
}

/// Keeps all datastores from using the database for as long as the connection lasts; false where one uses it now.
pub(super) async fn hold_alone(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    hold(connection, "SELECT pg_try_advisory_lock(hashtextextended('', $1))").await
}

async fn hold(connection: &mut PgConnection, lock: &'static str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(lock).bind(Named::Database as i64).fetch_one(connection).await
}

fn silence() -> sqlx::Error {
    let silence = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, silence).into()
}

/// Drops connections that would be found broken one by one, each after a wait for an answer.
fn forget_idle(pool: &PgPool) {
    while let Some(idle) = pool.try_acquire() {
        drop(idle.detach());
    }
}
