use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(value: &Value) -> Result<CloudEvent, EventError> {
    CloudEvent::from_json(value.to_string().as_bytes())
}

fn minimal() -> Value {
    json!({ "specversion": "1.0", "id": "1", "source": "/test", "type": "file.stored" })
}

/// The minimal event with a member changed.
fn with(name: &str, value: Value) -> Value {
    let mut event = minimal();
    event[name] = value;
    event
}

/// The example of section 3.2 of the JSON format.
#[test]
fn the_specifications_examples_are_read_and_written_again() {
    for text in [
        r#"{"specversion":"1.0","id":"C234-1234-1234","source":"/mycontext","type":"com.example.someevent","time":"2018-04-05T17:31:00Z","datacontenttype":"application/xml","comexampleextension1":"value","comexampleothervalue":5,"data":"<much wow=\"xml\"/>"}"#,
        r#"{"specversion":"1.0","id":"B234-1234-1234","source":"/mycontext","type":"com.example.someevent","time":"2018-04-05T17:31:00Z","datacontenttype":"application/vnd.apache.thrift.binary","comexampleextension1":"value","comexampleothervalue":5,"data_base64":"AQID"}"#,
        r#"{"specversion":"1.0","id":"C234-1234-1234","source":"/mycontext","type":"com.example.someevent","subject":"larger-context","time":"2018-04-05T17:31:00Z","datacontenttype":"application/json","data":{"appinfoA":"abc","appinfoB":123,"appinfoC":true}}"#,
    ] {
        let event = CloudEvent::from_json(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(event.to_json().unwrap()).unwrap(), text);
    }
}

#[test]
fn data_is_kept_as_it_was_written() {
    let data = r#"{"large": 123456789012345678901234567890, "z": 1.0, "a": "\u00e9", "n": null}"#;
    let text = format!(r#"{{"specversion":"1.0","id":"1","source":"/t","type":"a","data":{data}}}"#);
    let event = CloudEvent::from_json(text.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(event.to_json().unwrap()).unwrap(), text);
    let null =
        CloudEvent::from_json(br#"{"specversion":"1.0","id":"1","source":"/t","type":"a","data":null}"#);
    assert!(matches!(null.unwrap().data(), EventData::Json(value) if value.get() == "null"));
}

#[test]
fn what_breaks_a_rule_is_refused_and_named() {
    for (event, text) in [
        (json!([]), "expected a JSON object at line 1 column"),
        (json!({ "id": "1" }), "no specversion"),
        (with("specversion", json!("0.3")), "only events of CloudEvents 1.0"),
        (with("id", json!("")), "no id"),
        (with("id", Value::Null), "no id"),
        (with("id", json!(1)), "write it as a string"),
        (with("source", json!("a b")), "it is a URI"),
        (with("type", json!("a..b")), "can't be subscribed to"),
        (with("type", json!("a.#")), "can't be subscribed to"),
        (with("subject", json!("")), "leave it out"),
        (with("time", json!("yesterday")), "RFC 3339"),
        (with("datacontenttype", json!("json")), "application/json"),
        (with("data_base64", json!("?")), "no base64"),
        (with("Upper", json!("x")), "a-z and 0-9"),
        (with("under_score", json!("x")), "a-z and 0-9"),
        (with("list", json!([1])), "a string, a boolean"),
        (with("number", json!(2_147_483_648_u64)), "32 bits"),
        (with("control", json!("a\nb")), "control characters"),
        (with("id", json!("x".repeat(1025))), "longer than 1024"),
        (with("data", json!("x".repeat(MAX_EVENT_BYTES))), "by reference"),
    ] {
        let error = read(&event).unwrap_err().to_string();
        assert!(error.contains(text), "{text}: {error}");
    }
    let both = json!({ "specversion": "1.0", "id": "1", "source": "/t", "type": "a", "data": 1, "data_base64": "AQ==" });
    assert!(read(&both).unwrap_err().to_string().contains("not both"));
    let twice = br#"{"specversion":"1.0","id":"1","id":"2","source":"/t","type":"a"}"#;
    assert!(CloudEvent::from_json(twice).unwrap_err().to_string().contains("twice"));
    let cut = CloudEvent::from_json(b"{\n\"id\": \"1\",").unwrap_err().to_string();
    assert!(cut.contains("line 2 column"), "{cut}");
}

#[test]
fn an_attribute_that_is_null_is_not_there() {
    let event = read(&with("subject", Value::Null)).unwrap();
    assert_eq!(event.subject(), None);
    assert!(read(&with("whatever", Value::Null)).unwrap().extensions.is_empty());
}

#[test]
fn what_is_made_here_is_checked_too() {
    let event = CloudEvent::new("/seed", "node.joined").with_subject("node/a");
    assert!(CloudEvent::from_json(&event.to_json().unwrap()).is_ok());
    let reserved = event.clone().with_extension("data", Extension::Boolean(true));
    assert!(reserved.to_json().unwrap_err().to_string().contains("no extension has this name"));
    assert!(CloudEvent::new("", "node.joined").to_json().is_err());
    assert_ne!(event.key(), event.clone().with_id("2").key());
    let (one, other) = (CloudEvent::new("/a", "t").with_id("bc"), CloudEvent::new("/ab", "t").with_id("c"));
    assert_ne!(one.key(), other.key());
}

#[test]
fn times_are_rfc_3339() {
    let table = [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_868_799_001, "2000-02-29T23:59:59.001Z"),
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ];
    for (millis, text) in table {
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)), text);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_what_is_read_is_written_alike(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = CloudEvent::from_json(&bytes);
        let event = CloudEvent::new("/t", "a").with_data("application/octet-stream", EventData::Binary(bytes.clone()));
        let json = event.to_json().unwrap();
        let again = CloudEvent::from_json(&json).unwrap();
        prop_assert!(matches!(again.data(), EventData::Binary(same) if *same == bytes));
        prop_assert_eq!(again.to_json().unwrap(), json);
    }
}
