//! What an idle connection costs, and how one begins that a balancer announces.

use super::checks::{Opening, opening};
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

/// The fuzz target's check finds what it is there for.
#[tokio::test]
async fn a_header_is_read_from_a_socket_to_its_end_and_no_further() {
    let line = "PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n";
    let of = |bytes: String, pieces: &'static [usize], required| async move {
        opening(bytes.as_bytes(), pieces, required).await
    };
    let announced = Some(Opening { client: Some("192.0.2.7:4000".parse().unwrap()), header: line.len() });
    let unannounced = Some(Opening { client: None, header: 0 });
    for pieces in [&[][..], &[1], &[5, 1], &[45], &[44, 1, 1], &[1; 60]] {
        for behind in ["", "G", "GET / HTTP/1.1\r\n\r\n", "PROXY UNKNOWN\r\n"] {
            for required in [true, false] {
                assert_eq!(of(format!("{line}{behind}"), pieces, required).await, announced, "{pieces:?}");
            }
        }
        for other in ["POST / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n", "PRO", "\x16\x03\x01"] {
            assert_eq!(of(other.to_owned(), pieces, false).await, unannounced, "{other:?} {pieces:?}");
            assert_eq!(of(other.to_owned(), pieces, true).await, None, "{other:?} {pieces:?}");
        }
    }
}
