//! A part of a file on its way into a socket.
//!
//! It is read and sent by way of one buffer that stays in the processor's cache. `sendfile`, which needs none, has to
//! handle each page of the file by itself, which costs more than the copy (see `loadtest/RESULTS.md`); and it waits for the
//! disk, with everybody on the event loop, where a page is missing.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::body::BodyError;

/// What is left of it. What the disk may have to be asked for is read by a blocking thread first.
pub(crate) struct FilePart {
    file: Arc<File>,
    range: Range<u64>,
    /// As much as is read at a time: what its receiver seems able to take.
    step: usize,
    warming: Option<JoinHandle<io::Result<()>>>,
    /// Up to there a blocking thread has read it.
    warm: u64,
}

/// The most that is read and sent at a time.
const SPACE_BYTES: usize = 256 * 1024;
/// As much is made one frame of, for receivers that want frames.
const FRAME_BYTES: usize = 64 * 1024;
/// A receiver that takes little is offered no less.
const MIN_STEP_BYTES: usize = 16 * 1024;
/// A blocking thread reads so much in one go,
const WINDOW_BYTES: u64 = 1 << 20;
/// in pieces of this size.
const READ_BYTES: usize = 128 * 1024;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The thread's memory for what is read and sent in one step.
pub(crate) fn with_space<T>(step: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| {
        space.resize(SPACE_BYTES, 0);
        step(space)
    })
}

impl FilePart {
    pub(crate) fn new(file: Arc<File>, range: Range<u64>) -> Self {
        let warm = range.start;
        Self { file, range, step: 4 * MIN_STEP_BYTES, warming: None, warm }
    }

    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// So much of it has been sent.
    pub(crate) fn consume(&mut self, length: usize) {
        self.range.start += length as u64;
        self.step = (2 * length).clamp(MIN_STEP_BYTES, SPACE_BYTES);
    }

    /// Reads the next of it, without going on; says how much. 0 is the end of the file, or of the part.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let most = space.len().min(self.step);
        let space = &mut space[..usize::try_from(self.len()).map_or(most, |left| left.min(most))];
        loop {
            if let Some(warming) = &mut self.warming {
                let read = ready!(Pin::new(warming).poll(cx));
                self.warming = None;
                read.map_err(io::Error::other)??;
            }
            let at = self.range.start;
            // Nothing is read by a blocking thread twice: what has been dropped from memory since is waited for here.
            let flags = if at < self.warm { ReadWriteFlags::empty() } else { ReadWriteFlags::NOWAIT };
            match preadv2(&*self.file, &mut [IoSliceMut::new(space)], at, flags) {
                Err(Errno::INTR) => {}
                // Some file systems can't tell what they have in memory.
                Err(Errno::AGAIN | Errno::OPNOTSUPP) if at >= self.warm => {
                    let (file, window) =
                        (Arc::clone(&self.file), at..(at + WINDOW_BYTES).min(self.range.end));
                    self.warm = window.end;
                    self.warming = Some(spawn_blocking(move || read_through(&file, window)));
                }
                read => return Poll::Ready(Ok(read?)),
            }
        }
    }

    /// The next of it, as a frame.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.len() == 0 {
            return Poll::Ready(None);
        }
        let read = with_space(|space| {
            let length = ready!(self.poll_read(cx, &mut space[..FRAME_BYTES]))?;
            Poll::Ready(Ok(Bytes::copy_from_slice(&space[..length])))
        });
        Poll::Ready(Some(match ready!(read) {
            Ok(data) if data.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(data) => {
                self.consume(data.len());
                Ok(Frame::data(data))
            }
            Err(error) => Err(BodyError::Io(error)),
        }))
    }
}

/// Has the kernel read it. Blocking.
fn read_through(file: &File, window: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; READ_BYTES];
    let mut at = window.start;
    while at < window.end {
        match file.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(length) => at += length as u64,
            // Network file systems have it.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
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
    async fn every_byte_comes_once_whether_it_was_in_memory_or_not() {
        let content: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
        for in_memory in [true, false] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            file.sync_all().unwrap();
            if !in_memory {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let range = 7..(3 << 20) - 5;
            let mut part = FilePart::new(Arc::new(file), range.clone());
            let (mut got, mut space) = (Vec::new(), vec![0; 100_000]);
            loop {
                let length = poll_fn(|cx| part.poll_read(cx, &mut space)).await.unwrap();
                if length == 0 {
                    break;
                }
                // Less than was offered, as sockets have it.
                let taken = length.min(70_000);
                got.extend_from_slice(&space[..taken]);
                part.consume(taken);
            }
            assert!(got == content[7..content.len() - 5] && part.len() == 0);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_than_its_part_has_an_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"short").unwrap();
        let mut part = FilePart::new(Arc::new(file), 0..100);
        let mut space = [0; 64];
        assert_eq!(poll_fn(|cx| part.poll_read(cx, &mut space)).await.unwrap(), 5);
        part.consume(5);
        assert_eq!(poll_fn(|cx| part.poll_read(cx, &mut space)).await.unwrap(), 0);
    }
}
