//! What has passed: how many rows of each table, and their digest.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lines;
use super::tables::{TABLES, Table, Value};

/// Counts rows as they pass, table by table.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    tables: Vec<(u64, Sha256)>,
}

/// One table of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// The table.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
    /// Hex SHA-256 over the lines that say its rows, in the order of their keys.
    pub sha256: String,
}

impl Tally {
    /// Rows of one table come in the order of their keys.
    pub(crate) fn add(&mut self, table: &'static Table, values: &[Value]) {
        self.tables.resize_with(TABLES.len(), Default::default);
        // `table` is one of them.
        if let Some(at) = TABLES.iter().position(|other| std::ptr::eq(other, table)) {
            let (rows, digest) = &mut self.tables[at];
            *rows += 1;
            digest.update(lines::row(table, values));
        }
    }

    /// Of those tables that have rows.
    pub(crate) fn sums(mut self) -> Vec<Sum> {
        self.tables.resize_with(TABLES.len(), Default::default);
        let sum = |(table, (rows, digest)): (&Table, (u64, Sha256))| {
            let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            (rows > 0).then(|| Sum { table: table.name.to_owned(), rows, sha256 })
        };
        TABLES.iter().zip(self.tables).filter_map(sum).collect()
    }
}
