//! Disk work off the event loop.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::spawn_blocking;

/// The most that is read from a file at a time, in bytes.
pub(crate) const READ_MAX_BYTES: usize = 128 * 1024;

/// Runs work that may block on the runtime's bounded blocking pool.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    spawn_blocking(work).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked).into()))
}

/// Reads up to `most` bytes at an offset; none at the file's end. The memory of the previous read is used again once
/// whoever got it has let it go.
///
/// What the kernel has in memory is copied at once; only where the disk itself is needed does it cost a thread.
pub(crate) async fn read_at(
    file: &Arc<File>,
    buffer: &mut BytesMut,
    at: u64,
    most: u64,
) -> io::Result<Bytes> {
    let length = usize::try_from(most).map_or(READ_MAX_BYTES, |most| most.min(READ_MAX_BYTES));
    buffer.clear();
    buffer.resize(length, 0);
    match preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT) {
        Ok(read) => return Ok(buffer.split_to(read).freeze()),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let (file, mut taken) = (Arc::clone(file), std::mem::take(buffer));
    let (read, returned) = blocking(move || {
        let read = file.read_at(&mut taken, at)?;
        io::Result::Ok((read, taken))
    })
    .await?;
    *buffer = returned;
    Ok(buffer.split_to(read).freeze())
}
