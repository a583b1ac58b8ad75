//! What a database of the datastore does: one small trait, in the terms of the wire protocol.

#[cfg(test)]
pub(crate) mod contract;

use std::future::Future;

use futures_util::Stream;
use protoplex_wire::proto::{
    Asset, BeginUploadReply, BeginUploadRequest, Build, ChangeHandlersRequest, CompleteUploadReply,
    CompleteUploadRequest, CreateTokenReply, CreateTokenRequest, Handler, HandlerVersion, JoinToken,
    ListFilesReply, ListFilesRequest, LoadRoutesReply, PeekLeaseReply, PutMemberRequest,
    RedeemJoinTokenReply, RedeemJoinTokenRequest, ReleaseLeaseRequest, RemoveMemberRequest, Revocation,
    RevokeJoinTokenRequest, Site, StoredFile, TakeLeaseReply, TakeLeaseRequest,
};
use sqlx::postgres::PgDatabaseError;
use thiserror::Error;

use crate::{postgres, sqlite};

/// What a call of the store comes to.
pub type StoreResult<T> = Result<T, StoreError>;

/// The datastore's state. Every change is durable when its future is ready, and is made whole or not at all.
///
/// Changes that a leading seed makes carry its term, and are refused with [`StoreError::Fenced`] where a newer one was
/// granted, in the transaction that would make them: so none is made after its seed's successor has read what there is.
///
/// The messages are those of `datastore.proto`, which says what each field means. Dropping a future leaves the change
/// either made or not made; repeating the call is safe, or tells [`StoreError::AlreadyExists`].
pub trait Store: Send + Sync + 'static {
    /// What [`Self::begin_upload`] would answer, without taking anything: an upload's own id is not looked at. A path
    /// that ends in a slash stands for any file below it.
    fn check_upload(
        &self,
        request: BeginUploadRequest,
    ) -> impl Future<Output = StoreResult<BeginUploadReply>> + Send;

    /// Checks a token and takes one of its uses and its quota, under the upload's id.
    ///
    /// The reservation lasts until the upload is completed or aborted, at most [`UPLOAD_LIFE_MS`]. For as long as the
    /// upload is known, its public id (`watch`) is its token's: no other token's upload may go by it. Repeated with the
    /// same id, it answers with the same reservation. A token that doesn't open the upload is a refusal in the reply,
    /// not an error.
    fn begin_upload(
        &self,
        request: BeginUploadRequest,
    ) -> impl Future<Output = StoreResult<BeginUploadReply>> + Send;

    /// Gives back what an upload has reserved. An upload that is completed, aborted or unknown stays as it is, but one
    /// that is unknown can't begin any more: an abort may overtake the call that it takes back.
    fn abort_upload(&self, upload: &str) -> impl Future<Output = StoreResult<()>> + Send;

    /// Records the file of an upload ("stored locally") and the site that shows it, and charges what the file has to
    /// the quota. The last to complete has the path. Repeated, it changes nothing and answers the same.
    ///
    /// Content that is known keeps the form (encoding, stored size, digest) and the node of its first upload, and
    /// `existed` says so. **The caller may drop its own copy only where the file in the reply is `stored`, or is staged
    /// on its own node in the form of the reply.** Else it keeps its copy, brings it to the form of the reply, and
    /// pushes it like the first node does: the same object with the same bytes, whichever comes first, and neither node
    /// depends on the other's disk.
    ///
    /// [`StoreError::NotFound`]: no such upload began; [`StoreError::Conflict`]: it was aborted, or this is not what it
    /// has begun with.
    fn complete_upload(
        &self,
        request: CompleteUploadRequest,
    ) -> impl Future<Output = StoreResult<CompleteUploadReply>> + Send;

    /// Records that a file's body is in the storage. Repeating it changes nothing.
    fn mark_stored(&self, reference: &str) -> impl Future<Output = StoreResult<()>> + Send;

    /// What a virtual host shows under a path.
    fn find_site(&self, host: &str, path: &str) -> impl Future<Output = StoreResult<Option<Site>>> + Send;

    /// The file of a storage reference.
    fn find_file(&self, reference: &str) -> impl Future<Output = StoreResult<Option<StoredFile>>> + Send;

    /// One page of sites by host, then path. What is added or removed between two pages may or may not be seen; all else
    /// is seen exactly once.
    fn list_files(
        &self,
        request: ListFilesRequest,
    ) -> impl Future<Output = StoreResult<ListFilesReply>> + Send;

    /// Makes an upload token. Its secret is in the reply and nowhere else.
    fn create_token(
        &self,
        request: CreateTokenRequest,
    ) -> impl Future<Output = StoreResult<CreateTokenReply>> + Send;

    /// Changes the table of handlers in one step: removes those of these names, and puts each of the others in the place
    /// of the one of its name, or beside the rest. Answers the table's new version, which is the one after `base`.
    ///
    /// Each handler that was put has this version as its `since`. The last [`HANDLER_VERSIONS`] versions of the table are
    /// kept, this one among them, each with its time, its operator and what changed. Within one change two handlers may
    /// swap host and path.
    ///
    /// [`StoreError::Conflict`]: the table has another version than `base`; [`StoreError::AlreadyExists`]: two handlers
    /// would have one host and path; [`StoreError::NotFound`]: there is none of a name that is to be removed;
    /// [`StoreError::Invalid`]: it changes nothing, a name is empty or stands in it twice. Nothing is changed then.
    fn change_handlers(
        &self,
        request: ChangeHandlersRequest,
    ) -> impl Future<Output = StoreResult<u64>> + Send;

    /// The versions of the table of handlers that are kept, the newest first. An empty database has version 1.
    fn handler_history(&self) -> impl Future<Output = StoreResult<Vec<HandlerVersion>>> + Send;

    /// The handlers of a version by name, [`StoreError::NotFound`] where it isn't kept.
    fn handlers_at(&self, version: u64) -> impl Future<Output = StoreResult<Vec<Handler>>> + Send;

    /// Handlers, current builds and members, as of one moment.
    fn load_routes(&self) -> impl Future<Output = StoreResult<LoadRoutesReply>> + Send;

    /// Makes the assets the current build of a host pattern, once the stream has ended well. The last three builds of a
    /// host are kept. One build at a time comes in; others wait.
    fn put_build(
        &self,
        host: &str,
        term: u64,
        assets: impl Stream<Item = StoreResult<Asset>> + Send + Unpin,
    ) -> impl Future<Output = StoreResult<Build>> + Send;

    /// The first asset of a build whose path comes after `path`; none at the end. [`StoreError::NotFound`] where the
    /// build isn't kept, or no longer: so whoever reads all of it has all of it, or knows.
    fn next_asset(&self, version: u64, path: &str)
    -> impl Future<Output = StoreResult<Option<Asset>>> + Send;

    /// Records a member, or what has changed of it, unless a higher revision of it is recorded.
    fn put_member(&self, request: PutMemberRequest) -> impl Future<Output = StoreResult<()>> + Send;

    /// Forgets a member, unless a higher revision of it is recorded. Repeating it changes nothing.
    fn remove_member(&self, request: RemoveMemberRequest) -> impl Future<Output = StoreResult<()>> + Send;

    /// Takes or renews a lease. At most one holder has it at a time, and each take-over has a greater term than any
    /// before. A renewal is granted to the present term alone, and only before its end; the same holder name takes its
    /// own lease anew at once. After a restart every lease is held for one full time to live.
    fn take_lease(
        &self,
        request: TakeLeaseRequest,
    ) -> impl Future<Output = StoreResult<TakeLeaseReply>> + Send;

    /// Who holds a lease. Where nobody does, no term up to this moment is ever renewed again: whoever holds the lease
    /// later has taken it after this moment.
    fn peek_lease(&self, name: &str) -> impl Future<Output = StoreResult<PeekLeaseReply>> + Send;

    /// Ends a lease for good, as if its time were over, where this holder has it in this term; else nothing changes. Who
    /// wants it next need not wait.
    fn release_lease(&self, request: ReleaseLeaseRequest) -> impl Future<Output = StoreResult<()>> + Send;

    /// Keeps a new join token, and forgets those that ended a week ago. Repeating it changes nothing.
    ///
    /// [`StoreError::Invalid`]: no token can be so; [`StoreError::TooMany`]: there are too many already.
    fn put_join_token(&self, token: JoinToken) -> impl Future<Output = StoreResult<()>> + Send;

    /// The join tokens that are kept, the newest first.
    fn list_join_tokens(&self) -> impl Future<Output = StoreResult<Vec<JoinToken>>> + Send;

    /// Nobody joins with this token any more. [`StoreError::NotFound`]: there is none. Repeating it changes nothing.
    fn revoke_join_token(
        &self,
        request: RevokeJoinTokenRequest,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// Takes one use of a join token for a name, or says why it opens nothing. A name that has joined with it before takes
    /// none, nor does a look.
    fn redeem_join_token(
        &self,
        request: RedeemJoinTokenRequest,
    ) -> impl Future<Output = StoreResult<RedeemJoinTokenReply>> + Send;

    /// Revokes a name, or readmits it. Repeating it changes nothing.
    fn change_revocation(&self, wanted: Revocation) -> impl Future<Output = StoreResult<()>> + Send;

    /// The names that are revoked, in order.
    fn list_revocations(&self) -> impl Future<Output = StoreResult<Vec<Revocation>>> + Send;
}

