//! CloudEvents 1.0 in their JSON format
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>).
//!
//! What an event carries is kept as it was written: numbers of any size, the order of members, everything within `data`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use thiserror::Error;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcDateTime};

use crate::topic::{self, TopicError};

/// The largest event, in bytes of its JSON.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// The longest id, source or subject, in bytes.
const MAX_ATTRIBUTE_BYTES: usize = 1024;
/// The most extension attributes of one event.
const MAX_EXTENSIONS: usize = 64;
/// The longest name of an extension attribute; the specification advises 20.
pub const MAX_NAME_BYTES: usize = 64;

const VERSION: &str = "1.0";
/// Attributes that the specification defines, and members that are none: no extension has such a name.
const RESERVED: [&str; 10] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
    "data_base64",
];

/// Why something is no event that can be published.
#[derive(Debug, Error)]
pub enum EventError {
    /// It is no JSON object at all, or one with a member twice. Says line and column.
    #[error("no CloudEvent in JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is another version's.
    #[error("specversion is {0:?}: only events of CloudEvents 1.0 are known")]
    Version(String),
    /// An attribute that every event has is missing or empty.
    #[error("the event has no {0}: id, source, specversion and type are required, and not empty")]
    Missing(&'static str),
    /// An attribute's value breaks its rule.
    #[error("{name} {value:?}: {problem}")]
    Attribute {
        /// The attribute.
        name: String,
        /// As given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The type is no topic.
    #[error("the event's type can't be subscribed to: {0}")]
    Topic(#[from] TopicError),
    /// It has more extension attributes than are taken.
    #[error("the event has {0} extension attributes, at most {MAX_EXTENSIONS} are taken")]
    Extensions(usize),
    /// It is too large.
    #[error(
        "the event has {0} bytes as JSON, at most {MAX_EVENT_BYTES} are taken: carry large data by reference"
    )]
    Large(usize),
}

/// A value of an extension attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// Any text without control characters; also URIs and times.
    Text(String),
    /// Of 32 bits, as the specification has it.
    Integer(i32),
    /// True or false.
    Boolean(bool),
}

/// What an event is about.
#[derive(Debug, Clone, Default)]
pub enum EventData {
    /// It has none.
    #[default]
    None,
    /// A JSON value, as it was written: text that is no JSON is a string.
    Json(Box<RawValue>),
    /// Bytes, base64 in JSON.
    Binary(Vec<u8>),
}

impl EventData {
    /// What serializes to JSON.
    pub fn json(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self::Json)
    }
}

/// An event of version 1.0, checked.
#[derive(Debug, Clone)]
pub struct CloudEvent {
    id: String,
    source: String,
    topic: String,
    subject: Option<String>,
    time: Option<String>,
    content_type: Option<String>,
    schema: Option<String>,
    extensions: BTreeMap<String, Extension>,
    data: EventData,
}

