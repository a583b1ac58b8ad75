//! What has to change of handlers so that they are as somebody wants them: pure, printed before it is done.

use std::collections::BTreeMap;

use protoplex_seed::handlers::fields;
use protoplex_wire::proto::{Handler, HandlerChanges};
use serde_json::{Value, json};

use super::HandlerRow;
use crate::output::harmless;

/// Handlers that are kept and named; more are counted.
const MAX_NAMED: usize = 20;

/// The difference between two sets of handlers, each list by name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Diff {
    add: Vec<Handler>,
    /// Before and after.
    change: Vec<(Handler, Handler)>,
    remove: Vec<Handler>,
    /// Names that are not wanted, and yet stay.
    kept: Vec<String>,
}

impl Diff {
    /// From what is there to what is wanted; handlers that nobody wants go only with `prune`.
    pub(crate) fn between(now: &[Handler], wanted: &[Handler], prune: bool) -> Self {
        let mut left: BTreeMap<_, _> = now.iter().map(|handler| (handler.name.as_str(), handler)).collect();
        let mut diff = Self::default();
        let wanted: BTreeMap<_, _> = wanted.iter().map(|handler| (handler.name.as_str(), handler)).collect();
        for (name, after) in wanted {
            match left.remove(name) {
                None => diff.add.push(after.clone()),
                Some(before) if fields(before) != fields(after) => {
                    diff.change.push((before.clone(), after.clone()));
                }
                Some(_) => {}
            }
        }
        for (name, handler) in left {
            if prune { diff.remove.push(handler.clone()) } else { diff.kept.push(name.to_owned()) }
        }
        diff
    }

    /// Whether everything is as it is wanted, but for what is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.change.is_empty() && self.remove.is_empty()
    }

    /// As the seed takes it.
    pub(crate) fn changes(&self) -> HandlerChanges {
        HandlerChanges {
            add: self.add.clone(),
            replace: self.change.iter().map(|(_, after)| after.clone()).collect(),
            remove: self.remove.iter().map(|handler| handler.name.clone()).collect(),
            ..HandlerChanges::default()
        }
    }

    /// A line for each handler and each field that changes: `+` comes, `-` goes, `~` is another.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for (sign, handlers) in [('+', &self.add), ('-', &self.remove)] {
            for handler in handlers {
                lines.push(format!("{sign} {}", handler.name));
                let said = fields(handler).into_iter().filter(|(_, value)| !value.is_empty());
                lines.extend(said.map(|(field, value)| format!("{sign}   {field:<9} {value}")));
            }
        }
        for (before, after) in &self.change {
            lines.push(format!("~ {}", after.name));
            for (field, from, to) in changed(before, after) {
                lines.push(format!("~   {field:<9} {} -> {}", shown(&from), shown(&to)));
            }
        }
        lines.iter().map(|line| harmless(line) + "\n").collect()
    }

    /// What is kept although nobody wants it, told with what to do; empty where nothing is.
    pub(crate) fn kept(&self) -> String {
        let names = self.kept.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        match self.kept.len() {
            0 => String::new(),
            1 => format!("Handler {names} is not in the file, and kept; --prune removes it"),
            2..=MAX_NAMED => format!("Handlers {names} are not in the file, and kept; --prune removes them"),
            many => {
                let more = many - MAX_NAMED;
                format!(
                    "Handlers {names} and {more} more are not in the file, and kept; --prune removes them"
                )
            }
        }
    }

    /// As scripts read it.
    pub(crate) fn json(&self) -> Value {
        let rows = |handlers: &[Handler]| handlers.iter().map(HandlerRow::from).collect::<Vec<_>>();
        let change = self.change.iter().map(|(before, after)| {
            let fields = changed(before, after)
                .map(|(field, from, to)| (field.to_owned(), json!({"from": from, "to": to})));
            json!({"name": after.name, "fields": fields.collect::<serde_json::Map<_, _>>()})
        });
        json!({
            "add": rows(&self.add),
            "change": change.collect::<Vec<_>>(),
            "remove": rows(&self.remove),
            "kept": self.kept,
        })
    }
}

/// Field, old and new value.
fn changed<'a>(
    before: &'a Handler,
    after: &'a Handler,
) -> impl Iterator<Item = (&'static str, std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>)> {
    let pairs = fields(before).into_iter().zip(fields(after));
    pairs.filter(|(before, after)| before != after).map(|((field, from), (_, to))| (field, from, to))
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "\"\"" } else { value }
}

#[cfg(test)]
mod tests;
