//! A stored body that can be read at any offset, wherever its bytes are, or still come from.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::cache::{End, Found, Progress};
use crate::disk::read_at;
use crate::object::{BODY_OFFSET, Meta};
use crate::reference::Reference;
use crate::storage::StorageError;
use crate::storage::s3::{RemoteBody, S3};

/// A body that was found, and the way to its bytes.
#[derive(Debug)]
pub(crate) struct StoredBody {
    meta: Meta,
    source: Source,
    /// Memory of the last read from a file.
    buffer: BytesMut,
}

#[derive(Debug)]
enum Source {
    Whole(Arc<File>),
    Growing(watch::Receiver<Progress>, Remote),
    Through(Remote),
}

/// A body in S3, read in one stream as long as the reads follow each other.
#[derive(Debug)]
struct Remote {
    s3: S3,
    reference: Reference,
    stream: Option<RemoteBody>,
    /// Where in the body the stream, or what is left of its last piece, goes on.
    at: u64,
    rest: Bytes,
}

impl StoredBody {
    /// A whole file in the one-file form.
    pub(crate) fn whole(meta: Meta, file: Arc<File>) -> Self {
        Self { meta, source: Source::Whole(file), buffer: BytesMut::new() }
    }

    /// What the cache found, in front of `s3`.
    pub(crate) fn of_cache(found: Found, s3: &S3, reference: &Reference) -> Self {
        let remote = |stream| Remote {
            s3: s3.clone(),
            reference: reference.clone(),
            stream,
            at: 0,
            rest: Bytes::new(),
        };
        let (meta, source) = match found {
            Found::Whole(meta, file) => (meta, Source::Whole(file)),
            Found::Growing(meta, progress) => (meta, Source::Growing(progress, remote(None))),
            Found::Through(meta, stream) => (meta, Source::Through(remote(Some(stream)))),
        };
        Self { meta, source, buffer: BytesMut::new() }
    }

    /// What is known about it.
    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Where some bytes of the stored form are, if they are all in a file.
    pub(crate) fn in_file(&self, span: &Range<u64>) -> Option<(Arc<File>, Range<u64>)> {
        match &self.source {
            Source::Whole(file) => Some((Arc::clone(file), BODY_OFFSET + span.start..BODY_OFFSET + span.end)),
            _ => None,
        }
    }

    /// Some bytes of the stored form, at least one and at most `most`, at an offset below its size.
    pub(crate) async fn read(&mut self, at: u64, most: u64) -> Result<Bytes, StorageError> {
        let bytes = match &mut self.source {
            Source::Whole(file) => read_at(file, &mut self.buffer, BODY_OFFSET + at, most).await?,
            Source::Growing(progress, remote) => match grown(progress, &mut self.buffer, at, most).await? {
                Some(bytes) => bytes,
                None => remote.read(at, most).await?,
            },
            Source::Through(remote) => remote.read(at, most).await?,
        };
        if bytes.is_empty() {
            return Err(StorageError::Damaged("its file is shorter than its header says".into()));
        }
        Ok(bytes)
    }
}

/// Reads from a file that grows, once it has grown so far; none where it never will, since the cache's disk failed.
async fn grown(
    progress: &mut watch::Receiver<Progress>,
    buffer: &mut BytesMut,
    at: u64,
    most: u64,
) -> Result<Option<Bytes>, StorageError> {
    loop {
        let now = progress.borrow_and_update().clone();
        if let Some(file) = now.file.filter(|_| now.written > at) {
            let bytes = read_at(&file, buffer, BODY_OFFSET + at, most.min(now.written - at)).await?;
            // A file that another process takes over is short for a moment.
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
        match now.end {
            None => {}
            Some(End::Abandoned) => return Ok(None),
            Some(End::Failed(error)) => return Err(error),
            Some(End::Whole) => return Ok(Some(Bytes::new())),
        }
        progress
            .changed()
            .await
            .map_err(|_| StorageError::Unavailable("the fetch was cut by a drain".into()))?;
    }
}

impl Remote {
    async fn read(&mut self, at: u64, most: u64) -> Result<Bytes, StorageError> {
        if self.at != at {
            self.stream = None;
            self.rest.clear();
        }
        while self.rest.is_empty() {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(self.s3.open(&self.reference, at).await?.1),
            };
            self.at = at;
            match stream.chunk().await? {
                Some(piece) => self.rest = piece,
                None => return Ok(Bytes::new()),
            }
        }
        let length = usize::try_from(most).map_or(self.rest.len(), |most| most.min(self.rest.len()));
        self.at += length as u64;
        Ok(self.rest.split_to(length))
    }
}
