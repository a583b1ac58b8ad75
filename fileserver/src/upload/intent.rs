//! What a client wants to upload, read from the head of its request.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use protoplex_http::Scheme;

use super::refusal::Refusal;
use crate::host::VirtualHost;
use crate::object::CONTENT_TYPE_MAX_BYTES;
use crate::path::FilePath;

/// Names an upload for those who watch it.
const UPLOAD_ID: HeaderName = HeaderName::from_static("upload-id");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The longest id that a client may choose, in characters.
const UPLOAD_ID_MAX: usize = 64;

/// One file that a client wants to store.
#[derive(Debug, Clone)]
pub(crate) struct Intent {
    pub(crate) sender: Sender,
    pub(crate) path: FilePath,
    pub(crate) content_type: String,
    /// Bytes, where the client declared them.
    pub(crate) declared: Option<u64>,
}

/// What all files of one request share.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) token: String,
    pub(crate) host: VirtualHost,
    /// `http://example.com:8080`
    pub(crate) origin: String,
    /// The public id: the client's own, or a new one.
    pub(crate) watch: String,
}

impl Sender {
    /// Reads token, host and id, before anything of the body.
    pub(crate) fn of(head: &Parts, scheme: Scheme) -> Result<Self, Refusal> {
        let token = bearer(&head.headers).ok_or(Refusal::TokenMissing)?.to_owned();
        let host = VirtualHost::of(head).ok_or_else(|| bad("the request names no host"))?;
        let authority = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(host.as_str());
        let scheme = match text(&head.headers, &FORWARDED_PROTO)? {
            Some(forwarded @ ("http" | "https")) => forwarded,
            _ => scheme.as_str(),
        };
        let watch = match text(&head.headers, &UPLOAD_ID)? {
            Some(chosen) if valid_id(chosen) => chosen.to_owned(),
            Some(_) => return Err(bad("Upload-Id has 1 to 64 characters of A-Z, a-z, 0-9, - and _")),
            None => new_id(),
        };
        Ok(Self { token, origin: format!("{scheme}://{authority}"), host, watch })
    }
}

impl Intent {
    /// The one file that the whole body is.
    pub(crate) fn of(head: &Parts, scheme: Scheme) -> Result<Self, Refusal> {
        let sender = Sender::of(head, scheme)?;
        if head.headers.contains_key(CONTENT_ENCODING) {
            return Err(Refusal::Unsupported("send the file as it is, without Content-Encoding".to_owned()));
        }
        if head.headers.contains_key(CONTENT_RANGE) {
            // RFC 9110 section 14.4: a server that doesn't take partial PUTs must not take one for the whole.
            return Err(bad("parts of a file are uploaded with tus, not with Content-Range"));
        }
        let path = file_path(head.uri.path(), None)?;
        let declared_type = text(&head.headers, &CONTENT_TYPE)?
            // What curl --data-binary says of any file.
            .filter(|declared| !declared.starts_with("application/x-www-form-urlencoded"));
        let content_type = content_type(declared_type, &path)?;
        let declared = text(&head.headers, &CONTENT_LENGTH)?.and_then(|length| length.parse().ok());
        Ok(Self { sender, path, content_type, declared })
    }
}

/// The site path of an upload: the request's own, or in the folder that it names, the file's name.
pub(crate) fn file_path(target: &str, file_name: Option<&str>) -> Result<FilePath, Refusal> {
    let folder = FilePath::parse(target).map_err(|error| bad(&error.to_string()))?;
    if !folder.as_str().ends_with('/') {
        return Ok(folder);
    }
    let name = file_name.ok_or_else(|| bad("the path names a folder; end it with the file's name"))?;
    if name.is_empty() || name.contains(['/', '\\']) {
        return Err(bad("the file's name is empty or has a slash"));
    }
    // Encoded, so that the name is taken literally and passes the same checks as any path.
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    FilePath::parse(&format!("{}{name}", folder.to_url())).map_err(|error| bad(&error.to_string()))
}

/// The declared type, else the one that the path's ending suggests.
pub(crate) fn content_type(declared: Option<&str>, path: &FilePath) -> Result<String, Refusal> {
    match declared {
        Some(declared) if declared.len() > CONTENT_TYPE_MAX_BYTES => Err(bad("the content type is too long")),
        Some(declared) if !declared.is_empty() => Ok(declared.to_owned()),
        _ => Ok(mime_guess::from_path(path.as_str()).first_or_octet_stream().to_string()),
    }
}

/// The token of `Authorization: Bearer` (RFC 6750 section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// A header's value as text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| bad(&format!("{name} is not plain text"))))
        .transpose()
}

/// An id that nobody can guess: 128 random bits.
pub(crate) fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Whether an id may stand in a topic and a folder's name.
pub(crate) fn valid_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=UPLOAD_ID_MAX).contains(&id.len()) && id.bytes().all(allowed)
}

pub(crate) fn bad(detail: &str) -> Refusal {
    Refusal::BadRequest(detail.to_owned())
}

#[cfg(test)]
mod tests;
