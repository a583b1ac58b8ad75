//! Which child accepts on which socket, as a pure rule.
//!
//! A public address has as many sockets as its node has children (`SO_REUSEPORT`), and the kernel spreads connections over
//! the sockets. None of them is ever closed while the address is served: what waits in it would be lost, and so would
//! whoever is in the middle of a handshake. A socket whose own child can't accept is another child's for the time being.

/// The child that accepts on each of an address's sockets. `bearers` are the children that can, in order; `None` where
/// there are none.
pub(super) fn bearer_of_each(sockets: usize, bearers: &[usize]) -> Vec<Option<usize>> {
    let bearer = |socket: usize| match bearers.binary_search(&socket) {
        Ok(_) => Some(socket),
        Err(_) => bearers.get(socket % bearers.len().max(1)).copied(),
    };
    (0..sockets).map(bearer).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_child_has_its_own_socket_and_those_of_the_missing_are_shared_out() {
        for (sockets, bearers, expected) in [
            (3, &[0, 1, 2][..], &[0, 1, 2][..]),
            (3, &[0, 2], &[0, 2, 2]),
            (4, &[3], &[3, 3, 3, 3]),
            // More children than there are sockets, as where children were added and their sockets are to come.
            (1, &[0, 1], &[0]),
        ] {
            let expected: Vec<_> = expected.iter().map(|&bearer| Some(bearer)).collect();
            assert_eq!(bearer_of_each(sockets, bearers), expected, "{sockets} sockets, {bearers:?}");
        }
        assert_eq!(bearer_of_each(2, &[]), [None, None]);
    }

    proptest! {
        #[test]
        fn every_socket_has_a_bearer_and_no_bearer_stands_idle(alive in prop::collection::vec(any::<bool>(), 1..12)) {
            let bearers: Vec<_> = (0..alive.len()).filter(|&child| alive[child]).collect();
            let shared = bearer_of_each(alive.len(), &bearers);
            prop_assert!(shared.iter().all(|bearer| bearer.is_some() != bearers.is_empty()));
            prop_assert!(bearers.iter().all(|bearer| shared.contains(&Some(*bearer))));
        }
    }
}
