//! Who may use a meta port that other machines reach: whoever has a token for it. On the loopback everybody may, as
//! everybody on the machine could stop the process anyway.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use protoplex_wire::identity::{Identity, META_AUDIENCE};
use serde::{Deserialize, Serialize};

/// How long the token of a command is good: enough for clocks that differ. It passes over plain HTTP, so it should not be
/// worth much to who sees it.
const LIFE: Duration = Duration::from_secs(300);

/// Open to everybody without a token: balancers ask, and learn nothing else.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// What is asked of a request.
pub(crate) enum Guard {
    /// Nothing.
    Loopback,
    /// A token of the cluster's own nodes and operators, or the one that is configured.
    Tokens { key: Option<Box<DecodingKey>>, configured: Option<String> },
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    exp: u64,
}

impl Guard {
    /// Of a port at this address. `configured` is for who has no part in the cluster: a scraper, a hook.
    pub(crate) fn of(address: SocketAddr, configured: Option<String>) -> Self {
        if address.ip().is_loopback() { Self::Loopback } else { Self::Tokens { key: None, configured } }
    }

    /// Knows the tokens of a cluster from here on.
    pub(crate) fn trust(&mut self, identity: &Identity) {
        if let Self::Tokens { key, .. } = self {
            *key = Some(Box::new(DecodingKey::from_secret(&identity.node_key())));
        }
    }

    /// Whether a request may be answered.
    pub(crate) fn admits(&self, path: &str, headers: &HeaderMap) -> bool {
        let Self::Tokens { key, configured } = self else { return is_local(headers) };
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        let is_known = |token: &str| {
            let mut validation = Validation::new(Algorithm::HS256);
            validation.set_audience(&[META_AUDIENCE]);
            let is_configured = configured.as_ref().is_some_and(|known| is_same(known, token));
            let is_ours =
                || key.as_ref().is_some_and(|key| decode::<Claims>(token, key, &validation).is_ok());
            is_configured || is_ours()
        };
        OPEN.contains(&path) || token.is_some_and(is_known)
    }
}

/// Whether a request is for this machine by name, too. A page in some browser whose name was made to mean this machine (DNS
/// rebinding) says another one.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Takes as long whether or not, and wherever, they differ.
fn is_same(one: &str, other: &str) -> bool {
    let differ = one.bytes().zip(other.bytes()).fold(0, |differ, (one, other)| differ | (one ^ other));
    one.len() == other.len() && differ == 0
}

/// The value of an `Authorization` header for the meta ports of a cluster's nodes, good for five minutes.
///
/// # Errors
/// It can't be signed: a mistake of ours.
pub fn pass(identity: &Identity) -> Result<String, jsonwebtoken::errors::Error> {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFE;
    let claims = Claims { aud: META_AUDIENCE.to_owned(), exp: exp.as_secs() };
    let key = EncodingKey::from_secret(&identity.node_key());
    Ok(format!("Bearer {}", encode(&Header::default(), &claims, &key)?))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn with(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap())])
    }

    #[test]
    fn only_who_has_a_token_passes_and_health_is_for_everybody() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [ours, theirs] =
            [ours, theirs].map(|folder| Identity::open_or_create(&folder.path().join("cluster")).unwrap());
        let outside = "10.0.0.1:8053".parse().unwrap();
        let mut guard = Guard::of(outside, Some("configured".to_owned()));
        guard.trust(&ours);
        for (headers, admitted) in [
            (HeaderMap::new(), false),
            (with(&pass(&ours).unwrap()), true),
            (with(&pass(&theirs).unwrap()), false),
            (with("Bearer configured"), true),
            (with("Bearer configure"), false),
            (with("Bearer "), false),
            (with("Basic configured"), false),
        ] {
            assert_eq!(guard.admits("/drain", &headers), admitted, "{headers:?}");
            assert!(guard.admits("/readyz", &headers));
        }
        assert!(
            !Guard::of(outside, None).admits("/status", &with(&pass(&ours).unwrap())),
            "it was not told yet"
        );
        let loopback = Guard::of("127.0.0.1:8053".parse().unwrap(), None);
        assert!(loopback.admits("/status", &HeaderMap::new()));
        for (host, admitted) in [
            ("localhost:8053", true),
            ("127.0.0.1:8053", true),
            ("[::1]:8053", true),
            ("evil.example:8053", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).unwrap())]);
            assert_eq!(loopback.admits("/status", &headers), admitted, "{host}");
        }
    }
}
