//! A file of handlers, checked by the seed's own rules, so that every mistake is told with its line.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use protoplex_runtime::config::wording::plain;
use protoplex_runtime::config::{self, ConfigError, Problems};
use protoplex_seed::handlers::{self, HandlerError};
use protoplex_wire::proto::{Handler, Placement};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::handler::similar;

/// The file as written. Each handler is read field by field, so that a mistake in one hides none in another.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    handler: Vec<toml::Table>,
}

const FIELDS: [&str; 7] = ["name", "host", "path", "key", "pool", "placement", "enabled"];

/// A placement, as files say it.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    #[default]
    Owned,
    Hash,
    Spread,
}

impl From<Word> for Placement {
    fn from(word: Word) -> Self {
        match word {
            Word::Owned => Self::Owned,
            Word::Hash => Self::Hash,
            Word::Spread => Self::Spread,
        }
    }
}

/// What a file says.
pub(super) struct Read {
    pub(super) handlers: Vec<Handler>,
    /// Where the path of each stands, by its name: `edge.toml:8: handler "rooms": `.
    pub(super) places: HashMap<String, String>,
}

/// The handlers of a file.
///
/// # Errors
/// Every mistake in it, with file and line.
pub(super) fn read(path: &Path) -> Result<Read, ConfigError> {
    let (raw, mut problems): (Raw, Problems) = config::load(&[], Some(path), std::iter::empty(), &[])?;
    let (mut names, mut places) = (HashMap::new(), HashMap::new());
    let (mut handlers, mut placed) = (Vec::with_capacity(raw.handler.len()), Vec::new());
    for (n, table) in raw.handler.iter().enumerate() {
        let mut entry = Entry::new(n, table, &mut problems);
        let handler = entry.handler();
        let is_placed = entry.check(&handler);
        let Entry { key, label, is_named, .. } = entry;
        if is_named && names.insert(handler.name.clone(), n).is_some() {
            let twice = format_args!("{label}name: another handler of this file has it; each has its own");
            problems.add_at(&format!("{key}.name"), twice);
            continue;
        }
        if is_named && is_placed {
            let path = format!("{key}.path");
            places.insert(handler.name.clone(), format!("{}{label}", problems.place(&path)));
            placed.push(handlers::check(handler.clone()).unwrap_or(handler.clone()));
        }
        handlers.extend(handlers::check(handler));
    }
    // One after the other: each is looked at without those that were told of.
    while let Err(error) = handlers::check_conflicts(&placed, |_| true) {
        let all = placed.len();
        let found = match &error {
            HandlerError::Conflict { name, .. } => {
                placed.retain(|handler| handler.name != *name);
                names.get(name).map(|n| (format!("handler.{n}.path"), format!("handler {name:?}: ")))
            }
            _ => None,
        };
        let (key, label) = found.unwrap_or_default();
        problems.add_at(&key, format_args!("{label}{error}"));
        if placed.len() == all {
            break;
        }
    }
    problems.finish()?;
    Ok(Read { handlers, places })
}

/// One handler as it is read.
struct Entry<'a> {
    table: &'a toml::Table,
    problems: &'a mut Problems,
    /// `handler.1`, counted from zero.
    key: String,
    /// `handler "rooms": `; of one without a name `handler 2: `, in the file's order, counted from one.
    label: String,
    is_named: bool,
    /// Fields that say nothing that could be checked.
    unread: Vec<&'static str>,
}

impl<'a> Entry<'a> {
    fn new(n: usize, table: &'a toml::Table, problems: &'a mut Problems) -> Self {
        let name = table.get("name").and_then(toml::Value::as_str).filter(|name| !name.is_empty());
        let label = name.map_or_else(|| format!("handler {}: ", n + 1), |name| format!("handler {name:?}: "));
        let key = format!("handler.{n}");
        Self { table, problems, key, label, is_named: name.is_some(), unread: Vec::new() }
    }

