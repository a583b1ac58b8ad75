//! The storage reference: base64url without padding of SHA-256 ‖ Whirlpool of a file's raw bytes, 128 characters.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Bytes of both digests together: 32 of SHA-256, then 64 of Whirlpool.
const DIGEST_BYTES: usize = 96;

/// The name under which a file's content is stored: same bytes, same reference.
///
/// 96 bytes fill 128 base64 characters without a remainder, so every reference has exactly one spelling; and its
/// alphabet makes it safe as a file name, an object key and a URL path segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference(Arc<str>);

/// Why a text is not a storage reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a storage reference: 128 characters of A-Z, a-z, 0-9, - and _ are expected")]
pub struct NotAReference;

impl Reference {
    /// Characters of a reference.
    pub const LENGTH: usize = 128;

    /// The reference of a content with these digests.
    pub fn new(sha256: &[u8; 32], whirlpool: &[u8; 64]) -> Self {
        let mut digests = [0; DIGEST_BYTES];
        digests[..32].copy_from_slice(sha256);
        digests[32..].copy_from_slice(whirlpool);
        Self(URL_SAFE_NO_PAD.encode(digests).into())
    }

    /// The 128 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// SHA-256 and Whirlpool of the raw bytes.
    pub fn digests(&self) -> ([u8; 32], [u8; 64]) {
        let mut bytes = [0; DIGEST_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(self.0.as_bytes(), &mut bytes);
        debug_assert_eq!(length, Ok(DIGEST_BYTES), "a reference was checked when it was made");
        let (mut sha256, mut whirlpool) = ([0; 32], [0; 64]);
        sha256.copy_from_slice(&bytes[..32]);
        whirlpool.copy_from_slice(&bytes[32..]);
        (sha256, whirlpool)
    }
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if text.len() == Self::LENGTH && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(NotAReference)
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = NotAReference;

    fn try_from(text: String) -> Result<Self, NotAReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.0.as_ref().to_owned()
    }
}

impl Deref for Reference {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference({}…)", &self.0[..12])
    }
}

#[cfg(test)]
mod tests;
