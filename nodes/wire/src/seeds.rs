//! Seeds: any number of them stand by, one leads. Where a node looks for them, and how one that doesn't lead says who does.

mod book;
mod redirect;
mod search;

pub use book::Seeds;
pub use redirect::{Redirect, address_of, fenced, holder, newer_term};
pub use search::Search;

/// Seeds that a node keeps in mind, at most.
pub const MAX_SEEDS: usize = 16;