/// How long an upload may last, in milliseconds: a week. A reservation that is older was left by a fileserver that never
/// came back, and is given back; a completed upload that is older is no longer known as one when it is repeated.
///
/// By the wall clock, for it has to outlast restarts. A clock that jumps ahead by more than this ends uploads in flight;
/// they are refused at their completion, and nothing is charged.
pub const UPLOAD_LIFE_MS: i64 = 7 * 24 * 3600 * 1000;

/// How many versions of the table of handlers are kept. A version costs as much as it changed.
pub const HANDLER_VERSIONS: u64 = 100;

/// Why the store did not do what it was asked to.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The request can't be right, whatever is stored. The caller's fault.
    #[error("{0}")]
    Invalid(String),
    /// What it is about doesn't exist. The caller's fault.
    #[error("{0}")]
    NotFound(String),
    /// Its name is taken. The caller's fault.
    #[error("{0}")]
    AlreadyExists(String),
    /// What is stored doesn't allow it any more. The caller's fault.
    #[error("{0}")]
    Conflict(String),
    /// Another seed has led since: the newest term. The caller's fault, who leads no more.
    #[error("a seed of a later term, {0}, leads by now")]
    Fenced(u64),
    /// The stream of assets ended before its end. The caller's fault, or the network's.
    #[error("the build broke off: {0}")]
    Interrupted(String),
    /// There are as many as there may be. The caller's fault, or that of those before.
    #[error("{0}")]
    TooMany(String),
    /// No space is left where the database is. Ours.
    #[error("the datastore's disk is full: free some space where its database is")]
    Full,
    /// The database could not be had in time. Ours; worth repeating.
    #[error("the database is busy")]
    Busy,
    /// Others changed the same at the same time, again and again. Ours; worth repeating.
    #[error("the database is contended")]
    Contended,
    /// The database's server can't be reached, or serves nobody now. Ours; worth repeating.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database failed. Ours.
    #[error("the database failed: {0}")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let of_postgres = error
            .as_database_error()
            .is_some_and(|error| error.try_downcast_ref::<PgDatabaseError>().is_some());
        match error {
            sqlx::Error::PoolTimedOut => Self::Busy,
            error if of_postgres => postgres::fault(error),
            error @ (sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed) => {
                Self::Away(error.to_string())
            }
            error => sqlite::fault(error),
        }
    }
}

/// A limit in bytes as databases keep it. Those above 2^63 - 1 are no limits: nothing is as large.
pub(crate) fn integer(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Refuses what databases can't keep as it is.
pub(crate) fn exact(what: &str, value: u64) -> StoreResult<i64> {
    i64::try_from(value).map_err(|_| StoreError::Invalid(format!("{what} is {value}, over 2^63 - 1")))
}
