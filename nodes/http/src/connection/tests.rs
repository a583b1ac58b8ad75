//! What an idle connection costs.

use super::*;
use crate::Body;
use crate::exchange::{Answer, Exchange};

struct Nothing;

impl Service for Nothing {
    async fn answer(&self, _: &Rc<Exchange>, _: Body) -> Answer {
        unreachable!("nobody asks")
    }
}

fn size_of_connection<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

fn size_of_opening<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

/// Each byte here is one for each of thousands of clients that say nothing, or nothing any more.
#[test]
fn an_idle_connection_is_small() {
    let (connection, opening) = (size_of_connection(connection::<Nothing>), size_of_opening(open::<Nothing>));
    assert!(connection <= 248 && opening <= 568, "{connection} {opening}");
}
