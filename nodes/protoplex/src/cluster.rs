//! How the operator's commands reach a running cluster.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use protoplex_runtime::running;
use protoplex_wire::events::Bus;
use protoplex_wire::identity::{Identity, IdentityError, TrustedChannel, is_foreign};
use protoplex_wire::proto::datastore_client::DatastoreClient;
use protoplex_wire::proto::operator_client::OperatorClient;
use protoplex_wire::proto::understudy_client::UnderstudyClient;
use protoplex_wire::proto::{ClusterStatus, LeaderRequest, StatusRequest};
use protoplex_wire::seeds::{Search, Seeds};
use thiserror::Error;
use tokio::sync::OnceCell;
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
pub(crate) struct Unreachable(pub String);

/// Somebody else was faster: what a change was made of is there no more. Nothing was changed.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Outdated(String);

/// The cluster that the command line names.
pub(crate) struct Cluster {
    identity: Identity,
    seeds: Seeds,
    /// The seed that leads, once it was looked for.
    leader: OnceCell<String>,
}

impl Cluster {
    /// Reads the identity in the data directory; nothing is connected yet.
    pub(crate) fn find(common: &Common) -> anyhow::Result<Self> {
        let settings = Settings::load(common)?;
        let identity = own(common, &settings).map_err(unidentified)?;
        if let Some(expired) = identity.expired() {
            return Err(expired.into());
        }
        let seeds = settings.seed_addresses.clone();
        let seeds = if common.seed.is_empty() {
            // Its port may be one that the system chose.
            let own = running_seed(&settings.data);
            Seeds::new(own.into_iter().chain(seeds).collect(), &settings.data)
        } else {
            // Whom the operator names is meant, and whoever that one says leads.
            Seeds::only(seeds)
        };
        Ok(Self { identity, seeds, leader: OnceCell::new() })
    }

    /// The service for operators, of the seed that leads; of any that answers where none does.
    pub(crate) async fn operator(&self) -> anyhow::Result<OperatorClient<TrustedChannel>> {
        let seed = self.leader.get_or_init(|| self.find_leader()).await;
        let channel = self.identity.channel(seed).with_context(|| format!("bad seed address {seed}"))?;
        Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Asks one seed after the other who leads. Where none knows, the first that answers; where none does, the first.
    async fn find_leader(&self) -> String {
        let mut search = Search::new(self.seeds.remembered());
        let configured = self.seeds.resolve().await;
        search.begin(&configured);
        let mut answers = None;
        while let Some(seed) = search.next_seed() {
            let Ok(channel) = self.identity.channel(&seed) else { continue };
            let mut client = UnderstudyClient::new(channel);
            match timeout(search.patience(), client.leader(LeaderRequest {})).await {
                Ok(Ok(reply)) if reply.get_ref().leading => return seed,
                Ok(Ok(reply)) => {
                    let leader = reply.into_inner().address;
                    if !leader.is_empty() {
                        search.redirected(&leader);
                    }
                    answers.get_or_insert(seed);
                }
                // It says itself what is wrong when it is asked for something.
                Ok(Err(status))
                    if [Code::Unauthenticated, Code::PermissionDenied].contains(&status.code()) =>
                {
                    answers.get_or_insert(seed);
                }
                Ok(Err(_)) | Err(_) => search.unanswered(),
            }
        }
        answers.or_else(|| configured.into_iter().next()).unwrap_or_default()
    }

    /// The bus of the cluster's events, at the seed that leads, and at whichever leads later.
    pub(crate) async fn bus(&self) -> anyhow::Result<Bus> {
        let mut seeds = vec![self.leader.get_or_init(|| self.find_leader()).await.clone()];
        seeds.extend(self.seeds.resolve().await);
        seeds.extend(self.seeds.remembered());
        Bus::new(&self.identity, seeds).with_context(|| format!("bad seed address {}", self.seed()))
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
        self.answer(self.operator().await?.status(StatusRequest {})).await
    }

    /// The seed that commands go to, or where one is looked for.
    pub(crate) fn seed(&self) -> String {
        self.leader.get().cloned().unwrap_or_else(|| self.seeds.to_string())
    }

    /// Where seeds are looked for.
    pub(crate) fn seeds(&self) -> &Seeds {
        &self.seeds
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
                self.seed(),
                CALL_TIMEOUT.as_secs()
            ))
            .into()),
        }
    }

    /// Says in the operator's words what a call failed of.
    pub(crate) fn explain(&self, status: Status) -> anyhow::Error {
        if is_foreign(&status) {
            let why = "is of another cluster than this data directory, or these credentials";
            let how = "--data or --credentials names the right one, or --seed the right seed";
            return Unreachable(format!("the seed at {} {why}: {how}", self.seed())).into();
        }
        // What has no cause on the way here the seed has said itself: that it does not lead, or that NATS is away.
        let is_told = std::error::Error::source(&status).is_none();
        match status.code() {
            Code::Unavailable if is_told => Unreachable(status.message().to_owned()).into(),
            Code::Unavailable | Code::DeadlineExceeded => anyhow::Error::new(Unreachable(format!(
                "no seed answers at {}: is the cluster up? ({})",
                self.seed(),
                status.message()
            ))),
            Code::Unauthenticated => anyhow::Error::new(Unreachable(format!(
                "the cluster at {} does not know this data directory's certificate; --data or --credentials names the \
                 right one",
                self.seed()
            ))),
            Code::InvalidArgument => Usage(status.message().to_owned()).into(),
            Code::Aborted => Outdated(status.message().to_owned()).into(),
            _ => anyhow::anyhow!("{}", status.message()),
        }
    }
}

/// The folder of the identity, in the data directory.
pub(crate) const CLUSTER: &str = "cluster";

/// Who gives the commands, where that is known: the nodes of this machine don't ask for it.
pub(crate) fn identity(common: &Common, settings: &Settings) -> Option<Identity> {
    own(common, settings).ok()
}

fn own(common: &Common, settings: &Settings) -> Result<Identity, IdentityError> {
    match &common.credentials {
        Some(folder) => Identity::credentials(folder),
        None => Identity::open(&settings.data.join(CLUSTER)),
    }
}

/// What to do where commands have no identity.
fn unidentified(error: IdentityError) -> anyhow::Error {
    match error {
        IdentityError::Absent(folder) => Unreachable(format!(
            "no cluster identity in {}: run this where the cluster's data is, or name it with --data DIR; elsewhere name \
             a seed and an operator's credentials with --seed HOST:PORT and --credentials DIR",
            folder.display()
        ))
        .into(),
        IdentityError::File { ref source, .. } if source.kind() == ErrorKind::PermissionDenied => Usage(format!(
            "{error}: run this as the user that the cluster works as, or with an operator's --credentials DIR and --seed \
             HOST:PORT"
        ))
        .into(),
        IdentityError::NoCredentials(_) => Usage(error.to_string()).into(),
        other => other.into(),
    }
}

/// The address of the seed that runs in this data directory, if one does.
fn running_seed(data: &Path) -> Option<String> {
    let nodes = running::list(data).ok()?;
    Some(nodes.iter().find(|node| node.kind == "seed")?.address("grpc")?.to_string())
}
