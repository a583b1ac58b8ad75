//! The body of a message as it comes over a connection, whoever sends it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use tokio_util::io::poll_read_buf;

use super::decoder::{Decoder, Found, Step};
use super::rule::Rule;
use super::scan::{Bounds, Content};
use crate::buffer::Buffer;
use crate::head::Fields;
use crate::socket::Stream;

/// What was read, and how far in the body that is.
pub(crate) struct Intake {
    /// Read and not yet understood: part of a head or of a body, or what follows it.
    pub(crate) unread: Buffer,
    body: Decoder,
    bounds: Bounds,
    /// Found behind data that goes first.
    trailers: Option<Box<Fields>>,
}

/// What the bytes at hand have shown.
pub(crate) enum Taken {
    /// Data or trailers.
    Frame(Frame<Bytes>),
    /// The end of the body.
    End,
    /// Nothing, before more is read.
    Nothing,
}

/// What was read.
pub(crate) enum Read {
    /// Data of the body, past [`Intake::unread`].
    Data(Bytes),
    /// Something to be looked at.
    More,
    /// The sender has ended the connection.
    End,
}

/// As much of a body as is read at a time.
const BODY_BYTES: usize = 64 * 1024;

impl Intake {
    /// Before the first body. The bounds are those of trailer sections.
    pub(crate) fn new(bounds: Bounds) -> Self {
        let body = Decoder::new(Content::Fixed(0), bounds);
        Self { unread: Buffer::new(), body, bounds, trailers: None }
    }

    /// The head of a message has been read; its body begins.
    pub(crate) fn begin(&mut self, content: Content) {
        self.body = Decoder::new(content, self.bounds);
    }

