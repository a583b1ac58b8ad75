//! Who may publish and who may see private updates: JSON Web Tokens (RFC 7519) signed with HS256, with a `mercure` claim.
//! And who is a node of this cluster: such tokens, short-lived and signed with a key that no app has.

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use protoplex_wire::identity::REGISTRATIONS_AUDIENCE;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use thiserror::Error;

use crate::selector::covers;

/// Checks tokens with the cluster's key.
pub(crate) struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

/// Knows the nodes of this cluster.
pub(crate) struct Nodes {
    key: DecodingKey,
    validation: Validation,
}

/// What a token allows, until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    publish: Vec<String>,
    subscribe: Vec<String>,
    /// The token's `exp`: no stream that was opened with it outlives it.
    pub(crate) expires_at: Option<SystemTime>,
}

/// Why a token was refused. Always the fault of whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum TokenError {
    /// Not three base64url parts, or no JSON in them, or no claims of the right types.
    #[error("the token is malformed: it is not a JSON Web Token with a \"mercure\" claim of topic lists")]
    Malformed,
    /// `none`, or any but HS256.
    #[error("the token's algorithm is not HS256")]
    WrongAlgorithm,
    /// Signed with another key, or changed since.
    #[error("the token's signature does not match")]
    Forged,
    /// Its `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// A node's, made for something else.
    #[error("the token is not for this")]
    OtherPurpose,
    /// Its `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYetValid,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    mercure: MercureClaim,
    exp: Option<u64>,
}

#[derive(Deserialize, Default)]
struct MercureClaim {
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    subscribe: Vec<String>,
}

impl Verifier {
    /// `secret` is the HS256 key.
    pub(crate) fn new(secret: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // Mercure's tokens need no expiry and name no audience; what they do say of time is checked to the second.
        validation.required_spec_claims.clear();
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 0;
        Self { key: DecodingKey::from_secret(secret), validation }
    }

    /// What `token` allows.
    pub(crate) fn verify(&self, token: &str) -> Result<Grant, TokenError> {
        let claims: Claims = decode(token, &self.key, &self.validation)?;
        let expires_at =
            claims.exp.and_then(|exp| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)));
        Ok(Grant { publish: claims.mercure.publish, subscribe: claims.mercure.subscribe, expires_at })
    }
}

impl Nodes {
    /// `secret` is the HS256 key of nodes' tokens.
    pub(crate) fn new(secret: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "aud"]);
        validation.set_audience(&[REGISTRATIONS_AUDIENCE]);
        validation.leeway = 0;
        Self { key: DecodingKey::from_secret(secret), validation }
    }

    /// Whether `token` is a node's, made for registrations.
    pub(crate) fn verify(&self, token: &str) -> Result<(), TokenError> {
        decode::<IgnoredAny>(token, &self.key, &self.validation).map(drop)
    }
}

fn decode<T: DeserializeOwned>(
    token: &str,
    key: &DecodingKey,
    validation: &Validation,
) -> Result<T, TokenError> {
    // A header with an algorithm that the library doesn't know ("none" above all) is to it JSON of a wrong shape.
    jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        ErrorKind::Json(_) => TokenError::WrongAlgorithm,
        _ => TokenError::Malformed,
    })?;
    let decoded = jsonwebtoken::decode(token, key, validation);
    let decoded = decoded.map_err(|error| match error.kind() {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenError::WrongAlgorithm
        }
        ErrorKind::InvalidSignature => TokenError::Forged,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidAudience => TokenError::OtherPurpose,
        _ => TokenError::Malformed,
    })?;
    Ok(decoded.claims)
}

impl Grant {
    /// Whether the holder may publish to `topic`.
    pub(crate) fn may_publish(&self, topic: &str) -> bool {
        self.publish.iter().any(|selector| covers(selector, topic))
    }

    /// Whether the holder may see the private updates of `topic`.
    pub(crate) fn may_subscribe(&self, topic: &str) -> bool {
        self.subscribe.iter().any(|selector| covers(selector, topic))
    }
}

#[cfg(test)]
mod tests;
