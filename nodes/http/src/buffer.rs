//! Memory for bytes that are on their way through, held only as long as there are some.

#[cfg(test)]
use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use crate::socket::Stream;

/// Bytes that were read and are not used up, or written and not sent. An empty one holds no memory.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// So many of the first bytes are used up.
    used: usize,
}

/// As much as is read of a head at a time, and a small body with it.
const BUFFER_BYTES: usize = 16 * 1024;
/// So many at most are kept unused in a thread.
const MAX_FREE: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// How many buffers hold memory.
    #[cfg(test)]
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// How many buffers of this thread hold memory.
#[cfg(test)]
pub(crate) fn held() -> usize {
    HELD.get()
}

impl Buffer {
    pub(crate) const fn new() -> Self {
        Self { bytes: Vec::new(), used: 0 }
    }

    /// The bytes.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == self.bytes.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// The first bytes are used up.
    pub(crate) fn consume(&mut self, length: usize) {
        self.used += length;
        if self.is_empty() {
            self.release();
        }
    }

    /// All but the first bytes are dropped.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(self.used + length);
        if self.is_empty() {
            self.release();
        }
    }

    /// The memory itself, for bytes to be put behind those that are there.
    pub(crate) fn memory(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            #[cfg(test)]
            HELD.set(HELD.get() + 1);
            self.bytes = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES));
        }
        &mut self.bytes
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.memory().extend_from_slice(bytes);
        }
    }

    /// Reads once, behind the bytes that are there; 0 is the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        let bytes = self.memory();
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        let read = stream.poll_fill(cx, bytes);
        if self.is_empty() {
            self.release();
        }
        Poll::Ready(ready!(read))
    }

    /// The bytes for keeps.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        #[cfg(test)]
        HELD.set(HELD.get() - usize::from(self.bytes.capacity() > 0));
        let mut bytes = Bytes::from(std::mem::take(&mut self.bytes));
        bytes.advance(self.used);
        bytes
    }

    fn release(&mut self) {
        self.used = 0;
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() == 0 {
            return;
        }
        #[cfg(test)]
        let _ = HELD.try_with(|held| held.set(held.get() - 1));
        bytes.clear();
        if bytes.capacity() != BUFFER_BYTES {
            return;
        }
        // The list is gone where its thread ends.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MAX_FREE {
                free.push(bytes);
            }
        });
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            self.release();
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::{Read, Script};

    fn free() -> usize {
        FREE.with_borrow(Vec::len)
    }

    #[test]
    fn memory_is_held_only_while_there_are_bytes() {
        let mut buffer = Buffer::new();
        assert_eq!((buffer.bytes.capacity(), free()), (0, 0));
        buffer.extend(b"hello");
        buffer.consume(2);
        assert_eq!((buffer.filled(), buffer.len()), (&b"llo"[..], 3));
        buffer.consume(3);
        assert_eq!((buffer.bytes.capacity(), free()), (0, 1));
        buffer.extend(b"again");
        assert_eq!(free(), 0);
        drop(buffer);
        assert_eq!(free(), 1);
    }

    #[test]
    fn a_stream_is_read_behind_what_is_there_and_beyond_the_common_size() {
        let mut stream =
            Stream::Script(Box::new(Script::new([Read::Bytes(vec![b'y'; 3 * BUFFER_BYTES]), Read::End])));
        let mut buffer = Buffer::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        buffer.extend(b"x");
        while let Poll::Ready(Ok(1..)) = buffer.poll_fill(&mut cx, &mut stream) {}
        assert_eq!(buffer.len(), 1 + 3 * BUFFER_BYTES);
        // What has grown is not kept for others.
        drop(buffer);
        assert_eq!(free(), 0);
    }
}
