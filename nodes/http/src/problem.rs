//! Errors as `application/problem+json` (RFC 9457), the one form in which our nodes say what went wrong.

use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde_json::{Map, Value};

use crate::body::Body;
use crate::exchange::{Answer, Response};

/// An answer that says what went wrong and what to do about it.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    fields: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// `kind` names the problem for programs (`token-expired`; it becomes the URN `urn:protoplex:problem:token-expired`);
    /// `detail` tells a person what failed, on what, and what to do.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("type".into(), format!("urn:protoplex:problem:{kind}").into());
        fields.insert("title".into(), status.canonical_reason().unwrap_or("Error").into());
        fields.insert("status".into(), status.as_u16().into());
        fields.insert("detail".into(), detail.into().into());
        Self { status, fields, headers: Vec::new() }
    }

    /// Adds a field of the problem's own (RFC 9457 section 3.2).
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.into(), value.into());
        self
    }

    /// Says when to try again, rounded up to whole seconds (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        self.header(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)))
    }

    /// Adds a header field to the answer, such as `WWW-Authenticate` or `Allow`.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The status that the answer will have.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer. It is not to be cached.
    pub fn into_response(self) -> Response {
        let mut text = Value::Object(self.fields).to_string();
        text.push('\n');
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        response
    }
}

/// After which to try again where memory ran out.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(1);

/// To CONNECT, in any version.
pub(crate) fn connect_not_supported() -> Problem {
    let detail = "This server does not open connections to other servers.";
    Problem::new(StatusCode::NOT_IMPLEMENTED, "connect-not-supported", detail)
}

/// To everything, while memory runs out.
pub(crate) fn overloaded() -> Problem {
    let detail = "This server is short of memory and takes no requests for a moment; try again.";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(OVERLOAD_PAUSE)
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        problem.into_response().into()
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        problem.into_response()
    }
}
