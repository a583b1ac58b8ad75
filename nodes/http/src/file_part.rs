//! A part of a file on its way into a socket, past our memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::body::Body;

/// What is left of it. What the disk has to be asked for is read by a blocking thread before it is sent, so that the
/// event loop doesn't wait for it.
pub(crate) struct FilePart {
    file: Arc<File>,
    range: Range<u64>,
    /// Up to there the kernel has it in memory.
    warm: u64,
    warming: Option<JoinHandle<io::Result<()>>>,
    /// The same bytes for connections that can't be sent a file.
    pub(crate) otherwise: Body,
}

/// As much as is looked after, and sent, at a time.
const WINDOW_BYTES: u64 = 1 << 20;
const READ_BYTES: usize = 128 * 1024;

impl FilePart {
    pub(crate) fn new(file: Arc<File>, range: Range<u64>, otherwise: Body) -> Self {
        Self { warm: range.start, file, range, warming: None, otherwise }
    }

    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// So much of it has been sent.
    pub(crate) fn consume(&mut self, length: usize) {
        self.range.start += length as u64;
    }

    /// Where it goes on, and how much can be sent without waiting for the disk.
    pub(crate) fn poll_warm(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(u64, usize)>> {
        let at = self.range.start;
        while self.warm <= at && at < self.range.end {
            let window = at..(at + WINDOW_BYTES).min(self.range.end);
            if let Some(reading) = &mut self.warming {
                let read = ready!(Pin::new(reading).poll(cx));
                self.warming = None;
                read.map_err(io::Error::other)??;
            } else if !is_in_memory(&self.file, &window) {
                let (file, window) = (Arc::clone(&self.file), window.clone());
                self.warming = Some(spawn_blocking(move || read_through(&file, window)));
                continue;
            }
            self.warm = window.end;
        }
        Poll::Ready(Ok((at, usize::try_from(self.warm - at).unwrap_or(usize::MAX))))
    }
}

/// By its first and its last byte. Where the file system can't tell, it is taken to be.
fn is_in_memory(file: &File, window: &Range<u64>) -> bool {
    let has = |at| {
        let mut byte = [0];
        let read = preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        !matches!(read, Err(Errno::AGAIN))
    };
    has(window.start) && has(window.end - 1)
}

/// Has the kernel read it. Blocking.
fn read_through(file: &File, window: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; READ_BYTES];
    let mut at = window.start;
    while at < window.end {
        match file.read_at(&mut piece, at)? {
            0 => break,
            length => at += length as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_by_once_whether_it_was_in_memory_or_not() {
        for in_memory in [true, false] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![b'x'; 3 << 20]).unwrap();
            file.sync_all().unwrap();
            if !in_memory {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let range = 7..(3 << 20) - 5;
            let mut part = FilePart::new(Arc::new(file), range.clone(), Body::empty());
            let mut at = range.start;
            while part.len() > 0 {
                let (start, length) = poll_fn(|cx| part.poll_warm(cx)).await.unwrap();
                assert!(start == at && length > 0 && length as u64 <= WINDOW_BYTES);
                // Less than was offered, as sockets have it.
                let taken = length.min(300_000);
                part.consume(taken);
                at += taken as u64;
            }
            assert_eq!(at, range.end);
            assert_eq!(poll_fn(|cx| part.poll_warm(cx)).await.unwrap(), (range.end, 0));
        }
    }
}
