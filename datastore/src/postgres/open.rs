//! Opens the database, or says what is wrong with it and what to do.

use std::io;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use thiserror::Error;

use super::connect::{CONNECT_TIMEOUT, Target};
use super::fault::comes_back;
use crate::archive::MOVED;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Connections for calls; the watcher has one more.
const CONNECTIONS: u32 = 10;
/// A connection that nobody needs is kept for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// The first major version that sorts by index and rest, which pages of files rely on.
const OLDEST_SERVER: i32 = 13;

/// Why the database can't be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its server can't be reached, or serves nobody yet. Worth repeating.
    #[error("{target}: {source}")]
    Away {
        /// The database.
        target: String,
        /// What the system or the server says.
        source: sqlx::Error,
    },
    /// It is a standby. It may become the primary one: worth repeating.
    #[error("{target}: it is a standby, which can't be written to. Name the primary server")]
    Standby {
        /// The database.
        target: String,
    },
    /// The server doesn't take the user, or not with this password.
    #[error(
        "{target}: {reason}. Check user and password in datastore.url, datastore.password or \
         PROTOPLEX_DATASTORE__PASSWORD, and the server's pg_hba.conf"
    )]
    Refused {
        /// The database.
        target: String,
        /// What the server says.
        reason: String,
    },
    /// There is no such database.
    #[error("{target}: {reason}. Make it: CREATE DATABASE name OWNER user")]
    Missing {
        /// The database.
        target: String,
        /// What the server says.
        reason: String,
    },
    /// The user may not make tables in it.
    #[error("{target}: {reason}. Let its user own it: ALTER DATABASE name OWNER TO user")]
    Denied {
        /// The database.
        target: String,
        /// What the server says.
        reason: String,
    },
    /// The server is too old.
    #[error("{target}: PostgreSQL {found} is too old, it must be {OLDEST_SERVER} or newer")]
    OldServer {
        /// The database.
        target: String,
        /// The server's major version.
        found: i32,
    },
    /// Not every text can be kept in it.
    #[error(
        "{target}: its encoding is {found}. Make it anew with UTF8: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
    )]
    Encoding {
        /// The database.
        target: String,
        /// Its encoding.
        found: String,
    },
    /// A newer version of Protoplex has written it.
    #[error(
        "{target}: its schema is version {found}, and this version of Protoplex knows {known}. Nothing was changed. \
         Start the newer version, or restore a backup from before the upgrade"
    )]
    Newer {
        /// The database.
        target: String,
        /// Its schema.
        found: i64,
        /// The newest schema that is known here.
        known: i64,
    },
    /// All of it was moved elsewhere.
    #[error(
        "{target}: everything was moved to {to}: name that in datastore.url, or none for a file. To go on here as it \
         was then, and without what has changed there since: protoplex datastore migrate --undo. To put something else in \
         its place: --replace"
    )]
    Moved {
        /// The database.
        target: String,
        /// Where to.
        to: String,
    },
    /// It could not be brought to the present schema.
    #[error("{target}: the schema could not be upgraded: {source}")]
    Migration {
        /// The database.
        target: String,
        /// What failed.
        source: MigrateError,
    },
    /// The connection failed for another reason.
    #[error("{target}: {source}")]
    Unusable {
        /// The database.
        target: String,
        /// What failed.
        source: sqlx::Error,
    },
}

