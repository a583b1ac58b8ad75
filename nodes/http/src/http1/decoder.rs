//! Follows the bytes of a message's body and says which of them are data (RFC 9112 section 7.1). No I/O.
//!
//! What is not wholly sound never goes on: a chunk's size counts when its line is complete, a trailer section when its
//! last line is. Every verdict depends on the bytes alone, never on how they were cut on the way.
//!
//! Stricter than the RFC allows for, because every leniency here is a way to smuggle a message past somebody: no bare CR
//! or LF, no folded lines, no blanks around chunk sizes.

use std::ops::Range;

use super::chunk::{Line, size_line};
use super::rule::Rule;
use super::scan::{Bounds, Content, Scan};
use crate::head::Fields;

/// A body on its way.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// Of the trailer section.
    bounds: Bounds,
}

#[derive(Debug)]
enum State {
    /// In a body of known length.
    Fixed {
        left: u64,
    },
    /// In a body that ends with its connection.
    UntilEnd,
    /// Before or in the line of a chunk's size.
    ChunkSize,
    /// In a chunk.
    ChunkData {
        left: u64,
    },
    /// After a chunk's data, before its CRLF.
    ChunkEnd,
    Trailers(Box<Scan>),
    Ended,
}

/// What a look at the bytes has shown.
#[derive(Debug)]
pub(crate) struct Step {
    /// So many bytes are done with; those behind them must come again.
    pub(crate) consumed: usize,
    pub(crate) found: Found,
}

#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing; where nothing was consumed either, before more bytes come.
    More,
    /// These of the bytes are data, and the last that are consumed.
    Data(Range<usize>),
    /// The end of the body, and the trailers of a chunked one.
    End(Option<Fields>),
}

impl Decoder {
    pub(crate) fn new(content: Content, bounds: Bounds) -> Self {
        let state = match content {
            Content::Fixed(0) => State::Ended,
            Content::Fixed(left) => State::Fixed { left },
            Content::Chunked => State::ChunkSize,
            Content::UntilEnd => State::UntilEnd,
        };
        Self { state, bounds }
    }

    /// Whether the body has been followed to its end.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// How many bytes of data are still to come, where that is known.
    pub(crate) fn exact_length(&self) -> Option<u64> {
        match self.state {
            State::Ended => Some(0),
            State::Fixed { left } => Some(left),
            _ => None,
        }
    }

    /// The sender has ended the connection. Says whether that is the end of the body.
    pub(crate) fn connection_ended(&mut self) -> bool {
        if let State::UntilEnd = self.state {
            self.state = State::Ended;
        }
        self.has_ended()
    }

    /// How many of the next bytes are surely data, so that they need not be looked at.
    pub(crate) fn data_ahead(&self) -> u64 {
        match self.state {
            State::Fixed { left } => left,
            State::UntilEnd => u64::MAX,
            _ => 0,
        }
    }

    /// So many of them have passed by.
    pub(crate) fn pass(&mut self, length: u64) {
        if let State::Fixed { left } = &mut self.state {
            *left -= length;
            if *left == 0 {
                self.state = State::Ended;
            }
        }
    }

    /// Looks at `bytes`, which begin right after the last one that was consumed. After an error nothing is to come.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Rule> {
        let mut at = 0;
        match self.advance(bytes, &mut at) {
            // What is sound before it counts, however the bytes were cut; the next look shows the rest.
            Err(_) if at > 0 => Ok(Step { consumed: at, found: Found::More }),
            result => result,
        }
    }

    fn advance(&mut self, bytes: &[u8], consumed: &mut usize) -> Result<Step, Rule> {
        let mut at = 0;
        loop {
            *consumed = at;
            let rest = &bytes[at..];
            if rest.is_empty() && !self.has_ended() {
                return Ok(Step { consumed: at, found: Found::More });
            }
            match &mut self.state {
                State::Ended => return Ok(Step { consumed: at, found: Found::End(None) }),
                State::UntilEnd => {
                    return Ok(Step { consumed: bytes.len(), found: Found::Data(at..bytes.len()) });
                }
                State::Fixed { left } => {
                    let length = take(left, rest);
                    if *left == 0 {
                        self.state = State::Ended;
                    }
                    return Ok(Step { consumed: at + length, found: Found::Data(at..at + length) });
                }
                State::ChunkData { left } => {
                    let length = take(left, rest);
                    if *left == 0 {
                        self.state = State::ChunkEnd;
                    }
                    return Ok(Step { consumed: at + length, found: Found::Data(at..at + length) });
                }
                State::ChunkSize => match size_line(rest)? {
                    Line::Incomplete => return Ok(Step { consumed: at, found: Found::More }),
                    Line::Complete { length, size } => {
                        at += length;
                        self.state = match size {
                            0 => State::Trailers(Box::new(Scan::trailers())),
                            left => State::ChunkData { left },
                        };
                    }
                },
                State::ChunkEnd => match rest {
                    [b'\r'] => return Ok(Step { consumed: at, found: Found::More }),
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::ChunkSize;
                    }
                    _ => return Err(Rule::ChunkNotEnded),
                },
                State::Trailers(scan) => {
                    let Some(length) = scan.advance(rest, self.bounds)? else {
                        return Ok(Step { consumed: at, found: Found::More });
                    };
                    let State::Trailers(scan) = std::mem::replace(&mut self.state, State::Ended) else {
                        return Err(Rule::BadTrailer);
                    };
                    let trailers = Some(scan.into_trailers()).filter(|trailers| !trailers.is_empty());
                    return Ok(Step { consumed: at + length, found: Found::End(trailers) });
                }
            }
        }
    }
}

/// Takes as much of `bytes` as is left of something; says how much.
fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let length = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= length as u64;
    length
}
