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

#[cfg(test)]
mod tests;
