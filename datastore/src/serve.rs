//! Serves a store to the other nodes: gRPC over mutual TLS.

mod away;
mod events;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use protoplex_runtime::context::Context;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{Identity, IdentityError};
use protoplex_wire::proto::datastore_server::{Datastore, DatastoreServer};
use protoplex_wire::proto::event_log_server::EventLogServer;
use protoplex_wire::proto::put_build_request::Message;
use protoplex_wire::proto::{
    AbortUploadReply, AbortUploadRequest, Asset, BeginUploadReply, BeginUploadRequest, Build,
    ChangeHandlersReply, ChangeHandlersRequest, ChangeRevocationReply, CompleteUploadReply,
    CompleteUploadRequest, CreateTokenReply, CreateTokenRequest, FetchBuildRequest, FindFileReply,
    FindFileRequest, FindSiteReply, FindSiteRequest, HandlerHistoryReply, HandlerHistoryRequest,
    HandlersAtReply, HandlersAtRequest, JoinToken, JoinTokenList, ListFilesReply, ListFilesRequest,
    ListJoinTokensRequest, ListRevocationsRequest, LoadRoutesReply, LoadRoutesRequest, MarkStoredReply,
    MarkStoredRequest, PeekLeaseReply, PeekLeaseRequest, PutBuildRequest, PutJoinTokenReply, PutMemberReply,
    PutMemberRequest, RedeemJoinTokenReply, RedeemJoinTokenRequest, ReleaseLeaseReply, ReleaseLeaseRequest,
    RemoveMemberReply, RemoveMemberRequest, Revocation, RevocationList, RevokeJoinTokenReply,
    RevokeJoinTokenRequest, TakeLeaseReply, TakeLeaseRequest,
};
use protoplex_wire::seeds;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::builds::MAX_ASSET_BYTES;
use crate::config::{self, Config};
use crate::event_log::EventLog;
use crate::postgres::{self, PgStore, TargetError};
use crate::sqlite::{self, SqliteStore};
use crate::store::{Store, StoreError, StoreResult};
use events::EventService;

/// The largest message: one asset with its two compressed forms, its path and its type.
pub const MAX_MESSAGE_BYTES: usize = 3 * MAX_ASSET_BYTES + (64 << 10);
/// The largest message of all calls but those of [`LARGE`]: a file's record with its path, its host and its type.
const MAX_CALL_BYTES: usize = 64 << 10;
/// Calls of seeds alone whose messages may be large: an asset, a table of 10,000 handlers.
const LARGE: [&str; 2] = ["/protoplex.v1.Datastore/PutBuild", "/protoplex.v1.Datastore/ChangeHandlers"];
/// How long a deployment may keep the others waiting for its next asset.
const ASSET_TIMEOUT: Duration = Duration::from_secs(30);
/// A peer that doesn't answer a ping in this time is gone, and so is what it was sending.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How often it is looked who is revoked.
const REVOKED_INTERVAL: Duration = Duration::from_secs(1);

