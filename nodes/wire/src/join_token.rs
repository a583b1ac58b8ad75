//! A join token as its owner has it: `pxj_ID.SECRET.FINGERPRINT`.
//!
//! The fingerprint is that of the cluster's authority, so whoever joins knows at once whether it speaks to a seed of that
//! cluster: nothing is trusted for being met first. The datastore keeps a digest of the secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::identity::Fingerprint;

const PREFIX: &str = "pxj_";
/// Divides the parts; it is no base64url character.
const DIVIDER: char = '.';
const ID_BYTES: usize = 9;
const SECRET_BYTES: usize = 32;

/// What was given is no join token.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "this is no join token: one begins with {PREFIX} and has three parts, as `protoplex join-token create` prints it"
)]
pub struct NoToken;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
    /// Of the authority of the cluster that it is for.
    pub fingerprint: Fingerprint,
}

impl JoinToken {
    /// A new one, of random numbers, for the cluster of this authority.
    #[must_use]
    pub fn draw(fingerprint: &Fingerprint) -> Self {
        let id = draw_id::<ID_BYTES>();
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>());
        Self { id, secret, fingerprint: *fingerprint }
    }

    /// Names it in lists and logs.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the seed is told of it: all but the fingerprint.
    #[must_use]
    pub fn presented(&self) -> String {
        format!("{PREFIX}{}{DIVIDER}{}", self.id, self.secret)
    }

    /// What is kept of its secret.
    #[must_use]
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.secret).into()
    }
}

/// A new id of so many random bytes, for commands to name. None begins with `-`, by which a command's flags do.
#[must_use]
pub fn draw_id<const BYTES: usize>() -> String {
    loop {
        let id = URL_SAFE_NO_PAD.encode(rand::random::<[u8; BYTES]>());
        if !id.starts_with('-') {
            return id;
        }
    }
}

/// What is kept of the public key of who joins.
#[must_use]
pub fn key_sha256(public_key: &[u8]) -> [u8; 32] {
    Sha256::digest(public_key).into()
}

/// Id, and the digest of the secret, of what a seed is told; `None` where it is malformed.
#[must_use]
pub fn parse_presented(text: &str) -> Option<(&str, [u8; 32])> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once(DIVIDER)?;
    let is_part =
        |text: &str, bytes| URL_SAFE_NO_PAD.decode(text).is_ok_and(|decoded| decoded.len() == bytes);
    let is_token = is_part(id, ID_BYTES) && is_part(secret, SECRET_BYTES);
    is_token.then(|| (id, Sha256::digest(secret).into()))
}

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let (presented, fingerprint) = text.trim().rsplit_once(DIVIDER).ok_or(NoToken)?;
        let (id, _) = parse_presented(presented).ok_or(NoToken)?;
        let secret = presented.rsplit_once(DIVIDER).ok_or(NoToken)?.1;
        let fingerprint = URL_SAFE_NO_PAD.decode(fingerprint).ok().and_then(|bytes| bytes.try_into().ok());
        let fingerprint = fingerprint.ok_or(NoToken)?;
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), fingerprint })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{DIVIDER}{}", self.presented(), URL_SAFE_NO_PAD.encode(self.fingerprint))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_looks_like_a_flag() {
        // Of ids that are drawn by chance alone one in 64 does.
        assert!((0..4000).all(|_| !JoinToken::draw(&[7; 32]).id().starts_with('-')));
    }

    #[test]
    fn a_token_is_read_back_and_nothing_else_is_one() {
        let token = JoinToken::draw(&[7; 32]);
        assert_eq!(format!(" {token}\n").parse(), Ok(token.clone()));
        let presented = token.presented();
        assert_eq!(parse_presented(&presented), Some((token.id(), token.secret_sha256())));
        assert!(!format!("{token:?}").contains(&token.secret));
        let text = token.to_string();
        for garbage in ["", "pxj_", "pxj_a.b.c", &presented, &text[1..], &text[..text.len() - 2], "px_a.b"] {
            assert_eq!(garbage.parse::<JoinToken>(), Err(NoToken), "{garbage}");
        }
    }
}