impl CloudEvent {
    /// An event of this type by this source, which happens now, with a random id and without data.
    #[must_use]
    pub fn new(source: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            id: random_id(),
            source: source.into(),
            topic: topic.into(),
            subject: None,
            time: Some(rfc3339(SystemTime::now())),
            content_type: None,
            schema: None,
            extensions: BTreeMap::new(),
            data: EventData::None,
        }
    }

    /// With another id: events of one source and one id are one event.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: id.into(), ..self }
    }

    /// About this subject of its source.
    #[must_use]
    pub fn with_subject(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// With data, of this content type.
    #[must_use]
    pub fn with_data(self, content_type: impl Into<String>, data: EventData) -> Self {
        Self { content_type: Some(content_type.into()), data, ..self }
    }

    /// With an extension attribute.
    #[must_use]
    pub fn with_extension(mut self, name: impl Into<String>, value: Extension) -> Self {
        self.extensions.insert(name.into(), value);
        self
    }

    /// Names the event, together with its source.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it happened, a URI reference.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its type, by which it is subscribed to.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What of its source it is about.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// When it happened (RFC 3339).
    #[must_use]
    pub fn time(&self) -> Option<&str> {
        self.time.as_deref()
    }

    /// What it carries.
    #[must_use]
    pub fn data(&self) -> &EventData {
        &self.data
    }

    /// What tells two events apart: a digest of source and id.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        // A source has no control character.
        Sha256::new().chain_update(&self.source).chain_update([0]).chain_update(&self.id).finalize().into()
    }

    /// Reads an event in the JSON format, and checks it.
    pub fn from_json(json: &[u8]) -> Result<Self, EventError> {
        if json.len() > MAX_EVENT_BYTES {
            return Err(EventError::Large(json.len()));
        }
        let Members(members) = serde_json::from_slice(json)?;
        let event = Self::of(members)?;
        event.check()?;
        Ok(event)
    }

    /// The event in the JSON format, checked.
    pub fn to_json(&self) -> Result<Vec<u8>, EventError> {
        self.check()?;
        let json = serde_json::to_vec(self)?;
        if json.len() > MAX_EVENT_BYTES { Err(EventError::Large(json.len())) } else { Ok(json) }
    }

    fn of(mut members: BTreeMap<String, Box<RawValue>>) -> Result<Self, EventError> {
        // An attribute that is null is one that is not there.
        let mut take = |name: &str| members.remove(name).filter(|value| value.get() != "null");
        let mut text = |name: &'static str| take(name).map(|value| text(name, &value)).transpose();
        let version = text("specversion")?.ok_or(EventError::Missing("specversion"))?;
        if version != VERSION {
            return Err(EventError::Version(version));
        }
        let mut event = Self {
            id: text("id")?.ok_or(EventError::Missing("id"))?,
            source: text("source")?.ok_or(EventError::Missing("source"))?,
            topic: text("type")?.ok_or(EventError::Missing("type"))?,
            subject: text("subject")?,
            time: text("time")?,
            content_type: text("datacontenttype")?,
            schema: text("dataschema")?,
            extensions: BTreeMap::new(),
            data: EventData::None,
        };
        let binary = text("data_base64")?;
        // Also a null is data.
        event.data = match (members.remove("data"), binary) {
            (None, None) => EventData::None,
            (Some(json), None) => EventData::Json(json),
            (None, Some(base64)) => EventData::Binary(
                STANDARD
                    .decode(&base64)
                    .map_err(|_| wrong("data_base64", &base64, "it is no base64 (RFC 4648 section 4)"))?,
            ),
            (Some(_), Some(base64)) => {
                return Err(wrong("data_base64", &base64, "an event has data or data_base64, not both"));
            }
        };
        members.remove("data_base64");
        for (name, value) in members {
            if value.get() != "null" {
                let value = extension(&name, &value)?;
                event.extensions.insert(name, value);
            }
        }
        Ok(event)
    }

    /// The rules of the specification, and limits of this bus.
    fn check(&self) -> Result<(), EventError> {
        let required = [("id", &self.id), ("source", &self.source), ("type", &self.topic)];
        if let Some((name, _)) = required.iter().find(|(_, value)| value.is_empty()) {
            return Err(EventError::Missing(name));
        }
        topic::check(&self.topic)?;
        let texts = [
            ("id", Some(&self.id)),
            ("source", Some(&self.source)),
            ("subject", self.subject.as_ref()),
            ("dataschema", self.schema.as_ref()),
            ("datacontenttype", self.content_type.as_ref()),
        ];
        for (name, value) in texts.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let problem = match () {
                () if value.is_empty() => "it is empty: leave it out",
                () if value.len() > MAX_ATTRIBUTE_BYTES => "it is longer than 1024 bytes",
                () if value.chars().any(char::is_control) => "no attribute has control characters",
                () if matches!(name, "source" | "dataschema") && value.contains(char::is_whitespace) => {
                    "it is a URI, which has no spaces"
                }
                () if name == "datacontenttype" && !value.contains('/') => {
                    "write for example application/json"
                }
                () => continue,
            };
            return Err(wrong(name, value, problem));
        }
        if let Some(time) = &self.time
            && OffsetDateTime::parse(time, &Rfc3339).is_err()
        {
            return Err(wrong("time", time, "write for example 2018-04-05T17:31:00Z (RFC 3339)"));
        }
        if self.extensions.len() > MAX_EXTENSIONS {
            return Err(EventError::Extensions(self.extensions.len()));
        }
        self.extensions.iter().try_for_each(|(name, value)| check_extension(name, value))
    }
}

