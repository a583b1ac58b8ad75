//! Why a request was not served, and the problem (RFC 9457) that says so: the one place where causes become statuses.

use std::time::Duration;

use http::StatusCode;
use http::header::{ALLOW, HeaderValue, WWW_AUTHENTICATE};
use protoplex_http::{BodyError, Problem, Response};

use crate::PROTOPLEX_MISDIRECTED;
use crate::elsewhere::ElsewhereError;
use crate::mercure::Malformed;
use crate::token::TokenError;

/// When it may be worth to ask a child again that is full.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It did not come through a proxy or another node: key or epoch is missing.
    Unrouted,
    /// This child does not own the key at that epoch.
    Misdirected,
    /// The first topic is not the key that it was routed by.
    OtherTopic { key: String, topic: String },
    /// Nothing is served at this path.
    NotFound,
    /// Not with this method; these are.
    Method { allow: &'static str },
    /// A parameter or field is wrong.
    Malformed(Malformed),
    /// An invalidation without a name.
    NoName,
    /// The body is no form.
    NotAForm,
    /// The body did not come whole.
    Body(BodyError),
    /// The token does not hold.
    Token(TokenError),
    /// There is no token where one is needed.
    NoToken,
    /// There is no token of a node where only nodes may come.
    NotANode,
    /// The token does not cover this.
    NotCovered { claim: &'static str, topic: String },
    /// A page of another origin lets a browser publish with its user's cookie.
    ForeignOrigin,
    /// A limit of this child is reached.
    Busy(&'static str),
    /// A topic's owner is another child, and it could not be reached or refused.
    Elsewhere { topic: String, error: ElsewhereError },
}

impl Refusal {
    /// The answer.
    pub(crate) fn into_response(self) -> Response {
        self.problem().into_response()
    }

    fn problem(self) -> Problem {
        match self {
            Self::Unrouted => {
                let detail =
                    "Protoplex-Key or Protoplex-Epoch is missing: live nodes are reached through a proxy";
                Problem::new(StatusCode::MISDIRECTED_REQUEST, "not-routed", detail)
            }
            Self::Misdirected => {
                let detail = "this node does not own the key at that epoch: ask the seed again";
                Problem::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", detail)
                    .header(PROTOPLEX_MISDIRECTED, HeaderValue::from_static("not-owner"))
            }
            Self::OtherTopic { key, topic } => {
                let detail = format!(
                    "the first topic is {topic:?}, but the request was routed by {key:?}: check the handler's key"
                );
                Problem::new(StatusCode::MISDIRECTED_REQUEST, "other-topic", detail)
            }
            Self::NotFound => {
                Problem::new(StatusCode::NOT_FOUND, "not-found", "nothing is served at this path")
            }
            Self::Method { allow } => {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", format!("this path takes {allow}"))
                    .header(ALLOW, HeaderValue::from_static(allow))
            }
            Self::Malformed(malformed) => {
                Problem::new(StatusCode::BAD_REQUEST, "malformed", malformed.to_string())
            }
            Self::NoName => {
                Problem::new(StatusCode::BAD_REQUEST, "malformed", "no name: give one in \"name\"")
            }
            Self::NotAForm => {
                let detail = "send the update as application/x-www-form-urlencoded";
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-a-form", detail)
            }
            Self::Body(error) => Problem::new(body_status(&error), "body", error.to_string()),
            Self::Token(error) => {
                let problem = Problem::new(StatusCode::UNAUTHORIZED, token_kind(error), error.to_string());
                challenge(problem, "Bearer error=\"invalid_token\"")
            }
            Self::NoToken => {
                let detail = "a token is needed: in Authorization, the query's \"authorization\", or the cookie mercureAuthorization";
                challenge(Problem::new(StatusCode::UNAUTHORIZED, "token-missing", detail), "Bearer")
            }
            Self::NotANode => {
                let detail =
                    "only nodes of this cluster may come here, with a token of theirs in Authorization";
                challenge(Problem::new(StatusCode::UNAUTHORIZED, "token-missing", detail), "Bearer")
            }
            Self::NotCovered { claim, topic } => {
                let detail = format!("the token's claim mercure.{claim} does not cover {topic:?}");
                let problem = Problem::new(StatusCode::FORBIDDEN, "token-scope", detail);
                challenge(problem, "Bearer error=\"insufficient_scope\"")
            }
            Self::ForeignOrigin => {
                let detail =
                    "a page of this origin may not publish with a cookie: add it to live.allow_origins";
                Problem::new(StatusCode::FORBIDDEN, "origin", detail)
            }
            Self::Busy(what) => {
                let detail = format!("this node has as many {what} as it may have");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(BUSY_RETRY)
            }
            Self::Elsewhere { topic, error } => elsewhere(&topic, error),
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// What another child refused is refused for its reasons; that it could not be reached is ours.
fn elsewhere(topic: &str, error: ElsewhereError) -> Problem {
    let detail = format!("the topic {topic:?}: {error}");
    let retry_after = match &error {
        ElsewhereError::NoOwner(error) => error.retry_after,
        ElsewhereError::Refused(status)
            if *status == StatusCode::UNAUTHORIZED || *status == StatusCode::FORBIDDEN =>
        {
            return Problem::new(*status, "token-scope", detail);
        }
        ElsewhereError::Refused(_) | ElsewhereError::Unreachable(_) => BUSY_RETRY,
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "topic-unavailable", detail).retry_after(retry_after)
}

fn challenge(problem: Problem, scheme: &'static str) -> Problem {
    problem.header(WWW_AUTHENTICATE, HeaderValue::from_static(scheme))
}

fn token_kind(error: TokenError) -> &'static str {
    match error {
        TokenError::Malformed => "token-malformed",
        TokenError::WrongAlgorithm => "token-algorithm",
        TokenError::Forged => "token-forged",
        TokenError::Expired => "token-expired",
        TokenError::OtherPurpose => "token-purpose",
        TokenError::NotYetValid => "token-not-yet-valid",
    }
}

fn body_status(error: &BodyError) -> StatusCode {
    match error {
        BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
        BodyError::Io(_) | BodyError::Other(_) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}
