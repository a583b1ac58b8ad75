//! Which database is meant, and one connection to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use thiserror::Error;
use tokio::time::timeout;
use tracing::log::LevelFilter;

/// How long a connection may take to be made.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a URL may say behind its question mark. sqlx passes over what it doesn't know, and would connect without TLS
/// where somebody has misspelt `sslmode`.
const PARAMETERS: [&str; 10] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "user",
    "dbname",
    "application_name",
];

/// A database of a server, and who uses it.
#[derive(Clone)]
pub struct Target {
    options: PgConnectOptions,
}

/// Why a URL names no database.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// It is another kind of database, or no URL.
    #[error(
        "names no kind of database that Protoplex knows: write postgres://USER@HOST/DATABASE; the SQLite file in the \
         data directory has no URL"
    )]
    Scheme,
    /// It can't be read.
    #[error(
        "can't be read: {0}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ in the password"
    )]
    Malformed(String),
    /// It says something unknown.
    #[error("has the unknown parameter {0:?}; there are: {parameters}", parameters = PARAMETERS.join(", "))]
    Parameter(String),
    /// The password is where it would be shown.
    #[error(
        "has its password as a parameter: write postgres://USER:PASSWORD@HOST/DATABASE, or give datastore.password"
    )]
    Password,
    /// The name of the database is missing.
    #[error("names no database: write postgres://USER@HOST/DATABASE")]
    Database,
}

impl Target {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full`. What it leaves out is taken from the
    /// variables of libpq (PGHOST, PGUSER, …) and its password file. `password` counts before the URL's.
    pub fn parse(url: &str, password: Option<&str>) -> Result<Self, TargetError> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(TargetError::Scheme);
        }
        let (_, parameters) = url.split_once('?').unwrap_or_default();
        for (name, _) in form_urlencoded::parse(parameters.as_bytes()) {
            match &*name {
                "password" => return Err(TargetError::Password),
                name if PARAMETERS.contains(&name) => {}
                name => return Err(TargetError::Parameter(name.to_owned())),
            }
        }
        let mut options =
            PgConnectOptions::from_str(url).map_err(|error| TargetError::Malformed(reason(error)))?;
        if options.get_database().is_none() {
            return Err(TargetError::Database);
        }
        if let Some(password) = password {
            options = options.password(password);
        }
        if options.get_application_name().is_none() {
            options = options.application_name("protoplex");
        }
        // Each statement would be a line in the log of the node.
        Ok(Self { options: options.log_statements(LevelFilter::Trace) })
    }

    pub(super) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        timeout(CONNECT_TIMEOUT, self.options.connect()).await.unwrap_or_else(|_| {
            let late = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
            Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, late)))
        })
    }
}

/// Without what sqlx says before it.
fn reason(error: sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(source) => source.to_string(),
        other => other.to_string(),
    }
}

/// As it may be shown: without the password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let database = options.get_database().unwrap_or_default();
        match options.get_socket() {
            Some(folder) => {
                write!(f, "postgres://{}@{}/{database}", options.get_username(), folder.display())
            }
            None => write!(
                f,
                "postgres://{}@{}:{}/{database}",
                options.get_username(),
                options.get_host(),
                options.get_port()
            ),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        let table = [
            ("postgres://app:hush@db.example:5433/edge", "postgres://app@db.example:5433/edge"),
            (
                "postgresql://app@db.example:5432/edge?sslmode=verify-full",
                "postgres://app@db.example:5432/edge",
            ),
            ("postgres:///edge?host=/run/postgresql&user=app", "postgres://app@/run/postgresql/edge"),
        ];
        for (url, shown) in table {
            let target = Target::parse(url, Some("hush")).unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(format!("{target:?}"), shown);
        }
    }

    #[test]
    fn what_names_no_database_is_refused() {
        let table = [
            ("mysql://app@host/edge", "write postgres://"),
            ("sqlite:edge.db", "has no URL"),
            ("edge.db", "has no URL"),
            ("postgres://app:hush@host:port/edge", "invalid port number"),
            ("postgres://app@host", "names no database"),
            ("postgres://app@host/edge?sslmod=require", "unknown parameter \"sslmod\""),
            ("postgres://app@host/edge?sslmode=maybe", "unknown value \"maybe\""),
            ("postgres://host/edge?password=hush", "datastore.password"),
        ];
        for (url, why) in table {
            let error = Target::parse(url, None).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
