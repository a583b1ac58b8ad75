//! Who may use a meta port that other machines reach: whoever shows a certificate of the cluster, or has the token that is
//! configured. On the loopback everybody may, as everybody on the machine could stop the process anyway.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};

use super::door::Caller;

/// Open to everybody: balancers ask, and learn nothing else.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// What is asked of a request.
pub(crate) struct Guard {
    is_loopback: bool,
    /// For who has no certificate of the cluster: a scraper, a hook.
    token: Option<String>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It means another machine by its name.
    Host,
    /// It came in the clear.
    Plain,
    /// Its caller is nobody who may ask.
    Stranger,
}

impl Refusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::FORBIDDEN,
            Self::Plain => StatusCode::BAD_REQUEST,
            Self::Stranger => StatusCode::UNAUTHORIZED,
        }
    }

    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Host => "This port is for this machine: ask for localhost, or for a loopback address.",
            Self::Plain => {
                "This port speaks TLS: ask with https. In the clear it answers /healthz and /readyz alone."
            }
            Self::Stranger => {
                "This needs a client certificate of the cluster or of meta.tls.client_ca, or the token meta.token \
                 (Authorization: Bearer)."
            }
        }
    }
}

impl Guard {
    /// Of a port at this address.
    pub(crate) fn of(address: SocketAddr, token: Option<String>) -> Self {
        Self { is_loopback: address.ip().is_loopback(), token }
    }

    /// Whether other machines reach the port.
    pub(crate) fn is_exposed(&self) -> bool {
        !self.is_loopback
    }

    /// Whether a request may be answered.
    pub(crate) fn admit(&self, path: &str, headers: &HeaderMap, caller: Caller) -> Result<(), Refusal> {
        match caller {
            _ if self.is_loopback => is_local(headers).then_some(()).ok_or(Refusal::Host),
            _ if OPEN.contains(&path) => Ok(()),
            Caller::Plain => Err(Refusal::Plain),
            Caller::Known => Ok(()),
            Caller::Stranger => self.has_token(headers).then_some(()).ok_or(Refusal::Stranger),
        }
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.strip_prefix("Bearer "));
        self.token.as_ref().zip(token).is_some_and(|(known, token)| is_same(known, token))
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

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_who_is_known_or_has_the_token_passes_and_health_is_for_everybody() {
        let outside = "10.0.0.1:8053".parse().unwrap();
        let (with_token, without) = (Guard::of(outside, Some("token".to_owned())), Guard::of(outside, None));
        let bearer = |token: &str| with(header::AUTHORIZATION, token);
        let (none, good) = (HeaderMap::new(), bearer("Bearer token"));
        for (guard, headers, caller, verdict) in [
            (&with_token, &none, Caller::Known, Ok(())),
            (&without, &none, Caller::Known, Ok(())),
            (&with_token, &good, Caller::Stranger, Ok(())),
            (&without, &good, Caller::Stranger, Err(Refusal::Stranger)),
            (&with_token, &none, Caller::Stranger, Err(Refusal::Stranger)),
            (&with_token, &bearer("Bearer tokem"), Caller::Stranger, Err(Refusal::Stranger)),
            (&with_token, &bearer("Bearer toke"), Caller::Stranger, Err(Refusal::Stranger)),
            (&with_token, &bearer("Bearer "), Caller::Stranger, Err(Refusal::Stranger)),
            (&with_token, &bearer("Basic token"), Caller::Stranger, Err(Refusal::Stranger)),
            (&with_token, &good, Caller::Plain, Err(Refusal::Plain)),
        ] {
            assert_eq!(guard.admit("/drain", headers, caller), verdict, "{headers:?} {caller:?}");
            assert_eq!(guard.admit("/readyz", headers, caller), Ok(()));
        }
    }

    #[test]
    fn on_the_loopback_only_another_name_is_refused() {
        let loopback = Guard::of("127.0.0.1:8053".parse().unwrap(), None);
        assert_eq!(loopback.admit("/status", &HeaderMap::new(), Caller::Plain), Ok(()));
        for (host, admitted) in [
            ("localhost:8053", true),
            ("127.0.0.1:8053", true),
            ("[::1]:8053", true),
            ("evil.example:8053", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
        ] {
            let verdict = loopback.admit("/status", &with(header::HOST, host), Caller::Plain);
            assert_eq!(verdict.is_ok(), admitted, "{host}");
        }
    }
}