    /// What could be read of it.
    fn handler(&mut self) -> Handler {
        for unknown in self.table.keys().filter(|key| !FIELDS.contains(&key.as_str())) {
            let known = FIELDS.map(|field| format!("`{field}`")).join(", ");
            self.add(unknown, plain(&format!("unknown field `{unknown}`, expected one of {known}")));
        }
        Handler {
            name: self.required("name"),
            host: self.field("host").unwrap_or_else(|| "*".to_owned()),
            path: self.required("path"),
            key: self.field("key").unwrap_or_default(),
            pool: self.required("pool"),
            placement: Placement::from(self.field::<Word>("placement").unwrap_or_default()).into(),
            disabled: !self.field("enabled").unwrap_or(true),
            since: 0,
        }
    }

    fn required(&mut self, field: &'static str) -> String {
        let is_there = self.table.contains_key(field);
        // One that is misspelt was told of.
        let is_misspelt =
            || self.table.keys().any(|key| similar(key, FIELDS.into_iter()).is_some_and(|it| it == field));
        if !is_there {
            self.unread.push(field);
            if !is_misspelt() {
                self.problems.add_at(&self.key, format_args!("{}missing key {field:?}", self.label));
            }
        }
        self.field(field).unwrap_or_default()
    }

    /// The field's value, where it is given and of its type.
    fn field<T: DeserializeOwned>(&mut self, field: &'static str) -> Option<T> {
        match T::deserialize(self.table.get(field)?.clone()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.unread.push(field);
                self.add(field, format_args!("{field}: {}", plain(error.message())));
                None
            }
        }
    }

    /// Tells what is wrong with the fields that were read. Whether host and path are such that they can be compared.
    fn check(&mut self, handler: &Handler) -> bool {
        let is_place = |field: &&str| ["host", "path"].contains(field);
        let mut is_placed = !self.unread.iter().any(&is_place);
        for error in handlers::faults(handler) {
            let field = error.field();
            // Whether there has to be a key says the placement.
            let is_open = field == "key" && handler.key.is_empty() && self.unread.contains(&"placement");
            if !self.unread.contains(&field) && !is_open {
                is_placed &= !is_place(&field);
                self.add(field, error);
            }
        }
        is_placed
    }

    fn add(&mut self, field: &str, text: impl Display) {
        self.problems.add_at(&format!("{}.{field}", self.key), format_args!("{}{text}", self.label));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Result<Vec<Handler>, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("edge.toml");
        std::fs::write(&file, text).unwrap();
        let folder = format!("{}/", folder.path().display());
        let read = read(&file).map(|read| read.handlers);
        read.map_err(|error| error.mistakes().iter().map(|it| it.replace(&folder, "")).collect())
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let file = "[[handler]]\nname = \"a\"\nhost = \"Example.COM\"\npath = \"/{x}\"\nkey = \"{x}\"\npool = \"p\"\n\n\
                    [[handler]]\nname = \"b\"\npath = \"/b\"\npool = \"p\"\nplacement = \"spread\"\nenabled = false\n";
        let handlers = told(file).unwrap();
        assert_eq!((handlers[0].host.as_str(), handlers[0].placement()), ("example.com", Placement::Owned));
        assert!(handlers[1].host == "*" && handlers[1].disabled && !handlers[0].disabled);
        assert_eq!(told(""), Ok(Vec::new()));
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let entry = |name: &str, path: &str, more: &str| {
            format!("[[handler]]\nname = \"{name}\"\npath = \"{path}\"\npool = \"p\"\n{more}\n")
        };
        for (file, mistake) in [
            ("[[handler\n".to_owned(), "edge.toml:1: "),
            (
                "[[handlers]]\nname = \"a\"\n".to_owned(),
                "edge.toml:1: unknown key \"handlers\", did you mean \"handler\"?",
            ),
            (
                entry("a", "/a", "pth = 1"),
                "edge.toml:5: handler \"a\": unknown key \"pth\", did you mean \"path\"?",
            ),
            (
                entry("a", "/a", "placement = \"ownd\""),
                "edge.toml:5: handler \"a\": placement: unknown value \"ownd\", did you mean \"owned\"?",
            ),
            (
                "[[handler]]\nname = \"a\"\npool = \"p\"\n".to_owned(),
                "edge.toml:1: handler \"a\": missing key \"path\"",
            ),
            (entry("a", "/a", "enabled = \"yes\""), "edge.toml:5: handler \"a\": enabled: invalid type"),
            (entry("A", "/a", "key = \"k\""), "edge.toml:2: handler \"A\": handler name \"A\""),
            (
                entry("a", "a", "key = \"k\""),
                "edge.toml:3: handler \"a\": path \"a\": it begins with no slash",
            ),
            (entry("a", "/{x}/{x}", "key = \"k\""), "edge.toml:3: handler \"a\": path"),
            (
                entry("a", "/{x}", "key = \"{y}\""),
                "edge.toml:5: handler \"a\": key \"{y}\": {y} is no capture of the path",
            ),
            (
                entry("a", "/a", "host = \"http://x\"\nkey = \"k\""),
                "edge.toml:5: handler \"a\": host \"http://x\"",
            ),
            (
                entry("a", "/a", "key = \"k\"\nplacement = \"spread\""),
                "edge.toml:5: handler \"a\": key: with placement",
            ),
            (entry("a", "/a", ""), "edge.toml:1: handler \"a\": key \"\": it is empty"),
            (
                entry("a", "/a", "key = \"k\"") + &entry("a", "/b", "key = \"k\""),
                "edge.toml:7: handler \"a\": name: another handler of this file has it",
            ),
            (
                entry("a", "/{x}", "key = \"k\"") + &entry("b", "/{y}", "key = \"k\""),
                "edge.toml:8: handler \"b\": host \"*\" and path \"/{y}\" conflict with those of handler \"a\"",
            ),
        ] {
            let mistakes = told(&file).unwrap_err();
            assert!(mistakes.iter().any(|it| it.starts_with(mistake)), "{mistake}: {mistakes:?}");
        }
        let all = entry("A", "a", "key = \"k\"")
            + &entry("b", "/b", "enabled = \"yes\"")
            + &entry("c", "/{x}", "key = \"k\"")
            + "[[handler]]\nname = \"nowhere\"\n"
            + &entry("d", "/{y}", "key = \"k\"")
            + &entry("e", "/{z}", "key = \"k\"");
        let lines: Vec<_> = told(&all).unwrap_err();
        let begins = [
            "edge.toml:2: handler \"A\": handler name",
            "edge.toml:3: handler \"A\": path",
            "edge.toml:6: handler \"b\": key \"\": it is empty",
            "edge.toml:10: handler \"b\": enabled: ",
            "edge.toml:16: handler \"nowhere\": missing key \"path\"",
            "edge.toml:16: handler \"nowhere\": missing key \"pool\"",
            "edge.toml:20: handler \"d\": host",
            "edge.toml:25: handler \"e\": host",
        ];
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.starts_with(begin), "{begin}: {lines:#?}");
        }
        assert_eq!(lines.len(), begins.len(), "all of them together: {lines:#?}");
    }

    #[test]
    fn a_mistake_in_one_field_hides_none_in_another() {
        let two = "[[handler]]\nname = \"rooms\"\npath = \"/room/{room}\"\nkey = \"room:{rom}\"\npol = \"x\"\n\
                   [[handler]]\nname = \"rooms\"\npath = \"y\"\nkey = \"k\"\n";
        let one = "[[handler]]\nname = 5\npath = [\"/\"]\npool = \"P\"\nplacement = \"ownd\"\n";
        for (file, begins) in [
            (
                two,
                &[
                    "edge.toml:4: handler \"rooms\": key \"room:{rom}\": {rom} is no capture",
                    "edge.toml:5: handler \"rooms\": unknown key \"pol\", did you mean \"pool\"?",
                    "edge.toml:6: handler \"rooms\": missing key \"pool\"",
                    "edge.toml:7: handler \"rooms\": name: another handler of this file has it",
                    "edge.toml:8: handler \"rooms\": path \"y\": it begins with no slash",
                ][..],
            ),
            (
                one,
                &[
                    "edge.toml:2: handler 1: name: invalid type: integer `5`",
                    "edge.toml:3: handler 1: path: invalid type: sequence",
                    "edge.toml:4: handler 1: pool \"P\"",
                    "edge.toml:5: handler 1: placement: unknown value \"ownd\", did you mean \"owned\"?",
                ],
            ),
        ] {
            let lines = told(file).unwrap_err();
            for (line, begin) in lines.iter().zip(begins) {
                assert!(line.starts_with(begin), "{begin}: {lines:#?}");
            }
            assert_eq!(lines.len(), begins.len(), "{lines:#?}");
        }
    }
}
