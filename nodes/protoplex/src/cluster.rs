//! How the operator's commands reach a running cluster.

mod round;

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
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
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Response, Status};

use self::round::{Leaderless, Round, Said};
use crate::cli::{Common, Usage};
use crate::settings::Settings;

/// How long a call may take: one that goes on for longer has nobody at its other end.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Another seed takes the place of one that has died within so long: a lease in the datastore, and a second.
pub(crate) const TAKEOVER_PATIENCE: Duration = Duration::from_secs(5);
/// A seed that hands over has been followed by another within so long.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(2);
/// What each seed may take to say how it is, where none leads.
const EVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked for meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Largest answer that a command takes, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The cluster can't be reached; exit code 3.
#[derive(Debug, Error)]
#[error("{why}")]
pub(crate) struct Unreachable {
    why: String,
    /// Whether what was asked for may have been done all the same.
    is_unclear: bool,
}

impl Unreachable {
    /// Nothing was done.
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_unclear: false }
    }

    /// The answer is missing, not more.
    fn unclear(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_unclear: true }
    }
}

/// Whether a change that has failed so may have been made all the same.
pub(crate) fn is_unclear(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Unreachable>().is_some_and(|error| error.is_unclear)
}

/// Of a change that has failed: where it may have been made all the same, that is said, and how it is found out.
pub(crate) fn unmade(error: anyhow::Error, what: &str) -> anyhow::Error {
    if is_unclear(&error) { error.context(format!("whether {what} is not known")) } else { error }
}

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
    /// What the search has found instead, where none leads.
    leaderless: OnceCell<Leaderless>,
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
        Ok(Self::of(identity, seeds))
    }

    /// Nothing is known of its seeds.
    fn of(identity: Identity, seeds: Seeds) -> Self {
        Self { identity, seeds, leader: OnceCell::new(), leaderless: OnceCell::new() }
    }

    /// The service for operators, of the seed that leads; of any that answers where none does.
    pub(crate) async fn operator(&self) -> anyhow::Result<OperatorClient<TrustedChannel>> {
        let seed = self.leader.get_or_init(|| self.find_leader()).await;
        let channel = self.identity.channel(seed).with_context(|| format!("bad seed address {seed}"))?;
        Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Asks one seed after the other who leads, and while the one that they name does not answer waits for another one to
    /// take its place. Where none leads, one that says why; where none does, the first.
    async fn find_leader(&self) -> String {
        let mut search = Search::new(self.seeds.remembered());
        let configured = self.seeds.resolve().await;
        let end = Instant::now() + TAKEOVER_PATIENCE;
        let mut lost = None;
        loop {
            search.begin(&configured);
            let mut found = match self.ask_all(&mut search).await.verdict() {
                Ok(seed) => return seed,
                Err(found) => found,
            };
            lost = found.lost.take().or(lost);
            if lost.is_some() && Instant::now() < end {
                sleep(LOOK_INTERVAL).await;
                continue;
            }
            let seed = found.seed.clone().or_else(|| configured.into_iter().next()).unwrap_or_default();
            let _ = self.leaderless.set(Leaderless { lost, ..found });
            return seed;
        }
    }

    async fn ask_all(&self, search: &mut Search) -> Round {
        let mut round = Round::default();
        while let Some(seed) = search.next_seed() {
            let Ok(channel) = self.identity.channel(&seed) else { continue };
            let mut client = UnderstudyClient::new(channel);
            let said = match timeout(search.patience(), client.leader(LeaderRequest {})).await {
                Ok(Ok(reply)) if reply.get_ref().leading => Said::Leads,
                Ok(Ok(reply)) => {
                    let leader = Some(reply.into_inner().address).filter(|address| !address.is_empty());
                    leader.iter().for_each(|leader| search.redirected(leader));
                    Said::Other(leader)
                }
                Ok(Err(status))
                    if [Code::Unauthenticated, Code::PermissionDenied].contains(&status.code()) =>
                {
                    Said::Denied
                }
                Ok(Err(status)) if is_foreign(&status) => Said::Foreign,
                Ok(Err(_)) | Err(_) => {
                    search.unanswered();
                    Said::Nothing
                }
            };
            let is_over = said == Said::Leads;
            round.take(seed, said);
            if is_over {
                break;
            }
        }
        round
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
        let address = self.any_status().await?.datastore;
        let channel =
            self.identity.channel(&address).with_context(|| format!("bad datastore address {address}"))?;
        Ok(DatastoreClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// What runs where, by the seed that leads: no other one knows.
    pub(crate) async fn status(&self) -> anyhow::Result<ClusterStatus> {
        let end = Instant::now() + HANDOVER_PATIENCE;
        let mut status = self.any_status().await?;
        // One that hands over takes commands until the next one leads.
        while !status.leading && self.lost().is_none() && Instant::now() < end {
            sleep(LOOK_INTERVAL).await;
            status = Self::of(self.identity.clone(), self.seeds.clone()).any_status().await?;
        }
        if status.leading {
            return Ok(status);
        }
        Err(match self.lost() {
            Some(lost) => unled(lost),
            None => {
                let why =
                    if status.not_leading.is_empty() { "it does not lead" } else { &status.not_leading };
                Unreachable::new(format!("no seed leads; the one at {} says: {why}", self.seed()))
            }
        }
        .into())
    }

    /// What a seed says, be it one that leads or not.
    pub(crate) async fn any_status(&self) -> anyhow::Result<ClusterStatus> {
        self.answer(self.operator().await?.status(StatusRequest {})).await
    }

    /// Where none leads: what each seed that answers says, which is of itself, and of who has not left it yet.
    pub(crate) async fn every_status(&self) -> Vec<ClusterStatus> {
        let found = self.leaderless.get().filter(|found| found.seed.is_some());
        let asked = found.map_or(&[][..], |found| &found.asked);
        let statuses = asked.iter().map(async |seed| {
            let mut client = OperatorClient::new(self.identity.channel(seed).ok()?);
            let answer = timeout(EVERY_TIMEOUT, client.status(StatusRequest {})).await;
            Some(answer.ok()?.ok()?.into_inner())
        });
        join_all(statuses).await.into_iter().flatten().collect()
    }

    /// The one that is said to lead and does not answer, where nobody has taken its place in time.
    fn lost(&self) -> Option<&str> {
        self.leaderless.get()?.lost.as_deref()
    }

    /// Where nobody answers: all that were asked.
    fn silent(&self) -> String {
        match self.leaderless.get() {
            Some(Leaderless { seed: None, asked, .. }) if !asked.is_empty() => asked.join(", "),
            _ => self.seed(),
        }
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
            Err(_) => Err(Unreachable::unclear(format!(
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
            return Unreachable::new(format!("the seed at {} {why}: {how}", self.seed())).into();
        }
        let (seed, message) = (self.seed(), status.message());
        // What has no cause on the way here the seed has said itself: that it does not lead, or that NATS is away. It says
        // that a time is over where it can't know what has become of a change.
        if std::error::Error::source(&status).is_some() {
            return match is_refused(&status) {
                true => {
                    let seeds = self.silent();
                    Unreachable::new(format!("no seed answers at {seeds}: is the cluster up? ({message})"))
                }
                false => {
                    Unreachable::unclear(format!("the connection to the seed at {seed} broke ({message})"))
                }
            }
            .into();
        }
        match status.code() {
            Code::Unavailable => self.lost().map_or_else(|| Unreachable::new(message), unled).into(),
            Code::DeadlineExceeded => Unreachable::unclear(message).into(),
            Code::Unauthenticated => anyhow::Error::new(Unreachable::new(format!(
                "the cluster at {} does not know this data directory's certificate; --data or --credentials names the \
                 right one",
                seed
            ))),
            Code::InvalidArgument => Usage(message.to_owned()).into(),
            Code::Aborted => Outdated(message.to_owned()).into(),
            _ => anyhow::anyhow!("{message}"),
        }
    }
}

fn unled(lost: &str) -> Unreachable {
    let why = "does not answer, and no other one leads yet: try again";
    Unreachable::new(format!("the seed that led, at {lost}, {why}"))
}

/// Whether a call that was not answered was not even made: there was no connection. One that waits too long within a
/// connection has the same code, and no error of the system for a cause.
fn is_refused(status: &Status) -> bool {
    let first: &(dyn std::error::Error + 'static) = status;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    status.code() == Code::Unavailable && causes.any(|cause| cause.is::<std::io::Error>())
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
        IdentityError::Absent(folder) => Unreachable::new(format!(
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

#[cfg(test)]
mod tests {

    use super::*;

    fn cluster() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        Cluster {
            identity: Identity::open_or_create(folder.path()).unwrap(),
            seeds: Seeds::from("10.0.0.1:8050"),
            leader: OnceCell::new(),
            leaderless: OnceCell::new(),
        }
    }

    #[test]
    fn what_may_have_been_done_all_the_same_is_told_from_what_was_refused() {
        let cluster = cluster();
        let broken = |code, cause: ErrorKind| {
            let mut status = Status::new(code, "transport error");
            status.set_source(std::sync::Arc::new(std::io::Error::from(cause)));
            status
        };
        let mut idle = Status::new(Code::Unavailable, "keep-alive timed out");
        idle.set_source(std::sync::Arc::new(std::fmt::Error));
        for (status, unclear, text) in [
            (Status::unavailable("this seed can't lead"), false, "this seed can't lead"),
            (Status::deadline_exceeded("perhaps stored"), true, "perhaps stored"),
            (
                broken(Code::Unavailable, ErrorKind::ConnectionRefused),
                false,
                "no seed answers at 10.0.0.1:8050",
            ),
            (
                broken(Code::Unknown, ErrorKind::ConnectionReset),
                true,
                "the connection to the seed at 10.0.0.1:8050 broke",
            ),
            (broken(Code::Cancelled, ErrorKind::BrokenPipe), true, "broke"),
            (idle, true, "broke"),
            (Status::aborted("version 7 is the present one"), false, "version 7"),
        ] {
            let error = cluster.explain(status.clone());
            assert_eq!(is_unclear(&error), unclear, "{status:?}");
            assert!(error.to_string().contains(text), "{error}");
            let told = format!("{:#}", unmade(error, "it was made"));
            assert_eq!(told.contains("whether it was made is not known"), unclear, "{told}");
        }
    }

    #[test]
    fn where_nobody_answers_all_are_named() {
        let cluster = cluster();
        let asked = ["10.0.0.1:8050", "10.0.0.2:8050"].map(str::to_owned).into();
        cluster.leaderless.set(Leaderless { asked, ..Leaderless::default() }).unwrap();
        let mut status = Status::unavailable("transport error");
        status.set_source(std::sync::Arc::new(std::io::Error::from(ErrorKind::ConnectionRefused)));
        let told = cluster.explain(status).to_string();
        assert!(
            told.starts_with("no seed answers at 10.0.0.1:8050, 10.0.0.2:8050: is the cluster up?"),
            "{told}"
        );
    }

    #[test]
    fn where_the_leader_is_lost_that_is_told_for_what_its_understudy_says() {
        let cluster = cluster();
        let lost = Some("10.0.0.2:8050".to_owned());
        cluster.leaderless.set(Leaderless { lost, ..Leaderless::default() }).unwrap();
        let told = cluster.explain(Status::unavailable("the one at 10.0.0.2:8050 does")).to_string();
        assert!(told.starts_with("the seed that led, at 10.0.0.2:8050, does not answer"), "{told}");
    }
}
