//! How the operator's commands reach a running cluster.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use protoplex_runtime::running;
use protoplex_wire::identity::{Identity, IdentityError, TrustedChannel};
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::{ClusterStatus, StatusRequest};
use thiserror::Error;
use tokio::time::timeout;
use tonic::{Code, Response, Status};

use crate::cli::{Common, Usage};
use crate::settings::Settings;

/// How long a call may take: one that goes on for longer has nobody at its other end.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer that a command takes, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The cluster can't be reached; exit code 3.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Unreachable(String);

/// Somebody else was faster: what a change was made of is there no more. Nothing was changed.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Outdated(String);

/// The cluster that the command line names.
pub(crate) struct Cluster {
    identity: Identity,
    seed: String,
}

impl Cluster {
    /// Reads the identity in the data directory; nothing is connected yet.
    pub(crate) fn find(common: &Common) -> anyhow::Result<Self> {
        let settings = Settings::load(common)?;
        let identity = Identity::open(&settings.data.join("cluster")).map_err(|error| match error {
            IdentityError::Absent(_) => anyhow::Error::new(Unreachable(error.to_string())),
            other => other.into(),
        })?;
        let seed = match &common.seed {
            Some(seed) => seed.clone(),
            None => running_seed(&settings.data).unwrap_or_else(|| settings.seed_address.clone()),
        };
        Ok(Self { identity, seed })
    }

    /// The seed's service for operators.
    pub(crate) fn operator(&self) -> anyhow::Result<OperatorClient<TrustedChannel>> {
        let channel =
            self.identity.channel(&self.seed).with_context(|| format!("bad seed address {}", self.seed))?;
        Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// The datastore, at the address that the seed tells.
    pub(crate) async fn datastore(&self) -> anyhow::Result<DatastoreClient<TrustedChannel>> {
        let address = self.status().await?.datastore;
        let channel =
            self.identity.channel(&address).with_context(|| format!("bad datastore address {address}"))?;
        Ok(DatastoreClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// What runs where.
    pub(crate) async fn status(&self) -> anyhow::Result<ClusterStatus> {
        self.answer(self.operator()?.status(StatusRequest {})).await
    }

    /// Where the seed is looked for.
    pub(crate) fn seed(&self) -> &str {
        &self.seed
    }

    /// The cluster's identity.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The answer to a call, or in the operator's words why there is none.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        match timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => Ok(answer.map_err(|status| self.explain(status))?.into_inner()),
            Err(_) => Err(Unreachable(format!(
                "no answer from the seed at {}, or from its datastore, within {} s",
                self.seed,
                CALL_TIMEOUT.as_secs()
            ))
            .into()),
        }
    }

    /// Says in the operator's words what a call failed of.
    pub(crate) fn explain(&self, status: Status) -> anyhow::Error {
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => anyhow::Error::new(Unreachable(format!(
                "no seed answers at {}: is the cluster up? ({})",
                self.seed,
                status.message()
            ))),
            Code::Unauthenticated => anyhow::Error::new(Unreachable(format!(
                "the cluster at {} does not know this data directory's token; --data names the right one",
                self.seed
            ))),
            Code::InvalidArgument => Usage(status.message().to_owned()).into(),
            Code::Aborted => Outdated(status.message().to_owned()).into(),
            _ => anyhow::anyhow!("{}", status.message()),
        }
    }
}

/// The cluster's identity, where this machine has it: its own nodes don't ask for it.
pub(crate) fn identity(settings: &Settings) -> Option<Identity> {
    Identity::open(&settings.data.join("cluster")).ok()
}

/// The address of the seed that runs in this data directory, if one does.
fn running_seed(data: &Path) -> Option<String> {
    let nodes = running::list(data).ok()?;
    Some(nodes.iter().find(|node| node.kind == "seed")?.address("grpc")?.to_string())
}
