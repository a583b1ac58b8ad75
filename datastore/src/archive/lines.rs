//! The text of an archive: one JSON object a line (<https://jsonlines.org>).
//!
//! ```text
//! {"protoplex_datastore":1,"version":"0.1.0","from":"protoplex.db","taken_at_ms":1790000000000}
//! {"files":{"reference":"…","size":12, …}}          a row of a table; bytes are base64 (RFC 4648, section 4)
//! {"counter":{"table":"builds","last":7}}           the last number that was given
//! {"end":[{"table":"files","rows":1,"sha256":"…"}]} what an archive without it, or with other rows, is not
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::tables::{Column, Kind, Table, Value};
use super::tally::Sum;

/// What this version reads and writes.
pub(crate) const FORMAT: u64 = 1;

/// How the first line begins.
pub(crate) const BEGIN: &[u8] = b"{\"protoplex_datastore\"";

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The format.
    pub(crate) protoplex_datastore: u64,
    /// Of Protoplex.
    pub(crate) version: String,
    /// The database that it was taken of, for the reader.
    pub(crate) from: String,
    /// Unix time.
    pub(crate) taken_at_ms: i64,
}

/// What stands in an archive behind its head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Row(&'static Table, Vec<Value>),
    Counter(&'static Table, i64),
    /// Everything has come.
    End(Vec<Sum>),
}

#[derive(Serialize, Deserialize)]
struct Counter {
    table: String,
    last: i64,
}

const COUNTER: &str = "counter";
const END: &str = "end";

/// A line, with its end.
pub(crate) fn line(item: &Item) -> Vec<u8> {
    match item {
        Item::Row(table, values) => row(table, values),
        Item::Counter(table, last) => tagged(COUNTER, &Counter { table: table.name.to_owned(), last: *last }),
        Item::End(sums) => tagged(END, sums),
    }
}

/// The line of a row.
pub(crate) fn row(table: &'static Table, values: &[Value]) -> Vec<u8> {
    tagged(table.name, &Row { columns: table.columns, values })
}

/// The line of a head.
pub(crate) fn head(head: &Head) -> Vec<u8> {
    ended(serde_json::to_vec(head))
}

/// An object of one field.
fn tagged(tag: &str, value: &impl Serialize) -> Vec<u8> {
    struct Tagged<'a, T>(&'a str, &'a T);
    impl<T: Serialize> Serialize for Tagged<'_, T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry(self.0, self.1)?;
            map.end()
        }
    }
    ended(serde_json::to_vec(&Tagged(tag, value)))
}

fn ended(text: serde_json::Result<Vec<u8>>) -> Vec<u8> {
    // Nothing that is written here can fail: keys are texts, and memory is no stream.
    let mut line = text.unwrap_or_default();
    line.push(b'\n');
    line
}

struct Row<'a> {
    columns: &'a [Column],
    values: &'a [Value],
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (column, value) in self.columns.iter().zip(self.values) {
            match value {
                left_out if column.later && *left_out == Value::LEFT_OUT => {}
                Value::Nothing => map.serialize_entry(column.name, &())?,
                Value::Text(text) => map.serialize_entry(column.name, text)?,
                Value::Integer(number) => map.serialize_entry(column.name, number)?,
                Value::Flag(flag) => map.serialize_entry(column.name, flag)?,
                Value::Bytes(bytes) => map.serialize_entry(column.name, &STANDARD.encode(bytes))?,
            }
        }
        map.end()
    }
}

/// Reads a line, or says what is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Item, String> {
    let object: Map<String, Json> = serde_json::from_slice(line).map_err(plainly)?;
    let mut fields = object.into_iter();
    let (Some((tag, value)), None) = (fields.next(), fields.next()) else {
        return Err("a line is an object of one field".to_owned());
    };
    let table = |name: &str| {
        Table::named(name).ok_or_else(|| format!("{name:?} is no table that this version of Protoplex knows"))
    };
    match &*tag {
        END => Ok(Item::End(serde_json::from_value(value).map_err(plainly)?)),
        COUNTER => {
            let counter: Counter = serde_json::from_value(value).map_err(plainly)?;
            Ok(Item::Counter(table(&counter.table)?, counter.last))
        }
        name => {
            let table = table(name)?;
            let Json::Object(row) = value else { return Err(format!("a row of {name} is no object")) };
            Ok(Item::Row(table, values(table, row)?))
        }
    }
}