impl OpenError {
    /// Whether the server may be there later.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Standby { .. })
    }

    pub(super) fn unusable(target: &Target, source: sqlx::Error) -> Self {
        let target = target.to_string();
        let Some(told) = source.as_database_error() else {
            return match source {
                // What TLS has against the server's certificate comes so, and doesn't pass by itself.
                sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                    Self::Unusable { target, source: error.into() }
                }
                sqlx::Error::Io(_) => Self::Away { target, source },
                source => Self::Unusable { target, source },
            };
        };
        let reason = told.message().to_owned();
        match &*told.code().unwrap_or_default() {
            code if comes_back(code) => Self::Away { target, source },
            code if code.starts_with("28") => Self::Refused { target, reason },
            "3D000" => Self::Missing { target, reason },
            "42501" => Self::Denied { target, reason },
            _ => Self::Unusable { target, source },
        }
    }

    /// A newer version of Protoplex has brought it to this schema.
    pub(super) fn newer(target: &Target, found: i64) -> Self {
        Self::Newer { target: target.to_string(), found, known: known_version() }
    }

    fn migration(target: &Target, error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(found) if found > known_version() => Self::newer(target, found),
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
                match Self::unusable(target, source) {
                    Self::Unusable { target, source } => Self::Migration { target, source: source.into() },
                    told => told,
                }
            }
            source => Self::Migration { target: target.to_string(), source },
        }
    }
}

/// The present version of the schema.
pub(super) fn known_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Refuses a database away from which everything was moved.
pub(super) async fn refuse_moved(target: &Target, connection: &mut PgConnection) -> Result<(), OpenError> {
    match moved_to(connection).await.map_err(|source| OpenError::unusable(target, source))? {
        Some(to) => Err(OpenError::Moved { target: target.to_string(), to }),
        None => Ok(()),
    }
}

/// Where to all of it was moved, if it was.
pub(super) async fn moved_to(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let is_marked = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(MOVED);
    if !is_marked.fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    let to = sqlx::query_scalar(AssertSqlSafe(format!("SELECT destination FROM {MOVED}")));
    to.fetch_optional(connection).await
}

/// Connections to a sound database of the present schema.
pub(super) async fn pool(target: &Target) -> Result<PgPool, OpenError> {
    let at = |source| OpenError::unusable(target, source);
    let mut first = target.connect().await.map_err(at)?;
    check(target, &mut first).await?;
    first.close().await.map_err(at)?;
    // Datastores that start together upgrade it one after the other.
    migrate(target).await.map_err(|error| OpenError::migration(target, error))?;

    let options = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .test_before_acquire(true)
        .after_connect(|connection, _| Box::pin(prepare(connection)));
    Ok(options.connect_lazy_with(target.options()))
}

/// Brings the schema to the present one, over a pool because sqlx takes no connection here that goes between threads.
/// The migrator's lock lasts as long as its session, also after an error, so the pool is closed in any case.
async fn migrate(target: &Target) -> Result<(), MigrateError> {
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
    // Else it would be a line in the log of every start that the migrator's table is there already.
    let options = options.after_connect(|connection, _| {
        Box::pin(async {
            sqlx::query("SET client_min_messages = warning").execute(connection).await.map(drop)
        })
    });
    let pool = options.connect_with(target.options()).await?;
    let migrated = MIGRATIONS.run(&pool).await;
    pool.close().await;
    migrated
}

async fn check(target: &Target, connection: &mut PgConnection) -> Result<(), OpenError> {
    let (version, encoding, standby): (i32, String, bool) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await
    .map_err(|source| OpenError::unusable(target, source))?;
    let target = target.to_string();
    let major = version / 10_000;
    if major < OLDEST_SERVER {
        Err(OpenError::OldServer { target, found: major })
    } else if encoding != "UTF8" {
        Err(OpenError::Encoding { target, found: encoding })
    } else if standby {
        Err(OpenError::Standby { target })
    } else {
        Ok(())
    }
}

/// What calls rely on, whatever the server's or the database's own settings are: a commit is on the disk before it is
/// answered, a wait for a lock ends by itself although nobody waits for the answer any more, and a deployment may hold
/// its lock while a slow client sends.
pub(super) async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                    WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false),
                set_config('lock_timeout', '10s', false),
                set_config('idle_in_transaction_session_timeout', '0', false)",
    )
    .execute(connection)
    .await?;
    Ok(())
}