/// Why the datastore can't run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The SQLite file can't be used.
    #[error(transparent)]
    File(#[from] sqlite::OpenError),
    /// The PostgreSQL database can't be used.
    #[error(transparent)]
    Database(#[from] postgres::OpenError),
    /// The URL names no database.
    #[error("datastore.url {0}")]
    Target(#[from] TargetError),
    /// The socket can't be used.
    #[error("the datastore's socket: {0}")]
    Socket(#[from] io::Error),
    /// The runtime has bound no socket of the name: a mistake of ours.
    #[error("the datastore was given no socket named {:?}", config::SOCKET)]
    NoSocket,
    /// The certificate is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The names that are revoked can't be read.
    #[error("who is revoked can't be read: {0}")]
    Revoked(#[from] StoreError),
    /// The server failed.
    #[error("serving the datastore: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// The datastore node: opens the database, and serves it until it has drained.
pub async fn run(config: &Config, identity: &Identity, context: &Context) -> Result<(), RunError> {
    let listener = context.listeners(config::SOCKET).pop().ok_or(RunError::NoSocket)?;
    let drain = context.drain();
    let Some(target) = config.target()? else {
        let store = Arc::new(SqliteStore::open(&config::file(&context.common().data)).await?);
        context.ready(true);
        let served = serve(Arc::clone(&store), listener, identity, drain.started()).await;
        store.close().await;
        return served;
    };
    // Until the server is there all are told that it is away. Either arm may be dropped.
    let store = tokio::select! {
        store = away::open(&target, &listener, identity, context) => Arc::new(store?),
        () = drain.started() => return Ok(()),
    };
    let served = tokio::select! {
        served = serve(Arc::clone(&store), listener, identity, drain.started()) => served,
        () = tell_readiness(&store, context) => Ok(()),
    };
    store.close().await;
    served
}

/// Ready for as long as the database can be reached.
async fn tell_readiness(store: &PgStore, context: &Context) {
    let mut turns = store.away();
    loop {
        let reason = turns.borrow_and_update().clone();
        away::tell(context, reason.as_deref());
        if turns.changed().await.is_err() {
            // The store holds the other end.
            std::future::pending::<()>().await;
        }
    }
}

/// Serves a store until `drain` is ready and then every call has been answered.
pub async fn serve<S: Store + EventLog>(
    store: Arc<S>,
    listener: TcpListener,
    identity: &Identity,
    drain: impl Future<Output = ()>,
) -> Result<(), RunError> {
    listener.set_nonblocking(true)?;
    let gate = Gate::new(identity)?;
    // Nobody comes before it is known who may not.
    gate.revoke(revoked(&*store).await?);
    let incoming = gate.incoming(tokio::net::TcpListener::from_std(listener)?);
    let (nudge, watched) = (Arc::new(Notify::new()), Arc::clone(&store));
    let events = EventLogServer::new(EventService::new(Arc::clone(&store)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let service = Arc::new(Service { store, nudge: Arc::clone(&nudge) });
    let large = DatastoreServer::from_arc(Arc::clone(&service)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let datastore = DatastoreServer::from_arc(service).max_decoding_message_size(MAX_CALL_BYTES);
    let routes = Routes::new(datastore).add_service(events).into_axum_router();
    let routes = LARGE.into_iter().fold(routes, |routes, path| routes.route_service(path, large.clone()));
    let server = gate
        .server()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_routes(Routes::from(routes))
        .serve_with_incoming_shutdown(incoming, drain);
    tokio::select! {
        served = server => Ok(served?),
        () = watch_revoked(&*watched, &gate, &nudge) => Ok(()),
    }
}

/// Keeps the gate up to date, also with what other datastores of the database were told. Never ends.
async fn watch_revoked<S: Store>(store: &S, gate: &Gate, nudge: &Notify) {
    loop {
        // Either arm may be dropped.
        tokio::select! {
            () = nudge.notified() => {}
            () = sleep(REVOKED_INTERVAL) => {}
        }
        // Where the database can't say, those that are known stay revoked.
        if let Ok(names) = revoked(store).await {
            gate.revoke(names);
        }
    }
}

async fn revoked<S: Store>(store: &S) -> StoreResult<BTreeSet<String>> {
    Ok(store.list_revocations().await?.into_iter().map(|revocation| revocation.name).collect())
}

struct Service<S> {
    store: Arc<S>,
    /// Somebody was revoked, or readmitted.
    nudge: Arc<Notify>,
}

#[tonic::async_trait]
impl<S: Store> Datastore for Service<S> {
    async fn check_upload(&self, request: Request<BeginUploadRequest>) -> Answer<BeginUploadReply> {
        answer(self.store.check_upload(request.into_inner()).await)
    }

    async fn begin_upload(&self, request: Request<BeginUploadRequest>) -> Answer<BeginUploadReply> {
        answer(self.store.begin_upload(request.into_inner()).await)
    }

    async fn abort_upload(&self, request: Request<AbortUploadRequest>) -> Answer<AbortUploadReply> {
        let done = self.store.abort_upload(&request.into_inner().upload).await;
        answer(done.map(|()| AbortUploadReply {}))
    }

    async fn complete_upload(&self, request: Request<CompleteUploadRequest>) -> Answer<CompleteUploadReply> {
        answer(self.store.complete_upload(request.into_inner()).await)
    }

    async fn mark_stored(&self, request: Request<MarkStoredRequest>) -> Answer<MarkStoredReply> {
        let done = self.store.mark_stored(&request.into_inner().reference).await;
        answer(done.map(|()| MarkStoredReply {}))
    }

    async fn find_site(&self, request: Request<FindSiteRequest>) -> Answer<FindSiteReply> {
        let FindSiteRequest { host, path } = request.into_inner();
        answer(self.store.find_site(&host, &path).await.map(|site| FindSiteReply { site }))
    }

    async fn find_file(&self, request: Request<FindFileRequest>) -> Answer<FindFileReply> {
        let found = self.store.find_file(&request.into_inner().reference).await;
        answer(found.map(|file| FindFileReply { file }))
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Answer<ListFilesReply> {
        answer(self.store.list_files(request.into_inner()).await)
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Answer<CreateTokenReply> {
        answer(self.store.create_token(request.into_inner()).await)
    }

    async fn change_handlers(&self, request: Request<ChangeHandlersRequest>) -> Answer<ChangeHandlersReply> {
        let version = self.store.change_handlers(request.into_inner()).await;
        answer(version.map(|version| ChangeHandlersReply { version }))
    }

    async fn handler_history(&self, _: Request<HandlerHistoryRequest>) -> Answer<HandlerHistoryReply> {
        answer(self.store.handler_history().await.map(|versions| HandlerHistoryReply { versions }))
    }

    async fn handlers_at(&self, request: Request<HandlersAtRequest>) -> Answer<HandlersAtReply> {
        let handlers = self.store.handlers_at(request.into_inner().version).await;
        answer(handlers.map(|handlers| HandlersAtReply { handlers }))
    }

    async fn load_routes(&self, _: Request<LoadRoutesRequest>) -> Answer<LoadRoutesReply> {
        answer(self.store.load_routes().await)
    }

    async fn put_build(&self, request: Request<Streaming<PutBuildRequest>>) -> Answer<Build> {
        let mut messages = request.into_inner();
        let (first, term) = next_of_term(&mut messages).await.map_err(status)?;
        let Some(Message::Host(host)) = first else {
            return Err(Status::invalid_argument("a build begins with its host"));
        };
        answer(self.store.put_build(&host, term, pin!(assets(messages))).await)
    }

    type GetBuildStream = Pin<Box<dyn Stream<Item = Result<Asset, Status>> + Send>>;

    async fn get_build(&self, request: Request<FetchBuildRequest>) -> Answer<Self::GetBuildStream> {
        let version = request.into_inner().version;
        // One asset is read when the one before it has been sent: a slow reader holds neither memory nor a connection.
        let assets =
            stream::try_unfold((Arc::clone(&self.store), String::new()), move |(store, path)| async move {
                let asset = store.next_asset(version, &path).await.map_err(status)?;
                Ok(asset.map(|asset| {
                    let path = asset.path.clone();
                    (asset, (store, path))
                }))
            });
        Ok(Response::new(Box::pin(assets)))
    }

    async fn put_member(&self, request: Request<PutMemberRequest>) -> Answer<PutMemberReply> {
        answer(self.store.put_member(request.into_inner()).await.map(|()| PutMemberReply {}))
    }

    async fn remove_member(&self, request: Request<RemoveMemberRequest>) -> Answer<RemoveMemberReply> {
        answer(self.store.remove_member(request.into_inner()).await.map(|()| RemoveMemberReply {}))
    }

    async fn take_lease(&self, request: Request<TakeLeaseRequest>) -> Answer<TakeLeaseReply> {
        answer(self.store.take_lease(request.into_inner()).await)
    }

    async fn peek_lease(&self, request: Request<PeekLeaseRequest>) -> Answer<PeekLeaseReply> {
        answer(self.store.peek_lease(&request.into_inner().name).await)
    }

    async fn release_lease(&self, request: Request<ReleaseLeaseRequest>) -> Answer<ReleaseLeaseReply> {
        answer(self.store.release_lease(request.into_inner()).await.map(|()| ReleaseLeaseReply {}))
    }

    async fn put_join_token(&self, request: Request<JoinToken>) -> Answer<PutJoinTokenReply> {
        answer(self.store.put_join_token(request.into_inner()).await.map(|()| PutJoinTokenReply {}))
    }

    async fn list_join_tokens(&self, _: Request<ListJoinTokensRequest>) -> Answer<JoinTokenList> {
        let mut tokens = self.store.list_join_tokens().await.map_err(status)?;
        tokens.iter_mut().for_each(|token| token.secret_sha256.clear());
        Ok(Response::new(JoinTokenList { tokens }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<RevokeJoinTokenRequest>,
    ) -> Answer<RevokeJoinTokenReply> {
        let revoked = self.store.revoke_join_token(request.into_inner()).await;
        answer(revoked.map(|()| RevokeJoinTokenReply {}))
    }

    async fn redeem_join_token(
        &self,
        request: Request<RedeemJoinTokenRequest>,
    ) -> Answer<RedeemJoinTokenReply> {
        answer(self.store.redeem_join_token(request.into_inner()).await)
    }

    async fn change_revocation(&self, request: Request<Revocation>) -> Answer<ChangeRevocationReply> {
        let changed = self.store.change_revocation(request.into_inner()).await;
        self.nudge.notify_one();
        answer(changed.map(|()| ChangeRevocationReply::default()))
    }

    async fn list_revocations(&self, _: Request<ListRevocationsRequest>) -> Answer<RevocationList> {
        answer(self.store.list_revocations().await.map(|revocations| RevocationList { revocations }))
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: StoreResult<T>) -> Answer<T> {
    result.map(Response::new).map_err(status)
}

/// How an error looks on the wire. Ours are logged here, once.
fn status(error: StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::Invalid(_) => Status::invalid_argument(text),
        StoreError::NotFound(_) => Status::not_found(text),
        StoreError::AlreadyExists(_) => Status::already_exists(text),
        StoreError::Conflict(_) => Status::failed_precondition(text),
        StoreError::Fenced(newest) => seeds::fenced(text, newest),
        StoreError::Interrupted(_) => Status::aborted(text),
        StoreError::TooMany(_) => Status::resource_exhausted(text),
        StoreError::Full => {
            tracing::error!("{text}");
            Status::resource_exhausted(text)
        }
        // Said once, by who watches the server.
        StoreError::Away(_) => Status::unavailable(text),
        StoreError::Busy | StoreError::Contended => {
            tracing::warn!("{text}");
            Status::unavailable(text)
        }
        StoreError::Database(_) => {
            tracing::error!("{text}");
            Status::internal(text)
        }
    }
}

/// What follows the host of a build.
fn assets(messages: Streaming<PutBuildRequest>) -> impl Stream<Item = StoreResult<Asset>> + Send {
    stream::try_unfold(messages, |mut messages| async move {
        match next(&mut messages).await? {
            Some(Message::Asset(asset)) => Ok(Some((asset, messages))),
            Some(Message::Host(_)) => Err(StoreError::Invalid("a build has one host".to_owned())),
            Some(Message::End(_)) => Ok(None),
            // Whoever sent it may have died, or its client.
            None => Err(StoreError::Invalid("the build was cut before its end".to_owned())),
        }
    })
}

/// The next message of a build; `None` at the end of the stream.
async fn next(messages: &mut Streaming<PutBuildRequest>) -> StoreResult<Option<Message>> {
    Ok(next_of_term(messages).await?.0)
}

/// As [`next`], and the term that came with it.
async fn next_of_term(messages: &mut Streaming<PutBuildRequest>) -> StoreResult<(Option<Message>, u64)> {
    let request = timeout(ASSET_TIMEOUT, messages.message())
        .await
        .map_err(|_| StoreError::Interrupted(format!("no asset came for {} s", ASSET_TIMEOUT.as_secs())))?
        .map_err(|status| StoreError::Interrupted(status.message().to_owned()))?;
    match request {
        Some(PutBuildRequest { message: Some(message), term }) => Ok((Some(message), term)),
        Some(PutBuildRequest { message: None, .. }) => {
            Err(StoreError::Invalid("a message is neither host nor asset nor end".to_owned()))
        }
        None => Ok((None, 0)),
    }
}
