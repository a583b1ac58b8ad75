//! Upload tokens: how one is written, what is kept of it, and which upload it opens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protoplex_wire::join_token::draw_id;
use protoplex_wire::proto::{BeginUploadRequest, CreateTokenRequest, TokenRefusal};
use sha2::{Digest, Sha256};

use crate::scope;
use crate::store::{StoreError, StoreResult};

const PREFIX: &str = "px_";
/// Divides id and secret; it is no base64url character.
const DIVIDER: char = '.';
const ID_BYTES: usize = 12;
const SECRET_BYTES: usize = 32;
/// The largest file of any token, 64 TiB: more than any storage takes as one object, and so little that no number of
/// reservations overflows.
const MAX_FILE_BYTES: u64 = 64 << 40;

/// SHA-256 of a token's secret, which is all that is kept of it.
pub(crate) type SecretDigest = [u8; 32];

/// A token as its owner presents it: `px_ID.SECRET`.
pub(crate) struct Presented<'a> {
    pub(crate) id: &'a str,
    secret: &'a str,
}

impl<'a> Presented<'a> {
    /// Reads a token; `None` where it is malformed.
    pub(crate) fn parse(token: &'a str) -> Option<Self> {
        let (id, secret) = token.strip_prefix(PREFIX)?.split_once(DIVIDER)?;
        (!id.is_empty() && !secret.is_empty()).then_some(Self { id, secret })
    }

    /// Whether its secret is the one that was kept.
    pub(crate) fn proves(&self, kept: &SecretDigest) -> bool {
        constant_time_eq(&digest(self.secret), kept)
    }
}

/// A token that was just made.
pub(crate) struct New {
    pub(crate) token: String,
    pub(crate) id: String,
    pub(crate) secret_sha256: SecretDigest,
}

impl New {
    /// Draws an id and a secret from the operating system's random numbers.
    pub(crate) fn draw() -> Self {
        let id = draw_id::<ID_BYTES>();
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>());
        Self { token: format!("{PREFIX}{id}{DIVIDER}{secret}"), secret_sha256: digest(&secret), id }
    }
}

/// What a token allows, and how much of it is taken. As in the protocol, 0 is no limit of quota, uses and time.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) host: String,
    pub(crate) path_prefix: String,
    pub(crate) max_bytes: u64,
    pub(crate) quota_bytes: u64,
    pub(crate) uses: u32,
    pub(crate) expires_at_ms: i64,
    pub(crate) uses_taken: u32,
    pub(crate) bytes_taken: u64,
}

/// Why a token doesn't open an upload, and the limit in bytes that was met where it was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) refusal: TokenRefusal,
    pub(crate) limit_bytes: u64,
}

impl Terms {
    /// The terms that a request for a new token asks for, checked.
    pub(crate) fn parse(request: &CreateTokenRequest) -> StoreResult<Self> {
        if request.max_bytes == 0 {
            return Err(StoreError::Invalid("max_bytes is 0: say how large one file may be".to_owned()));
        }
        if request.expires_at_ms < 0 {
            return Err(StoreError::Invalid("expires_at_ms is negative: 0 means never".to_owned()));
        }
        scope::check_path(&request.path_prefix)?;
        Ok(Self {
            host: scope::parse_pattern(&request.host)?,
            path_prefix: request.path_prefix.clone(),
            max_bytes: request.max_bytes.min(MAX_FILE_BYTES),
            quota_bytes: request.quota_bytes,
            uses: request.uses,
            expires_at_ms: request.expires_at_ms,
            uses_taken: 0,
            bytes_taken: 0,
        })
    }

    /// The bytes to reserve for an upload, or why the token doesn't open it. The order of the checks is the protocol's.
    pub(crate) fn admit(&self, upload: &BeginUploadRequest, now_ms: i64) -> Result<u64, Refused> {
        let no = |refusal, limit_bytes| Err(Refused { refusal, limit_bytes });
        let left = match self.quota_bytes {
            0 => u64::MAX,
            quota => quota.saturating_sub(self.bytes_taken),
        };
        if self.expires_at_ms != 0 && now_ms >= self.expires_at_ms {
            no(TokenRefusal::Expired, 0)
        } else if !scope::host_matches(&self.host, &upload.host) {
            no(TokenRefusal::WrongHost, 0)
        } else if !scope::path_matches(&self.path_prefix, &upload.path) {
            no(TokenRefusal::WrongPath, 0)
        } else if self.uses != 0 && self.uses_taken >= self.uses {
            no(TokenRefusal::UsedUp, 0)
        } else {
            match upload.size {
                Some(size) if size > self.max_bytes => no(TokenRefusal::TooLarge, self.max_bytes),
                Some(size) if size > left => no(TokenRefusal::OverQuota, left),
                None if left == 0 => no(TokenRefusal::OverQuota, left),
                Some(size) => Ok(size),
                None => Ok(self.max_bytes.min(left)),
            }
        }
    }
}

fn digest(secret: &str) -> SecretDigest {
    Sha256::digest(secret).into()
}

