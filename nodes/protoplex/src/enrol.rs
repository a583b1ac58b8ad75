//! `protoplex init`, `enrol` and `operator`: where identities come from.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use protoplex_wire::enrolment::{self, EnrolError, Newcomer};
use protoplex_wire::identity::{
    Identity, IdentityError, Kind, Peer, check_cluster, make_credentials, node_folder,
};
use protoplex_wire::join_token::JoinToken;
use protoplex_wire::proto::Credentials;
use protoplex_wire::seeds::Seeds;
use serde::Serialize;
use tokio::time::sleep;

use crate::cli::{Common, Enrol, Joining, Operator, OperatorCreate, Usage};
use crate::cluster::{CLUSTER, Unreachable};
use crate::handler::first;
use crate::output::{self, print};
use crate::revoke::{self, Change};
use crate::settings::Settings;
use crate::units::show_time;

/// How long a node that joins looks for a seed before it gives up, so that all may be started at once.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// What was made.
#[derive(Serialize)]
struct Made {
    folder: PathBuf,
    name: String,
    kind: String,
    /// Unix time in milliseconds.
    expires_at_ms: i64,
}

impl Made {
    fn text(&self) -> String {
        let until = show_time(self.expires_at_ms);
        let Self { folder, name, kind, .. } = self;
        let kind = kind.parse::<Kind>().map_or(kind.as_str(), |kind| kind.one());
        format!("{} holds the credentials of {name}, {kind}, until {until}", folder.display())
    }
}

/// Runs `protoplex init`.
pub(crate) fn init(common: &Common) -> anyhow::Result<()> {
    let settings = Settings::load(common)?;
    settings.assume_account()?;
    let folder = settings.data.join(CLUSTER);
    let identity = Identity::create(&folder).map_err(|error| match error {
        IdentityError::Exists(folder) => {
            Usage(format!("{} is there already: nothing was changed", folder.display())).into()
        }
        error => anyhow::Error::new(error),
    })?;
    let made = serde_json::json!({ "folder": folder, "cluster": identity.cluster() });
    print(common.json, &made, |_| next_steps(&settings, &identity, &folder))?;
    Ok(())
}

fn next_steps(settings: &Settings, identity: &Identity, folder: &Path) -> String {
    let data = settings.data.display();
    let handlers: String = first::commands(&settings.data).map(|command| format!("  {command}\n")).collect();
    format!(
        "The cluster {} is made: {} holds its authority. Keep ca.key in it secret.\n\n\
         Next, on this machine:\n  \
         protoplex --data {data} datastore              all structured data\n  \
         protoplex --data {data} seed                   who is there, and who owns what\n  \
         protoplex --data {data} join-token create --kind proxy\n  \
         protoplex --data {data} operator create ada    credentials for a person elsewhere\n\n\
         Once, so that channels go to live nodes and everything else to fileservers, as with `up`:\n\
         {handlers}\n\
         And on another machine, with the token:\n  \
         protoplex --seed {} proxy --join TOKEN",
        identity.cluster(),
        folder.display(),
        elsewhere(settings.seed.address(), settings.own_seed)
    )
}

/// Where other machines may reach this one's seed, as far as that can be told: by its loopback they can't.
fn elsewhere(told: &str, own: SocketAddr) -> String {
    let is_of_here = |address: SocketAddr| address.ip().is_loopback() || address.ip().is_unspecified();
    match told {
        address if !address.is_empty() && !address.parse().is_ok_and(is_of_here) => address.to_owned(),
        _ => format!("HOST:{}", own.port()),
    }
}

/// Runs `protoplex enrol`, for a server of the user's own.
pub(crate) async fn run(common: &Common, command: Enrol) -> anyhow::Result<()> {
    enrol(common, command, Kind::Backend).await
}

/// Runs `protoplex operator`.
pub(crate) async fn operator(common: &Common, command: Operator) -> anyhow::Result<()> {
    match command {
        Operator::Create(command) => create(common, command),
        Operator::Enrol(command) => enrol(common, command, Kind::Operator).await,
        Operator::Revoke { name } => {
            revoke::change(common, &format!("operator/{name}"), Change::Revoke { force: true }).await
        }
        Operator::Readmit { name } => {
            revoke::change(common, &format!("operator/{name}"), Change::Readmit).await
        }
    }
}

fn create(common: &Common, command: OperatorCreate) -> anyhow::Result<()> {
    let folder = Settings::load(common)?.data.join(CLUSTER);
    let identity = Identity::open(&folder).map_err(|error| match error {
        IdentityError::NoOperator(folder) => IdentityError::NoAuthority(folder),
        error => error,
    })?;
    let OperatorCreate { name, out, expires } = command;
    let out = out.unwrap_or_else(|| format!("{name}-credentials").into());
    let peer =
        Peer { cluster: identity.cluster(), kind: Kind::Operator, node: name.clone(), pools: Vec::new() };
    let issued = make_credentials(&identity, &out, &peer, expires)?;
    tell(common, &out, name, &issued)
}

