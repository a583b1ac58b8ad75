//! The two ends of the flow: all rows of a database are taken, or put in.

use futures_util::TryStreamExt;
use tokio::sync::mpsc;

use super::lines::Item;
use super::numbers::{Leases, term_ahead};
use super::tables::{LEASES, TABLE_VERSION, TABLES, Table, Value};
use super::tally::Tally;
use super::{Archive, ArchiveError, Summary};

/// Rows that are put in at once, at most, and bytes of such.
pub(super) const BATCH_ROWS: usize = 1000;
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// Where to all is put, and whether in the place of something else.
pub(super) struct Put {
    pub(super) database: String,
    pub(super) replace: bool,
}

/// Sends all there is, its counters, and its sums for the end.
pub(super) async fn take_all(
    archive: &mut impl Archive,
    sink: Option<mpsc::Sender<Item>>,
) -> Result<Summary, ArchiveError> {
    let send = async |item| {
        if let Some(sink) = &sink {
            // Who takes no more has failed, and says so itself.
            let _ = sink.send(item).await;
        }
    };
    let mut tally = Tally::default();
    for table in TABLES {
        let mut rows = std::pin::pin!(archive.rows(table));
        while let Some(values) = rows.try_next().await? {
            tally.add(table, &values);
            send(Item::Row(table, values)).await;
        }
    }
    for table in TABLES.iter().filter(|table| table.counter.is_some()) {
        send(Item::Counter(table, archive.last(table).await?)).await;
    }
    let sums = tally.sums();
    send(Item::End(sums.clone())).await;
    Ok(sums)
}

/// Puts in what comes, and sees that it is there.
pub(super) async fn put_all(
    archive: &mut impl Archive,
    put: Put,
    mut items: mpsc::Receiver<Item>,
) -> Result<Summary, ArchiveError> {
    let before = contents(archive).await?;
    if !put.replace && !before.found.is_empty() {
        return Err(ArchiveError::NotEmpty { database: put.database, found: before.found.join(", ") });
    }
    archive.unmark_moved().await?;
    for table in TABLES.iter().rev() {
        archive.clear(table).await?;
    }
    let mut leases = before.leases;
    let mut batch = Batch::default();
    let mut end = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Row(table, values) if table.name == LEASES => leases.add(values),
            Item::Row(table, values) => {
                if let Some((table, rows)) = batch.add(table, values) {
                    archive.insert(table, rows).await?;
                }
            }
            Item::Counter(table, last) => archive.go_on(table, last).await?,
            Item::End(sums) => end = Some(sums),
        }
    }
    if let Some((table, rows)) = batch.take() {
        archive.insert(table, rows).await?;
    }
    let leases = leases.rows();
    if let Some(table) = Table::named(LEASES).filter(|_| !leases.is_empty()) {
        archive.insert(table, leases).await?;
    }
    let promised = end.ok_or(ArchiveError::Truncated)?;
    let there = take_all(archive, None).await?;
    let of = |sums: &Summary, table: &Table| sums.iter().find(|sum| sum.table == table.name).cloned();
    let differs = |table: &&Table| table.name != LEASES && of(&promised, table) != of(&there, table);
    match TABLES.iter().find(differs) {
        Some(table) => Err(ArchiveError::Damaged(table.name.to_owned())),
        None => Ok(there),
    }
}

/// Has terms and counters go on behind others that were given elsewhere.
pub(super) async fn go_ahead(archive: &mut impl Archive, slack: i64) -> Result<(), ArchiveError> {
    for table in TABLES.iter().filter(|table| table.counter.is_some()) {
        let last = archive.last(table).await?;
        archive.go_on(table, last.saturating_add(slack)).await?;
    }
    if let Some(table) = Table::named(LEASES) {
        let mut leases: Vec<_> = archive.rows(table).try_collect().await?;
        leases.iter_mut().for_each(|lease| term_ahead(lease, slack));
        archive.clear(table).await?;
        archive.insert(table, leases).await?;
    }
    Ok(())
}

/// What a database holds before anything is put into it.
struct Contents {
    /// "3 rows of handlers", as far as an empty database wouldn't have them.
    found: Vec<String>,
    leases: Leases,
}

async fn contents(archive: &mut impl Archive) -> Result<Contents, ArchiveError> {
    let mut found = Vec::new();
    let mut leases = Leases::default();
    for table in TABLES {
        let mut count = 0_u64;
        let mut rows = std::pin::pin!(archive.rows(table));
        while let Some(values) = rows.try_next().await? {
            count += 1;
            match table.name {
                LEASES => leases.add(values),
                TABLE_VERSION if values != [Value::Integer(1)] => found.push("changed handlers".to_owned()),
                _ => {}
            }
        }
        if count > 0 && !table.has_first_rows {
            found.push(format!("{count} rows of {}", table.name));
        }
    }
    Ok(Contents { found, leases })
}

/// Rows of one table that are put in together.
#[derive(Default)]
struct Batch {
    table: Option<&'static Table>,
    rows: Vec<Vec<Value>>,
    bytes: usize,
}

impl Batch {
    /// Adds a row; answers those that are to be put in before.
    fn add(&mut self, table: &'static Table, row: Vec<Value>) -> Option<(&'static Table, Vec<Vec<Value>>)> {
        let bytes: usize = row.iter().map(Value::bytes).sum();
        let is_full = self.rows.len() >= BATCH_ROWS || self.bytes + bytes > BATCH_BYTES;
        let is_other = self.table.is_some_and(|other| other != table);
        let before = if is_full || is_other { self.take() } else { None };
        self.table = Some(table);
        self.bytes += bytes;
        self.rows.push(row);
        before
    }

    fn take(&mut self) -> Option<(&'static Table, Vec<Vec<Value>>)> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        self.table.take().filter(|_| !rows.is_empty()).map(|table| (table, rows))
    }
}
