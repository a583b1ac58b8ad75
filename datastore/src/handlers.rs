//! What a change of the table of handlers has to be, and why one is refused.

use std::collections::HashSet;

use protoplex_wire::proto::{ChangeHandlersRequest, Handler};

use crate::store::{StoreError, StoreResult};

/// What can be said of a change by itself.
pub(crate) fn check(request: &ChangeHandlersRequest) -> StoreResult<()> {
    let names = request.put.iter().map(|handler| &handler.name).chain(&request.remove);
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(StoreError::Invalid("a handler needs a name".to_owned()));
        }
        if !seen.insert(name) {
            return Err(StoreError::Invalid(format!("handler {name:?} stands twice in one change")));
        }
    }
    if seen.is_empty() { Err(StoreError::Invalid("the change changes nothing".to_owned())) } else { Ok(()) }
}

/// The version that a change of a table of this version makes.
pub(crate) fn next_version(request: &ChangeHandlersRequest, version: u64) -> StoreResult<u64> {
    if version == request.base {
        return Ok(version + 1);
    }
    Err(StoreError::Conflict(format!(
        "the handlers have version {version}, and the change was made of version {}",
        request.base
    )))
}

pub(crate) fn unknown(name: &str) -> StoreError {
    StoreError::NotFound(format!("there is no handler {name:?}"))
}

/// Another one has its host and path.
pub(crate) fn taken(handler: &Handler, other: &str) -> StoreError {
    StoreError::AlreadyExists(format!("handler {other:?} has {}{} already", handler.host, handler.path))
}

/// A version that is not among those that are: from the first to the last.
pub(crate) fn not_kept(version: i64, (first, last): (i64, i64)) -> StoreError {
    StoreError::NotFound(format!(
        "version {version} of the handlers is not kept: there are {first} to {last}"
    ))
}
