//! Says what serde says in the words of who wrote the text.

/// A suggestion has to be at least so near, where 1 is the same.
const SIMILAR: f64 = 0.6;

/// The message of a deserializer for whoever wrote what it has read: a configuration, or a request.
#[must_use]
pub fn plain(message: &str) -> String {
    unknown(message, "unknown field ", "key")
        .or_else(|| unknown(message, "unknown variant ", "value"))
        .or_else(|| {
            Some(format!("missing key \"{}\"", quoted(message.strip_prefix("missing field ")?).next()?))
        })
        .unwrap_or_else(|| message.to_owned())
}

/// "unknown field `a`, expected one of `b`, `c`" with a suggestion in place of the list, where one is near.
fn unknown(message: &str, prefix: &str, what: &str) -> Option<String> {
    let mut names = quoted(message.strip_prefix(prefix)?);
    let wrong = names.next()?;
    let known: Vec<_> = names.collect();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(wrong, name);
    let nearest = known.iter().copied().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    Some(match nearest {
        Some(nearest) if likeness(nearest) >= SIMILAR => {
            format!("unknown {what} \"{wrong}\", did you mean \"{nearest}\"?")
        }
        Some(_) => format!("unknown {what} \"{wrong}\", expected {}", list(&known)),
        None => format!("unknown {what} \"{wrong}\", none is expected here"),
    })
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn list(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
