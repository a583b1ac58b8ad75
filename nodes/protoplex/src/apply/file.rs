//! A file of handlers, checked by the seed's own rules, so that every mistake is told with its line.

use std::collections::HashMap;
use std::path::Path;

use protoplex_runtime::config::{self, ConfigError, Problems};
use protoplex_seed::handlers::{self, HandlerError};
use protoplex_wire::proto::{Handler, Placement};
use serde::Deserialize;

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    handler: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default = "any_host")]
    host: String,
    path: String,
    #[serde(default)]
    key: String,
    pool: String,
    #[serde(default)]
    placement: Word,
    #[serde(default = "enabled")]
    enabled: bool,
}

/// A placement, as files say it.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    #[default]
    Owned,
    Hash,
    Spread,
}

fn any_host() -> String {
    "*".to_owned()
}

fn enabled() -> bool {
    true
}

/// What a file says.
pub(super) struct Read {
    pub(super) handlers: Vec<Handler>,
    /// Where the path of each stands, by its name: `edge.toml:8: handler.1.path: `.
    pub(super) places: HashMap<String, String>,
}

/// The handlers of a file.
///
/// # Errors
/// Every mistake in it, with file and line.
pub(super) fn read(path: &Path) -> Result<Read, ConfigError> {
    let (raw, mut problems): (Raw, Problems) = config::load(&[], Some(path), std::iter::empty(), &[])?;
    let (mut names, mut places) = (HashMap::new(), HashMap::new());
    let mut handlers = Vec::with_capacity(raw.handler.len());
    for (n, entry) in raw.handler.into_iter().enumerate() {
        if names.insert(entry.name.clone(), n).is_some() {
            let twice = format_args!(
                "{:?} is the name of another handler of this file; each has its own",
                entry.name
            );
            problems.add(&format!("handler.{n}.name"), twice);
            continue;
        }
        let handler = Handler::from(entry);
        for error in handlers::faults(&handler) {
            problems.add(&format!("handler.{n}.{}", error.field()), error);
        }
        places.insert(handler.name.clone(), problems.aside(&format!("handler.{n}.path"), "").to_string());
        handlers.extend(handlers::check(handler));
    }
    // One after the other: each is looked at without those that were told of.
    let mut sound = handlers.clone();
    while let Err(error) = handlers::check_conflicts(&sound, |_| true) {
        let all = sound.len();
        let place = match &error {
            HandlerError::Conflict { name, .. } => {
                sound.retain(|handler| handler.name != *name);
                names.get(name).map(|n| format!("handler.{n}.path"))
            }
            _ => None,
        };
        problems.add(place.as_deref().unwrap_or("handler"), error);
        if sound.len() == all {
            break;
        }
    }
    problems.finish()?;
    Ok(Read { handlers, places })
}

impl From<Entry> for Handler {
    fn from(entry: Entry) -> Self {
        let Entry { name, host, path, key, pool, placement, enabled } = entry;
        let placement = match placement {
            Word::Owned => Placement::Owned,
            Word::Hash => Placement::Hash,
            Word::Spread => Placement::Spread,
        };
        Self { name, host, path, key, pool, placement: placement.into(), disabled: !enabled, since: 0 }
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
            (entry("a", "/a", "pth = 1"), "edge.toml:5: unknown key \"pth\", did you mean \"path\"?"),
            (
                entry("a", "/a", "placement = \"ownd\""),
                "edge.toml:5: unknown value \"ownd\", did you mean \"owned\"?",
            ),
            ("[[handler]]\nname = \"a\"\npool = \"p\"\n".to_owned(), "edge.toml:1: missing key \"path\""),
            (entry("a", "/a", "enabled = \"yes\""), "edge.toml:5: "),
            (entry("A", "/a", "key = \"k\""), "edge.toml:2: handler.0.name: handler name \"A\""),
            (
                entry("a", "a", "key = \"k\""),
                "edge.toml:3: handler.0.path: path \"a\": it begins with no slash",
            ),
            (entry("a", "/{x}/{x}", "key = \"k\""), "edge.toml:3: handler.0.path: path"),
            (
                entry("a", "/{x}", "key = \"{y}\""),
                "edge.toml:5: handler.0.key: key \"{y}\": {y} is no capture of the path",
            ),
            (
                entry("a", "/a", "host = \"http://x\"\nkey = \"k\""),
                "edge.toml:5: handler.0.host: host \"http://x\"",
            ),
            (
                entry("a", "/a", "key = \"k\"\nplacement = \"spread\""),
                "edge.toml:5: handler.0.key: key: with placement",
            ),
            (entry("a", "/a", ""), "edge.toml:1: handler.0.key: key \"\": it is empty"),
            (
                entry("a", "/a", "key = \"k\"") + &entry("a", "/b", "key = \"k\""),
                "edge.toml:7: handler.1.name: \"a\" is the name of another handler of this file",
            ),
            (
                entry("a", "/{x}", "key = \"k\"") + &entry("b", "/{y}", "key = \"k\""),
                "edge.toml:8: handler.1.path: host \"*\" and path \"/{y}\" conflict with those of handler \"a\"",
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
            "edge.toml:2: handler.0.name",
            "edge.toml:3: handler.0.path",
            "edge.toml:10: handler.enabled: ",
            "edge.toml:16: missing key \"path\"",
            "edge.toml:20: handler.2.path: ",
            "edge.toml:25: handler.3.path: ",
        ];
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.starts_with(begin), "{begin}: {lines:#?}");
        }
        assert_eq!(lines.len(), begins.len(), "all of them together: {lines:#?}");
    }
}
