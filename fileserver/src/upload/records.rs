//! The calls that an upload makes to the datastore, each with a deadline.

use std::time::Duration;

use protoplex_wire::proto::{
    AbortUploadRequest, BeginUploadReply, BeginUploadRequest, CompleteUploadReply, CompleteUploadRequest,
    FindFileRequest, FindSiteRequest, MarkStoredRequest, Site, StoredFile, TokenRefusal,
};
use tokio::time::sleep;
use tonic::{Code, Status};

use super::intent::Sender;
use super::refusal::Refusal;
use super::unix_time_ms;
use crate::datastore::{ATTEMPTS, Client, Datastore, PAUSE};
use crate::path::FilePath;
use crate::reference::Reference;
use crate::staging::{Journal, Staged};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The datastore as uploads see it.
pub(crate) struct Records {
    datastore: Datastore,
    node: String,
}

impl Records {
    pub(crate) fn new(node: &str, client: impl Fn() -> Option<Client> + 'static) -> Self {
        Self { datastore: Datastore::new(client), node: node.to_owned() }
    }

    /// Whether a token opens an upload, and until when; nothing is taken of it.
    pub(crate) async fn check(
        &self,
        sender: &Sender,
        path: &FilePath,
        declared: Option<u64>,
    ) -> Result<BeginUploadReply, Refusal> {
        let request = BeginUploadRequest {
            token: sender.token.clone(),
            host: sender.host.to_string(),
            path: path.to_string(),
            size: declared,
            upload: String::new(),
            watch: sender.watch.clone(),
        };
        granted(self.call(async |mut client| client.check_upload(request.clone()).await).await?)
    }

    /// Takes a use and the quota of the token, for as many bytes as the reply says.
    pub(crate) async fn begin(&self, journal: &Journal, token: &str) -> Result<BeginUploadReply, Refusal> {
        let request = BeginUploadRequest {
            token: token.to_owned(),
            host: journal.host.clone(),
            path: journal.path.clone(),
            size: journal.declared,
            upload: journal.upload.clone(),
            watch: journal.watch.clone(),
        };
        granted(self.call(async |mut client| client.begin_upload(request.clone()).await).await?)
    }

    /// Gives use and quota back; an upload that is recorded stays so.
    pub(crate) async fn abort(&self, upload: &str) -> Result<(), Refusal> {
        let request = AbortUploadRequest { upload: upload.to_owned() };
        self.call(async |mut client| client.abort_upload(request.clone()).await).await.map(drop)
    }

    pub(crate) async fn find_file(&self, reference: &Reference) -> Result<Option<StoredFile>, Refusal> {
        let request = FindFileRequest { reference: reference.to_string() };
        self.call(async |mut client| client.find_file(request.clone()).await).await.map(|reply| reply.file)
    }

    pub(crate) async fn find_site(&self, host: &str, path: &str) -> Result<Option<Site>, Refusal> {
        let request = FindSiteRequest { host: host.to_owned(), path: path.to_owned() };
        self.call(async |mut client| client.find_site(request.clone()).await).await.map(|reply| reply.site)
    }

    /// Records an upload: file and site in one. A call without an answer is repeated, which changes nothing.
    pub(crate) async fn complete(
        &self,
        journal: &Journal,
        staged: &Staged,
    ) -> Result<(StoredFile, bool), Refusal> {
        let request = CompleteUploadRequest {
            upload: journal.upload.clone(),
            file: Some(self.file(staged)),
            host: journal.host.clone(),
            path: journal.path.clone(),
            content_type: journal.content_type.clone(),
        };
        for attempt in 1.. {
            let call = async |mut client: Client| client.complete_upload(request.clone()).await;
            match self.datastore.ask(CALL_TIMEOUT, call).await {
                Ok(CompleteUploadReply { file: Some(file), existed }) => return Ok((file, existed)),
                Err(status) if status.code() == Code::ResourceExhausted => return Err(Refusal::DiskFull),
                Err(status) if is_final(status.code()) => {
                    return Err(Refusal::Ended(status.message().to_owned()));
                }
                _ if attempt == ATTEMPTS => break,
                _ => sleep(PAUSE).await,
            }
        }
        Err(Refusal::Undecided)
    }

    /// Records that the storage has the body.
    pub(crate) async fn mark_stored(&self, reference: &Reference) -> Result<(), Refusal> {
        let request = MarkStoredRequest { reference: reference.to_string() };
        self.call(async |mut client| client.mark_stored(request.clone()).await).await.map(drop)
    }

    fn file(&self, staged: &Staged) -> StoredFile {
        StoredFile {
            reference: staged.reference.to_string(),
            size: staged.meta.size,
            stored_size: staged.meta.stored_size,
            encoding: staged.meta.encoding.as_str().to_owned(),
            content_type: staged.meta.content_type.clone(),
            created_at_ms: i64::try_from(unix_time_ms()).unwrap_or(i64::MAX),
            stored: false,
            node: self.node.clone(),
            stored_sha256: staged.meta.stored_sha256.clone(),
        }
    }

    /// None of these calls changes anything when it is repeated.
    async fn call<T>(
        &self,
        call: impl AsyncFn(Client) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Refusal> {
        self.datastore.ask_again(CALL_TIMEOUT, call).await.map_err(|status| {
            tracing::warn!(code = ?status.code(), reason = status.message(), "the datastore did not answer");
            if status.code() == Code::ResourceExhausted { Refusal::DiskFull } else { Refusal::DatastoreAway }
        })
    }
}

fn granted(reply: BeginUploadReply) -> Result<BeginUploadReply, Refusal> {
    match reply.refusal() {
        TokenRefusal::None => Ok(reply),
        refusal => Err(Refusal::Token { refusal, limit_bytes: reply.limit_bytes }),
    }
}

/// Whether the datastore has decided; after all other codes it may have recorded the upload.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::NotFound
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::InvalidArgument
            | Code::AlreadyExists
    )
}
