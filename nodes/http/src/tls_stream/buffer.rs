//! A buffer that holds memory only while there is something in it, lent by the thread's free list.

use std::cell::RefCell;
use std::mem;

/// A buffer that the free list lends: four sealed records of 16 KiB, and the few small ones that rustls sends
/// of its own accord. On the way in it is as much as rustls allows a handshake message to have.
pub(super) const BUFFER_BYTES: usize = 66 * 1024;
/// How many buffers a thread keeps that nobody uses.
const FREE_BUFFERS: usize = 16;
/// With less space than for a whole record behind what is held, that is moved to the front first.
const RECORD_BYTES: usize = 18 * 1024 + 5;

#[derive(Default)]
struct FreeList {
    free: Vec<Box<[u8]>>,
    /// How many of this size are in use.
    lent: usize,
}

thread_local! {
    static FREE: RefCell<FreeList> = const { RefCell::new(FreeList { free: Vec::new(), lent: 0 }) };
}

fn lend() -> Box<[u8]> {
    let free = FREE.with_borrow_mut(|list| {
        list.lent += 1;
        list.free.pop()
    });
    free.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

fn give_back(memory: Box<[u8]>) {
    if memory.len() != BUFFER_BYTES {
        return;
    }
    // When the thread ends there may be no list any more.
    let _ = FREE.try_with(|list| {
        let mut list = list.borrow_mut();
        list.lent -= 1;
        if list.free.len() < FREE_BUFFERS {
            list.free.push(memory);
        }
    });
}

/// Bytes that come in at the end and leave at the front.
#[derive(Default)]
pub(super) struct Buffer {
    /// Of [`BUFFER_BYTES`] and lent, or of any other size and owned. Without bytes, none.
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.end]
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.memory.len()
    }

    /// Drops so many bytes at the front.
    pub(super) fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end, "no more can leave than came");
        if self.is_empty() {
            self.release();
        }
    }

    /// Space at the end, to be kept as bytes by [`Self::advance`]. None if the buffer is full.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.memory.len() < BUFFER_BYTES {
            self.move_to(lend());
        } else if self.memory.len() - self.end < RECORD_BYTES {
            self.move_to_front();
        }
        &mut self.memory[self.end..]
    }

    /// Like [`Self::space`], for so many bytes at least: the buffer grows.
    pub(super) fn space_for(&mut self, length: usize) -> &mut [u8] {
        if self.space().len() < length {
            self.move_to_front();
        }
        if self.memory.len() - self.end < length {
            self.move_to(vec![0; self.end + length].into_boxed_slice());
        }
        &mut self.memory[self.end..]
    }

    /// Keeps the first bytes of the space.
    pub(super) fn advance(&mut self, length: usize) {
        self.end += length;
        debug_assert!(self.end <= self.memory.len(), "no more can be kept than there is space");
        if self.is_empty() {
            self.release();
        }
    }

    /// For a wait of unknown length: holds no more memory than there are bytes.
    pub(super) fn shrink(&mut self) {
        let length = self.bytes().len();
        if length == 0 {
            self.release();
        } else if length < self.memory.len() && length != BUFFER_BYTES {
            self.move_to(Box::from(self.bytes()));
        }
    }

    /// Drops what is held.
    pub(super) fn release(&mut self) {
        give_back(mem::take(&mut self.memory));
        self.start = 0;
        self.end = 0;
    }

    fn move_to_front(&mut self) {
        if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn move_to(&mut self, mut memory: Box<[u8]>) {
        let length = self.end - self.start;
        memory[..length].copy_from_slice(self.bytes());
        give_back(mem::replace(&mut self.memory, memory));
        self.start = 0;
        self.end = length;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

/// How many buffers of this thread are in use, and how many it keeps for later.
#[cfg(test)]
pub(super) fn lent_and_free() -> (usize, usize) {
    FREE.with_borrow(|list| (list.lent, list.free.len()))
}

#[cfg(test)]
mod tests;
