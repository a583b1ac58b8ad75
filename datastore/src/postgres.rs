//! The store in a PostgreSQL database, which several datastores may share.
//!
//! Nothing is decided by what this process remembers: whoever changes a row has locked it before it reads it, in
//! transactions of isolation READ COMMITTED. Always in the same order (advisory locks, a token before a new upload of
//! it, an upload before file, site and token), and where PostgreSQL finds a deadlock all the same, or two that insert
//! one key at once, the whole call is made again. A commit is on the server's disk before its call is answered.

mod archive;
mod builds;
mod connect;
mod events;
mod fault;
mod files;
mod handlers;
mod identity;
mod leases;
mod open;
mod reach;
mod routes;
mod uploads;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{
    Asset, BeginUploadReply, BeginUploadRequest, Build, ChangeHandlersRequest, CompleteUploadReply,
    CompleteUploadRequest, CreateTokenReply, CreateTokenRequest, Handler, HandlerVersion, JoinToken,
    ListFilesReply, ListFilesRequest, LoadRoutesReply, PeekLeaseReply, PutMemberRequest,
    RedeemJoinTokenReply, RedeemJoinTokenRequest, ReleaseLeaseRequest, RemoveMemberRequest, Revocation,
    RevokeJoinTokenRequest, Site, StoredFile, TakeLeaseReply, TakeLeaseRequest,
};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use crate::store::{Store, StoreError, StoreResult};
use leases::Sightings;
use reach::{Reach, Watcher};

pub(crate) use archive::PgArchive;
pub use connect::{Target, TargetError};
pub(crate) use fault::fault;
pub use open::OpenError;

/// How long a call may take, with all its repetitions.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a call is made that others are in the way of.
const ATTEMPTS: u32 = 8;
/// The longest wait before the next attempt; each waits for a random part of it.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// An open database.
#[derive(Debug)]
pub struct PgStore {
    pool: PgPool,
    reach: Arc<Reach>,
    watcher: Watcher,
    leases: Arc<Sightings>,
    /// Held while a build comes in, so that deployments that wait take one connection and not one each.
    deploying: Mutex<()>,
}

impl PgStore {
    /// Connects to the database and brings it to the present schema.
    pub async fn open(target: &Target) -> Result<Self, OpenError> {
        let pool = open::pool(target).await?;
        let mut connection = pool.acquire().await.map_err(|source| OpenError::unusable(target, source))?;
        open::refuse_moved(target, &mut connection).await?;
        drop(connection);
        let reach = Arc::new(Reach::new(target));
        let leases = Arc::new(Sightings::default());
        let watcher = Watcher::start(target, &reach, &pool, &leases);
        Ok(Self { pool, reach, watcher, leases, deploying: Mutex::new(()) })
    }

    /// As [`Self::open`], but waits for a server that is away, says so once in the log, and tells the reason each time.
    pub async fn open_patiently(target: &Target, tell: impl Fn(&str)) -> Result<Self, OpenError> {
        let mut told = false;
        loop {
            match Self::open(target).await {
                Err(error) if error.is_away() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "waiting for the database");
                    }
                    tell(&error.to_string());
                    sleep(reach::RETRY_EVERY).await;
                }
                opened => return opened,
            }
        }
    }

    /// Why the server can't be reached at present; nothing where it can.
    pub fn away(&self) -> watch::Receiver<Option<String>> {
        self.reach.subscribe()
    }

    /// Finishes what runs, and disconnects.
    pub async fn close(&self) {
        self.watcher.stop().await;
        // What a server that is gone doesn't answer any more is left to its end.
        let _ = timeout(CALL_TIMEOUT, self.pool.close()).await;
    }

    /// Makes one call: at once refused while the server is away, bounded in time, and made again where others were in
    /// its way, which PostgreSQL only tells of transactions that it has rolled back.
    async fn call<T, F>(&self, attempt: impl Fn() -> F + Send + Sync) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>> + Send,
    {
        let attempts = async {
            for _ in 1..ATTEMPTS {
                match attempt().await {
                    Err(StoreError::Contended) => sleep(LONGEST_PAUSE.mul_f64(rand::random())).await,
                    outcome => return outcome,
                }
            }
            attempt().await
        };
        let bounded = async { timeout(CALL_TIMEOUT, attempts).await.unwrap_or(Err(StoreError::Busy)) };
        self.reach.guard(bounded).await
    }

    /// A transaction that may write. Rolled back where it is dropped.
    async fn change(&self) -> StoreResult<Transaction<'_, Postgres>> {
        Ok(self.pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?)
    }
}

impl Store for PgStore {
    async fn check_upload(&self, request: BeginUploadRequest) -> StoreResult<BeginUploadReply> {
        self.call(|| uploads::check(&self.pool, &request, unix_ms_now())).await
    }

    async fn begin_upload(&self, request: BeginUploadRequest) -> StoreResult<BeginUploadReply> {
        self.call(|| uploads::begin(self, &request, unix_ms_now())).await
    }

