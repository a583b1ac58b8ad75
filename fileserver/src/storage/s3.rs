//! Bodies as objects of an S3 bucket. What is known about a body is the object's user metadata.

mod settings;
mod upload;

pub use settings::RawS3;
pub(crate) use settings::S3Settings;

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::time::timeout;

use super::StorageError;
use crate::object::{Encoding, Meta};
use crate::reference::Reference;

/// A bucket, or the part of it below a key prefix.
#[derive(Debug, Clone)]
pub(crate) struct S3 {
    reader: Client,
    uploader: Client,
    bucket: String,
    prefix: String,
    body_idle_timeout: Duration,
}

impl S3 {
    /// The bucket of these settings. Nothing is asked of it yet.
    pub(crate) async fn new(settings: &S3Settings) -> Self {
        let (reader, uploader) = settings.clients().await;
        Self {
            reader,
            uploader,
            bucket: settings.bucket.clone(),
            prefix: settings.prefix.clone(),
            body_idle_timeout: settings.body_idle_timeout,
        }
    }

    /// Begins to read a body's stored form at an offset below its stored size (or at 0).
    pub(crate) async fn open(
        &self,
        reference: &Reference,
        offset: u64,
    ) -> Result<(Meta, RemoteBody), StorageError> {
        let mut get = self.reader.get_object().bucket(&self.bucket).key(self.key(reference));
        if offset > 0 {
            get = get.range(format!("bytes={offset}-"));
        }
        let object = get.send().await.map_err(classify)?;
        let meta = meta(object.metadata.as_ref(), object.content_type)?;
        let left = meta.stored_size.checked_sub(offset).ok_or_else(|| damaged("shorter than it was"))?;
        if object.content_length.and_then(|length| u64::try_from(length).ok()) != Some(left) {
            return Err(damaged("its length is not what its metadata says"));
        }
        Ok((meta, RemoteBody { stream: object.body, left, idle_timeout: self.body_idle_timeout }))
    }

    fn key(&self, reference: &Reference) -> String {
        format!("{}{reference}", self.prefix)
    }
}

/// The stored bytes of a body, as they come.
#[derive(Debug)]
pub(crate) struct RemoteBody {
    stream: ByteStream,
    left: u64,
    idle_timeout: Duration,
}

impl RemoteBody {
    /// The next piece; `None` at the true end. Cancel-safe.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        if self.left == 0 {
            return Ok(None);
        }
        let next = timeout(self.idle_timeout, self.stream.next())
            .await
            .map_err(|_| StorageError::Timeout(format!("nothing of the body for {:?}", self.idle_timeout)))?;
        let piece = match next {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                return Err(StorageError::Unavailable(format!("the body broke off: {error}")));
            }
            None => return Err(StorageError::Unavailable("the body ended early".into())),
        };
        self.left =
            self.left.checked_sub(piece.len() as u64).ok_or_else(|| damaged("longer than announced"))?;
        Ok(Some(piece))
    }
}

const SIZE: &str = "size";
const STORED_SIZE: &str = "stored-size";
const ENCODING: &str = "encoding";
const STORED_SHA256: &str = "stored-sha256";

fn metadata(meta: &Meta) -> HashMap<String, String> {
    HashMap::from([
        (SIZE.to_owned(), meta.size.to_string()),
        (STORED_SIZE.to_owned(), meta.stored_size.to_string()),
        (ENCODING.to_owned(), meta.encoding.as_str().to_owned()),
        (STORED_SHA256.to_owned(), meta.stored_sha256.clone()),
    ])
}

fn meta(
    metadata: Option<&HashMap<String, String>>,
    content_type: Option<String>,
) -> Result<Meta, StorageError> {
    let field = |name: &str| metadata.and_then(|fields| fields.get(name));
    let number = |name: &str| field(name).and_then(|text| text.parse().ok());
    (|| {
        Some(Meta {
            size: number(SIZE)?,
            stored_size: number(STORED_SIZE)?,
            encoding: Encoding::parse(field(ENCODING)?)?,
            content_type: content_type?,
            stored_sha256: field(STORED_SHA256)?.clone(),
        })
    })()
    .ok_or_else(|| damaged("its metadata is not ours"))
}

fn damaged(reason: &str) -> StorageError {
    StorageError::Damaged(reason.to_owned())
}

/// What an error of the SDK, after its own retries, means to us. Only an answer that says "no such key" is a not-found:
/// a 404 without it may come from a proxy on the way or from a missing bucket.
fn classify<E: ProvideErrorMetadata + std::error::Error + 'static>(error: SdkError<E>) -> StorageError {
    let text = aws_sdk_s3::error::DisplayErrorContext(&error).to_string();
    match &error {
        SdkError::TimeoutError(_) => StorageError::Timeout(text),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => StorageError::Timeout(text),
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            match (status, answer.err().code()) {
                (404, Some("NoSuchKey" | "NotFound")) => StorageError::NotFound,
                (408 | 429 | 500.., _) => StorageError::Unavailable(text),
                _ => StorageError::Refused(text),
            }
        }
        _ => StorageError::Unavailable(text),
    }
}

#[cfg(test)]
mod tests;
