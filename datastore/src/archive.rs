//! A database as a whole: taken to a file, put in from one, moved to another.
//!
//! All are one flow of rows, table by table in the order of their keys, as of one moment. Who puts them in does so in one
//! transaction, and reads all of it back before it commits: what has come must be what was taken, digest by digest.
//!
//! A database into which or away from which everything is moved is used by nobody meanwhile: a datastore holds it shared
//! for as long as it runs, and these hold it alone. One that was moved away is marked, and no datastore opens it any more.

mod error;
mod flow;
pub(crate) mod lines;
mod numbers;
pub(crate) mod tables;
mod tally;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use futures_util::Stream;
use futures_util::future::try_join;
use tokio::sync::mpsc;

use protoplex_wire::clock::unix_ms_now;

use crate::builds::MAX_ASSET_BYTES;
use crate::postgres::{PgArchive, Target};
use crate::sqlite::SqliteArchive;
use flow::{Put, go_ahead, put_all, take_all};
use lines::{FORMAT, Head, Item};
use numbers::{LeasesAsTaken, moved_ahead, slack};
use tables::{Table, Value};

pub use error::ArchiveError;
pub use tally::Sum;

/// Rows on their way from one database to another.
const ROWS_IN_FLIGHT: usize = 64;
/// The longest line: one asset with its two compressed forms as base64, its path and its type.
const MAX_LINE_BYTES: usize = 4 * MAX_ASSET_BYTES + (128 << 10);

/// A database, whether it is there or not.
#[derive(Clone, Debug)]
pub enum Database {
    /// SQLite's, in this file.
    File(PathBuf),
    /// PostgreSQL's.
    Server(Box<Target>),
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Server(target) => target.fmt(f),
        }
    }
}

/// What passed, table by table.
pub type Summary = Vec<Sum>;

