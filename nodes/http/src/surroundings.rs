//! The process that a server runs in: what tells it to end, what memory there is, and where it shows how it does.

use std::fmt;

use protoplex_runtime::context::Context;
use protoplex_runtime::drain::Drain;
use protoplex_runtime::memory::{Memory, Sample};

/// What [`crate::serve`] is told by its process, and where it tells of itself. A drain alone will do.
pub struct Surroundings {
    pub(crate) drain: Drain,
    sampler: Box<dyn Fn() -> Sample>,
    context: Option<Context>,
}

impl Surroundings {
    /// Takes samples of memory from here rather than from the system.
    #[must_use]
    pub fn with_memory(self, sampler: impl Fn() -> Sample + 'static) -> Self {
        Self { sampler: Box::new(sampler), ..self }
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
        Self { drain, sampler: Box::new(move || memory.sample()), context: None }
    }
}

impl From<&Context> for Surroundings {
    fn from(context: &Context) -> Self {
        Self { context: Some(context.clone()), ..context.drain().into() }
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}
