//! Ports that no other test of this machine takes, for what has to know its port before it listens.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};

use rustix::fs::{FlockOperation, flock};

/// Below the range from which the system takes the ports of outgoing connections (32768 on), so none of those is met.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// A port that is this process's own until the value is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a free one.
    ///
    /// # Panics
    /// When none is free, or the folder for temporary files can't be written.
    pub fn take() -> Self {
        let folder = std::env::temp_dir().join("protoplex-test-ports");
        std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
        let start = u16::try_from(std::process::id() % u32::from(LAST - FIRST)).expect("it is below 12,000");
        let candidates = (FIRST + start..=LAST).chain(FIRST..FIRST + start);
        for number in candidates {
            let lock = OpenOptions::new().create(true).append(true).open(folder.join(number.to_string()));
            let lock = lock.expect("the folder for temporary files can be written");
            let ours = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if ours && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port between {FIRST} and {LAST}");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Of 127.0.0.1, as settings have it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_are_never_the_same() {
        let (one, other) = (Port::take(), Port::take());
        assert_ne!(one.number(), other.number());
    }
}
