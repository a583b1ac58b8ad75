//! The body of an answer, made of a stored body while it is sent.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::stream;
use protoplex_http::{Body, BodyError};

use crate::answer::{Piece, Selection};
use crate::inflate::{AT_ONCE_MAX_BYTES, Inflate, Inflates, Turn};
use crate::negotiate::Coding;
use crate::object::Encoding;
use crate::storage::StorageError;
use crate::stored::StoredBody;

/// What is left to send of an answer.
pub(crate) struct Content {
    body: StoredBody,
    /// Between the stored and the raw bytes, where they differ and raw ones are wanted.
    raw: Option<Raw>,
    pieces: VecDeque<Piece>,
}

/// Raw bytes of a body that is stored in another form.
struct Raw {
    /// How more of them are made; `None` where all are.
    making: Option<(Inflate, Turn)>,
    /// Those that were made beyond the last span.
    made: Bytes,
    /// Where they end in the raw body.
    end: u64,
}

impl Content {
    /// What was selected of a stored body; none while too many are uncompressed.
    pub(crate) async fn new(
        mut body: StoredBody,
        selection: Selection,
        inflates: &Inflates,
    ) -> Result<Option<Self>, StorageError> {
        let meta = body.meta();
        let (pieces, raw) = match selection {
            Selection::Nothing => (Vec::new(), false),
            Selection::Whole(Coding::Identity) => (vec![Piece::Span(0..meta.size)], true),
            Selection::Whole(_) => (vec![Piece::Span(0..meta.stored_size)], false),
            Selection::Pieces(pieces) => (pieces, true),
        };
        let raw = match meta.size {
            _ if !raw || meta.encoding == Encoding::Identity => None,
            ..=AT_ONCE_MAX_BYTES => {
                let made = Inflate::new().whole(&mut body).await?;
                Some(Raw { making: None, end: made.len() as u64, made })
            }
            _ => {
                let Some(turn) = inflates.begin(first_byte(&pieces)).await else { return Ok(None) };
                Some(Raw { making: Some((Inflate::new(), turn)), made: Bytes::new(), end: 0 })
            }
        };
        Ok(Some(Self { body, raw, pieces: pieces.into() }))
    }

    /// As the body of an answer. A failure on the way breaks it off, which the client sees.
    pub(crate) fn into_body(self) -> Body {
        let part = match (self.pieces.front(), self.pieces.len(), &self.raw) {
            (Some(Piece::Span(span)), 1, None) => self.body.in_file(span),
            _ => None,
        };
        if let Some((file, range)) = part {
            return Body::file(file, range);
        }
        Body::stream(stream::unfold(self, async |mut content| {
            let next = content.next().await.transpose()?;
            Some((next.map_err(|error| BodyError::Other(error.to_string())), content))
        }))
    }

    /// The next bytes; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        loop {
            match self.pieces.front_mut() {
                None => return Ok(None),
                Some(Piece::Span(span)) if !span.is_empty() => {
                    let (at, end) = (span.start, span.end);
                    let bytes = self.read(at, end - at).await?;
                    if let Some(Piece::Span(span)) = self.pieces.front_mut() {
                        span.start += bytes.len() as u64;
                    }
                    return Ok(Some(bytes));
                }
                Some(Piece::Span(_)) => {}
                Some(Piece::Text(text)) => {
                    let text = std::mem::take(text);
                    self.pieces.pop_front();
                    return Ok(Some(text));
                }
            }
            self.pieces.pop_front();
        }
    }

    async fn read(&mut self, at: u64, most: u64) -> Result<Bytes, StorageError> {
        match &mut self.raw {
            Some(raw) => raw.read(&mut self.body, at, most).await,
            None => self.body.read(at, most).await,
        }
    }
}

impl Raw {
    /// Bytes at an offset that never goes back: those that lie before it are made and thrown away.
    async fn read(&mut self, body: &mut StoredBody, at: u64, most: u64) -> Result<Bytes, StorageError> {
        loop {
            let start = self.end - self.made.len() as u64;
            let skipped =
                usize::try_from(at - start).map_or(self.made.len(), |skip| skip.min(self.made.len()));
            drop(self.made.split_to(skipped));
            if !self.made.is_empty() {
                if let Some((_, turn)) = &mut self.making {
                    turn.arrived();
                }
                let length = usize::try_from(most).map_or(self.made.len(), |most| most.min(self.made.len()));
                return Ok(self.made.split_to(length));
            }
            let Some((inflate, _)) = &mut self.making else {
                return Err(StorageError::Damaged("it is shorter than its header says".into()));
            };
            self.made = inflate.next(body).await?;
            self.end += self.made.len() as u64;
        }
    }
}

/// Where the first span begins.
fn first_byte(pieces: &[Piece]) -> u64 {
    let mut spans = pieces.iter().filter_map(|piece| match piece {
        Piece::Span(span) => Some(span.start),
        Piece::Text(_) => None,
    });
    spans.next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
