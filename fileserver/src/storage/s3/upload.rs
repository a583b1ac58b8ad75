//! Puts a file into the bucket in constant memory: whole while it is small, else in parts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use aws_sdk_s3::primitives::{ByteStream, Length};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};

use super::{S3, classify, metadata};
use crate::disk::blocking;
use crate::object::{BODY_OFFSET, Meta};
use crate::reference::Reference;
use crate::storage::StorageError;

/// Stored forms up to this size go up in one request, in bytes.
const SINGLE_PUT_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// The size of a part, in bytes, unless [`PARTS_MAX`] asks for larger ones.
const PART_BYTES: u64 = 16 * 1024 * 1024;
/// S3's own limit for one upload.
const PARTS_MAX: u64 = 10_000;
/// Parts on their way at once. They are read from the file as they are sent, so this does not cost memory.
const PARTS_AT_ONCE: usize = 4;
/// What is read at a time to hash a part.
const HASH_STEP_BYTES: usize = 256 * 1024;

impl S3 {
    /// Uploads the body of a file in the one-file form. S3 checks each request against its SHA-256.
    pub(crate) async fn put(
        &self,
        reference: &Reference,
        meta: &Meta,
        path: &Path,
    ) -> Result<(), StorageError> {
        if meta.stored_size <= SINGLE_PUT_MAX_BYTES {
            self.put_whole(reference, meta, path).await
        } else {
            self.put_parts(reference, meta, path).await
        }
    }

    async fn put_whole(&self, reference: &Reference, meta: &Meta, path: &Path) -> Result<(), StorageError> {
        let part = Part { number: 1, start: 0, length: meta.stored_size };
        let (body, sha256) = part.read(path).await?;
        self.uploader
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(reference))
            .content_type(&meta.content_type)
            .set_metadata(Some(metadata(meta)))
            .checksum_sha256(sha256)
            .content_length(signed(meta.stored_size)?)
            .body(body)
            .send()
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn put_parts(&self, reference: &Reference, meta: &Meta, path: &Path) -> Result<(), StorageError> {
        let created = self
            .uploader
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(reference))
            .content_type(&meta.content_type)
            .set_metadata(Some(metadata(meta)))
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .send()
            .await
            .map_err(classify)?;
        let upload =
            created.upload_id.ok_or_else(|| StorageError::Unavailable("no upload id given".into()))?;
        let sent = self.send_parts(reference, meta, path, &upload).await;
        if sent.is_err() {
            self.abort(reference, &upload).await;
        }
        sent
    }

    async fn send_parts(
        &self,
        reference: &Reference,
        meta: &Meta,
        path: &Path,
        upload: &str,
    ) -> Result<(), StorageError> {
        let parts: Vec<CompletedPart> = stream::iter(parts(meta.stored_size))
            .map(|part| self.send_part(reference, path, upload, part))
            .buffered(PARTS_AT_ONCE)
            .try_collect()
            .await?;
        self.uploader
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(reference))
            .upload_id(upload)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .send()
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn send_part(
        &self,
        reference: &Reference,
        path: &Path,
        upload: &str,
        part: Part,
    ) -> Result<CompletedPart, StorageError> {
        let (body, sha256) = part.read(path).await?;
        let sent = self
            .uploader
            .upload_part()
            .bucket(&self.bucket)
            .key(self.key(reference))
            .upload_id(upload)
            .part_number(part.number)
            .checksum_sha256(&sha256)
            .content_length(signed(part.length)?)
            .body(body)
            .send()
            .await
            .map_err(classify)?;
        Ok(CompletedPart::builder()
            .part_number(part.number)
            .set_e_tag(sent.e_tag)
            .checksum_sha256(sha256)
            .build())
    }

    /// Parts of an upload that is never completed cost money until it is aborted.
    async fn abort(&self, reference: &Reference, upload: &str) {
        let abort = self.uploader.abort_multipart_upload().bucket(&self.bucket).key(self.key(reference));
        if let Err(error) = abort.upload_id(upload).send().await.map_err(classify) {
            tracing::warn!(%reference, upload, %error, "an unfinished multipart upload was left in the bucket");
        }
    }
}

/// A piece of a stored form, counted from its own start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    number: i32,
    start: u64,
    length: u64,
}

impl Part {
    /// The piece as a body that is read while it is sent (and again where it is sent again), and its SHA-256 in base64.
    async fn read(self, path: &Path) -> Result<(ByteStream, String), StorageError> {
        let owned = path.to_owned();
        let sha256 = blocking(move || self.sha256(&owned)).await?;
        if self.length == 0 {
            return Ok((ByteStream::from_static(b""), sha256));
        }
        let body = ByteStream::read_from()
            .path(path)
            .offset(BODY_OFFSET + self.start)
            .length(Length::Exact(self.length))
            .build()
            .await
            .map_err(io::Error::other)?;
        Ok((body, sha256))
    }

    fn sha256(self, path: &Path) -> io::Result<String> {
        let file = File::open(path)?;
        let mut sha256 = Sha256::new();
        let mut buffer = vec![0; HASH_STEP_BYTES];
        let (mut at, end) = (BODY_OFFSET + self.start, BODY_OFFSET + self.start + self.length);
        while at < end {
            let step = usize::try_from(end - at).map_or(HASH_STEP_BYTES, |left| left.min(HASH_STEP_BYTES));
            file.read_exact_at(&mut buffer[..step], at)?;
            sha256.update(&buffer[..step]);
            at += step as u64;
        }
        Ok(STANDARD.encode(sha256.finalize()))
    }
}

/// How a stored form is cut.
fn parts(size: u64) -> impl Iterator<Item = Part> {
    let length = PART_BYTES.max(size.div_ceil(PARTS_MAX));
    (1..)
        .zip((0..size).step_by(usize::try_from(length).unwrap_or(usize::MAX)))
        .map(move |(number, start)| Part { number, start, length: length.min(size - start) })
}

fn signed(length: u64) -> io::Result<i64> {
    i64::try_from(length).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_cover_a_body_exactly_within_the_limits_of_s3(size in 1_u64..1 << 42) {
            let mut end = 0;
            let mut count = 0;
            for part in parts(size) {
                count += 1;
                prop_assert_eq!((part.start, i64::from(part.number)), (end, count));
                prop_assert!(part.length > 0);
                end += part.length;
            }
            prop_assert_eq!(end, size);
            prop_assert!(count <= 10_000);
        }
    }
}