/// What each kind of database does for it, within one transaction of its one connection.
pub(crate) trait Archive: Send {
    /// The rows of a table, in the order of their keys.
    fn rows<'a>(
        &'a mut self,
        table: &'static Table,
    ) -> impl Stream<Item = Result<Vec<Value>, sqlx::Error>> + Send + 'a;
    /// The last number that a counter has given; 0 for none.
    fn last(&mut self, table: &'static Table) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;
    /// Removes all rows.
    fn clear(&mut self, table: &'static Table) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Adds rows.
    fn insert(
        &mut self,
        table: &'static Table,
        rows: Vec<Vec<Value>>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Has a counter go on behind this number.
    fn go_on(
        &mut self,
        table: &'static Table,
        last: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Marks the database: nobody is to open it any more.
    fn mark_moved(&mut self, to: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// When it was marked, Unix time.
    fn moved_at_ms(&mut self) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;
    /// Takes the mark away, if there is one.
    fn unmark_moved(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Makes what was done last. All else ends with the connection.
    fn commit(self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// The table in which a database that was moved says where to.
pub(crate) const MOVED: &str = "moved_away";
/// Takes the mark away.
pub(crate) const UNMARK: &str = "DROP TABLE IF EXISTS moved_away";

/// Either.
enum Opened {
    Sqlite(SqliteArchive),
    Postgres(PgArchive),
}

impl Database {
    /// That of a server.
    pub fn server(target: Target) -> Self {
        Self::Server(Box::new(target))
    }

    /// The version of its schema; 0 where there is none.
    async fn version(&self) -> Result<i64, ArchiveError> {
        match self {
            Self::File(file) => SqliteArchive::version(file).await,
            Self::Server(target) => PgArchive::version(target).await,
        }
    }

    /// An error where there is nothing yet: what has no name that was meant is not to be made.
    async fn there(&self) -> Result<(), ArchiveError> {
        match self.version().await? {
            0 => Err(ArchiveError::Missing(self.to_string())),
            _ => Ok(()),
        }
    }

    /// As of one moment, while others use it.
    async fn shared(&self) -> Result<Opened, ArchiveError> {
        Ok(match self {
            Self::File(file) => Opened::Sqlite(SqliteArchive::shared(file).await?),
            Self::Server(target) => Opened::Postgres(PgArchive::shared(target).await?),
        })
    }

    /// Of the present schema, and used by nobody else. Only what is to be replaced may have been moved away.
    async fn alone(&self, replace: bool) -> Result<Opened, ArchiveError> {
        Ok(match self {
            Self::File(file) => Opened::Sqlite(SqliteArchive::alone(file, replace).await?),
            Self::Server(target) => Opened::Postgres(PgArchive::alone(target, replace).await?),
        })
    }
}

/// Calls the same of whichever it is.
macro_rules! either {
    ($opened:expr, $archive:ident => $call:expr) => {
        match $opened {
            Opened::Sqlite($archive) => $call,
            Opened::Postgres($archive) => $call,
        }
    };
}

impl Opened {
    async fn take_all(&mut self, sink: mpsc::Sender<Item>) -> Result<Summary, ArchiveError> {
        either!(self, archive => take_all(archive, Some(sink)).await)
    }

    async fn put_all(&mut self, put: Put, items: mpsc::Receiver<Item>) -> Result<Summary, ArchiveError> {
        either!(self, archive => put_all(archive, put, items).await)
    }

    async fn mark_moved(&mut self, to: &str) -> Result<(), ArchiveError> {
        Ok(either!(self, archive => archive.mark_moved(to).await)?)
    }

    async fn commit(self) -> Result<(), ArchiveError> {
        Ok(either!(self, archive => archive.commit().await)?)
    }
}

/// Writes all of a database to `out`, as of one moment; datastores may run on it. `passed` is called for each row.
pub async fn export(
    database: &Database,
    mut out: impl Write,
    passed: impl Fn(),
) -> Result<Summary, ArchiveError> {
    database.there().await?;
    let mut opened = database.shared().await?;
    let head = Head {
        protoplex_datastore: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        from: database.to_string(),
        taken_at_ms: unix_ms_now(),
    };
    out.write_all(&lines::head(&head))?;
    let (sink, mut items) = mpsc::channel(ROWS_IN_FLIGHT);
    let write = async {
        while let Some(item) = items.recv().await {
            out.write_all(&lines::line(&item))?;
            passed();
        }
        Ok(out.flush()?)
    };
    let (summary, ()) = try_join(opened.take_all(sink), write).await?;
    Ok(summary)
}

/// Puts an archive into a database, all or nothing. Where there is something already it is replaced, if that is wanted,
/// and otherwise nothing is done; only the terms of leases go on behind the higher of both. `passed` is called for each row.
pub async fn import(
    database: &Database,
    mut input: impl BufRead,
    replace: bool,
    passed: impl Fn(),
) -> Result<Summary, ArchiveError> {
    let mut line = Vec::new();
    read_line(&mut input, &mut line, 1)?;
    let head = lines::parse_head(&line).map_err(|reason| malformed(&line, 1, reason))?;
    if head.protoplex_datastore > FORMAT {
        return Err(ArchiveError::Newer(head.protoplex_datastore));
    }
    if head.protoplex_datastore < FORMAT {
        let reason = format!("there is no format {}", head.protoplex_datastore);
        return Err(ArchiveError::Malformed { line: 1, reason });
    }
    let slack = slack(head.taken_at_ms, unix_ms_now());
    let mut opened = database.alone(replace).await?;
    let mut leases = LeasesAsTaken::default();
    let (sink, items) = mpsc::channel(ROWS_IN_FLIGHT);
    let read = async {
        for number in 2.. {
            if !read_line(&mut input, &mut line, number)? {
                break;
            }
            let item = lines::parse(&line).map_err(|reason| malformed(&line, number, reason))?;
            leases.see(&item).map_err(|reason| malformed(&line, number, reason))?;
            // Whoever takes no more of them says why.
            if sink.send(moved_ahead(item, slack)).await.is_err() {
                break;
            }
            passed();
        }
        drop(sink);
        Ok(())
    };
    let put = Put { database: database.to_string(), replace };
    let (summary, ()) = try_join(opened.put_all(put, items), read).await?;
    opened.commit().await?;
    Ok(summary)
}

/// Puts all of one database into another, as [`import`] does, and has no datastore open the first one any more. `passed`
/// is called for each row.
pub async fn migrate(
    from: &Database,
    to: &Database,
    replace: bool,
    passed: impl Fn(),
) -> Result<Summary, ArchiveError> {
    if from.to_string() == to.to_string() {
        return Err(ArchiveError::Same(to.to_string()));
    }
    from.there().await?;
    let (mut source, mut destination) = (from.alone(false).await?, to.alone(replace).await?);
    let (sink, mut taken) = mpsc::channel(ROWS_IN_FLIGHT);
    let (forward, items) = mpsc::channel(ROWS_IN_FLIGHT);
    let count = async {
        while let Some(item) = taken.recv().await {
            if forward.send(item).await.is_err() {
                break;
            }
            passed();
        }
        drop(forward);
        Ok(())
    };
    let put = Put { database: to.to_string(), replace };
    let put = destination.put_all(put, items);
    let (_, (summary, ())) = try_join(source.take_all(sink), try_join(put, count)).await?;
    // A crash between the two leaves two whole databases, and the first one is still the one that counts.
    destination.commit().await?;
    source.mark_moved(&to.to_string()).await?;
    source.commit().await?;
    Ok(summary)
}

/// Has datastores open a database again that was moved away, as it was then; but terms and counters go on behind what the
/// other one may have given. Answers where to it was moved, if it was.
pub async fn reopen(database: &Database) -> Result<Option<String>, ArchiveError> {
    database.there().await?;
    let to = match database {
        Database::File(file) => SqliteArchive::moved_to(file).await?,
        Database::Server(target) => PgArchive::moved_to(target).await?,
    };
    if to.is_some() {
        let mut opened = database.alone(true).await?;
        either!(&mut opened, archive => reopen_with(archive).await)?;
        opened.commit().await?;
    }
    Ok(to)
}

async fn reopen_with(archive: &mut impl Archive) -> Result<(), ArchiveError> {
    let slack = slack(archive.moved_at_ms().await?, unix_ms_now());
    go_ahead(archive, slack).await?;
    Ok(archive.unmark_moved().await?)
}

/// Brings a database to the present schema, as the start of a datastore would. Answers its version before and after; 0
/// where there was none.
pub async fn upgrade(database: &Database) -> Result<[i64; 2], ArchiveError> {
    let before = database.version().await?;
    drop(database.alone(false).await?);
    Ok([before, database.version().await?])
}

/// What is wrong with a line that can't be read: one of an archive that has no end is the last one.
fn malformed(line: &[u8], number: u64, reason: String) -> ArchiveError {
    let is_archive = number > 1 || line.starts_with(lines::BEGIN);
    match line.last() {
        Some(b'\n') | None => ArchiveError::Malformed { line: number, reason },
        Some(_) if is_archive => ArchiveError::Truncated,
        Some(_) => ArchiveError::Malformed { line: number, reason },
    }
}

/// Reads one line into `line`; false at the end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>, number: u64) -> Result<bool, ArchiveError> {
    line.clear();
    let cut = |error: io::Error| match error.kind() {
        // Compressed, its end is missing.
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
        _ => error.into(),
    };
    let read = input.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', line).map_err(cut)?;
    if read == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
        let reason = format!("it has more than {MAX_LINE_BYTES} bytes");
        return Err(ArchiveError::Malformed { line: number, reason });
    }
    Ok(read > 0)
}
