//! What can be wrong with an archive, or with where it is to be put.

use std::io;

use thiserror::Error;

use super::lines::FORMAT;
use crate::{postgres, sqlite};

/// Why a database was not archived, or an archive not put into one. Nothing was changed then.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The archive can't be read or written.
    #[error("the archive can't be read or written")]
    Io(#[from] io::Error),
    /// A line of the archive is wrong.
    #[error("line {line}: {reason}")]
    Malformed {
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A newer version of Protoplex has written it.
    #[error(
        "the archive is of format {0}, and this version of Protoplex knows {FORMAT}: take the newer version"
    )]
    Newer(u64),
    /// Its last line is missing.
    #[error("the archive has no end: it was cut off, or is still being written")]
    Truncated,
    /// What is in the database afterwards is not what the archive says at its end.
    #[error("table {0}: what has come is not what was taken: the archive is damaged, or was changed")]
    Damaged(String),
    /// Something would be lost.
    #[error("{database} is not empty: it has {found}. To put this in the place of all that, say --replace")]
    NotEmpty {
        /// The database.
        database: String,
        /// Of which tables it has rows.
        found: String,
    },
    /// A datastore runs on it.
    #[error(
        "{0} is in use: stop the datastores that run on it first (protoplex drain datastore-1; under `up`, end `up`)"
    )]
    InUse(String),
    /// There is none.
    #[error("there is no database at {0}: is --data right?")]
    Missing(String),
    /// It is moved to itself.
    #[error("{0} is where everything is already")]
    Same(String),
    /// Its schema is an older one.
    #[error(
        "{database}: its schema is version {found}, and this version of Protoplex needs {needed}: stop its datastore, \
         then protoplex datastore migrate"
    )]
    Older {
        /// The database.
        database: String,
        /// Its schema.
        found: i64,
        /// The present one.
        needed: i64,
    },
    /// The SQLite file can't be used.
    #[error(transparent)]
    File(#[from] sqlite::OpenError),
    /// The PostgreSQL database can't be used.
    #[error(transparent)]
    Server(#[from] postgres::OpenError),
    /// A database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}
