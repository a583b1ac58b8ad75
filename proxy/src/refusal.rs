//! Why the proxy answers by itself, and what it then says.

use std::time::Duration;

use http::StatusCode;
use protoplex_http::{Answer, BodyError, Problem};
use protoplex_wire::follow::LocateError;
use thiserror::Error;

use crate::key::KeyError;
use crate::target::TargetError;

/// When a client may try again where nothing tells it better.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request that no member answers. What it says goes to the client, so it names no addresses.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// The client's fault.
    #[error("the Host is not the name of a host")]
    MalformedHost,
    /// The client's fault.
    #[error(transparent)]
    AmbiguousTarget(#[from] TargetError),
    /// The client's fault, or the operator's.
    #[error("no handler matches this host and path")]
    NoHandler,
    /// The client's fault.
    #[error(transparent)]
    NoKey(#[from] KeyError),
    /// The client's fault: its body broke off, or is a form too long to be read for the key.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Ours: the seed has not been reached since this child started.
    #[error("this proxy has no routing table yet")]
    NoTable,
    /// The operator's: nobody is there to answer.
    #[error("pool {0:?} has no member now")]
    NoMember(Box<str>),
    /// Ours: the seed is away, busy, or has nobody to give the key to.
    #[error("no owner for this key: {0}")]
    NoOwner(#[from] LocateError),
    /// Ours: two owners in a row denied the key, or the first did when too much of the request was gone.
    #[error("the key is moving to another owner")]
    Moving,
    /// The upstream's: the owner of the key accepts no connection.
    #[error("the owner of this key can't be reached")]
    OwnerAway,
    /// The upstream's: it accepts no connection.
    #[error("the upstream can't be reached")]
    Unreachable,
    /// The upstream's: it broke off before its answer, or its answer is not HTTP.
    #[error("the upstream gave no valid answer")]
    BadAnswer,
    /// The upstream's.
    #[error("the upstream did not begin to answer in time")]
    TooSlow,
}

impl Refusal {
    /// The status that the client gets.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::MalformedHost | Self::AmbiguousTarget(_) | Self::NoKey(_) => StatusCode::BAD_REQUEST,
            Self::NoHandler => StatusCode::NOT_FOUND,
            Self::Body(BodyError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::TooSlow(_)) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::NoTable | Self::NoMember(_) | Self::NoOwner(_) | Self::Moving | Self::OwnerAway => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Unreachable | Self::BadAnswer => StatusCode::BAD_GATEWAY,
            Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The problem (RFC 9457) that the client is told.
    pub(crate) fn into_answer(self) -> Answer {
        let problem = Problem::new(self.status(), self.kind(), self.to_string());
        let problem = match &self {
            Self::NoOwner(error) => problem.retry_after(error.retry_after),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => problem.retry_after(RETRY_AFTER),
            _ => problem,
        };
        problem.into()
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::MalformedHost => "malformed-host",
            Self::AmbiguousTarget(_) => "ambiguous-target",
            Self::NoHandler => "no-handler",
            Self::NoKey(_) => "no-key",
            Self::Body(BodyError::TooLarge { .. }) => "form-too-long",
            Self::Body(_) => "broken-body",
            Self::NoTable => "no-routing-table",
            Self::NoMember(_) => "no-member",
            Self::NoOwner(_) => "no-owner",
            Self::Moving => "key-moving",
            Self::OwnerAway => "owner-away",
            Self::Unreachable => "upstream-unreachable",
            Self::BadAnswer => "upstream-failed",
            Self::TooSlow => "upstream-too-slow",
        }
    }
}
