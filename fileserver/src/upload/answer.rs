//! What a client is told of a file that is stored.

use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use protoplex_http::{Body, Response};
use protoplex_wire::proto::StoredFile;
use serde::Serialize;

use crate::digest::hex;
use crate::reference::Reference;
use crate::staging::Journal;

/// One stored file, as the 201 and `upload.finished` tell it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) reference: Reference,
    /// In hex, like `sha256sum` prints it.
    pub(crate) sha256: String,
    /// In hex, like `openssl dgst -whirlpool` prints it.
    pub(crate) whirlpool: String,
    /// Raw bytes.
    pub(crate) size: u64,
    pub(crate) stored_size: u64,
    /// `identity` or `gzip`
    pub(crate) encoding: String,
    pub(crate) content_type: String,
    pub(crate) host: String,
    /// Decoded.
    pub(crate) path: String,
    /// Where the path shows it.
    pub(crate) url: String,
    /// Where its content is for ever.
    pub(crate) reference_url: String,
    /// The public id of the upload.
    pub(crate) upload: String,
    /// The content was there already and was not stored again.
    pub(crate) existed: bool,
}

impl Answer {
    /// What is told of an upload that the datastore has recorded as `file`.
    pub(crate) fn new(journal: &Journal, reference: &Reference, file: &StoredFile, existed: bool) -> Self {
        let (sha256, whirlpool) = reference.digests();
        Self {
            sha256: hex(&sha256),
            whirlpool: hex(&whirlpool),
            size: file.size,
            stored_size: file.stored_size,
            encoding: file.encoding.clone(),
            content_type: journal.content_type.clone(),
            host: journal.host.clone(),
            path: journal.path.clone(),
            url: journal.url(),
            reference_url: format!("{}/{reference}", journal.origin),
            reference: reference.clone(),
            upload: journal.watch.clone(),
            existed,
        }
    }
}

/// 201 with one file, or with a list where the form had several.
pub(crate) fn created(answers: &[Answer]) -> Response {
    let (json, single) = match answers {
        [single] => (serde_json::to_string(single), Some(single)),
        several => (serde_json::to_string(several), None),
    };
    // Strings and numbers alone: this can't fail.
    let mut response = Response::new(Body::full(json.unwrap_or_default() + "\n"));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(url) = single.and_then(|answer| HeaderValue::from_str(&answer.url).ok()) {
        headers.insert(LOCATION, url);
    }
    response
}
