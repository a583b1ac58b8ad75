//! Who may use a meta port that other machines reach: whoever shows a certificate of the cluster, or has the token that is
//! configured. On the loopback everybody on the machine may read, and who could stop the process anyway may command it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};

use super::door::Caller;
use crate::config::Problems;

/// Open to everybody: balancers ask, and learn nothing else.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// What tells more than how a node is.
const PRIVATE: [&str; 3] = ["/config", "/logs", "/rpc/config"];

/// What is asked of a request.
pub(crate) struct Guard {
    is_loopback: bool,
    tokens: Mutex<Tokens>,
}

/// What lets a client of no part in the cluster use a meta port that isn't on a loopback address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// For who reads: a scraper.
    pub token: Option<String>,
    /// For who gives commands, too: a hook.
    pub command_token: Option<String>,
}

/// A shorter token might be guessed.
const TOKEN_BYTES: usize = 16;

impl Tokens {
    /// What is wrong goes to `problems`, for the section `[meta]`.
    pub fn check(&self, problems: &mut Problems) {
        for (key, token) in [("meta.token", &self.token), ("meta.command_token", &self.command_token)] {
            if token.as_ref().is_some_and(|token| token.len() < TOKEN_BYTES) {
                problems.add(
                    key,
                    format!("has to have at least {TOKEN_BYTES} characters: else it could be guessed"),
                );
            }
        }
    }
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
    /// It came through a proxy: one of ours, whose pool has this port for a member, would bring anybody's.
    Relayed,
    /// It came from another user of this machine.
    Neighbour,
    /// It came in the clear.
    Plain,
    /// Its caller is nobody who may ask.
    Stranger,
    /// It is a command, and its caller may only read.
    Reader,
}

impl Refusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Relayed | Self::Neighbour | Self::Reader => StatusCode::FORBIDDEN,
            Self::Plain => StatusCode::BAD_REQUEST,
            Self::Stranger => StatusCode::UNAUTHORIZED,
        }
    }

    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Host => "This port is for this machine: ask for localhost, or for a loopback address.",
            Self::Relayed => "This port is for this machine, and this request was relayed (Forwarded).",
            Self::Neighbour => {
                "On this machine this is for root and the user that the node runs as; anybody else needs the token \
                 meta.command_token (Authorization: Bearer)."
            }
            Self::Plain => {
                "This port speaks TLS: ask with https. In the clear it answers /healthz and /readyz alone."
            }
            Self::Stranger => {
                "This needs a client certificate of the cluster or of meta.tls.client_ca, or the token meta.token \
                 (Authorization: Bearer)."
            }
            Self::Reader => {
                "Commands need a client certificate of the cluster, or the token meta.command_token \
                 (Authorization: Bearer): this is for reading alone."
            }
        }
    }
}

impl Guard {
    /// Of a port at this address.
    pub(crate) fn of(address: SocketAddr, tokens: Tokens) -> Self {
        Self { is_loopback: address.ip().is_loopback(), tokens: Mutex::new(tokens) }
    }