    /// Whether the body is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.body.has_ended() && self.trailers.is_none()
    }

    /// How many bytes of data are still to come, where that is known.
    pub(crate) fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }

    /// The sender has ended the connection. Says whether that is the end of the body.
    pub(crate) fn connection_ended(&mut self) -> bool {
        self.body.connection_ended()
    }

    /// How many bytes of data can be had from the stream without a look at them.
    pub(crate) fn data_ahead(&self) -> u64 {
        if self.unread.is_empty() { self.body.data_ahead() } else { 0 }
    }

    /// So many of them have been.
    pub(crate) fn pass(&mut self, length: u64) {
        self.body.pass(length);
    }

    /// All of a body of known length, if it is there; and whether something follows it, which is lost.
    pub(crate) fn take_whole(&mut self) -> Option<(Buffer, bool)> {
        let length = self.exact_length().filter(|length| *length <= self.unread.len() as u64)?;
        let mut whole = std::mem::take(&mut self.unread);
        let is_followed = length < whole.len() as u64;
        whole.truncate(length as usize);
        self.pass(length);
        Some((whole, is_followed))
    }

    /// What the bytes at hand have of the body: all of its data there is, however small the chunks, or its end.
    ///
    /// # Errors
    /// The rule that its framing breaks; the same each time it is asked again.
    pub(crate) fn take(&mut self) -> Result<Taken, Rule> {
        let mut data = Vec::new();
        while self.trailers.is_none() && !self.unread.is_empty() {
            let Step { consumed, found } = match self.body.step(self.unread.filled()) {
                // What is sound before it goes on first.
                Err(_) if !data.is_empty() => break,
                step => step?,
            };
            let is_over = match found {
                Found::More => consumed == 0,
                Found::Data(range) => {
                    data.reserve_exact(if data.is_empty() { range.len() } else { 0 });
                    data.extend_from_slice(&self.unread.filled()[range]);
                    false
                }
                Found::End(trailers) => {
                    self.trailers = trailers.map(Box::new);
                    true
                }
            };
            self.unread.consume(consumed);
            if is_over {
                break;
            }
        }
        Ok(match self.trailers.take_if(|_| data.is_empty()) {
            _ if !data.is_empty() => Taken::Frame(Frame::data(data.into())),
            Some(trailers) => Taken::Frame(Frame::trailers(trailers.to_map())),
            None if self.has_ended() => Taken::End,
            None => Taken::Nothing,
        })
    }

    /// Reads once, when all that is at hand has been looked at.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<Read>> {
        let length = match self.data_ahead() {
            0 => ready!(self.unread.poll_fill(cx, stream))?,
            ahead => {
                // No memory is taken before there is something to put there.
                ready!(stream.poll_readable(cx))?;
                let size = ahead.min(BODY_BYTES as u64) as usize;
                let mut data = BytesMut::with_capacity(size);
                let mut space = (&mut data).limit(size);
                let length = ready!(poll_read_buf(Pin::new(stream), cx, &mut space))?;
                if length > 0 {
                    self.pass(length as u64);
                    return Poll::Ready(Ok(Read::Data(data.freeze())));
                }
                length
            }
        };
        Poll::Ready(Ok(if length == 0 { Read::End } else { Read::More }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 8 };

    fn intake(content: Content, bytes: &[u8]) -> Intake {
        let mut intake = Intake::new(BOUNDS);
        intake.begin(content);
        intake.unread.extend(bytes);
        intake
    }

    fn data(intake: &mut Intake) -> Vec<u8> {
        match intake.take() {
            Ok(Taken::Frame(frame)) => frame.into_data().unwrap().to_vec(),
            _ => panic!("data should come"),
        }
    }

    #[test]
    fn small_chunks_are_taken_together_and_trailers_come_behind_them() {
        let mut intake = intake(Content::Chunked, b"1\r\na\r\n1\r\nb\r\n2\r\ncd\r\n0\r\nX: y\r\n\r\nGET /");
        assert_eq!(data(&mut intake), b"abcd");
        assert!(!intake.has_ended());
        let Ok(Taken::Frame(frame)) = intake.take() else { panic!("trailers should come") };
        assert_eq!(frame.into_trailers().unwrap()["x"], "y");
        assert!(intake.has_ended() && matches!(intake.take(), Ok(Taken::End)));
        assert_eq!(intake.unread.filled(), b"GET /");
    }

    #[test]
    fn what_is_sound_goes_on_before_what_breaks_a_rule_and_that_is_told_each_time() {
        let mut intake = intake(Content::Chunked, b"1\r\na\r\n1\r\nb\r\nx\r\n");
        assert_eq!(data(&mut intake), b"ab");
        for _ in 0..2 {
            assert_eq!(intake.take().err(), Some(Rule::BadChunkSize));
        }
    }

    #[test]
    fn data_is_taken_once() {
        let mut intake = intake(Content::Chunked, b"3\r\nabcd\r\n");
        assert_eq!(data(&mut intake), b"abc");
        assert_eq!(intake.take().err(), Some(Rule::ChunkNotEnded));
    }

    #[test]
    fn a_body_of_known_length_leaves_what_follows_it() {
        let mut intake = intake(Content::Fixed(3), b"abcGET /");
        assert_eq!(data(&mut intake), b"abc");
        assert!(matches!(intake.take(), Ok(Taken::End)));
        assert_eq!(intake.unread.filled(), b"GET /");
    }

    #[test]
    fn a_body_that_is_there_is_taken_whole() {
        for (bytes, is_followed) in [(&b"abc"[..], false), (b"abcd", true)] {
            let mut intake = intake(Content::Fixed(3), bytes);
            let (whole, followed) = intake.take_whole().unwrap();
            assert_eq!((whole.filled(), followed), (&b"abc"[..], is_followed));
            assert!(intake.has_ended() && intake.unread.is_empty());
        }
        assert!(intake(Content::Fixed(3), b"ab").take_whole().is_none());
        assert!(intake(Content::Chunked, b"0\r\n\r\n").take_whole().is_none());
    }
}
