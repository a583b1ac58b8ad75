//! Pipes through which bytes go from one socket to another without being copied.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// A pipe of one transfer at a time.
pub(crate) struct Pipe {
    /// Taken when the pipe is dropped.
    ends: Option<Ends>,
    /// How many bytes are in it.
    pub(crate) held: usize,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// What a pipe holds at most; less where the system allows for less.
pub(crate) const PIPE_BYTES: usize = 1 << 20;
/// So many at most are kept unused in a thread.
const MAX_FREE: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// There are no file descriptors left.
    pub(crate) fn open() -> io::Result<Self> {
        let ends = match FREE.with_borrow_mut(Vec::pop) {
            Some(ends) => ends,
            None => {
                let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
                // Where this is refused the pipe has its common size.
                let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
                Ends { read, write }
            }
        };
        Ok(Self { ends: Some(ends), held: 0 })
    }

    /// Where bytes go in.
    pub(crate) fn end_in(&self) -> io::Result<&OwnedFd> {
        self.ends.as_ref().map(|ends| &ends.write).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Where they come out.
    pub(crate) fn end_out(&self) -> io::Result<&OwnedFd> {
        self.ends.as_ref().map(|ends| &ends.read).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // What is left in it must not come out elsewhere.
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else { return };
        // The list is gone where its thread ends.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MAX_FREE {
                free.push(ends);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_pipe_is_used_again() {
        let mut pipe = Pipe::open().unwrap();
        pipe.held = 1;
        drop(pipe);
        assert_eq!(FREE.with_borrow(Vec::len), 0);
        drop(Pipe::open().unwrap());
        assert_eq!(FREE.with_borrow(Vec::len), 1);
        let _pipe = Pipe::open().unwrap();
        assert_eq!(FREE.with_borrow(Vec::len), 0);
    }
}
