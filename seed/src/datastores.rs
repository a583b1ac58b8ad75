//! The datastores of one database: one is used for as long as it answers, then the next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protoplex_wire::identity::{Identity, TrustedChannel};
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::event_log_client::EventLogClient;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use crate::serve::MAX_ASSET_MESSAGE_BYTES;

/// How long a datastore may take for one call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for the leader's row where there is another one: it has to be asked before the row is over.
const ROW_TIMEOUT: Duration = Duration::from_millis(800);

/// A page of events, with what is around them.
const MAX_LOG_MESSAGE_BYTES: usize = 64 << 20;

pub(crate) type Datastore = DatastoreClient<TrustedChannel>;
pub(crate) type EventLog = EventLogClient<TrustedChannel>;

pub(crate) struct Datastores {
    all: Vec<(String, Datastore, EventLog)>,
    used: AtomicUsize,
    /// What this seed's last attempt to lead failed of; empty where it didn't.
    trouble: Mutex<String>,
}

impl Datastores {
    /// Connects to none of them yet. `addresses` are "host:port" each.
    pub(crate) fn new(identity: &Identity, addresses: &[String]) -> Result<Self, tonic::transport::Error> {
        let client = |address: &String| {
            let channel = identity.channel(address)?;
            let client = Datastore::new(channel.clone()).max_decoding_message_size(MAX_ASSET_MESSAGE_BYTES);
            let events = EventLog::new(channel).max_decoding_message_size(MAX_LOG_MESSAGE_BYTES);
            Ok((address.clone(), client, events))
        };
        let all = addresses.iter().map(client).collect::<Result<_, _>>()?;
        Ok(Self { all, used: AtomicUsize::new(0), trouble: Mutex::default() })
    }

    /// Which of them is used now.
    fn index(&self) -> usize {
        self.used.load(Ordering::Relaxed) % self.all.len()
    }

    /// The one that is used now.
    pub(crate) fn client(&self) -> Datastore {
        self.all[self.index()].1.clone()
    }

    /// The log of events of the one that is used now.
    pub(crate) fn events(&self) -> EventLog {
        self.all[self.index()].2.clone()
    }

    /// Where they are, the one that is used first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<_> = self.all.iter().map(|(address, ..)| address.clone()).collect();
        addresses.rotate_left(self.index());
        addresses
    }

    /// Why this seed could not take the leader's row just now; empty where it could.
    pub(crate) fn note(&self, trouble: &str) {
        trouble.clone_into(&mut self.trouble());
    }

    /// The refusal of what only a seed that leads can do, where none is known to lead.
    pub(crate) fn not_leading(&self) -> String {
        match self.trouble().as_str() {
            "" => "this seed does not lead yet; try again".to_owned(),
            trouble => format!("this seed can't lead ({trouble}); try again"),
        }
    }

    fn trouble(&self) -> MutexGuard<'_, String> {
        // What is in it is whole at any time.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call about the leader's row has failed so: another datastore is used from here on, where there is one and that
    /// may help. Says whether it may.
    pub(crate) fn give_up(&self, status: &Status) -> bool {
        let away = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown);
        if !away || self.all.len() < 2 {
            return false;
        }
        self.used.fetch_add(1, Ordering::Relaxed);
        // Once all have failed it is time for a pause.
        self.index() != 0
    }

    /// How long the one that is used may take for a call about the leader's row.
    pub(crate) fn patience(&self) -> Duration {
        if self.all.len() < 2 { CALL_TIMEOUT } else { ROW_TIMEOUT }
    }
}

/// A request that the datastore has [`CALL_TIMEOUT`] for.
pub(crate) fn limited<T>(message: T) -> Request<T> {
    limited_to(CALL_TIMEOUT, message)
}

/// The same with another time.
pub(crate) fn limited_to<T>(patience: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(patience);
    request
}

/// The answer to a call, within [`CALL_TIMEOUT`] whatever the connection does.
pub(crate) async fn call<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    call_within(CALL_TIMEOUT, answer).await
}

/// The same within another time.
pub(crate) async fn call_within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let late = || Status::deadline_exceeded("the datastore does not answer");
    match timeout(patience, answer).await {
        // So tonic says that the time is over which the request had.
        Ok(Err(status)) if status.code() == Code::Cancelled => Err(late()),
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(late()),
    }
}