    /// Asks for other tokens from here on. Says whether they are others.
    pub(crate) fn change(&self, tokens: Tokens) -> bool {
        let mut present = self.tokens();
        let changed = *present != tokens;
        *present = tokens;
        changed
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        // No code panics while it holds this lock.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether other machines reach the port.
    pub(crate) fn is_exposed(&self) -> bool {
        !self.is_loopback
    }

    /// Whether it counts which user of this machine asks.
    pub(crate) fn is_for_owners(&self, path: &str, is_command: bool) -> bool {
        self.is_loopback && (is_command || PRIVATE.contains(&path))
    }

    /// Whether a request may be answered; a command is one that changes anything.
    pub(crate) fn admit(
        &self,
        path: &str,
        is_command: bool,
        headers: &HeaderMap,
        caller: Caller,
    ) -> Result<(), Refusal> {
        let reads = || if is_command { Err(Refusal::Reader) } else { Ok(()) };
        match caller {
            _ if self.is_loopback && headers.contains_key(header::FORWARDED) => Err(Refusal::Relayed),
            _ if self.is_loopback && !is_local(headers) => Err(Refusal::Host),
            Caller::Owner => Ok(()),
            _ if self.is_for_owners(path, is_command) => {
                let may = self.has(headers, |tokens| &tokens.command_token)
                    || !is_command && self.has(headers, |tokens| &tokens.token);
                may.then_some(()).ok_or(Refusal::Neighbour)
            }
            _ if self.is_loopback => Ok(()),
            _ if OPEN.contains(&path) => Ok(()),
            Caller::Plain => Err(Refusal::Plain),
            Caller::Member => Ok(()),
            _ if self.has(headers, |tokens| &tokens.command_token) => Ok(()),
            Caller::Reader => reads(),
            Caller::Stranger if self.has(headers, |tokens| &tokens.token) => reads(),
            Caller::Stranger => Err(Refusal::Stranger),
        }
    }

    fn has(&self, headers: &HeaderMap, which: impl Fn(&Tokens) -> &Option<String>) -> bool {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let said = value.and_then(|value| value.strip_prefix("Bearer ")).filter(|said| !said.is_empty());
        which(&self.tokens()).as_ref().zip(said).is_some_and(|(known, said)| is_same(known, said))
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
        let tokens = |token: Option<&str>, command: Option<&str>| {
            let [token, command_token] = [token, command].map(|token| token.map(str::to_owned));
            Guard::of(outside, Tokens { token, command_token })
        };
        let (with_token, without) = (tokens(Some("token"), Some("order")), tokens(None, None));
        let bearer = |token: &str| with(header::AUTHORIZATION, token);
        let (none, good, order) = (HeaderMap::new(), bearer("Bearer token"), bearer("Bearer order"));
        for (guard, headers, caller, verdicts) in [
            (&with_token, &none, Caller::Member, [Ok(()); 2]),
            (&without, &none, Caller::Member, [Ok(()); 2]),
            (&with_token, &good, Caller::Stranger, [Ok(()), Err(Refusal::Reader)]),
            (&with_token, &none, Caller::Reader, [Ok(()), Err(Refusal::Reader)]),
            (&with_token, &order, Caller::Reader, [Ok(()); 2]),
            (&with_token, &order, Caller::Stranger, [Ok(()); 2]),
            (&without, &good, Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&with_token, &none, Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&with_token, &bearer("Bearer tokem"), Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&with_token, &bearer("Bearer toke"), Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&with_token, &bearer("Bearer "), Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&tokens(Some(""), Some("")), &bearer("Bearer "), Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&with_token, &bearer("Basic token"), Caller::Stranger, [Err(Refusal::Stranger); 2]),
            (&with_token, &order, Caller::Plain, [Err(Refusal::Plain); 2]),
        ] {
            for (is_command, verdict) in [false, true].into_iter().zip(verdicts) {
                let admitted = guard.admit("/drain", is_command, headers, caller);
                assert_eq!(admitted, verdict, "{headers:?} {caller:?} {is_command}");
            }
            assert_eq!(guard.admit("/readyz", false, headers, caller), Ok(()));
        }
    }

    #[test]
    fn on_the_loopback_another_name_is_refused_and_what_was_relayed() {
        let loopback = Guard::of("127.0.0.1:8053".parse().unwrap(), Tokens::default());
        let relayed = with(header::FORWARDED, "for=192.0.2.1");
        assert_eq!(loopback.admit("/config", false, &relayed, Caller::Plain), Err(Refusal::Relayed));
        assert_eq!(loopback.admit("/status", false, &HeaderMap::new(), Caller::Plain), Ok(()));
        for (host, admitted) in [
            ("localhost:8053", true),
            ("127.0.0.1:8053", true),
            ("[::1]:8053", true),
            ("evil.example:8053", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
        ] {
            let verdict = loopback.admit("/status", false, &with(header::HOST, host), Caller::Plain);
            assert_eq!(verdict.is_ok(), admitted, "{host}");
            let verdict = loopback.admit("/rpc/drain", true, &with(header::HOST, host), Caller::Owner);
            assert_eq!(verdict.is_ok(), admitted, "{host}");
        }
    }

    #[test]
    fn on_the_loopback_others_of_the_machine_read_how_it_is_and_no_more() {
        let tokens = Tokens { token: Some("token".into()), command_token: Some("order".into()) };
        let loopback = Guard::of("[::1]:8053".parse().unwrap(), tokens);
        let bearer = |token: &str| with(header::AUTHORIZATION, token);
        let refused = Err(Refusal::Neighbour);
        for (headers, caller, verdicts) in [
            (HeaderMap::new(), Caller::Owner, [Ok(()); 3]),
            (HeaderMap::new(), Caller::Plain, [Ok(()), refused, refused]),
            (bearer("Bearer token"), Caller::Plain, [Ok(()), Ok(()), refused]),
            (bearer("Bearer order"), Caller::Plain, [Ok(()); 3]),
            (bearer("Bearer else"), Caller::Plain, [Ok(()), refused, refused]),
        ] {
            let asked = [("/status", false), ("/config", false), ("/rpc/drain", true)];
            for ((path, is_command), verdict) in asked.into_iter().zip(verdicts) {
                assert_eq!(loopback.admit(path, is_command, &headers, caller), verdict, "{path} {headers:?}");
            }
        }
    }
}
