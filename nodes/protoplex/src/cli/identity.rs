//! What may be said of who is in the cluster: join tokens, credentials, revocations.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use protoplex_wire::identity::Kind;

use crate::units;

/// A join token, given as it is or in a file.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Joining {
    /// Join the cluster with this token, where there is no certificate yet, or one that has expired
    #[arg(long, value_name = "TOKEN", env = "PROTOPLEX_JOIN", hide_env_values = true)]
    pub join: Option<String>,
    /// The same, in a file, which other users of the machine can't see
    #[arg(long, value_name = "FILE", env = "PROTOPLEX_JOIN_FILE", conflicts_with = "join")]
    pub join_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JoinToken {
    /// Create a join token; it is shown once
    #[command(after_help = "\
Examples:
  protoplex join-token create --kind proxy
  protoplex join-token create --kind backend --pool rooms --uses 10 --expires 7d

  protoplex proxy --seed seed.example:8050 --join-file token    on the machine that joins")]
    Create(JoinTokenCreate),
    /// List join tokens, and how often each was used
    List,
    /// Let nobody join any more with a token; who has joined stays
    Revoke {
        /// Its id, as in `join-token list`
        // Earlier versions have drawn ids that begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct JoinTokenCreate {
    /// What joins with it: seed, datastore, proxy, fileserver, live, backend or operator
    #[arg(long)]
    pub kind: Kind,
    /// Of a backend: a pool that it may be a member of; may be repeated
    #[arg(long = "pool", value_name = "POOL", value_parser = units::pool)]
    pub pools: Vec<String>,
    /// How long it is valid, as in 30m, 12h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = units::life)]
    pub expires: Duration,
    /// How many may join with it, each with a name and a key of its own; 0 for any number
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub uses: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Refuse a node, or a server that has enrolled, from now on, whatever certificate it has; its links are cut. Not the
    /// seed that leads
    Revoke {
        /// Its name
        node: String,
        /// Also where nobody of that name has been here since the present seed leads: it may have a certificate all the same
        #[arg(long)]
        force: bool,
    },
    /// Let it in again
    Readmit {
        /// Its name
        node: String,
    },
    /// Who is revoked, nodes and operators
    Revoked,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Operator {
    /// Write credentials for a person to a new folder, for --credentials; where the cluster began
    Create(OperatorCreate),
    /// Write credentials for a person to a new folder, with a join token for an operator
    Enrol(Enrol),
    /// Refuse an operator from now on. Not oneself, nor `local`, who has the authority's key
    Revoke {
        /// The person's name
        name: String,
    },
    /// Let an operator in again
    Readmit {
        /// The person's name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OperatorCreate {
    /// The person's name
    #[arg(value_parser = units::name)]
    pub name: String,
    /// The folder [default: NAME-credentials]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How long they are valid
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = units::life)]
    pub expires: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Enrol {
    /// Folder for ca.pem, cert.pem and key.pem
    pub folder: PathBuf,
    /// The join token
    #[arg(long, value_name = "TOKEN", env = "PROTOPLEX_JOIN", hide_env_values = true)]
    pub token: Option<String>,
    /// The same, in a file
    #[arg(long, value_name = "FILE", env = "PROTOPLEX_JOIN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Its name in the cluster [default: that of the folder]
    #[arg(long, value_name = "NAME", value_parser = units::name)]
    pub node: Option<String>,
    /// Only replace the certificate that is there, which has not expired
    #[arg(long, conflicts_with_all = ["token", "token_file", "node"])]
    pub renew: bool,
}
