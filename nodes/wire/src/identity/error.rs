//! What can be wrong with an identity, each with what to do.

use std::path::PathBuf;

use thiserror::Error;

use super::Kind;

/// Why the identity could not be read or made.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file of the identity is missing, unreadable or can't be written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It can't be told from the operator who has the authority's key.
    #[error("an operator called \"local\" is whoever has the authority's key: choose another name")]
    Local,
    /// There is no identity in the folder.
    #[error(
        "no cluster identity in {0}: start the cluster there first, or join one with --seed HOST:PORT and --join TOKEN \
         (`protoplex join-token create` makes one)"
    )]
    Absent(PathBuf),
    /// The machine has joined a cluster, but not this node.
    #[error(
        "{1} has no certificate in {0}: join with --join TOKEN, which `protoplex join-token create` makes for its kind"
    )]
    NotJoined(PathBuf, String),
    /// The machine has joined a cluster as nodes; its operators are elsewhere.
    #[error(
        "{0} is that of nodes which have joined a cluster: name an operator's credentials with --credentials DIR \
         (`protoplex operator create NAME` makes some where the cluster began)"
    )]
    NoOperator(PathBuf),
    /// There are no credentials in the folder.
    #[error(
        "no credentials in {0}: it has no ca.pem, cert.pem or key.pem. `protoplex operator create NAME` makes some where \
         the cluster began; `protoplex enrol`, or `protoplex operator enrol`, with a join token elsewhere"
    )]
    NoCredentials(PathBuf),
    /// It has ended.
    #[error(
        "the certificate of {name} has expired {ago_s} s ago: join anew with --join TOKEN, or enrol anew (`protoplex \
         enrol`)"
    )]
    Expired {
        /// Whose it is.
        name: String,
        /// How long it is over.
        ago_s: u64,
    },
    /// A clock was ahead when it was made, or is behind now.
    #[error("the certificate of {name} counts only in {in_s} s")]
    NotYet {
        /// Whose it is.
        name: String,
        /// How long it doesn't.
        in_s: u64,
    },
    /// It is somebody else's.
    #[error("{0} holds the certificate of {1}, {kind}: give this node another name, or remove that folder", kind = .2.one())]
    WrongKind(PathBuf, String, Kind),
    /// The certificates could not be made.
    #[error("cannot make the cluster's certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A file holds something else.
    #[error("{0}: {1}")]
    Malformed(PathBuf, String),
    /// There is an identity already.
    #[error("{0} is there already: nothing was changed")]
    Exists(PathBuf),
    /// What is there is of another cluster than what was to be put beside it.
    #[error(
        "{0} is of another cluster: nothing was changed. Name another folder (--data, for a node), or remove this one if \
         that cluster is of no use any more"
    )]
    OtherCluster(PathBuf),
    /// There is a cluster's authority where somebody's credentials were to be.
    #[error("{0} is a cluster's own folder (ca.key is there): give credentials a folder of their own")]
    Authority(PathBuf),
    /// The authority's key is where the cluster began.
    #[error(
        "{0} has no ca.key: run this where the cluster began, or enrol with a token (`protoplex join-token create`)"
    )]
    NoAuthority(PathBuf),
}
