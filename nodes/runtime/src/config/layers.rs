//! The sources of a configuration: a file, then overrides laid over it.
//!
//! Each begins where the one before it ends, so that the offset of a key or a value tells source and line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::wording::plain;
use super::{ConfigError, Setting};

/// Far over any configuration that a person writes.
const FILE_BYTES: u64 = 1 << 20;
const PREFIX: &str = "PROTOPLEX_";
/// Of the whole configuration, which has no place of its own.
const WHOLE: Range<usize> = 0..0;

/// All sources, the weakest first.
#[derive(Debug)]
pub(super) struct Layers(Vec<Source>);

#[derive(Debug)]
struct Source {
    name: String,
    /// Whether a line says more than the name.
    is_file: bool,
    begin: usize,
    /// Behind as many spaces as `begin` says.
    text: String,
    /// Where its lines end: a file may have thousands of keys, and the line of each is asked for.
    line_ends: Vec<usize>,
}

/// Where each dotted key was set.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, String>);

impl Origins {
    /// `protoplex.toml:12: `, of the key or of the table that it is missing from; empty for what nobody set.
    pub(super) fn place(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some(place) = self.0.get(key) {
                return format!("{place}: ");
            }
            match key.rsplit_once('.') {
                Some((table, _)) => key = table,
                None => return String::new(),
            }
        }
    }
}

impl Layers {
    pub(super) fn read(
        defaults: &[Setting],
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: &[Setting],
    ) -> Result<Self, ConfigError> {
        let mut layers = Self(Vec::new());
        for (key, value) in defaults {
            layers.push(format!("default {key}"), false, &format!("{key} = {value}"));
        }
        if let Some(path) = file {
            let name = path.display().to_string();
            let text = read(path).map_err(|error| ConfigError(vec![format!("{name}: {error}")]))?;
            layers.push(name, true, &text);
        }
        let mut variables: Vec<_> =
            environment.filter(|(name, value)| is_override(name) && !value.is_empty()).collect();
        variables.sort();
        for (name, value) in variables {
            let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            let value =
                if DeValue::parse(&value).is_ok() { value } else { toml::Value::String(value).to_string() };
            layers.push(name, false, &format!("{key} = {value}"));
        }
        for (key, value) in flags {
            layers.push(format!("option {key}"), false, &format!("{key} = {value}"));
        }
        Ok(layers)
    }

    fn push(&mut self, name: String, is_file: bool, text: &str) {
        let begin = self.0.last().map_or(0, |source| source.text.len() + 1);
        let text = " ".repeat(begin) + text;
        let line_ends = text.match_indices('\n').map(|(at, _)| at).collect();
        self.0.push(Source { name, is_file, begin, text, line_ends });
    }

    /// All values, the later ones over the earlier.
    pub(super) fn merge(&self) -> Result<Spanned<DeTable<'_>>, ConfigError> {
        let mut all = DeTable::new();
        for source in &self.0 {
            let layer =
                DeTable::parse(&source.text).map_err(|error| ConfigError(vec![self.told(&error, None)]))?;
            lay_over(&mut all, layer.into_inner());
        }
        Ok(Spanned::new(WHOLE, all))
    }

    /// Where the values come from.
    pub(super) fn origins(&self, all: &DeTable<'_>) -> Origins {
        let mut origins = Origins::default();
        self.note_table(all, "", &mut origins);
        origins
    }

    /// What is wrong, and where; `key` is the dotted key of the value that is wrong.
    pub(super) fn told(&self, error: &toml::de::Error, key: Option<&str>) -> String {
        let place = match error.span() {
            Some(span) if span != WHOLE => self.place(span.start),
            _ => self.0.first().map_or("configuration", |source| &source.name).to_owned(),
        };
        let (message, said) = (plain(error.message()), error.message());
        match key {
            // Others name it themselves, and variables and options are named by it.
            Some(key)
                if place.contains(':') && !said.starts_with("unknown ") && !said.starts_with("missing ") =>
            {
                format!("{place}: {key}: {message}")
            }
            _ => format!("{place}: {message}"),
        }
    }

    fn place(&self, offset: usize) -> String {
        let Some(source) = self.0.iter().rfind(|source| source.begin <= offset) else {
            return String::new();
        };
        if !source.is_file {
            return source.name.clone();
        }
        let line = source.line_ends.partition_point(|end| *end < offset) + 1;
        format!("{}:{line}", source.name)
    }

    fn note_table(&self, table: &DeTable<'_>, path: &str, origins: &mut Origins) {
        for (name, value) in table {
            let path = if path.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{path}.{}", name.get_ref())
            };
            self.note(value, path, name.span().start, origins);
        }
    }

    fn note(&self, value: &Spanned<DeValue<'_>>, path: String, offset: usize, origins: &mut Origins) {
        match value.get_ref() {
            DeValue::Table(table) => self.note_table(table, &path, origins),
            DeValue::Array(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    self.note(entry, format!("{path}.{index}"), entry.span().start, origins);
                }
            }
            _ => {}
        }
        origins.0.insert(path, self.place(offset));
    }
}

/// Tables become one; of anything else the later one remains.
fn lay_over<'i>(under: &mut DeTable<'i>, over: DeTable<'i>) {
    for (name, value) in over {
        let span = value.span();
        match (under.remove_entry(&name), value.into_inner()) {
            (Some((known, mut old)), DeValue::Table(new)) if matches!(old.get_ref(), DeValue::Table(_)) => {
                if let DeValue::Table(old) = old.get_mut() {
                    lay_over(old, new);
                }
                under.insert(known, old);
            }
            (_, new) => {
                under.insert(name, Spanned::new(span, new));
            }
        }
    }
}

/// Takes out the innermost entry whose key or value stands at `offset`. Of a list of tables the table goes, for without
/// what it must have it would be the next mistake; of a list of values all. Returns its dotted key, where there was one.
pub(super) fn remove(table: &mut DeTable<'_>, offset: usize) -> Option<String> {
    let mut here = None;
    for (name, value) in table.iter_mut() {
        let at = name.span().contains(&offset) || value.span().contains(&offset);
        let within = match value.get_mut() {
            DeValue::Table(inner) => remove(inner, offset),
            // Else the list itself is none of ours.
            DeValue::Array(entries) if !name.span().contains(&offset) => {
                let holds = |entry: &mut Spanned<DeValue<'_>>| {
                    let is_at = entry.span().contains(&offset);
                    match entry.get_mut() {
                        DeValue::Table(inner) => remove(inner, offset).or(is_at.then(String::new)),
                        _ => None,
                    }
                };
                let held = entries.iter_mut().enumerate().find_map(|(n, entry)| Some((n, holds(entry)?)));
                held.map(|(n, within)| {
                    let all = std::mem::replace(entries, DeArray::new()).into_iter().enumerate();
                    *entries = all.filter(|(other, _)| *other != n).map(|(_, entry)| entry).collect();
                    within
                })
            }
            _ => None,
        };
        if let Some(within) = within {
            let dot = if within.is_empty() { "" } else { "." };
            return Some(format!("{}{dot}{within}", name.get_ref()));
        }
        if at {
            here = Some(name.clone());
        }
    }
    let name = here?;
    table.remove(&name).map(|_| name.get_ref().to_string())
}

const STDIN: &str = "/dev/stdin";

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // Where that is a socket it can't be opened once more.
    let source: Box<dyn Read> =
        if path == Path::new(STDIN) { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    source.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(text)
}

fn is_override(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|key| key.contains("__"))
}
