//! All of a database, for [`crate::archive`].

use futures_util::{Stream, StreamExt};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};

use super::connect::Target;
use super::open;
use super::reach;
use protoplex_wire::clock::unix_ms_now;

use crate::archive::tables::{Column, Kind, TABLES, Table, Value};
use crate::archive::{Archive, ArchiveError, MOVED, UNMARK};

/// A connection in a transaction.
pub(crate) struct PgArchive {
    connection: PgConnection,
}

/// What this database makes of other columns: its column of a table, and how it is made of a row `put`.
const MADE: &[(&str, &str, &str)] = &[
    ("sites", "path_sha256", "sha256(convert_to(put.path, 'UTF8'))"),
    ("assets", "path_sha256", "sha256(convert_to(put.path, 'UTF8'))"),
    // Another than any that a datastore may have seen.
    ("leases", "renewals", "0"),
];

impl PgArchive {
    /// As of one moment, while datastores may write.
    pub(crate) async fn shared(target: &Target) -> Result<Self, ArchiveError> {
        let needed = open::known_version();
        match Self::version(target).await? {
            found if found == needed => {}
            found if found > needed => return Err(open::OpenError::newer(target, found).into()),
            found => return Err(ArchiveError::Older { database: target.to_string(), found, needed }),
        }
        let mut connection = connect(target).await?;
        open::refuse_moved(target, &mut connection).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        sqlx::query(begin).execute(&mut connection).await?;
        Ok(Self { connection })
    }

    /// With the database, of the present schema, for itself. Only what is to be replaced may have been moved away.
    pub(crate) async fn alone(target: &Target, replace: bool) -> Result<Self, ArchiveError> {
        open::pool(target).await?.close().await;
        let mut connection = connect(target).await?;
        if !reach::hold_alone(&mut connection).await? {
            return Err(ArchiveError::InUse(target.to_string()));
        }
        if !replace {
            open::refuse_moved(target, &mut connection).await?;
        }
        sqlx::query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").execute(&mut connection).await?;
        // Whoever has just lost the connection that tells that it uses the database waits, or has changed it before.
        let tables: Vec<_> = TABLES.iter().map(|table| table.name).collect();
        let lock = format!("LOCK TABLE {} IN EXCLUSIVE MODE", tables.join(", "));
        sqlx::query(AssertSqlSafe(lock)).execute(&mut connection).await?;
        Ok(Self { connection })
    }

    /// The version of its schema; 0 where there is none.
    pub(crate) async fn version(target: &Target) -> Result<i64, ArchiveError> {
        let mut connection = connect(target).await?;
        let is_there = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
        if !sqlx::query_scalar(is_there).fetch_one(&mut connection).await? {
            return Ok(0);
        }
        let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations");
        Ok(version.fetch_one(&mut connection).await?)
    }

    /// Where to it was moved, if it was.
    pub(crate) async fn moved_to(target: &Target) -> Result<Option<String>, ArchiveError> {
        Ok(open::moved_to(&mut connect(target).await?).await?)
    }
}

async fn connect(target: &Target) -> Result<PgConnection, ArchiveError> {
    let mut connection = target.connect().await.map_err(|error| open::OpenError::unusable(target, error))?;
    open::prepare(&mut connection).await?;
    Ok(connection)
}

