//! The store in one SQLite file: one connection that writes, a few that read.
//!
//! Write-ahead log with `synchronous = FULL`: a transaction is on the disk before its call is answered, so that an
//! acknowledged upload outlives a power loss. Readers never wait for the writer.

mod archive;
mod builds;
mod events;
mod files;
mod handlers;
mod identity;
mod leases;
mod open;
mod routes;
mod uploads;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use futures_util::Stream;
use protoplex_wire::clock::{BootTime, unix_ms_now};
use protoplex_wire::proto::{
    Asset, BeginUploadReply, BeginUploadRequest, Build, ChangeHandlersRequest, CompleteUploadReply,
    CompleteUploadRequest, CreateTokenReply, CreateTokenRequest, Handler, HandlerVersion, JoinToken,
    ListFilesReply, ListFilesRequest, LoadRoutesReply, PeekLeaseReply, PutMemberRequest,
    RedeemJoinTokenReply, RedeemJoinTokenRequest, ReleaseLeaseRequest, RemoveMemberRequest, Revocation,
    RevokeJoinTokenRequest, Site, StoredFile, TakeLeaseReply, TakeLeaseRequest,
};
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::sync::Mutex;

use crate::lease::Lease;
use crate::store::{Store, StoreError, StoreResult};

pub(crate) use archive::SqliteArchive;
pub use open::OpenError;

/// An open database. The file must belong to this process alone.
#[derive(Debug)]
pub struct SqliteStore {
    /// One connection. SQLite has one writer at a time anyway, and waiting for a connection is fair where waiting for
    /// SQLite's lock isn't.
    writer: SqlitePool,
    readers: SqlitePool,
    /// By name. Every change passes here, for the ends of leases are known to this process alone.
    leases: Mutex<HashMap<String, Lease>>,
    /// Held while a build comes in, so that an incomplete build in the database is one that broke off.
    deploying: Mutex<()>,
    /// Held, for nobody else may use the file.
    lock: File,
}

impl SqliteStore {
    /// Opens the database, or makes it where there is none, and brings it to the present schema.
    pub async fn open(file: &Path) -> Result<Self, OpenError> {
        let lock = open::lock(file)?;
        open::refuse_moved(file).await?;
        let (writer, readers) = open::pools(file).await?;
        let at = |source| OpenError::unusable(file, source);
        builds::drop_unfinished(&writer).await.map_err(at)?;
        let leases = leases::load(&readers, BootTime::now()).await.map_err(at)?;
        Ok(Self { writer, readers, leases: Mutex::new(leases), deploying: Mutex::new(()), lock })
    }

    /// Finishes what runs, moves the write-ahead log into the file and closes it.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        // It ends with this in any case.
        let _ = self.lock.unlock();
    }

    /// A transaction that may write. Rolled back where it is dropped.
    async fn change(&self) -> StoreResult<Transaction<'_, Sqlite>> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

impl Store for SqliteStore {
    async fn check_upload(&self, request: BeginUploadRequest) -> StoreResult<BeginUploadReply> {
        uploads::check(&self.readers, &request, unix_ms_now()).await
    }

    async fn begin_upload(&self, request: BeginUploadRequest) -> StoreResult<BeginUploadReply> {
        uploads::begin(self, &request, unix_ms_now()).await
    }

    async fn abort_upload(&self, upload: &str) -> StoreResult<()> {
        uploads::abort(self, upload, unix_ms_now()).await
    }

    async fn complete_upload(&self, request: CompleteUploadRequest) -> StoreResult<CompleteUploadReply> {
        uploads::complete(self, &request, unix_ms_now()).await
    }

    async fn mark_stored(&self, reference: &str) -> StoreResult<()> {
        files::mark_stored(&self.writer, reference, unix_ms_now()).await
    }

    async fn find_site(&self, host: &str, path: &str) -> StoreResult<Option<Site>> {
        files::find_site(&self.readers, host, path).await
    }

    async fn find_file(&self, reference: &str) -> StoreResult<Option<StoredFile>> {
        files::find(&self.readers, reference).await
    }

    async fn list_files(&self, request: ListFilesRequest) -> StoreResult<ListFilesReply> {
        files::list(&self.readers, &request).await
    }

    async fn create_token(&self, request: CreateTokenRequest) -> StoreResult<CreateTokenReply> {
        uploads::create_token(&self.writer, &request, unix_ms_now()).await
    }

    async fn change_handlers(&self, request: ChangeHandlersRequest) -> StoreResult<u64> {
        handlers::change(self, &request, unix_ms_now()).await
    }

    async fn handler_history(&self) -> StoreResult<Vec<HandlerVersion>> {
        handlers::history(&self.readers).await
    }

    async fn handlers_at(&self, version: u64) -> StoreResult<Vec<Handler>> {
        handlers::at(&self.readers, version).await
    }

    async fn load_routes(&self) -> StoreResult<LoadRoutesReply> {
        routes::load(&self.readers).await
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
        builds::next_asset(&self.readers, version, path).await
    }

    async fn put_member(&self, request: PutMemberRequest) -> StoreResult<()> {
        routes::put_member(self, &request).await
    }

    async fn remove_member(&self, request: RemoveMemberRequest) -> StoreResult<()> {
        routes::remove_member(self, &request).await
    }

    async fn take_lease(&self, request: TakeLeaseRequest) -> StoreResult<TakeLeaseReply> {
        leases::take(self, &request).await
    }

    async fn peek_lease(&self, name: &str) -> StoreResult<PeekLeaseReply> {
        leases::peek(self, name).await
    }

    async fn release_lease(&self, request: ReleaseLeaseRequest) -> StoreResult<()> {
        leases::release(self, &request).await
    }

    async fn put_join_token(&self, token: JoinToken) -> StoreResult<()> {
        identity::put_token(self, &token, unix_ms_now()).await
    }

    async fn list_join_tokens(&self) -> StoreResult<Vec<JoinToken>> {
        identity::tokens(&self.readers).await
    }

    async fn revoke_join_token(&self, request: RevokeJoinTokenRequest) -> StoreResult<()> {
        identity::revoke_token(self, &request).await
    }

    async fn redeem_join_token(&self, request: RedeemJoinTokenRequest) -> StoreResult<RedeemJoinTokenReply> {
        identity::redeem(self, &request, unix_ms_now()).await
    }

    async fn change_revocation(&self, wanted: Revocation) -> StoreResult<()> {
        identity::change(self, &wanted, unix_ms_now()).await
    }

    async fn list_revocations(&self) -> StoreResult<Vec<Revocation>> {
        identity::revocations(&self.readers).await
    }
}

/// SQLite's primary result codes (<https://www.sqlite.org/rescode.html>).
const BUSY: i32 = 5;
const FULL: i32 = 13;

/// What an error of SQLite comes to.
pub(crate) fn fault(error: sqlx::Error) -> StoreError {
    match sqlite_code(&error) {
        Some(BUSY) => StoreError::Busy,
        Some(FULL) => StoreError::Full,
        _ => StoreError::Database(error),
    }
}

/// The primary result code, where it is SQLite that failed.
fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}
