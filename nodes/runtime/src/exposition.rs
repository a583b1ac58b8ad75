//! Metrics as they are shown: the text format of Prometheus, with those of all children under one heading.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// What a family of metrics measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// All series of one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Behind the family's name: `_bucket`, `_sum`, `_count` or nothing.
    pub(crate) suffix: String,
    /// `method="GET",status="200"`, escaped.
    pub(crate) labels: String,
    /// As text, since JSON knows no infinity.
    pub(crate) value: String,
}

impl Family {
    pub(crate) fn new(name: &str, kind: Kind, help: &str) -> Self {
        Self { name: name.to_owned(), kind, help: help.to_owned(), samples: Vec::new() }
    }

    pub(crate) fn push(&mut self, suffix: &str, labels: String, value: impl ToString) {
        self.samples.push(Sample { suffix: suffix.to_owned(), labels, value: value.to_string() });
    }
}

/// One value, as `metrics` answers it.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Measure {
    /// With what stands behind the family's name.
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// A number, or a text where JSON knows none for it.
    pub(crate) value: serde_json::Value,
}

/// The metrics of several processes, merged by family.
#[derive(Debug, Default)]
pub(crate) struct Exposition(BTreeMap<String, Family>);

impl Exposition {
    /// Adds what one process measured; the series of a child get the label `child`. A family that the processes
    /// disagree about keeps its first kind and its first series only.
    pub(crate) fn add(&mut self, families: Vec<Family>, child: Option<u32>) {
        for mut family in families {
            if let Some(child) = child {
                for sample in &mut family.samples {
                    let separator = if sample.labels.is_empty() { "" } else { "," };
                    sample.labels.insert_str(0, &format!("child=\"{child}\"{separator}"));
                }
            }
            match self.0.get_mut(&family.name) {
                Some(known) if known.kind == family.kind => known.samples.append(&mut family.samples),
                Some(_) => {}
                None => {
                    self.0.insert(family.name.clone(), family);
                }
            }
        }
    }

    /// Each value by itself, of those whose names begin with one of these; without any, of all.
    pub(crate) fn measures(&self, prefixes: &[&str]) -> Vec<Measure> {
        let is_wanted =
            |name: &str| prefixes.is_empty() || prefixes.iter().any(|prefix| name.starts_with(prefix));
        let of = |family: &Family, sample: &Sample| Measure {
            name: format!("{}{}", family.name, sample.suffix),
            labels: pairs(&sample.labels),
            value: serde_json::from_str(&sample.value).unwrap_or_else(|_| sample.value.as_str().into()),
        };
        let families = self.0.values();
        let all = families.flat_map(|family| family.samples.iter().map(move |sample| of(family, sample)));
        all.filter(|measure| is_wanted(&measure.name)).collect()
    }

    /// The text, version 0.0.4.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for family in self.0.values().filter(|family| !family.samples.is_empty()) {
            // Writing to a string can't fail.
            let _ = family.write(&mut text);
        }
        text
    }
}

impl Family {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Self { name, kind, help, samples } = self;
        if !help.is_empty() {
            writeln!(text, "# HELP {name} {}", help.replace('\\', "\\\\").replace('\n', "\\n"))?;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(text, "# TYPE {name} {kind}")?;
        for Sample { suffix, labels, value } in samples {
            match labels.as_str() {
                "" => writeln!(text, "{name}{suffix} {value}")?,
                labels => writeln!(text, "{name}{suffix}{{{labels}}} {value}")?,
            }
        }
        Ok(())
    }
}

/// Labels as they stand between the braces.
pub(crate) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let separator = if text.is_empty() { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        // Writing to a string can't fail.
        let _ = write!(text, "{separator}{name}=\"{value}\"");
    }
    text
}

/// What [`labels`] has made a text of.
fn pairs(labels: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    let mut rest = labels;
    while let Some((name, behind)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = behind.char_indices();
        let mut end = behind.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => value.extend(chars.next().map(|(_, c)| if c == 'n' { '\n' } else { c })),
                c => value.push(c),
            }
        }
        pairs.insert(name.to_owned(), value);
        rest = behind[end..].strip_prefix(',').unwrap_or_default();
    }
    pairs
}

#[cfg(test)]
mod tests;
