//! Makes raw bytes of a body that is stored as gzip, step by step on the blocking pool, in bounded memory.

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use crate::disk::{READ_MAX_BYTES, blocking};
use crate::storage::StorageError;
use crate::stored::StoredBody;

/// The window of any gzip stream, as a power of two (RFC 1951 section 2).
const WINDOW_BITS: u8 = 15;

/// A gzip stream somewhere in its middle. It goes forward only.
pub(crate) struct Inflate {
    /// Away while it works.
    engine: Option<Decompress>,
    /// Stored bytes that were read.
    read: u64,
    input: Bytes,
    buffer: BytesMut,
}

impl Inflate {
    /// At the start of a body.
    pub(crate) fn new() -> Self {
        let engine = Decompress::new_gzip(WINDOW_BITS);
        Self { engine: Some(engine), read: 0, input: Bytes::new(), buffer: BytesMut::new() }
    }

    /// The next raw bytes, at least one. It is an error to ask beyond the end.
    pub(crate) async fn next(&mut self, body: &mut StoredBody) -> Result<Bytes, StorageError> {
        loop {
            let left = body.meta().stored_size - self.read;
            if self.input.is_empty() && left > 0 {
                self.input = body.read(self.read, left).await?;
                self.read += self.input.len() as u64;
            }
            let mut engine = self.engine.take().ok_or_else(|| damaged("an earlier step failed"))?;
            let (input, mut output) = (self.input.clone(), std::mem::take(&mut self.buffer));
            let (engine, status, taken, mut output) = blocking(move || {
                output.clear();
                output.resize(READ_MAX_BYTES, 0);
                let (read, made) = (engine.total_in(), engine.total_out());
                let status = engine.decompress(&input, &mut output, FlushDecompress::None);
                output.truncate(within(engine.total_out() - made));
                let taken = within(engine.total_in() - read);
                Ok::<_, StorageError>((engine, status, taken, output))
            })
            .await?;
            self.engine = Some(engine);
            self.input.advance(taken);
            let made = output.split().freeze();
            self.buffer = output;
            match status {
                Err(error) => return Err(damaged(&error.to_string())),
                _ if !made.is_empty() => return Ok(made),
                Ok(Status::StreamEnd) => return Err(damaged("its gzip stream ends early")),
                Ok(_) if taken == 0 && self.read == body.meta().stored_size => {
                    return Err(damaged("its gzip stream is cut"));
                }
                Ok(_) => {}
            }
        }
    }
}

/// Of a step that was given no more than fits into memory.
fn within(count: u64) -> usize {
    usize::try_from(count).unwrap_or(READ_MAX_BYTES)
}

fn damaged(reason: &str) -> StorageError {
    StorageError::Damaged(reason.to_owned())
}
