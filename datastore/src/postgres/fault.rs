//! What an error of PostgreSQL comes to, by its SQLSTATE
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use crate::store::StoreError;

/// What an error of the server comes to.
pub(crate) fn fault(error: sqlx::Error) -> StoreError {
    let Some(told) = error.as_database_error() else { return StoreError::Database(error) };
    let code = told.code().unwrap_or_default();
    match &*code {
        // serialization_failure, deadlock_detected, unique_violation: the transaction is rolled back.
        "40001" | "40P01" | "23505" => StoreError::Contended,
        // disk_full
        "53100" => StoreError::Full,
        // out_of_memory, query_canceled, lock_not_available, and sessions that were idle for too long.
        "53200" | "57014" | "55P03" | "25P03" | "57P05" => StoreError::Busy,
        // character_not_in_repertoire: a NUL, which no text of PostgreSQL can have.
        "22021" => StoreError::Invalid("a text has a NUL in it".to_owned()),
        // program_limit_exceeded: a name that is too long for its index.
        "54000" => StoreError::Invalid(told.message().to_owned()),
        _ if is_away(&code) => StoreError::Away(told.message().to_owned()),
        _ => StoreError::Database(error),
    }
}

/// Whether the server serves nobody, or not us, for now. The same call may succeed once somebody has looked after it.
fn is_away(code: &str) -> bool {
    // The server stops, starts or has crashed; it has no connection left; the database is gone; it is a standby.
    comes_back(code) || matches!(code, "57P04" | "3D000" | "25006") || code.starts_with("28")
}

/// Whether the server serves nobody for now, and will by itself.
pub(super) fn comes_back(code: &str) -> bool {
    matches!(code, "57P01" | "57P02" | "57P03" | "53300") || code.starts_with("08")
}
