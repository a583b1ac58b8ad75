//! What the Mercure protocol says in requests and answers: topics, updates, credentials, headers.
//!
//! Source: <https://mercure.rocks/spec>, in the form that its clients speak (`topic`, `mercure` claim; drafts up to 07).
//! Topic selectors work in tokens; a subscription names single topics, because each lives with an owner of its own.

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName};
use thiserror::Error;

use crate::channel::{Since, Update};

/// Where publishers post and subscribers connect.
pub(crate) const PATH: &str = "/.well-known/mercure";
/// Since when, in a request; where the stream starts, in the answer to it.
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The id of no event: all there is, or "the event that you named was not found".
pub(crate) const EARLIEST: &str = "earliest";
/// Topics of one subscription or one update.
pub(crate) const MAX_TOPICS: usize = 16;

/// The longest topic, in bytes: it is a key of the cluster's.
const MAX_TOPIC_BYTES: usize = 1024;
/// The longest id and type that a publisher may give, in bytes: an id comes back in headers.
const MAX_FIELD_BYTES: usize = 256;

/// What is wrong with a request. Always the client's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Malformed {
    #[error("no topic: name at least one in \"topic\"")]
    NoTopic,
    #[error("more than {MAX_TOPICS} topics")]
    TooManyTopics,
    #[error("a topic is empty, longer than {MAX_TOPIC_BYTES} bytes, or has control characters")]
    BadTopic,
    #[error("{0:?} stands for many topics: subscribe to single ones, up to {MAX_TOPICS} in one connection")]
    Selector(String),
    #[error("the parameter {0:?} belongs to a later draft of Mercure: name single topics in \"topic\"")]
    Matcher(String),
    #[error(
        "the id is longer than {MAX_FIELD_BYTES} bytes, has control characters, starts with '#', or is \"earliest\""
    )]
    BadId,
    #[error("the type is longer than {MAX_FIELD_BYTES} bytes, or has control characters")]
    BadType,
    #[error("\"retry\" is no number of milliseconds")]
    BadRetry,
}

/// A request to subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscribe {
    /// Without repetitions; at least one.
    pub(crate) topics: Vec<String>,
    pub(crate) since: Since,
}

/// A request to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    /// Without repetitions; at least one, the first is the canonical one.
    pub(crate) topics: Vec<String>,
    pub(crate) update: Update,
}

/// A token, and how it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) token: String,
    /// Browsers send cookies on behalf of any page.
    pub(crate) from_cookie: bool,
}

impl Subscribe {
    /// Reads the query; the `Last-Event-ID` header comes before the parameter.
    pub(crate) fn parse(query: &str, headers: &HeaderMap) -> Result<Self, Malformed> {
        let mut topics = Vec::new();
        let mut since = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "topic" if value == "*" || value.contains('{') => {
                    return Err(Malformed::Selector(value.into_owned()));
                }
                "topic" => add_topic(&mut topics, &value)?,
                // The second is its name in drafts before 06.
                "lastEventID" | "Last-Event-ID" => since = Some(value.into_owned()),
                other if other.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("match")) => {
                    return Err(Malformed::Matcher(name.into_owned()));
                }
                _ => {}
            }
        }
        if topics.is_empty() {
            return Err(Malformed::NoTopic);
        }
        if let Some(header) = headers.get(LAST_EVENT_ID) {
            since = Some(String::from_utf8_lossy(header.as_bytes()).into_owned());
        }
        let since = match since {
            None => Since::Now,
            Some(id) if id == EARLIEST => Since::Earliest,
            Some(id) => Since::Event(id),
        };
        Ok(Self { topics, since })
    }
}

impl Publish {
    /// Reads the form (`application/x-www-form-urlencoded`), and topics in the query, which come first: a proxy that
    /// routes by them does not read forms.
    pub(crate) fn parse(query: &str, form: &[u8]) -> Result<Self, Malformed> {
        let mut topics = Vec::new();
        for (_, topic) in form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "topic") {
            add_topic(&mut topics, &topic)?;
        }
        let mut update = Update::default();
        for (name, value) in form_urlencoded::parse(form) {
            match &*name {
                "topic" => add_topic(&mut topics, &value)?,
                "data" => update.data = value.into_owned(),
                // Its presence counts, whatever its value.
                "private" => update.private = true,
                "id" if !value.is_empty() => update.id = Some(id(&value)?),
                "type" if !value.is_empty() => update.kind = Some(kind(&value)?),
                "retry" if !value.is_empty() => {
                    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                    let number = value.parse().ok().filter(|_| digits);
                    update.retry_ms = Some(number.ok_or(Malformed::BadRetry)?);
                }
                _ => {}
            }
        }
        if topics.is_empty() { Err(Malformed::NoTopic) } else { Ok(Self { topics, update }) }
    }
}

impl Credential {
    /// The token of a request: of the `Authorization` header, else of the query, else of the cookie.
    pub(crate) fn of(query: &str, headers: &HeaderMap) -> Option<Self> {
        if let Some(header) = headers.get(AUTHORIZATION) {
            // Another scheme, or none, is a token that can't be verified.
            let text = header.to_str().unwrap_or_default();
            let (scheme, token) = text.split_once(' ').unwrap_or(("", text));
            let token = if scheme.eq_ignore_ascii_case("bearer") { token.trim() } else { "" };
            return Some(Self { token: token.to_owned(), from_cookie: false });
        }
        if let Some((_, token)) =
            form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "authorization")
        {
            return Some(Self { token: token.into_owned(), from_cookie: false });
        }
        let cookies = headers.get_all(COOKIE).into_iter().filter_map(|header| header.to_str().ok());
        let mut pairs =
            cookies.flat_map(|header| header.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, token) = pairs.find(|(name, _)| *name == "mercureAuthorization")?;
        Some(Self { token: token.trim_matches('"').to_owned(), from_cookie: true })
    }
}

fn add_topic(topics: &mut Vec<String>, topic: &str) -> Result<(), Malformed> {
    if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES || topic.chars().any(char::is_control) {
        return Err(Malformed::BadTopic);
    }
    if topics.iter().any(|known| known == topic) {
        return Ok(());
    }
    if topics.len() == MAX_TOPICS {
        return Err(Malformed::TooManyTopics);
    }
    topics.push(topic.to_owned());
    Ok(())
}

/// `#` begins the ids that channels give.
fn id(value: &str) -> Result<String, Malformed> {
    let good = is_field(value) && !value.starts_with('#') && value != EARLIEST;
    good.then(|| value.to_owned()).ok_or(Malformed::BadId)
}

fn kind(value: &str) -> Result<String, Malformed> {
    is_field(value).then(|| value.to_owned()).ok_or(Malformed::BadType)
}

fn is_field(value: &str) -> bool {
    value.len() <= MAX_FIELD_BYTES && !value.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
