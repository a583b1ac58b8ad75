//! Opens the database's file, or says what is wrong with it and what to do.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqlitePool};
use thiserror::Error;

use super::sqlite_code;
use crate::archive::MOVED;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Connections that only read.
const READERS: u32 = 4;
/// How long a call waits for a connection, and a connection for SQLite's lock (only a backup tool can hold that).
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it is waited for a datastore that is about to end, and how often it is looked whether it has.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// The write-ahead log is cut to this after a build has made it long, in bytes.
const LOG_BYTES: &str = "16777216";

/// SQLite's primary result codes (<https://www.sqlite.org/rescode.html>).
const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;

/// Why the database can't be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its folder or file can't be made or read.
    #[error("{}: {source}", file.display())]
    File {
        /// The database's file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no database, or a part of it is broken.
    #[error(
        "{0}: the database is damaged: {reason}. Nothing was changed. Keep a copy of the file and of those beside it, \
         then restore a backup, or save what can be read: sqlite3 {0} .recover | sqlite3 {0}.new",
        file.display()
    )]
    Damaged {
        /// The database's file.
        file: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// A newer version of Protoplex has written it.
    #[error(
        "{}: its schema is version {found}, and this version of Protoplex knows {known}. Nothing was changed. \
         Start the newer version, or restore a backup from before the upgrade",
        file.display()
    )]
    Newer {
        /// The database's file.
        file: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that is known here.
        known: i64,
    },
    /// Another process uses it.
    #[error("{}: another datastore, or a command that moves it, uses this file", file.display())]
    InUse {
        /// The database's file.
        file: PathBuf,
    },
    /// All of it was moved elsewhere.
    #[error(
        "{}: everything was moved to {to}: name that in datastore.url. To go on here as it was then, and without what \
         has changed there since: protoplex datastore migrate --undo. To put something else in its place: --replace",
        file.display()
    )]
    Moved {
        /// The database's file.
        file: PathBuf,
        /// Where to.
        to: String,
    },
    /// It could not be brought to the present schema.
    #[error("{}: the schema could not be upgraded: {source}", file.display())]
    Migration {
        /// The database's file.
        file: PathBuf,
        /// What failed.
        source: MigrateError,
    },
    /// SQLite failed for another reason.
    #[error("{}: {source}", file.display())]
    Unusable {
        /// The database's file.
        file: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
}

impl OpenError {
    /// For an error of SQLite: damage, or anything else.
    pub(super) fn unusable(file: &Path, source: sqlx::Error) -> Self {
        match sqlite_code(&source) {
            Some(CORRUPT | NOT_A_DATABASE) => {
                Self::Damaged { file: file.to_owned(), reason: source.to_string() }
            }
            _ => Self::Unusable { file: file.to_owned(), source },
        }
    }

    /// A newer version of Protoplex has brought it to this schema.
    pub(super) fn newer(file: &Path, found: i64) -> Self {
        Self::Newer { file: file.to_owned(), found, known: known_version() }
    }

    fn migration(file: &Path, error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(found) if found > known_version() => Self::newer(file, found),
            source => Self::Migration { file: file.to_owned(), source },
        }
    }
}

/// The present version of the schema.
pub(super) fn known_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Keeps the file from all others until this is dropped, or the process ends however it may. The lock is one of a file
/// beside it, for SQLite has locks of its own on the file.
pub(super) fn lock(file: &Path) -> Result<File, OpenError> {
    let at = |source| OpenError::File { file: file.to_owned(), source };
    create(file).map_err(at)?;
    let mut beside = file.to_owned().into_os_string();
    beside.push(".lock");
    let lock = OpenOptions::new().append(true).create(true).mode(0o600).open(&beside).map_err(at)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { file: file.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
    }
}

/// Refuses a file away from which everything was moved.
pub(super) async fn refuse_moved(file: &Path) -> Result<(), OpenError> {
    match moved_to(file).await? {
        Some(to) => Err(OpenError::Moved { file: file.to_owned(), to }),
        None => Ok(()),
    }
}

/// Where to all of it was moved, if it was.
pub(super) async fn moved_to(file: &Path) -> Result<Option<String>, OpenError> {
    let at = |source| OpenError::unusable(file, source);
    let mut connection = SqliteConnectOptions::new().filename(file).connect().await.map_err(at)?;
    let is_marked = sqlx::query_scalar("SELECT count(*) > 0 FROM sqlite_master WHERE name = ?").bind(MOVED);
    if !is_marked.fetch_one(&mut connection).await.map_err(at)? {
        return Ok(None);
    }
    let to = sqlx::query_scalar(AssertSqlSafe(format!("SELECT destination FROM {MOVED}")));
    to.fetch_optional(&mut connection).await.map_err(at)
}

/// The writer's and the readers' connections to a sound database of the present schema.
pub(super) async fn pools(file: &Path) -> Result<(SqlitePool, SqlitePool), OpenError> {
    create(file).map_err(|source| OpenError::File { file: file.to_owned(), source })?;
    let at = |source| OpenError::unusable(file, source);
    let options = SqliteConnectOptions::new().filename(file).foreign_keys(true).busy_timeout(BUSY_TIMEOUT);

    let write = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", LOG_BYTES);
    let writer = pool(1).connect_with(write).await.map_err(at)?;
    check(file, &writer).await?;
    MIGRATIONS.run(&writer).await.map_err(|error| OpenError::migration(file, error))?;

    let readers = pool(READERS).connect_with(options.read_only(true)).await.map_err(at)?;
    Ok((writer, readers))
}

fn pool(connections: u32) -> SqlitePoolOptions {
    // Connections to a file don't age.
    SqlitePoolOptions::new()
        .min_connections(connections)
        .max_connections(connections)
        .acquire_timeout(BUSY_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        // SQLite ends a transaction by itself when the disk is full or fails. sqlx then believes that it still runs, and
        // begins no other: such a connection is replaced. The ping before tells apart a rollback that is on its way.
        .test_before_acquire(true)
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
}

/// Makes folder and file readable by their owner alone. SQLite gives its other files the same mode.
fn create(file: &Path) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    Ok(())
}

/// Reads the whole file once: damage is found now, not when the page is needed and the last good backup is gone.
async fn check(file: &Path, writer: &SqlitePool) -> Result<(), OpenError> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(writer)
        .await
        .map_err(|source| OpenError::unusable(file, source))?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Damaged { file: file.to_owned(), reason: verdict }) }
}
