//! The name of a request, by which its lines in all logs are found.

use std::fmt;
use std::ops::Deref;

use crate::head::{Known, RequestHead};
use crate::trace::Trace;

/// 1 to 64 of `[A-Za-z0-9._-]`: the client's own X-Request-Id if it is a sound one, else 32 random hexadecimal digits,
/// those of its trace where that begins here.
#[derive(Clone, Copy)]
pub struct RequestId {
    text: [u8; MAX_BYTES],
    length: u8,
}

const MAX_BYTES: usize = 64;

impl RequestId {
    pub(crate) fn of(head: &RequestHead, trace: &Trace) -> Self {
        let mut given = head.fields.known(Known::XRequestId);
        let id = match (given.next(), given.next()) {
            (Some(id), None) if is_sound(id) => id,
            _ => trace.drawn(),
        };
        let mut text = [0; MAX_BYTES];
        text[..id.len()].copy_from_slice(id);
        Self { text, length: id.len() as u8 }
    }

    /// The same as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }
}

fn is_sound(id: &[u8]) -> bool {
    (1..=MAX_BYTES).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        // Of plain characters: it can't fail.
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
