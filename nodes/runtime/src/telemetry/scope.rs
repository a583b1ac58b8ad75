//! The trace for which this thread is at work, so that its log lines name it.

use std::cell::Cell;

thread_local! {
    static TRACE: Cell<Option<[u8; 32]>> = const { Cell::new(None) };
}

/// Does something for a trace, whose id is of 32 hexadecimal digits: log lines that are written meanwhile have it as
/// `trace_id`.
pub fn within_trace<T>(id: &[u8; 32], work: impl FnOnce() -> T) -> T {
    let _scope = Scope(TRACE.replace(Some(*id)));
    work()
}

/// The trace's id, if there is one.
pub(super) fn trace() -> Option<[u8; 32]> {
    TRACE.get()
}

/// Ends where the work does, even by a panic: what was before counts again.
struct Scope(Option<[u8; 32]>);

impl Drop for Scope {
    fn drop(&mut self) {
        TRACE.set(self.0);
    }
}
