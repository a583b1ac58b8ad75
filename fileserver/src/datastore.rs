//! The datastore as a fileserver asks it: each call has a deadline, and may be repeated where its connection has gone.

use std::time::Duration;

use protoplex_wire::identity::TrustedChannel;
use protoplex_wire::proto::datastore_client::DatastoreClient;
use tokio::time::{sleep, timeout};
use tonic::{Code, Response, Status};

/// How often a call is made at most, and between two times.
pub(crate) const ATTEMPTS: u32 = 3;
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

/// A connection to the datastore.
pub(crate) type Client = DatastoreClient<TrustedChannel>;

/// Where calls go.
pub(crate) struct Datastore {
    /// The present connection; `None` before the seed has told where the datastore is.
    client: Box<dyn Fn() -> Option<Client>>,
}

impl Datastore {
    pub(crate) fn new(client: impl Fn() -> Option<Client> + 'static) -> Self {
        Self { client: Box::new(client) }
    }

    /// Asks once, for so long.
    pub(crate) async fn ask<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = (self.client)().ok_or_else(|| Status::unavailable("nobody told yet where it is"))?;
        match timeout(limit, call(client)).await {
            Ok(reply) => reply.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// Asks again where the connection has gone: a datastore that goes on as another program is back in an instant. For
    /// calls that change nothing when they are repeated.
    pub(crate) async fn ask_again<T>(
        &self,
        limit: Duration,
        call: impl AsyncFn(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let mut attempt = 1;
        loop {
            match self.ask(limit, &call).await {
                Err(status) if is_gone(status.code()) && attempt < ATTEMPTS => sleep(PAUSE).await,
                reply => return reply,
            }
            attempt += 1;
        }
    }
}

/// Whether nothing was said, and soon: tonic's codes for connections that can't be had, break, or are closed.
fn is_gone(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}
