//! Both digests of an upload, computed beside each other and beside the disk write, off the event loop.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};
use whirlpool::Whirlpool;
use whirlpool::digest::common::hazmat::{SerializableState, SerializedState};

use crate::reference::Reference;

/// What the event loop hands to the blocking pool at a time. Two batches of an upload are in memory at most: one that
/// is being gathered from the socket, one that is being hashed and written.
const BATCH_BYTES: usize = 256 * 1024;

/// Both digests of one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) sha256: [u8; 32],
    pub(crate) whirlpool: [u8; 64],
}

impl Digests {
    pub(crate) fn reference(&self) -> Reference {
        Reference::new(&self.sha256, &self.whirlpool)
    }
}

/// Lower-case hexadecimal, as `sha256sum` prints it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Both hashes somewhere in the middle of a content.
#[derive(Clone, Default)]
pub(crate) struct Hashers {
    sha256: Sha256,
    whirlpool: Whirlpool,
}

/// [`Hashers`] as text, so that an upload goes on in another process without reading again what came before.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct HasherState {
    sha256: String,
    whirlpool: String,
}

/// A saved state that none of our hashers wrote.
#[derive(Debug, thiserror::Error)]
#[error("the saved state of the hashes is damaged")]
pub(crate) struct DamagedState;

impl Hashers {
    pub(crate) fn save(&self) -> HasherState {
        HasherState {
            sha256: STANDARD.encode(self.sha256.serialize()),
            whirlpool: STANDARD.encode(self.whirlpool.serialize()),
        }
    }

    pub(crate) fn restore(state: &HasherState) -> Result<Self, DamagedState> {
        Ok(Self { sha256: restore(&state.sha256)?, whirlpool: restore(&state.whirlpool)? })
    }

    fn finish(self) -> Digests {
        Digests { sha256: self.sha256.finalize().into(), whirlpool: self.whirlpool.finalize().into() }
    }
}

fn restore<H: SerializableState>(text: &str) -> Result<H, DamagedState> {
    let bytes = STANDARD.decode(text).map_err(|_| DamagedState)?;
    let state = SerializedState::<H>::try_from(bytes.as_slice()).map_err(|_| DamagedState)?;
    H::deserialize(&state).map_err(|_| DamagedState)
}

/// Takes a body as it arrives: gathers batches, then hashes each twice and writes it, all three at once.
///
/// [`Intake::write`] waits for the batch before, and so passes the disk's and the hashes' pace on to the socket.
pub(crate) struct Intake {
    file: Arc<File>,
    /// Where in the file the body starts.
    start: u64,
    /// Bytes of the body that were handed to the blocking pool.
    sent: u64,
    batch: BytesMut,
    work: Work,
}

enum Work {
    Idle(Hashers),
    Running {
        batch: Bytes,
        sha256: JoinHandle<Sha256>,
        whirlpool: JoinHandle<Whirlpool>,
        disk: JoinHandle<io::Result<()>>,
    },
    /// A write failed, or one was abandoned half-way: nothing more can be taken.
    Failed,
}

impl Intake {
    /// A body whose first `offset` bytes are in the file already, hashed into `hashers`; it starts at `start` in the file.
    pub(crate) fn new(file: Arc<File>, start: u64, offset: u64, hashers: Hashers) -> Self {
        Self { file, start, sent: offset, batch: BytesMut::new(), work: Work::Idle(hashers) }
    }

    /// Bytes of the body so far.
    pub(crate) fn received(&self) -> u64 {
        self.sent + self.batch.len() as u64
    }

    /// Takes the next piece of the body.
    pub(crate) async fn write(&mut self, mut piece: &[u8]) -> io::Result<()> {
        while !piece.is_empty() {
            self.batch.reserve(BATCH_BYTES - self.batch.len());
            let (now, later) = piece.split_at(piece.len().min(BATCH_BYTES - self.batch.len()));
            self.batch.extend_from_slice(now);
            piece = later;
            if self.batch.len() == BATCH_BYTES {
                self.start_batch().await?;
            }
        }
        Ok(())
    }

    /// Waits until all that was taken is hashed and handed to the kernel.
    pub(crate) async fn settle(&mut self) -> io::Result<&Hashers> {
        if !self.batch.is_empty() {
            self.start_batch().await?;
        }
        self.finish_batch().await?;
        match &self.work {
            Work::Idle(hashers) => Ok(hashers),
            Work::Running { .. } | Work::Failed => Err(abandoned()),
        }
    }

    /// The digests of the whole body. It is in the file, though not yet forced to the disk.
    pub(crate) async fn finish(mut self) -> io::Result<Digests> {
        self.settle().await.map(|hashers| hashers.clone().finish())
    }

    async fn start_batch(&mut self) -> io::Result<()> {
        self.finish_batch().await?;
        let Work::Idle(hashers) = std::mem::replace(&mut self.work, Work::Failed) else {
            return Err(abandoned());
        };
        let batch = self.batch.split().freeze();
        let (file, at) = (self.file.clone(), self.start + self.sent);
        self.sent += batch.len() as u64;
        let bytes = batch.clone();
        let disk = spawn_blocking(move || file.write_all_at(&bytes, at));
        let sha256 = spawn_blocking({
            let bytes = batch.clone();
            move || hashers.sha256.chain_update(&bytes)
        });
        let whirlpool = spawn_blocking({
            let bytes = batch.clone();
            move || hashers.whirlpool.chain_update(&bytes)
        });
        self.work = Work::Running { batch, sha256, whirlpool, disk };
        Ok(())
    }

    async fn finish_batch(&mut self) -> io::Result<()> {
        // Taken out first: if the caller goes away while this waits, the intake must not go on from half a state.
        match std::mem::replace(&mut self.work, Work::Failed) {
            Work::Running { batch, sha256, whirlpool, disk } => {
                let (sha256, whirlpool, disk) = (sha256.await?, whirlpool.await?, disk.await?);
                disk?;
                self.work = Work::Idle(Hashers { sha256, whirlpool });
                // The memory of this batch serves the next but one.
                if self.batch.is_empty()
                    && let Ok(mut memory) = batch.try_into_mut()
                {
                    memory.clear();
                    self.batch = memory;
                }
                Ok(())
            }
            idle @ Work::Idle(_) => {
                self.work = idle;
                Ok(())
            }
            Work::Failed => Err(abandoned()),
        }
    }
}

fn abandoned() -> io::Error {
    io::Error::other("an earlier write of this upload failed")
}

#[cfg(test)]
mod tests;
