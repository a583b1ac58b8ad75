//! Makes raw bytes of a body that is stored as gzip, step by step on the blocking pool, in bounded memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::disk::{READ_MAX_BYTES, blocking};
use crate::storage::StorageError;
use crate::stored::StoredBody;

/// The window of any gzip stream, as a power of two (RFC 1951 section 2).
const WINDOW_BITS: u8 = 15;

/// Bodies of a child that are made raw at the same time, step by step. Each takes about 300 KiB of memory.
const MAX_INFLATES: usize = 256;
/// Of them, those on the way to a range: until they are there, each keeps a processor busy.
const MAX_SKIPS: usize = 4;
/// What is thrown away without being counted among them, in bytes: it takes some milliseconds.
const FREE_SKIP_BYTES: u64 = 4 << 20;
/// Raw bytes up to which a body is made raw at once and whole. It isn't counted: a client that reads it slowly holds no
/// more memory than with any other body, and nobody else up.
pub(crate) const AT_ONCE_MAX_BYTES: u64 = 256 * 1024;
/// How long a request waits while too many bodies are made raw.
const TURN_WAIT: Duration = Duration::from_secs(2);

/// How much of its processors and memory a child spends on bodies that go out in another form than they are stored in.
#[derive(Debug, Clone)]
pub(crate) struct Inflates {
    running: Arc<Semaphore>,
    skipping: Arc<Semaphore>,
}

/// Leave to make a body raw.
#[derive(Debug)]
pub(crate) struct Turn {
    _running: OwnedSemaphorePermit,
    /// Until the first byte that is wanted.
    skipping: Option<OwnedSemaphorePermit>,
}

impl Default for Inflates {
    fn default() -> Self {
        let [running, skipping] = [MAX_INFLATES, MAX_SKIPS].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { running, skipping }
    }
}

impl Inflates {
    /// Leave to make a body raw of which the first `skip` bytes are thrown away; none where there are too many for as
    /// long as one waits for it.
    pub(crate) async fn begin(&self, skip: u64) -> Option<Turn> {
        let turn = async {
            // The scarcer first: who waits for it takes nothing from those that skip nothing.
            let skipping = match skip {
                ..=FREE_SKIP_BYTES => None,
                _ => Some(self.skipping.clone().acquire_owned().await.ok()?),
            };
            Some(Turn { _running: self.running.clone().acquire_owned().await.ok()?, skipping })
        };
        timeout(TURN_WAIT, turn).await.ok().flatten()
    }
}

impl Turn {
    /// What is made from here on is sent.
    pub(crate) fn arrived(&mut self) {
        self.skipping = None;
    }
}

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

    /// All of a body.
    pub(crate) async fn whole(mut self, body: &mut StoredBody) -> Result<Bytes, StorageError> {
        let size = within(body.meta().size);
        let mut whole = BytesMut::with_capacity(size);
        while whole.len() < size {
            whole.extend_from_slice(&self.next(body).await?);
        }
        whole.truncate(size);
        Ok(whole.freeze())
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

/// Of what is no more than fits into memory.
fn within(count: u64) -> usize {
    usize::try_from(count).unwrap_or(READ_MAX_BYTES)
}

fn damaged(reason: &str) -> StorageError {
    StorageError::Damaged(reason.to_owned())
}
