//! Whether gzip pays for a body, and the pass that writes the compressed form.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

/// A body below this is stored as it is: gzip's header and trailer alone take 18 bytes.
const MIN_BYTES: u64 = 256;
/// How much of a body is compressed to see whether it pays.
pub(crate) const TRIAL_BYTES: usize = 64 * 1024;
/// The compressed form must be at most this many hundredths of the raw one.
const MAX_PERCENT: u64 = 90;
/// Raw bytes compressed at a time. Between two steps other work gets its turn on the blocking pool.
const STEP_BYTES: usize = 1024 * 1024;

const LEVEL: Compression = Compression::new(6);

/// Media types whose bytes are compressed already; the trial is for all others.
const COMPRESSED: [&str; 17] = [
    "application/epub+zip",
    "application/gzip",
    "application/java-archive",
    "application/vnd.rar",
    "application/x-7z-compressed",
    "application/x-bzip2",
    "application/x-gzip",
    "application/x-xz",
    "application/zip",
    "application/zstd",
    "font/woff",
    "font/woff2",
    "image/avif",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/webp",
];

/// Whether a whole pass is worth a try, by type and by a trial on the body's `head` (its first [`TRIAL_BYTES`]).
pub(crate) fn promises(content_type: &str, size: u64, head: &[u8]) -> bool {
    if size < MIN_BYTES || compressed_already(content_type) {
        return false;
    }
    let mut trial = GzEncoder::new(Vec::with_capacity(TRIAL_BYTES), LEVEL);
    let packed = trial.write_all(head).and_then(|()| trial.finish());
    packed.is_ok_and(|packed| pays(head.len() as u64, packed.len() as u64))
}

fn compressed_already(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("video/")
        || (essence.starts_with("audio/") && !essence.ends_with("wav"))
        || COMPRESSED.contains(&essence.as_str())
}

fn pays(raw: u64, packed: u64) -> bool {
    packed.saturating_mul(100) <= raw.saturating_mul(MAX_PERCENT)
}

/// A compressed form as it was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) size: u64,
    pub(crate) sha256: [u8; 32],
}

/// One body to compress: from a place in one file to a place in another.
pub(crate) struct Pass {
    pub(crate) source: Arc<File>,
    pub(crate) source_at: u64,
    pub(crate) size: u64,
    pub(crate) target: Arc<File>,
    pub(crate) target_at: u64,
}

impl Pass {
    /// Compresses the body on the blocking pool; `None` as soon as it is clear that it doesn't pay.
    pub(crate) async fn run(self) -> io::Result<Option<Packed>> {
        let sink = Sink { file: self.target, at: self.target_at, written: 0, sha256: Sha256::new() };
        let mut encoder = GzEncoder::new(sink, LEVEL);
        let mut done = 0;
        while done < self.size {
            let (source, at) = (self.source.clone(), self.source_at + done);
            let step = STEP_BYTES.min(usize::try_from(self.size - done).unwrap_or(STEP_BYTES));
            encoder = spawn_blocking(move || {
                let mut raw = vec![0; step];
                source.read_exact_at(&mut raw, at)?;
                encoder.write_all(&raw)?;
                io::Result::Ok(encoder)
            })
            .await??;
            done += step as u64;
            if !pays(self.size, encoder.get_ref().written) {
                return Ok(None);
            }
        }
        let sink = spawn_blocking(move || encoder.finish()).await??;
        let packed = Packed { size: sink.written, sha256: sink.sha256.finalize().into() };
        Ok(pays(self.size, packed.size).then_some(packed))
    }
}

struct Sink {
    file: Arc<File>,
    at: u64,
    written: u64,
    sha256: Sha256,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at + self.written)?;
        self.sha256.update(bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
