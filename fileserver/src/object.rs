//! A stored body and what is known about it, and the one-file form in which staging, directory storage and the disk
//! cache keep both together.
//!
//! ```text
//! 0        8         12              BODY_OFFSET                    BODY_OFFSET + stored_size
//! | magic  | length  | JSON of Meta  | zeros …  | stored body …     |
//! ```
//!
//! The header has a fixed size, so a writer can put the body down first and the header last: a file without a whole
//! header is an unfinished one, whatever its length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

/// Where the body begins in the one-file form, in bytes: one page, so that the body is aligned.
pub(crate) const BODY_OFFSET: u64 = 4096;

/// The longest content type that is kept, in bytes; longer ones are refused where they come in.
pub(crate) const CONTENT_TYPE_MAX_BYTES: usize = 255;

const MAGIC: &[u8; 8] = b"PPXBODY1";
const JSON_OFFSET: usize = MAGIC.len() + size_of::<u32>();

/// The bytes in front of the body in the one-file form.
pub(crate) type Header = [u8; BODY_OFFSET as usize];

/// How a body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// As it was uploaded.
    Identity,
    /// One gzip member (RFC 1952).
    Gzip,
}

impl Encoding {
    /// Its name on the wire: `identity` or `gzip`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
        }
    }

    /// The encoding of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "identity" => Some(Self::Identity),
            "gzip" => Some(Self::Gzip),
            _ => None,
        }
    }
}

/// What is known about a stored body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Raw bytes.
    pub(crate) size: u64,
    /// Bytes of the stored form.
    pub(crate) stored_size: u64,
    /// How the raw bytes became the stored form.
    pub(crate) encoding: Encoding,
    /// As declared by the first upload of this content.
    pub(crate) content_type: String,
    /// SHA-256 of the stored form, 64 lower-case hex digits.
    pub(crate) stored_sha256: String,
}

/// Why a file is not a whole stored body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// Reading or writing failed.
    #[error("stored body: {0}")]
    Io(#[from] io::Error),
    /// No header, or one that says nothing sensible: unfinished, or damaged.
    #[error("stored body has no valid header")]
    Header,
    /// The file's length is not what its header says.
    #[error("stored body has {found} bytes where its header says {expected}")]
    Length {
        /// By the header.
        expected: u64,
        /// In the file.
        found: u64,
    },
    /// The body is not the one that its header names.
    #[error("stored body does not have the digest of its header")]
    Digest,
}

impl Meta {
    /// The header of the one-file form.
    ///
    /// # Errors
    /// `InvalidInput` where the content type is longer than [`CONTENT_TYPE_MAX_BYTES`].
    pub(crate) fn header(&self) -> io::Result<Header> {
        if self.content_type.len() > CONTENT_TYPE_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "content type too long"));
        }
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).map_err(io::Error::other)?;
        let mut header = [0; BODY_OFFSET as usize];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..JSON_OFFSET].copy_from_slice(&length.to_le_bytes());
        header
            .get_mut(JSON_OFFSET..JSON_OFFSET + json.len())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "header too long"))?
            .copy_from_slice(&json);
        Ok(header)
    }

    /// Reads a header; `None` where it is not one.
    pub(crate) fn from_header(header: &Header) -> Option<Self> {
        let (magic, rest) = header.split_first_chunk::<{ MAGIC.len() }>()?;
        let (length, rest) = rest.split_first_chunk()?;
        if magic != MAGIC {
            return None;
        }
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        serde_json::from_slice(rest.get(..length)?).ok()
    }

    /// Writes the header into its place, with which the file becomes a stored body. Blocks.
    pub(crate) fn write_to(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.header()?, 0)
    }

    /// Reads the header of a file and checks the file's length against it. Blocks.
    pub(crate) fn read_from(file: &File) -> Result<Self, ObjectError> {
        let found = file.metadata()?.len();
        if found < BODY_OFFSET {
            return Err(ObjectError::Header);
        }
        let mut header = [0; BODY_OFFSET as usize];
        file.read_exact_at(&mut header, 0)?;
        let meta = Self::from_header(&header).ok_or(ObjectError::Header)?;
        let expected = BODY_OFFSET.saturating_add(meta.stored_size);
        if found == expected { Ok(meta) } else { Err(ObjectError::Length { expected, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            size: 5,
            stored_size: 5,
            encoding: Encoding::Identity,
            content_type: "text/plain".into(),
            stored_sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".into(),
        }
    }

    #[test]
    fn a_file_is_a_stored_body_once_its_header_is_written() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"hello", BODY_OFFSET).unwrap();
        assert!(matches!(Meta::read_from(&file), Err(ObjectError::Header)));
        meta().write_to(&file).unwrap();
        assert_eq!(Meta::read_from(&file).unwrap(), meta());
    }

    #[test]
    fn a_truncated_body_is_told_by_its_length() {
        let file = tempfile::tempfile().unwrap();
        meta().write_to(&file).unwrap();
        file.write_all_at(b"hell", BODY_OFFSET).unwrap();
        assert!(matches!(Meta::read_from(&file), Err(ObjectError::Length { expected: 4101, found: 4100 })));
    }

    #[test]
    fn damaged_headers_are_refused() {
        let whole = meta().header().unwrap();
        for position in [0, 7, 8, 9, 10, 11, 12] {
            let mut header = whole;
            header[position] ^= 0xff;
            assert_eq!(Meta::from_header(&header), None, "byte {position}");
        }
    }

    #[test]
    fn a_content_type_too_long_is_refused() {
        let meta = Meta { content_type: "x".repeat(CONTENT_TYPE_MAX_BYTES + 1), ..meta() };
        assert_eq!(meta.header().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