async fn enrol(common: &Common, command: Enrol, kind: Kind) -> anyhow::Result<()> {
    let Enrol { folder, token, token_file, node, renew } = command;
    let settings = Settings::load(common)?;
    let seeds = Seeds::new(settings.seed_addresses.clone(), &settings.data);
    if renew {
        let identity = Identity::credentials(&folder)?;
        let issued = enrolment::renew(&identity, &folder, &seeds).await.map_err(explain)?;
        return tell(common, &folder, identity.certificate().peer.node, &issued);
    }
    let token = read(&Joining { join: token, join_file: token_file })?;
    let token = token.ok_or_else(|| {
        Usage("name a join token with --token or --token-file (`protoplex join-token create`)".to_owned())
    })?;
    let own_name = || Some(std::path::absolute(&folder).ok()?.file_name()?.to_str()?.to_owned());
    let node = node.or_else(own_name).context("the folder has no name: give one with --node")?;
    let newcomer = Newcomer { kind, node: &node, shared: &folder, own: &folder };
    let issued = newcomer.enrol(&token, &seeds).await.map_err(explain)?;
    tell(common, &folder, node, &issued)
}

fn tell(common: &Common, folder: &Path, name: String, issued: &Credentials) -> anyhow::Result<()> {
    let made = Made {
        folder: std::path::absolute(folder)?,
        name,
        kind: issued.kind.clone(),
        expires_at_ms: issued.expires_at_ms,
    };
    print(common.json, &made, Made::text)?;
    Ok(())
}

/// The token that was given, if any.
pub(crate) fn read(given: &Joining) -> anyhow::Result<Option<JoinToken>> {
    let text = match (&given.join, &given.join_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => std::fs::read_to_string(file).map_err(Usage::unreadable(file))?,
        (None, None) => return Ok(None),
    };
    Ok(Some(text.parse().map_err(|error: protoplex_wire::join_token::NoToken| Usage(error.to_string()))?))
}

/// Has a node join for which there is nothing yet in `folder` (`DATA/cluster`).
pub(crate) async fn join(
    folder: &Path,
    kind: Kind,
    node: &str,
    token: &JoinToken,
    seeds: &Seeds,
) -> anyhow::Result<()> {
    let own = node_folder(folder, node);
    let newcomer = Newcomer { kind, node, shared: folder, own: &own };
    let (began, mut said) = (Instant::now(), false);
    loop {
        match newcomer.enrol(token, seeds).await {
            Err(error @ EnrolError::Away { .. }) if began.elapsed() < JOIN_PATIENCE => {
                if !std::mem::replace(&mut said, true) {
                    output::tell(&format!("protoplex: {error}; trying again"));
                }
                sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(explain(error)),
            Ok(_) => return Ok(()),
        }
    }
}

fn explain(error: EnrolError) -> anyhow::Error {
    match error {
        error @ EnrolError::Away { .. } => Unreachable::new(error.to_string()).into(),
        EnrolError::Refused(why) => anyhow::anyhow!("{why}"),
        EnrolError::Identity(error) => error.into(),
    }
}

/// The identity of a node of this data directory, which joins with the token where it has to. The seed and the datastore
/// make the cluster's where there is none yet.
pub(crate) fn of_node(
    folder: &Path,
    kind: Kind,
    node: &str,
    given: &Joining,
    seeds: &Seeds,
) -> anyhow::Result<Identity> {
    let token = read(given)?;
    if let Some(token) = &token {
        // It would be of no use, and what is there would look for its own cluster where the token's is.
        check_cluster(folder, &token.fingerprint)?;
    }
    if !Identity::is_there(folder) && token.is_none() && matches!(kind, Kind::Seed | Kind::Datastore) {
        Identity::open_or_create(folder)?;
    }
    let found = Identity::of_node(folder, kind, node).and_then(|identity| {
        // One that will count some day is of use without a token.
        let not_yet = || token.as_ref().and_then(|_| identity.not_yet());
        identity.expired().or_else(not_yet).map_or(Ok(identity.clone()), Err)
    });
    match (found, token) {
        (
            Err(
                IdentityError::Absent(_)
                | IdentityError::NotJoined(..)
                | IdentityError::Expired { .. }
                | IdentityError::NotYet { .. },
            ),
            Some(token),
        ) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(join(folder, kind, node, &token, seeds))?;
            let identity = Identity::of_node(folder, kind, node)?;
            if let Some(unusable) = identity.expired().or_else(|| identity.not_yet()) {
                bail!("{unusable}; is this machine's clock right?");
            }
            Ok(identity)
        }
        (found, _) => Ok(found?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_where_the_seed_is_as_far_as_others_can_reach_it() {
        let of = |told: &str, own: &str| elsewhere(told, own.parse().unwrap());
        assert_eq!(of("127.0.0.1:8050", "127.0.0.1:8050"), "HOST:8050");
        assert_eq!(of("127.0.0.1:9050", "127.0.0.1:9050"), "HOST:9050");
        assert_eq!(of("", "127.0.0.1:9050"), "HOST:9050");
        assert_eq!(of("10.0.0.1:9050", "10.0.0.1:9050"), "10.0.0.1:9050");
        assert_eq!(of("seed.example:443", "127.0.0.1:9050"), "seed.example:443");
    }
}
