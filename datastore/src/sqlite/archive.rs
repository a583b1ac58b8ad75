//! All of a file, for [`crate::archive`].

use std::fs::File;
use std::path::Path;

use futures_util::{Stream, StreamExt};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Row, Sqlite, SqliteConnection};

use super::open;
use protoplex_wire::clock::unix_ms_now;

use crate::archive::tables::{Kind, Table, Value};
use crate::archive::{Archive, ArchiveError, MOVED, UNMARK};

/// A connection in a transaction.
pub(crate) struct SqliteArchive {
    connection: Connection,
    /// Held while nobody else may use the file.
    _lock: Option<File>,
}

enum Connection {
    Reading(SqliteConnection),
    Writing(PoolConnection<Sqlite>),
}

impl SqliteArchive {
    /// As of one moment, while a datastore may write.
    pub(crate) async fn shared(file: &Path) -> Result<Self, ArchiveError> {
        let needed = open::known_version();
        match Self::version(file).await? {
            found if found == needed => {}
            found if found > needed => return Err(open::OpenError::newer(file, found).into()),
            found => return Err(ArchiveError::Older { database: file.display().to_string(), found, needed }),
        }
        open::refuse_moved(file).await?;
        let mut connection = reader(file).await?;
        sqlx::query("BEGIN").execute(&mut connection).await?;
        Ok(Self { connection: Connection::Reading(connection), _lock: None })
    }

    /// With the file, of the present schema, for itself. Only what is to be replaced may have been moved away.
    pub(crate) async fn alone(file: &Path, replace: bool) -> Result<Self, ArchiveError> {
        let lock = match open::lock(file) {
            Err(open::OpenError::InUse { file }) => {
                return Err(ArchiveError::InUse(file.display().to_string()));
            }
            lock => lock?,
        };
        if !replace {
            open::refuse_moved(file).await?;
        }
        let (writer, _) = open::pools(file).await?;
        let mut connection = writer.acquire().await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        Ok(Self { connection: Connection::Writing(connection), _lock: Some(lock) })
    }

    /// The version of its schema; 0 where there is none.
    pub(crate) async fn version(file: &Path) -> Result<i64, ArchiveError> {
        if !file.exists() {
            return Ok(0);
        }
        let mut connection = reader(file).await?;
        let tables = "SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'";
        let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut connection).await?;
        if tables == 0 {
            return Ok(0);
        }
        let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations");
        Ok(version.fetch_one(&mut connection).await?)
    }

    /// Where to it was moved, if it was.
    pub(crate) async fn moved_to(file: &Path) -> Result<Option<String>, ArchiveError> {
        Ok(open::moved_to(file).await?)
    }

    fn connection(&mut self) -> &mut SqliteConnection {
        match &mut self.connection {
            Connection::Reading(connection) => connection,
            Connection::Writing(connection) => connection,
        }
    }
}

async fn reader(file: &Path) -> Result<SqliteConnection, ArchiveError> {
    let options = SqliteConnectOptions::new().filename(file).pragma("query_only", "1");
    let connection = options.busy_timeout(open::BUSY_TIMEOUT).connect().await;
    Ok(connection.map_err(|error| open::OpenError::unusable(file, error))?)
}

impl Archive for SqliteArchive {
    fn rows<'a>(
        &'a mut self,
        table: &'static Table,
    ) -> impl Stream<Item = Result<Vec<Value>, sqlx::Error>> + Send + 'a {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        let query =
            format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), table.name, table.key.join(", "));
        sqlx::query(AssertSqlSafe(query)).fetch(self.connection()).map(move |row| values(table, &row?))
    }

    async fn last(&mut self, table: &'static Table) -> Result<i64, sqlx::Error> {
        let last = sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = ?").bind(table.name);
        Ok(last.fetch_optional(self.connection()).await?.unwrap_or_default())
    }

    async fn clear(&mut self, table: &'static Table) -> Result<(), sqlx::Error> {
        let delete = format!("DELETE FROM {}", table.name);
        sqlx::query(AssertSqlSafe(delete)).execute(self.connection()).await.map(drop)
    }

    async fn insert(&mut self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), sqlx::Error> {
        let columns: Vec<_> = table.columns.iter().map(|column| column.name).collect();
        let places = vec!["?"; columns.len()].join(", ");
        let insert = format!("INSERT INTO {} ({}) VALUES ({places})", table.name, columns.join(", "));
        for row in rows {
            let mut query = sqlx::query(AssertSqlSafe(insert.clone()));
            for value in row {
                query = bind(query, value);
            }
            query.execute(self.connection()).await?;
        }
        Ok(())
    }

    async fn go_on(&mut self, table: &'static Table, last: i64) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM sqlite_sequence WHERE name = ?")
            .bind(table.name)
            .execute(self.connection())
            .await?;
        let insert = sqlx::query("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)");
        insert.bind(table.name).bind(last).execute(self.connection()).await.map(drop)
    }

    async fn mark_moved(&mut self, to: &str) -> Result<(), sqlx::Error> {
        let columns = "(destination TEXT NOT NULL, moved_at_ms INTEGER NOT NULL)";
        sqlx::query(AssertSqlSafe(format!("CREATE TABLE {MOVED} {columns} STRICT")))
            .execute(self.connection())
            .await?;
        let insert = format!("INSERT INTO {MOVED} VALUES (?, ?)");
        let insert = sqlx::query(AssertSqlSafe(insert)).bind(to).bind(unix_ms_now());
        insert.execute(self.connection()).await.map(drop)
    }

    async fn moved_at_ms(&mut self) -> Result<i64, sqlx::Error> {
        let at = format!("SELECT moved_at_ms FROM {MOVED}");
        sqlx::query_scalar(AssertSqlSafe(at)).fetch_one(self.connection()).await
    }

    async fn unmark_moved(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query(UNMARK).execute(self.connection()).await.map(drop)
    }

    async fn commit(mut self) -> Result<(), sqlx::Error> {
        sqlx::query("COMMIT").execute(self.connection()).await.map(drop)
    }
}

fn bind(query: Query<'_, Sqlite, SqliteArguments>, value: Value) -> Query<'_, Sqlite, SqliteArguments> {
    match value {
        Value::Nothing => query.bind(None::<i64>),
        Value::Text(text) => query.bind(text),
        Value::Integer(number) => query.bind(number),
        Value::Flag(flag) => query.bind(i64::from(flag)),
        Value::Bytes(bytes) => query.bind(bytes),
    }
}

fn values(table: &'static Table, row: &SqliteRow) -> Result<Vec<Value>, sqlx::Error> {
    let value = |(index, kind)| {
        let value = match kind {
            Kind::Text => row.try_get::<Option<String>, _>(index)?.map(Value::Text),
            Kind::Integer => row.try_get::<Option<i64>, _>(index)?.map(Value::Integer),
            Kind::Flag => row.try_get::<Option<i64>, _>(index)?.map(|flag| Value::Flag(flag != 0)),
            Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(index)?.map(Value::Bytes),
        };
        Ok(value.unwrap_or(Value::Nothing))
    };
    table.columns.iter().map(|column| column.kind).enumerate().map(value).collect()
}
