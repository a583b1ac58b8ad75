//! The heads of messages in their compact form, the one that engines, handlers, routing and logs see whatever the
//! protocol was.

mod fields;
mod known;

use std::str;

use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, StatusCode, Version};

use crate::forwarded::has_token;
pub use fields::Fields;
#[cfg(test)]
pub(crate) use fields::held;
pub(crate) use fields::{MAX_NAME_BYTES, line_bytes};
pub(crate) use known::Known;

/// The head of a request: its target is a path with its query, or `*` with OPTIONS; its authority is in `Host`.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub(crate) method: Method,
    pub(crate) version: Version,
    /// Led by the target.
    pub(crate) fields: Fields,
    path_bytes: u32,
    target_bytes: u32,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) fields: Fields,
}

impl RequestHead {
    /// A head without fields. The target must be sound: printable ASCII.
    pub(crate) fn new(method: Method, version: Version, target: &[u8]) -> Self {
        let mut fields = Fields::new();
        fields.lead(target);
        Self::from_fields(method, version, fields, target.len())
    }

    /// A head whose target, of so many bytes, leads its fields.
    pub(crate) fn from_fields(method: Method, version: Version, fields: Fields, target_bytes: usize) -> Self {
        let target = fields.leading(target_bytes);
        let path = target.iter().position(|byte| *byte == b'?').unwrap_or(target_bytes);
        Self { method, version, fields, path_bytes: path as u32, target_bytes: target_bytes as u32 }
    }

    /// A head that stands for one that was refused, of which nothing can be told.
    pub(crate) fn unknown() -> Self {
        Self::new(Method::from_bytes(b"-").unwrap_or_default(), Version::HTTP_11, b"-")
    }

    /// Whether it is such a one.
    pub(crate) fn is_unknown(&self) -> bool {
        self.target_bytes() == b"-"
    }

    /// The head of a request as the `http` crate has it, in origin form.
    pub(crate) fn of_parts(parts: &http::request::Parts) -> Self {
        let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let mut head = Self::new(parts.method.clone(), parts.version, target.as_bytes());
        head.fields.extend(&parts.headers);
        head
    }

    /// The same as the `http` crate has it.
    pub fn to_parts(&self) -> http::request::Parts {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method.clone();
        parts.version = self.version;
        // What is no URI can't be a sound target.
        parts.uri = Uri::try_from(self.target()).unwrap_or_default();
        parts.headers = self.fields.to_map();
        parts
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The version that the client speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Path and query, percent-encoded as they were sent.
    pub fn target(&self) -> &str {
        text(self.target_bytes())
    }

    pub(crate) fn target_bytes(&self) -> &[u8] {
        self.fields.leading(self.target_bytes as usize)
    }

    /// The target up to its query.
    pub fn path(&self) -> &str {
        text(self.fields.leading(self.path_bytes as usize))
    }

    /// What follows the target's `?`.
    pub fn query(&self) -> Option<&str> {
        self.target().get(self.path_bytes as usize + 1..)
    }

    /// `Host`, as it was sent.
    pub fn host(&self) -> Option<&str> {
        self.fields.known(Known::Host).next().map(text)
    }

    /// The header fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Puts a field in the place of all of its name.
    pub fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.fields.remove(name);
        self.fields.append(name, value);
    }

    /// Whether the request asks to switch protocols (RFC 9110 section 7.8). Switches to h2c are passed over, as a
    /// server may: relayed, they would open a way past the proxy.
    pub fn asks_upgrade(&self) -> bool {
        self.version == Version::HTTP_11
            && self.fields.known(Known::Upgrade).next().is_some()
            && self.fields.known(Known::Connection).any(|list| has_token(list, "upgrade"))
            && !self.fields.known(Known::Upgrade).any(|list| has_token(list, "h2c"))
            // What follows would be the body to some and the new protocol to others.
            && self.fields.known(Known::TransferEncoding).next().is_none()
            && self.fields.known(Known::ContentLength).all(|length| length == b"0")
    }

    /// Puts this in the place of every `Host`.
    pub(crate) fn set_host(&mut self, host: &[u8]) {
        self.fields.retain(|field| field.known != Known::Host);
        self.fields.push(HOST.as_str().as_bytes(), host);
    }
}

impl ResponseHead {
    /// A head without fields.
    pub fn new(status: StatusCode) -> Self {
        Self { status, version: Version::HTTP_11, fields: Fields::new() }
    }

    pub(crate) fn of_parts(parts: &http::response::Parts) -> Self {
        let mut head = Self { status: parts.status, version: parts.version, fields: Fields::new() };
        head.fields.extend(&parts.headers);
        head
    }

    pub(crate) fn to_parts(&self) -> http::response::Parts {
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = self.status;
        parts.version = self.version;
        parts.headers = self.fields.to_map();
        parts
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The header fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Whether there is a field of this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.fields.contains(name)
    }

    /// Removes all fields of a name.
    pub fn remove(&mut self, name: &HeaderName) {
        self.fields.remove(name);
    }
}

/// Targets and hosts were checked to be ASCII when they were read.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}