/// Compares without telling by its duration where two digests differ.
fn constant_time_eq(a: &SecretDigest, b: &SecretDigest) -> bool {
    a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_proves_itself_and_no_other() {
        let (one, other) = (New::draw(), New::draw());
        let presented = Presented::parse(&one.token).unwrap();
        assert_eq!(presented.id, one.id);
        assert!(presented.proves(&one.secret_sha256));
        assert!(!presented.proves(&other.secret_sha256));
        assert_eq!(one.token.len(), "px_".len() + 16 + 1 + 43);
    }

    #[test]
    fn malformed_tokens_are_none() {
        for token in ["", "px_", "px_.", "px_id", "px_id.", "px_.secret", "id.secret", "PX_id.secret"] {
            assert!(Presented::parse(token).is_none(), "{token}");
        }
    }

    fn terms() -> Terms {
        Terms {
            host: "example.com".to_owned(),
            path_prefix: "/files/".to_owned(),
            max_bytes: 100,
            quota_bytes: 250,
            uses: 3,
            expires_at_ms: 1_000,
            uses_taken: 1,
            bytes_taken: 200,
        }
    }

    #[test]
    fn admits_within_its_terms() {
        let upload = |size| BeginUploadRequest {
            host: "example.com".to_owned(),
            path: "/files/a".to_owned(),
            size,
            ..Default::default()
        };
        let no = |refusal, limit_bytes| Err(Refused { refusal, limit_bytes });
        let with = |change: fn(&mut Terms)| {
            let mut terms = terms();
            change(&mut terms);
            terms
        };
        let table = [
            (terms(), Some(50), 999, Ok(50)),
            (terms(), Some(0), 999, Ok(0)),
            (terms(), None, 999, Ok(50)),
            (terms(), Some(51), 999, no(TokenRefusal::OverQuota, 50)),
            (terms(), Some(101), 999, no(TokenRefusal::TooLarge, 100)),
            (terms(), Some(u64::MAX), 999, no(TokenRefusal::TooLarge, 100)),
            (terms(), Some(50), 1_000, no(TokenRefusal::Expired, 0)),
            (with(|t| t.expires_at_ms = 0), Some(50), i64::MAX, Ok(50)),
            (with(|t| t.uses_taken = 3), Some(50), 999, no(TokenRefusal::UsedUp, 0)),
            (with(|t| (t.uses, t.uses_taken) = (0, 9)), Some(50), 999, Ok(50)),
            (with(|t| t.quota_bytes = 0), None, 999, Ok(100)),
            (with(|t| t.bytes_taken = 250), None, 999, no(TokenRefusal::OverQuota, 0)),
            (with(|t| t.bytes_taken = 250), Some(1), 999, no(TokenRefusal::OverQuota, 0)),
            (with(|t| t.bytes_taken = 250), Some(0), 999, Ok(0)),
            (with(|t| t.bytes_taken = 300), Some(0), 999, Ok(0)),
        ];
        for (row, (terms, size, now_ms, outcome)) in table.into_iter().enumerate() {
            assert_eq!(terms.admit(&upload(size), now_ms), outcome, "row {row}");
        }
    }

    #[test]
    fn refuses_in_the_order_of_the_protocol() {
        // Everything is wrong at first; each step mends the fault that the refusal names.
        let mut terms = Terms { uses_taken: 3, bytes_taken: 250, ..terms() };
        let mut upload = BeginUploadRequest {
            host: "example.org".to_owned(),
            path: "/other".to_owned(),
            size: Some(101),
            ..Default::default()
        };
        let refusal =
            |terms: &Terms, upload: &BeginUploadRequest| terms.admit(upload, 2_000).unwrap_err().refusal;
        assert_eq!(refusal(&terms, &upload), TokenRefusal::Expired);
        terms.expires_at_ms = 0;
        assert_eq!(refusal(&terms, &upload), TokenRefusal::WrongHost);
        upload.host = "example.com".to_owned();
        assert_eq!(refusal(&terms, &upload), TokenRefusal::WrongPath);
        upload.path = "/files/a".to_owned();
        assert_eq!(refusal(&terms, &upload), TokenRefusal::UsedUp);
        terms.uses_taken = 2;
        assert_eq!(refusal(&terms, &upload), TokenRefusal::TooLarge);
        upload.size = Some(100);
        assert_eq!(refusal(&terms, &upload), TokenRefusal::OverQuota);
        terms.bytes_taken = 150;
        assert_eq!(terms.admit(&upload, 2_000), Ok(100));
    }

    #[test]
    fn new_terms_are_checked() {
        let good = CreateTokenRequest {
            host: "*.Example.com".to_owned(),
            path_prefix: "/files/".to_owned(),
            max_bytes: 1,
            ..Default::default()
        };
        assert_eq!(Terms::parse(&good).unwrap().host, "*.example.com");
        let boundless = CreateTokenRequest { max_bytes: u64::MAX, ..good.clone() };
        assert_eq!(Terms::parse(&boundless).unwrap().max_bytes, MAX_FILE_BYTES);
        let table = [
            CreateTokenRequest { host: String::new(), ..good.clone() },
            CreateTokenRequest { path_prefix: "files".to_owned(), ..good.clone() },
            CreateTokenRequest { path_prefix: "/a/../".to_owned(), ..good.clone() },
            CreateTokenRequest { max_bytes: 0, ..good.clone() },
            CreateTokenRequest { expires_at_ms: -1, ..good },
        ];
        for request in table {
            assert!(matches!(Terms::parse(&request), Err(StoreError::Invalid(_))), "{request:?}");
        }
    }
}
