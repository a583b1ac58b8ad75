//! The name of a request, by which its lines in all logs are found.

use std::fmt;
use std::ops::Deref;

use crate::head::{Known, RequestHead};

/// 1 to 64 of `[A-Za-z0-9._-]`: the client's own X-Request-Id if it is a sound one, else 32 random hexadecimal digits.
#[derive(Clone, Copy)]
pub struct RequestId {
    text: [u8; MAX_BYTES],
    length: u8,
}

const MAX_BYTES: usize = 64;
const NEW_BYTES: usize = 32;

impl RequestId {
    pub(crate) fn of(head: &RequestHead) -> Self {
        let mut given = head.fields.known(Known::XRequestId);
        match (given.next(), given.next()) {
            (Some(id), None) if is_sound(id) => {
                let mut text = [0; MAX_BYTES];
                text[..id.len()].copy_from_slice(id);
                Self { text, length: id.len() as u8 }
            }
            _ => Self::random(),
        }
    }

    /// The same as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }

    fn random() -> Self {
        let mut text = [0; MAX_BYTES];
        let random: u128 = rand::random();
        for (digit, at) in text[..NEW_BYTES].iter_mut().zip((0..).step_by(4)) {
            *digit = b"0123456789abcdef"[(random >> at) as usize & 15];
        }
        Self { text, length: NEW_BYTES as u8 }
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
