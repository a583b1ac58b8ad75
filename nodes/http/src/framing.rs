//! Follows the bytes of an HTTP/1.1 connection's requests and says how far they are sound (RFC 9112). No I/O.
//!
//! What is not wholly sound never goes on: a head and a trailer section go on when they are complete, a
//! chunk's size when its line is. Every verdict depends on the bytes alone, never on how they were cut on the
//! way, since each rule is decided at the first byte that breaks it.
//!
//! Stricter than the RFC allows for, because every leniency here is a way to smuggle a request past somebody:
//! no bare CR or LF, no folded lines, Transfer-Encoding `chunked` or none, one Content-Length, no blanks
//! around chunk sizes.

mod chunk;
mod head;
mod rule;

use chunk::{Line, size_line};
use head::{Content, Scan};
pub(crate) use head::{decimal, is_host, may_trail};
pub(crate) use rule::Rule;

/// Where in the stream of requests a connection is.
#[derive(Debug)]
pub(crate) struct Framing {
    max_head_bytes: usize,
    max_headers: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// In a head, or between two messages.
    Head(Scan),
    /// In a body of known length.
    Fixed { left: u64 },
    /// Before or in the line of a chunk's size.
    ChunkSize,
    /// In a chunk.
    ChunkData { left: u64 },
    /// After a chunk's data, before its CRLF.
    ChunkEnd,
    /// In the trailer section.
    Trailers(Scan),
}

/// What a look at the bytes has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing can go on before more bytes come.
    More,
    /// The first `length` bytes are a whole, sound head and go on; the message `ends` with it or has a body.
    Head { length: usize, ends: bool },
    /// The first `length` bytes belong to the body and go on; with the last of them the message `ends` or
    /// not.
    Body { length: usize, ends: bool },
    /// The bytes break a rule, and so nothing that follows can be trusted.
    Refused(Rule),
}

impl Framing {
    pub(crate) fn new(max_head_bytes: usize, max_headers: usize) -> Self {
        Self { max_head_bytes, max_headers, state: State::Head(Scan::head()) }
    }

    /// Whether the last message has gone on to its end, so that what comes next is a head.
    pub(crate) fn between_messages(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Looks at `bytes`, which begin right after the last one that went on. After [`Step::More`] the same
    /// bytes must come again, with more behind them; after a refusal nothing is to come.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Step {
        if bytes.is_empty() {
            return Step::More;
        }
        self.try_step(bytes).unwrap_or_else(Step::Refused)
    }

    fn try_step(&mut self, bytes: &[u8]) -> Result<Step, Rule> {
        let (next, step) = match &mut self.state {
            State::Head(scan) => {
                let Some(length) = scan.advance(bytes, self.max_head_bytes, self.max_headers)? else {
                    return Ok(Step::More);
                };
                let next = match scan.content()? {
                    Content::Fixed(0) => State::Head(Scan::head()),
                    Content::Fixed(left) => State::Fixed { left },
                    Content::Chunked => State::ChunkSize,
                };
                (next, Step::Head { length, ends: false })
            }
            State::Fixed { left } => match take(left, bytes) {
                (length, true) => (State::Head(Scan::head()), Step::Body { length, ends: false }),
                (length, false) => return Ok(Step::Body { length, ends: false }),
            },
            State::ChunkSize => match size_line(bytes)? {
                Line::Incomplete => return Ok(Step::More),
                Line::Complete { length, size: 0 } => {
                    (State::Trailers(Scan::trailers()), Step::Body { length, ends: false })
                }
                Line::Complete { length, size } => {
                    (State::ChunkData { left: size }, Step::Body { length, ends: false })
                }
            },
            State::ChunkData { left } => match take(left, bytes) {
                (length, true) => (State::ChunkEnd, Step::Body { length, ends: false }),
                (length, false) => return Ok(Step::Body { length, ends: false }),
            },
            State::ChunkEnd => match bytes {
                [b'\r'] => return Ok(Step::More),
                [b'\r', b'\n', ..] => (State::ChunkSize, Step::Body { length: 2, ends: false }),
                _ => return Err(Rule::ChunkNotEnded),
            },
            State::Trailers(scan) => {
                let Some(length) = scan.advance(bytes, self.max_head_bytes, self.max_headers)? else {
                    return Ok(Step::More);
                };
                (State::Head(Scan::head()), Step::Body { length, ends: false })
            }
        };
        self.state = next;
        let over = self.between_messages();
        Ok(match step {
            Step::Head { length, .. } => Step::Head { length, ends: over },
            Step::Body { length, .. } => Step::Body { length, ends: over },
            step => step,
        })
    }
}

/// Takes as much of `bytes` as is left of something; says how much, and whether nothing is left.
fn take(left: &mut u64, bytes: &[u8]) -> (usize, bool) {
    let length = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= length as u64;
    (length, *left == 0)
}

#[cfg(test)]
mod tests;
