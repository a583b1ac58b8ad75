//! The only place of the workspace with `unsafe` in it.
#![expect(unsafe_code, reason = "what the system offers and no crate wraps")]

pub(crate) mod stack;
