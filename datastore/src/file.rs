//! What a file and a site may have, and how their listing is cut into pages. Pure.

use protoplex_wire::proto::{CompleteUploadRequest, ListFilesReply, ListFilesRequest, Site, StoredFile};

use crate::store::{StoreError, StoreResult};

/// base64url of SHA-256 and Whirlpool, 96 bytes.
const REFERENCE_CHARACTERS: usize = 128;
/// Hex.
const SHA256_CHARACTERS: usize = 64;
/// The longest content type and node name, in bytes.
const MAX_TEXT_BYTES: usize = 255;
/// The most rows of a page, and how many it has where the request doesn't say.
const PAGE_ROWS: usize = 1_000;
/// A page ends early where its hosts and paths come to this: no reply is over gRPC's usual limit of 4 MiB.
const PAGE_BYTES: usize = 1 << 20;

/// Refuses a file that no fileserver could have made.
pub(crate) fn check(file: &StoredFile) -> StoreResult<()> {
    let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let fault = if file.reference.len() != REFERENCE_CHARACTERS || !file.reference.bytes().all(base64url) {
        format!("{:?} is no storage reference", file.reference)
    } else if file.stored_sha256.len() != SHA256_CHARACTERS || !file.stored_sha256.bytes().all(hex) {
        format!("stored_sha256 {:?} is no SHA-256 in hex", file.stored_sha256)
    } else if !matches!(file.encoding.as_str(), "identity" | "gzip") {
        format!("the encoding {:?} is neither identity nor gzip", file.encoding)
    } else if file.node.is_empty() || file.node.len().max(file.content_type.len()) > MAX_TEXT_BYTES {
        format!("a file has a node, and that and its content type have at most {MAX_TEXT_BYTES} bytes")
    } else {
        return Ok(());
    };
    Err(StoreError::Invalid(fault))
}

/// Refuses a site that no fileserver could have made.
pub(crate) fn check_site(upload: &CompleteUploadRequest) -> StoreResult<()> {
    if upload.content_type.len() > MAX_TEXT_BYTES {
        return Err(StoreError::Invalid(format!("the content type has over {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

/// The most rows of the page that is asked for.
pub(crate) fn page_rows(request: &ListFilesRequest) -> usize {
    match request.limit {
        0 => PAGE_ROWS,
        limit => PAGE_ROWS.min(limit as usize),
    }
}

/// The page of so many of the sites, and where the next one begins if there are more.
pub(crate) fn cut_page(mut sites: Vec<Site>, rows: usize) -> ListFilesReply {
    let mut bytes = 0;
    let fitting = sites.iter().take_while(|site| {
        bytes += site.host.len() + site.path.len();
        bytes <= PAGE_BYTES
    });
    // A single row always fits.
    let kept = fitting.count().min(rows);
    let more = kept < sites.len();
    sites.truncate(kept);
    let next = sites.last().filter(|_| more).map(cursor).unwrap_or_default();
    ListFilesReply { sites, next }
}

/// Host and path: no host has a slash, and every path begins with one.
fn cursor(site: &Site) -> String {
    format!("{}{}", site.host, site.path)
}

/// Host and path of a cursor.
pub(crate) fn parse_cursor(cursor: &str) -> StoreResult<(&str, &str)> {
    let slash = cursor.find('/').filter(|slash| *slash > 0);
    slash
        .map(|slash| cursor.split_at(slash))
        .ok_or_else(|| StoreError::Invalid(format!("{cursor:?} is no cursor: pass on the reply's `next`")))
}
