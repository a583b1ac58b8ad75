//! What is wrong, as problem details (RFC 9457); where another seed leads, the way to it.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use protoplex_wire::seeds::Redirect;
use serde_json::json;
use tonic::{Code, Status};

/// When to ask again where nobody leads, or the seed has no room.
const RETRY: Duration = Duration::from_secs(1);

/// An answer that is none.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
    retry_after: Option<Duration>,
    leader: Option<Redirect>,
    /// The leader's address for this very request.
    location: Option<HeaderValue>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None, leader: None, location: None }
    }

    fn refused(status: &Status) -> Self {
        let leader = Redirect::of(status);
        let code = match status.code() {
            _ if leader.is_some() => StatusCode::TEMPORARY_REDIRECT,
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::Unavailable | Code::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry_after = (code == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY);
        Self { retry_after, leader, ..Self::new(code, status.message()) }
    }

    /// Not what is expected here.
    pub(super) fn malformed(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn no_session() -> Self {
        let detail = "there is no such session here: its link has ended, or is another seed's; register anew";
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(super) fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// Where another seed leads, the same request goes there.
    pub(super) fn at(self, uri: &Uri) -> Self {
        let to = |leader: &Redirect| {
            let path = uri.path_and_query().map_or("/", |it| it.as_str());
            HeaderValue::try_from(format!("https://{}{path}", leader.address)).ok()
        };
        let location = self.leader.as_ref().and_then(to);
        Self { location, ..self }
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Self::refused(&status)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, detail, retry_after, leader, location } = self;
        let title = status.canonical_reason().unwrap_or_default();
        let mut problem = json!({ "title": title, "status": status.as_u16(), "detail": detail });
        if let Some(leader) = leader {
            problem["leader"] = leader.address.into();
        }
        let mut response = (status, problem.to_string()).into_response();
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: HeaderValue| drop(headers.insert(name, value));
        set(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(location) = location {
            set(header::LOCATION, location);
        }
        if let Some(wait) = retry_after {
            // Whole seconds, and none is at once.
            set(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        response
    }
}