/// A random id, as of an event.
fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The time as CloudEvents want it (RFC 3339), in UTC to the millisecond.
fn rfc3339(time: SystemTime) -> String {
    let time = UtcDateTime::from(time);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second, millisecond) = time.as_hms_milli();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

fn check_extension(name: &str, value: &Extension) -> Result<(), EventError> {
    let of = |problem| Err(wrong(name, &value.to_string(), problem));
    match value {
        _ if name.is_empty() || name.len() > MAX_NAME_BYTES => {
            of("an attribute's name has 1 to 64 characters")
        }
        _ if !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) => {
            of("an attribute's name is made of a-z and 0-9")
        }
        _ if RESERVED.contains(&name) => of("no extension has this name"),
        Extension::Text(text) if text.len() > MAX_ATTRIBUTE_BYTES => of("it is longer than 1024 bytes"),
        Extension::Text(text) if text.chars().any(char::is_control) => {
            of("no attribute has control characters")
        }
        _ => Ok(()),
    }
}

fn wrong(name: &str, value: &str, problem: &'static str) -> EventError {
    let mut value = value.to_owned();
    value.truncate(value.floor_char_boundary(64));
    EventError::Attribute { name: name.to_owned(), value, problem }
}

fn text(name: &str, value: &RawValue) -> Result<String, EventError> {
    serde_json::from_str(value.get()).map_err(|_| wrong(name, value.get(), "write it as a string"))
}

fn extension(name: &str, value: &RawValue) -> Result<Extension, EventError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Boolean(bool),
        Integer(i32),
        Text(String),
    }
    let problem = "an attribute is a string, a boolean, or an integer of 32 bits";
    match serde_json::from_str(value.get()).map_err(|_| wrong(name, value.get(), problem))? {
        Value::Boolean(value) => Ok(Extension::Boolean(value)),
        Value::Integer(value) => Ok(Extension::Integer(value)),
        Value::Text(value) => Ok(Extension::Text(value)),
    }
}

impl fmt::Display for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(value) => f.write_str(value),
            Self::Integer(value) => value.fmt(f),
            Self::Boolean(value) => value.fmt(f),
        }
    }
}

impl Serialize for CloudEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", VERSION)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("source", &self.source)?;
        map.serialize_entry("type", &self.topic)?;
        let optional = [
            ("subject", &self.subject),
            ("time", &self.time),
            ("datacontenttype", &self.content_type),
            ("dataschema", &self.schema),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &self.extensions {
            match value {
                Extension::Text(value) => map.serialize_entry(name, value)?,
                Extension::Integer(value) => map.serialize_entry(name, value)?,
                Extension::Boolean(value) => map.serialize_entry(name, value)?,
            }
        }
        match &self.data {
            EventData::None => {}
            EventData::Json(value) => map.serialize_entry("data", value)?,
            EventData::Binary(bytes) => map.serialize_entry("data_base64", &STANDARD.encode(bytes))?,
        }
        map.end()
    }
}

/// The members of an object, each once.
struct Members(BTreeMap<String, Box<RawValue>>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.contains_key(&name) {
                        map.next_value::<IgnoredAny>()?;
                        return Err(A::Error::custom(format_args!("the member {name:?} stands in it twice")));
                    }
                    members.insert(name, map.next_value()?);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
