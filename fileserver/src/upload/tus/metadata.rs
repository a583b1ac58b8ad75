//! tus's Upload-Metadata: comma-separated pairs of a key and a base64 value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::path::FilePath;
use crate::upload::intent::{bad, file_path};
use crate::upload::refusal::Refusal;

/// All but the slashes of a path that comes decoded.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.');

/// What a client says about its file. Keys that we don't know are only given back to it.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    text: String,
    path: Option<String>,
    file_name: Option<String>,
    file_type: Option<String>,
}

impl Metadata {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let mut metadata = Self { text: text.to_owned(), ..Self::default() };
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
            let known = match key {
                "path" => &mut metadata.path,
                "filename" | "name" => &mut metadata.file_name,
                "filetype" | "type" => &mut metadata.file_type,
                _ => continue,
            };
            let value = STANDARD.decode(value).ok().and_then(|value| String::from_utf8(value).ok());
            *known =
                Some(value.ok_or_else(|| bad(&format!("Upload-Metadata: {key} is not base64 of UTF-8")))?);
        }
        Ok(metadata)
    }

    /// Where the file goes: its `path`; in the folder that `path` names, or at the top, its `filename`.
    pub(super) fn file_path(&self) -> Result<FilePath, Refusal> {
        let folder = utf8_percent_encode(self.path.as_deref().unwrap_or("/"), SEGMENT).to_string();
        file_path(&folder, self.file_name.as_deref())
    }

    /// The media type, if it could stand in a header.
    pub(super) fn file_type(&self) -> Option<&str> {
        let printable = |text: &&str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        self.file_type.as_deref().filter(printable)
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Result<Metadata, Refusal> {
        let pairs: Vec<_> =
            pairs.iter().map(|(key, value)| format!("{key} {}", STANDARD.encode(value))).collect();
        Metadata::parse(&pairs.join(","))
    }

    #[test]
    fn the_path_is_that_of_the_metadata() {
        let table = [
            (vec![("path", "/files/a b.iso")], "/files/a b.iso"),
            (vec![("path", "/files/100%.txt"), ("filename", "other")], "/files/100%.txt"),
            (vec![("path", "/files/"), ("filename", "é.txt")], "/files/é.txt"),
            (vec![("filename", "a.txt")], "/a.txt"),
        ];
        for (pairs, path) in table {
            assert_eq!(metadata(&pairs).unwrap().file_path().unwrap().as_str(), path);
        }
        for bad in [vec![], vec![("path", "/a/../b")], vec![("filename", "../b")], vec![("path", "a")]] {
            assert!(metadata(&bad).unwrap().file_path().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_keys_and_keys_without_a_value_are_fine() {
        let metadata =
            Metadata::parse("is_confidential, filename YS50eHQ= ,filetype dGV4dC9wbGFpbg==").unwrap();
        assert_eq!(metadata.file_type(), Some("text/plain"));
        assert_eq!(metadata.file_path().unwrap().as_str(), "/a.txt");
        assert!(Metadata::parse("filename !").is_err());
        assert!(Metadata::parse("filename /w==").is_err());
    }
}