    async fn abort_upload(&self, upload: &str) -> StoreResult<()> {
        self.call(|| uploads::abort(self, upload, unix_ms_now())).await
    }

    async fn complete_upload(&self, request: CompleteUploadRequest) -> StoreResult<CompleteUploadReply> {
        self.call(|| uploads::complete(self, &request, unix_ms_now())).await
    }

    async fn mark_stored(&self, reference: &str) -> StoreResult<()> {
        self.call(|| files::mark_stored(self, reference, unix_ms_now())).await
    }

    async fn find_site(&self, host: &str, path: &str) -> StoreResult<Option<Site>> {
        self.call(|| files::find_site(&self.pool, host, path)).await
    }

    async fn find_file(&self, reference: &str) -> StoreResult<Option<StoredFile>> {
        self.call(|| files::find(&self.pool, reference)).await
    }

    async fn list_files(&self, request: ListFilesRequest) -> StoreResult<ListFilesReply> {
        self.call(|| files::list(&self.pool, &request)).await
    }

    async fn create_token(&self, request: CreateTokenRequest) -> StoreResult<CreateTokenReply> {
        self.call(|| uploads::create_token(&self.pool, &request, unix_ms_now())).await
    }

    async fn change_handlers(&self, request: ChangeHandlersRequest) -> StoreResult<u64> {
        self.call(|| handlers::change(self, &request, unix_ms_now())).await
    }

    async fn handler_history(&self) -> StoreResult<Vec<HandlerVersion>> {
        self.call(|| handlers::history(&self.pool)).await
    }

    async fn handlers_at(&self, version: u64) -> StoreResult<Vec<Handler>> {
        self.call(|| handlers::at(&self.pool, version)).await
    }

    async fn load_routes(&self) -> StoreResult<LoadRoutesReply> {
        self.call(|| routes::load(&self.pool)).await
    }

    async fn put_build(
        &self,
        host: &str,
        term: u64,
        assets: impl Stream<Item = StoreResult<Asset>> + Send + Unpin,
    ) -> StoreResult<Build> {
        builds::put(self, host, term, assets).await
    }

    async fn next_asset(&self, version: u64, path: &str) -> StoreResult<Option<Asset>> {
        self.call(|| builds::next_asset(&self.pool, version, path)).await
    }

    async fn put_member(&self, request: PutMemberRequest) -> StoreResult<()> {
        self.call(|| routes::put_member(self, &request)).await
    }

    async fn remove_member(&self, request: RemoveMemberRequest) -> StoreResult<()> {
        self.call(|| routes::remove_member(self, &request)).await
    }

    async fn take_lease(&self, request: TakeLeaseRequest) -> StoreResult<TakeLeaseReply> {
        self.call(|| leases::take(self, &request)).await
    }

    async fn peek_lease(&self, name: &str) -> StoreResult<PeekLeaseReply> {
        self.call(|| leases::peek(self, name)).await
    }

    async fn release_lease(&self, request: ReleaseLeaseRequest) -> StoreResult<()> {
        self.call(|| leases::release(self, &request)).await
    }

    async fn put_join_token(&self, token: JoinToken) -> StoreResult<()> {
        self.call(|| identity::put_token(self, &token, unix_ms_now())).await
    }

    async fn list_join_tokens(&self) -> StoreResult<Vec<JoinToken>> {
        self.call(|| identity::tokens(&self.pool)).await
    }

    async fn revoke_join_token(&self, request: RevokeJoinTokenRequest) -> StoreResult<()> {
        self.call(|| identity::revoke_token(self, &request)).await
    }

    async fn redeem_join_token(&self, request: RedeemJoinTokenRequest) -> StoreResult<RedeemJoinTokenReply> {
        self.call(|| identity::redeem(self, &request, unix_ms_now())).await
    }

    async fn change_revocation(&self, wanted: Revocation) -> StoreResult<()> {
        self.call(|| identity::change(self, &wanted, unix_ms_now())).await
    }

    async fn list_revocations(&self) -> StoreResult<Vec<Revocation>> {
        self.call(|| identity::revocations(&self.pool)).await
    }
}

/// What is locked by its name rather than by a row, because the row may not be there yet.
#[derive(Clone, Copy)]
#[repr(i64)]
enum Named {
    Upload = 1,
    Watch = 2,
    Lease = 3,
    Deployment = 4,
    /// All of it, by those that use it, and alone by who moves it.
    Database = 5,
    Subscription = 6,
    JoinToken = 7,
}

/// Waits until no other transaction of any datastore holds the name, and holds it until the transaction ends. Two names
/// may share a lock by chance, which costs a wait.
async fn lock(connection: &mut PgConnection, what: Named, name: &str) -> StoreResult<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, $2))")
        .bind(name)
        .bind(what as i64)
        .execute(connection)
        .await?;
    Ok(())
}

/// A number that a column's check keeps from being negative.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