/// Reads the first line, or says what is wrong with it.
pub(crate) fn parse_head(line: &[u8]) -> Result<Head, String> {
    serde_json::from_slice(line).map_err(|_| "this is no archive of a datastore".to_owned())
}

fn values(table: &'static Table, mut row: Map<String, Json>) -> Result<Vec<Value>, String> {
    let value = |column: &Column| {
        let value = row.remove(column.name);
        if value.is_none() && column.later {
            return Ok(Value::LEFT_OUT);
        }
        let value = value.ok_or_else(|| format!("a row of {} lacks {}", table.name, column.name))?;
        read(column.kind, value).ok_or_else(|| format!("{} of {} can't be read", column.name, table.name))
    };
    let values = table.columns.iter().map(value).collect::<Result<_, _>>()?;
    match row.keys().next() {
        Some(unknown) => {
            Err(format!("{} has no {unknown:?} that this version of Protoplex knows", table.name))
        }
        None => Ok(values),
    }
}

fn read(kind: Kind, value: Json) -> Option<Value> {
    Some(match (kind, value) {
        (_, Json::Null) => Value::Nothing,
        (Kind::Text, Json::String(text)) => Value::Text(text),
        (Kind::Integer, Json::Number(number)) => Value::Integer(number.as_i64()?),
        (Kind::Flag, Json::Bool(flag)) => Value::Flag(flag),
        (Kind::Bytes, Json::String(text)) => Value::Bytes(STANDARD.decode(text).ok()?),
        _ => return None,
    })
}

/// Of a line, whose number is told elsewhere.
fn plainly(error: serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => error.to_string(),
        _ => format!("this is no JSON: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, values: Vec<Value>) -> Item {
        Item::Row(Table::named(name).unwrap(), values)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let items = [
            row("table_version", vec![Value::Integer(i64::MAX)]),
            row(
                "assets",
                vec![
                    Value::Integer(1),
                    Value::Text("/ä\n\"\u{1f600}".to_owned()),
                    Value::Text(String::new()),
                    Value::Bytes(vec![0, 255, 10]),
                    Value::Bytes(Vec::new()),
                    Value::Nothing,
                ],
            ),
            Item::Counter(Table::named("builds").unwrap(), 7),
            Item::End(vec![Sum { table: "assets".to_owned(), rows: 1, sha256: "00".to_owned() }]),
        ];
        for item in items {
            let text = line(&item);
            assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
            assert_eq!(parse(&text).unwrap(), item);
        }
    }

    #[test]
    fn what_the_first_archives_did_not_know_is_left_out_where_there_is_none() {
        let before = b"{\"join_token_uses\":{\"token\":\"t\",\"node\":\"n\",\"used_at_ms\":1}}\n";
        let values = |key: Vec<u8>| {
            let [token, node] = ["t", "n"].map(|text| Value::Text(text.to_owned()));
            vec![token, node, Value::Bytes(key), Value::Integer(1)]
        };
        let item = row("join_token_uses", values(Vec::new()));
        assert_eq!(line(&item), before);
        assert_eq!(parse(before).unwrap(), item);
        let item = row("join_token_uses", values(vec![7; 32]));
        assert_eq!(parse(&line(&item)).unwrap(), item);
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let table = [
            ("", "this is no JSON"),
            ("{", "this is no JSON"),
            ("[]", "invalid type"),
            ("{}", "an object of one field"),
            (r#"{"handlers":{},"files":{}}"#, "an object of one field"),
            (r#"{"sessions":{}}"#, "\"sessions\" is no table"),
            (r#"{"table_version":7}"#, "no object"),
            (r#"{"table_version":{}}"#, "lacks version"),
            (r#"{"table_version":{"version":"7"}}"#, "version of table_version can't be read"),
            (r#"{"table_version":{"version":7.5}}"#, "version of table_version can't be read"),
            (r#"{"table_version":{"version":7,"colour":1}}"#, "no \"colour\""),
            (r#"{"counter":{"table":"x","last":1}}"#, "\"x\" is no table"),
            (r#"{"end":[{"table":"x"}]}"#, "missing field"),
        ];
        for (line, why) in table {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        assert!(parse_head(b"{\"a\":1}").unwrap_err().contains("no archive"));
    }
}
