//! Numbers that are never given twice, over all moves: terms of leases, and what counters have given.

use std::collections::HashMap;

use super::lines::Item;
use super::tables::{LEASES, Value};
use super::tally::Tally;

/// By name. Terms never repeat, so of two databases the higher one counts.
#[derive(Default)]
pub(super) struct Leases(HashMap<String, Vec<Value>>);

impl Leases {
    pub(super) fn add(&mut self, lease: Vec<Value>) {
        let Some(Value::Text(name)) = lease.first() else { return };
        let is_newer = self.0.get(name).is_none_or(|other| term(other) < term(&lease));
        if is_newer {
            self.0.insert(name.clone(), lease);
        }
    }

    pub(super) fn rows(self) -> Vec<Vec<Value>> {
        self.0.into_values().collect()
    }
}

/// Which of a lease's columns is its term.
const TERM: usize = 2;
/// An epoch has 24 bits for it: see `protoplex_seed::ownership`.
const MAX_TERM: i64 = (1 << 24) - 1;

fn term(lease: &[Value]) -> i64 {
    match lease.get(TERM) {
        Some(Value::Integer(term)) => *term,
        _ => 0,
    }
}

/// What an archive's counters and terms are moved ahead by: others than those that it knows may have been given since it
/// was taken, and none is ever given twice. More than one a minute, and a thousand, are not.
pub(super) fn slack(taken_at_ms: i64, now_ms: i64) -> i64 {
    1000 + now_ms.saturating_sub(taken_at_ms).max(0) / 60_000
}

pub(super) fn term_ahead(lease: &mut [Value], slack: i64) {
    if let Some(Value::Integer(term)) = lease.get_mut(TERM) {
        *term = term.saturating_add(slack);
    }
}

/// The leases of an archive as it has them, before they are moved ahead: what comes of them can't be compared afterwards.
#[derive(Default)]
pub(super) struct LeasesAsTaken(Tally);

impl LeasesAsTaken {
    /// Errors, with why, where they are not what was taken.
    pub(super) fn see(&mut self, item: &Item) -> Result<(), String> {
        match item {
            Item::Row(table, values) if table.name == LEASES => {
                if !(0..=MAX_TERM).contains(&term(values)) {
                    return Err(format!("a term is at most {MAX_TERM}"));
                }
                self.0.add(table, values);
                Ok(())
            }
            Item::End(sums) => {
                let promised = sums.iter().find(|sum| sum.table == LEASES);
                let came = std::mem::take(&mut self.0).sums();
                match came.iter().find(|sum| sum.table == LEASES) == promised {
                    true => Ok(()),
                    false => Err(format!(
                        "table {LEASES} is not what was taken: the archive is damaged, or was changed"
                    )),
                }
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn moved_ahead(item: Item, slack: i64) -> Item {
    match item {
        Item::Counter(table, last) => Item::Counter(table, last.saturating_add(slack)),
        Item::Row(table, mut values) if table.name == LEASES => {
            term_ahead(&mut values, slack);
            Item::Row(table, values)
        }
        item => item,
    }
}
