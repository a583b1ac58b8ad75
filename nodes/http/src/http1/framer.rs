//! Puts the pieces of a body into an outbox such that the receiver can tell where it ends (RFC 9112 section 6).

use http::HeaderMap;

use super::write::{self, Framing};
use crate::outbox::{Data, Outbox};

/// How far a body is on its way out.
#[derive(Debug)]
pub(crate) struct Framer {
    framing: Framing,
    /// Of a body of known length: how much is to come.
    left: u64,
    ended: bool,
}

/// A body that is not as long as its receiver was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error("the body is longer than it was said to be")]
    Longer,
    #[error("the body is shorter than it was said to be")]
    Shorter,
}

impl Framer {
    /// Of a body that has just been announced.
    pub(crate) fn new(framing: Framing) -> Self {
        let (left, ended) = match framing {
            Framing::Bodiless => (0, true),
            Framing::Exact(length) => (length, length == 0),
            Framing::Chunked | Framing::UntilEnd => (0, false),
        };
        Self { framing, left, ended }
    }

    /// Of one that was announced and is not sent: of HEAD.
    pub(crate) fn without_body() -> Self {
        Self::new(Framing::Bodiless)
    }

    /// Whether all of it has been put into the outbox.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The body ends here though nothing has told so yet.
    pub(crate) fn stop(&mut self) -> Result<(), Mismatch> {
        self.ended = true;
        if self.left == 0 { Ok(()) } else { Err(Mismatch::Shorter) }
    }

    /// Whether the pieces go out as they are, with nothing in between.
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self.framing, Framing::Exact(_) | Framing::UntilEnd)
    }

    /// A piece, which may be known to be the last.
    pub(crate) fn data(&mut self, out: &mut Outbox, data: Data, is_last: bool) -> Result<(), Mismatch> {
        if data.len() == 0 {
            return Ok(());
        }
        if self.framing != Framing::Chunked {
            self.pass(data.len() as u64)?;
            out.data(data);
            return Ok(());
        }
        write::chunk_size(out.head(), data.len());
        out.data(data);
        out.tail(if is_last { write::CHUNK_AND_BODY_END } else { write::CHUNK_END });
        self.ended = is_last;
        Ok(())
    }

    /// A piece of so many bytes has gone past the outbox.
    pub(crate) fn pass(&mut self, length: u64) -> Result<(), Mismatch> {
        if let Framing::Exact(_) = self.framing {
            self.left = self.left.checked_sub(length).ok_or(Mismatch::Longer)?;
            self.ended = self.left == 0;
        }
        Ok(())
    }

    /// The end, with trailers where they can be sent.
    pub(crate) fn end(&mut self, out: &mut Outbox, trailers: Option<HeaderMap>) -> Result<(), Mismatch> {
        if self.framing == Framing::Chunked {
            match trailers {
                None => out.head().extend_from_slice(write::BODY_END),
                Some(trailers) => write::trailers(out.head(), &trailers),
            }
        }
        self.stop()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn piece(text: &'static str) -> Data {
        Data::Shared(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_body_of_known_length_is_neither_longer_nor_shorter() {
        let mut out = Outbox::default();
        let mut framer = Framer::new(Framing::Exact(3));
        framer.data(&mut out, piece("ab"), false).unwrap();
        assert_eq!(framer.pass(2), Err(Mismatch::Longer));
        assert_eq!(framer.end(&mut out, None), Err(Mismatch::Shorter));
        let mut framer = Framer::new(Framing::Exact(3));
        framer.pass(3).unwrap();
        assert!(framer.has_ended());
        assert!(Framer::new(Framing::Exact(0)).has_ended() && Framer::without_body().has_ended());
    }

    #[test]
    fn chunks_say_their_size_and_an_empty_one_is_none() {
        let mut out = Outbox::default();
        let mut framer = Framer::new(Framing::Chunked);
        framer.data(&mut out, piece(""), false).unwrap();
        assert!(out.is_empty() && !framer.has_ended());
        framer.data(&mut out, piece("ab"), true).unwrap();
        assert!(framer.has_ended());
        let expected = b"2\r\nab\r\n0\r\n\r\n";
        assert_eq!(out.len(), expected.len());
    }
}
