//! Cross-origin requests (the Fetch standard, section 3.2): pages of configured origins may subscribe and publish.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HOST, HeaderValue,
    ORIGIN, VARY,
};
use http::{HeaderMap, StatusCode};
use protoplex_http::{Body, Response};

use crate::config::Config;

/// Lets a page read the answer, where its origin may. Credentials are for origins that are named, never for `*`.
pub(crate) fn allow(config: &Config, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    if config.allow_origins.is_empty() {
        return;
    }
    answer.append(VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin else { return };
    if config.names_origin(origin.to_str().unwrap_or_default()) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    } else if config.names_origin("*") {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Last-Event-ID"));
}

/// The answer to OPTIONS, a browser's question before the request itself.
pub(crate) fn preflight(methods: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    let names = "Authorization, Cache-Control, Content-Type, Last-Event-ID";
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(names));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

/// Whether a browser may publish with its user's cookie for the page that made it send this request: a page of this
/// very host, or of an origin that is named. A request without an origin is not from a page.
pub(crate) fn may_use_cookie(config: &Config, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().unwrap_or_default();
    let page_host = origin.split_once("://").map(|(_, host)| host.as_bytes());
    let own_host = headers.get(HOST).map(HeaderValue::as_bytes);
    (origin != "*" && config.names_origin(origin)) || (own_host.is_some() && page_host == own_host)
}

#[cfg(test)]
mod tests {
    use protoplex_runtime::config::Problems;

    use super::*;
    use crate::config::Raw;

    fn allowing(origins: &[&str]) -> Config {
        let allow_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Raw { allow_origins, ..Raw::default() }.resolve(&mut Problems::default())
    }

    fn answered(config: &Config, origin: &'static str) -> (Option<String>, bool) {
        let mut answer = HeaderMap::new();
        allow(config, Some(&HeaderValue::from_static(origin)), &mut answer);
        let allowed = answer.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap().to_owned());
        (allowed, answer.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS))
    }

    #[test]
    fn named_origins_get_credentials_all_others_at_most_an_answer() {
        let a = "https://a.example";
        assert_eq!(answered(&allowing(&[]), a), (None, false));
        assert_eq!(answered(&allowing(&[a]), a), (Some(a.into()), true));
        assert_eq!(answered(&allowing(&[a]), "https://b.example"), (None, false));
        assert_eq!(answered(&allowing(&[a, "*"]), a), (Some(a.into()), true));
        assert_eq!(answered(&allowing(&[a, "*"]), "https://b.example"), (Some("*".into()), false));
    }

    #[test]
    fn cookies_publish_for_pages_of_the_same_host_or_a_named_origin() {
        let config = allowing(&["https://a.example", "*"]);
        let with = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("hub.example:8080"))]);
            headers.extend(origin.map(|origin| (ORIGIN, HeaderValue::from_static(origin))));
            may_use_cookie(&config, &headers)
        };
        assert!(with(None) && with(Some("https://a.example")) && with(Some("http://hub.example:8080")));
        assert!(!with(Some("https://evil.example")) && !with(Some("null")) && !with(Some("*")));
    }
}
