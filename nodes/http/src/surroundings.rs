//! The process that a server runs in: what tells it to end, what memory there is, and where it shows how it does.

use std::fmt;
use std::time::Duration;

use protoplex_runtime::context::Context;
use protoplex_runtime::drain::{Drain, Drained};
use protoplex_runtime::memory::{Memory, Sample};

/// What [`crate::serve`] is told by its process, and where it tells of itself. A drain alone will do.
pub struct Surroundings {
    pub(crate) drain: Drain,
    /// So long after its start the process ends.
    pub(crate) drain_timeout: Duration,
    sampler: Box<dyn Fn() -> Sample>,
    context: Option<Context>,
}

impl Surroundings {
    /// Takes samples of memory from here rather than from the system.
    #[must_use]
    pub fn with_memory(self, sampler: impl Fn() -> Sample + 'static) -> Self {
        Self { sampler: Box::new(sampler), ..self }
    }

    /// The process ends so long after a drain has started.
    #[must_use]
    pub fn with_drain_timeout(self, drain_timeout: Duration) -> Self {
        Self { drain_timeout, ..self }
    }

    /// This starts the drain of the server, which may be later than that of the process.
    #[must_use]
    pub fn with_drain(self, drain: Drain) -> Self {
        Self { drain, ..self }
    }

    /// The memory that there is now.
    pub(crate) fn memory(&self) -> Sample {
        (self.sampler)()
    }

    /// Shows on the status page how many connections are open and how many there have been.
    pub(crate) fn show_connections(&self, open: u64, accepted: u64) {
        if let Some(context) = &self.context {
            context.detail("connections", open);
            context.detail("accepted", accepted);
        }
    }

    /// Shows how a drain goes on.
    pub(crate) fn show_drain(&self, drained: Drained) {
        if let Some(context) = &self.context {
            context.drained(drained);
        }
    }

    /// Tells whether requests are refused for want of memory.
    pub(crate) fn show_shedding(&self, shedding: bool) {
        if let Some(context) = &self.context {
            context.shedding(shedding);
            context.detail("shedding", shedding);
        }
    }
}

impl From<Drain> for Surroundings {
    fn from(drain: Drain) -> Self {
        let memory = Memory::new();
        Self {
            drain,
            drain_timeout: Duration::MAX,
            sampler: Box::new(move || memory.sample()),
            context: None,
        }
    }
}

impl From<&Context> for Surroundings {
    fn from(context: &Context) -> Self {
        let drain_timeout = context.common().timing.drain_timeout();
        Self { context: Some(context.clone()), drain_timeout, ..context.drain().into() }
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}