impl Archive for PgArchive {
    fn rows<'a>(
        &'a mut self,
        table: &'static Table,
    ) -> impl Stream<Item = Result<Vec<Value>, sqlx::Error>> + Send + 'a {
        let columns: Vec<_> = table.columns.iter().map(selected).collect();
        let is_text =
            |key: &str| table.columns.iter().any(|column| column.name == key && column.kind == Kind::Text);
        let order = |key: &&str| {
            if is_text(key) { format!("{key} COLLATE \"C\"") } else { (*key).to_owned() }
        };
        let order: Vec<_> = table.key.iter().map(order).collect();
        let query =
            format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), table.name, order.join(", "));
        sqlx::query(AssertSqlSafe(query)).fetch(&mut self.connection).map(move |row| values(table, &row?))
    }

    async fn last(&mut self, table: &'static Table) -> Result<i64, sqlx::Error> {
        let Some(counter) = table.counter else { return Ok(0) };
        // Names are this crate's own.
        let sequence: String = sqlx::query_scalar("SELECT pg_get_serial_sequence($1, $2)")
            .bind(table.name)
            .bind(counter)
            .fetch_one(&mut self.connection)
            .await?;
        let last = format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}");
        sqlx::query_scalar(AssertSqlSafe(last)).fetch_one(&mut self.connection).await
    }

    async fn clear(&mut self, table: &'static Table) -> Result<(), sqlx::Error> {
        let delete = format!("DELETE FROM {}", table.name);
        sqlx::query(AssertSqlSafe(delete)).execute(&mut self.connection).await.map(drop)
    }

    async fn insert(&mut self, table: &'static Table, rows: Vec<Vec<Value>>) -> Result<(), sqlx::Error> {
        let made: Vec<_> = MADE.iter().filter(|(of, ..)| *of == table.name).collect();
        let names = table.columns.iter().map(|column| column.name);
        let into: Vec<_> = names.clone().chain(made.iter().map(|(_, name, _)| *name)).collect();
        let from: Vec<_> = names
            .clone()
            .map(|name| format!("put.{name}"))
            .chain(made.iter().map(|(_, _, how)| (*how).to_owned()))
            .collect();
        let arrays: Vec<_> = (1..)
            .zip(table.columns)
            .map(|(place, column)| format!("${place}::{}[]", sql(column.kind)))
            .collect();
        let insert = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM unnest({}) AS put ({})",
            table.name,
            into.join(", "),
            from.join(", "),
            arrays.join(", "),
            names.collect::<Vec<_>>().join(", "),
        );
        let mut columns: Vec<Vec<Value>> = table.columns.iter().map(|_| Vec::new()).collect();
        for row in rows {
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        let mut query = sqlx::query(AssertSqlSafe(insert));
        for (column, values) in table.columns.iter().zip(columns) {
            query = bind(query, column.kind, values);
        }
        query.execute(&mut self.connection).await.map(drop)
    }

    async fn go_on(&mut self, table: &'static Table, last: i64) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT setval(pg_get_serial_sequence($1, $2), greatest($3, 1), $3 > 0)")
            .bind(table.name)
            .bind(table.counter)
            .bind(last)
            .execute(&mut self.connection)
            .await
            .map(drop)
    }

    async fn mark_moved(&mut self, to: &str) -> Result<(), sqlx::Error> {
        let columns = "(destination TEXT NOT NULL, moved_at_ms BIGINT NOT NULL)";
        sqlx::query(AssertSqlSafe(format!("CREATE TABLE {MOVED} {columns}")))
            .execute(&mut self.connection)
            .await?;
        let insert = format!("INSERT INTO {MOVED} VALUES ($1, $2)");
        let insert = sqlx::query(AssertSqlSafe(insert)).bind(to).bind(unix_ms_now());
        insert.execute(&mut self.connection).await.map(drop)
    }

    async fn moved_at_ms(&mut self) -> Result<i64, sqlx::Error> {
        let at = format!("SELECT moved_at_ms FROM {MOVED}");
        sqlx::query_scalar(AssertSqlSafe(at)).fetch_one(&mut self.connection).await
    }

    async fn unmark_moved(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("SET LOCAL client_min_messages = warning").execute(&mut self.connection).await?;
        sqlx::query(UNMARK).execute(&mut self.connection).await.map(drop)
    }

    async fn commit(mut self) -> Result<(), sqlx::Error> {
        sqlx::query("COMMIT").execute(&mut self.connection).await.map(drop)
    }
}

/// The type of a column's values on their way.
fn sql(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Integer => "bigint",
        Kind::Flag => "boolean",
        Kind::Bytes => "bytea",
    }
}

/// Some integers are kept in four bytes.
fn selected(column: &Column) -> String {
    format!("{}::{}", column.name, sql(column.kind))
}

fn bind(
    query: Query<'_, Postgres, PgArguments>,
    kind: Kind,
    values: Vec<Value>,
) -> Query<'_, Postgres, PgArguments> {
    /// Values are of their column's kind, or nothing.
    fn all<T>(values: Vec<Value>, of: impl Fn(Value) -> Option<T>) -> Vec<Option<T>> {
        values.into_iter().map(of).collect()
    }
    match kind {
        Kind::Text => query.bind(all(values, |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })),
        Kind::Integer => query.bind(all(values, |value| match value {
            Value::Integer(number) => Some(number),
            _ => None,
        })),
        Kind::Flag => query.bind(all(values, |value| match value {
            Value::Flag(flag) => Some(flag),
            _ => None,
        })),
        Kind::Bytes => query.bind(all(values, |value| match value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        })),
    }
}

fn values(table: &'static Table, row: &PgRow) -> Result<Vec<Value>, sqlx::Error> {
    let value = |(index, kind)| {
        let value = match kind {
            Kind::Text => row.try_get::<Option<String>, _>(index)?.map(Value::Text),
            Kind::Integer => row.try_get::<Option<i64>, _>(index)?.map(Value::Integer),
            Kind::Flag => row.try_get::<Option<bool>, _>(index)?.map(Value::Flag),
            Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(index)?.map(Value::Bytes),
        };
        Ok(value.unwrap_or(Value::Nothing))
    };
    table.columns.iter().map(|column| column.kind).enumerate().map(value).collect()
}
