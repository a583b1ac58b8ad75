//! What is secret of a configuration that is shown.

/// What stands in the place of a secret.
const MASK: &str = "***";

/// Without the values of keys whose name says that they are secret.
pub(crate) fn masked(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    let is_secret =
        |key: &str| ["secret", "token", "password", "access_key"].iter().any(|word| key.contains(word));
    match value {
        Value::Object(fields) => {
            let mask = |(key, value): (String, Value)| match value {
                Value::String(_) | Value::Number(_) if is_secret(&key) => (key, MASK.into()),
                value => (key, masked(value)),
            };
            Value::Object(fields.into_iter().map(mask).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(masked).collect()),
        // With a password in it, perhaps.
        Value::String(url) if url.contains("://") && url.contains('@') => MASK.into(),
        value => value,
    }
}
