//! Messages as lines of bounded length.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::OwnedWriteHalf;

/// The longest message: the metrics of a process.
const LINE_BYTES: usize = 4 << 20;
const READ_BYTES: usize = 8 << 10;

/// Why what the other end sends is not believed.
#[derive(Debug, Error)]
pub(crate) enum LineError {
    #[error("a line is longer than {LINE_BYTES} bytes")]
    TooLong,
    #[error("a line is no message: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// So many bytes of the buffer hold no end of line.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), searched: 0 }
    }

    /// The next message, or nothing at the end. Cancel-safe: what was read stays in the buffer.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, LineError> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let message = serde_json::from_slice(&self.buffer[..end])?;
                self.buffer.drain(..=end);
                self.searched = 0;
                return Ok(Some(message));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_BYTES {
                return Err(LineError::TooLong);
            }
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// A message as a line.
///
/// # Errors
/// It would be too long to be believed.
pub(crate) fn line(message: &impl Serialize) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message)?;
    if line.len() > LINE_BYTES {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// Writes a message.
pub(crate) async fn send(writer: &OwnedWriteHalf, message: &impl Serialize) -> Result<(), LineError> {
    let line = line(message)?;
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        writer.writable().await?;
        match writer.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
