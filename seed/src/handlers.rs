//! What a handler may be, and what a change of handlers comes to: pure rules, for the seed and for the command line.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use matchit::{InsertError, Router};
use protoplex_wire::pattern::{HostPattern, KeyTemplate, PathPattern, PatternError, check_name};
use protoplex_wire::proto::{Handler, HandlerChanges, Placement};
use thiserror::Error;

/// The most handlers of one cluster: each proxy child holds them all.
pub const MAX_HANDLERS: usize = 10_000;
/// Handlers that the words of a change name; more are counted.
const NAMED: usize = 5;
/// What an operator may call themselves, and an occasion, in bytes.
const MAX_WORDS_BYTES: usize = 255;

/// Why handlers are not taken; the words are for their author.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HandlerError {
    /// A name, host, path or key that is none.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Another placement than those that there are.
    #[error("placement: choose \"owned\", \"hash\" or \"spread\"")]
    Placement,
    /// A key that nothing would look at.
    #[error("key: with placement \"spread\" requests have no key; leave it out, or empty")]
    NeedlessKey,
    /// More than [`MAX_HANDLERS`].
    #[error("there would be {0} handlers, and {MAX_HANDLERS} is the limit; remove some first")]
    TooMany(usize),
    /// One is to be added under a name that another has.
    #[error("a handler named {0:?} exists; edit or remove it, or choose another name")]
    NameTaken(String),
    /// There is none of that name.
    #[error("there is no handler {0:?}")]
    Unknown(String),
    /// One change says two things of one handler.
    #[error("handler {0:?} stands twice in it")]
    Twice(String),
    /// Two handlers that requests could mean alike.
    #[error(
        "host {host:?} and path {path:?} conflict with those of handler {other:?}; requests could mean either"
    )]
    Conflict {
        /// Whose they are.
        name: String,
        /// Its host.
        host: String,
        /// Its path.
        path: String,
        /// The handler that has them already.
        other: String,
    },
    /// The table is not the one that the change was made of.
    #[error(
        "somebody else has changed the handlers meanwhile: they have version {now}, and this was made of version \
         {base}; nothing was changed, look at what there is now and try again"
    )]
    Moved {
        /// The version that the change was made of.
        base: u64,
        /// The version that the handlers have.
        now: u64,
    },
    /// Words for the history that are too long for it.
    #[error("{0} is longer than {MAX_WORDS_BYTES} bytes")]
    Words(&'static str),
}

impl HandlerError {
    /// The handler's field that is at fault, as files and flags name it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Pattern(PatternError::Host { .. }) => "host",
            Self::Pattern(PatternError::Path { .. }) | Self::Conflict { .. } => "path",
            Self::Pattern(PatternError::Key { .. }) | Self::NeedlessKey => "key",
            Self::Pattern(PatternError::Name { what, .. }) if *what == POOL => POOL,
            Self::Placement => "placement",
            _ => "name",
        }
    }
}

/// What [`check_name`] is told.
const POOL: &str = "pool";

/// What a checked change does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Added, or in the place of the one of its name.
    pub put: Vec<Handler>,
    /// Names.
    pub remove: Vec<String>,
    /// In words, for the history.
    pub what: String,
    /// All handlers, as they are then.
    pub after: Vec<Handler>,
}

impl Plan {
    /// Whether everything stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

/// Checks one handler by itself. Answers it as it is stored.
///
/// # Errors
/// Any [`HandlerError`] that needs no other handler.
pub fn check(mut handler: Handler) -> Result<Handler, HandlerError> {
    if let Some(error) = faults(&handler).into_iter().next() {
        return Err(error);
    }
    handler.host.make_ascii_lowercase();
    // Given by the datastore.
    handler.since = 0;
    Ok(handler)
}

/// All that is wrong with a handler by itself.
#[must_use]
pub fn faults(handler: &Handler) -> Vec<HandlerError> {
    let path = PathPattern::parse(&handler.path);
    let key = match (handler.placement(), &path) {
        (Placement::Unspecified, _) => Some(HandlerError::Placement),
        (Placement::Spread, _) => (!handler.key.is_empty()).then_some(HandlerError::NeedlessKey),
        (Placement::Owned | Placement::Hash, Ok(path)) => {
            KeyTemplate::parse(&handler.key, path).err().map(HandlerError::from)
        }
        // Its key is of that path.
        (Placement::Owned | Placement::Hash, Err(_)) => None,
    };
    let names = [check_name("handler name", &handler.name), check_name(POOL, &handler.pool)];
    let patterns = [HostPattern::parse(&handler.host).err(), path.err()];
    let of_patterns = names.into_iter().filter_map(Result::err).chain(patterns.into_iter().flatten());
    of_patterns.map(HandlerError::from).chain(key).collect()
}

/// What `changes` makes of the handlers, which have this version. Whoever is replaced by its like is left out.
///
/// # Errors
/// See [`HandlerError`]; nothing is to be changed then.
pub fn plan(current: &[Handler], version: u64, changes: HandlerChanges) -> Result<Plan, HandlerError> {
    let HandlerChanges { base, add, replace, remove, operator, occasion, .. } = changes;
    if base != 0 && base != version {
        return Err(HandlerError::Moved { base, now: version });
    }
    for (what, words) in [("the operator's name", &operator), ("the occasion", &occasion)] {
        if words.len() > MAX_WORDS_BYTES {
            return Err(HandlerError::Words(what));
        }
    }
    let mut table: BTreeMap<&str, Cow<'_, Handler>> =
        current.iter().map(|handler| (handler.name.as_str(), Cow::Borrowed(handler))).collect();
    check_names(&table, &add, &replace, &remove)?;
    for name in &remove {
        table.remove(name.as_str());
    }
    let mut put = Vec::new();
    let mut words = Vec::new();
    for handler in add {
        let handler = check(handler)?;
        words.push(format!("added {}", handler.name));
        put.push(handler);
    }
    for handler in replace {
        let handler = check(handler)?;
        let fields = table.get(handler.name.as_str()).map(|before| changed_fields(before, &handler));
        if let Some(fields) = fields.filter(|fields| !fields.is_empty()) {
            words.push(match fields.as_slice() {
                ["enabled"] if handler.disabled => format!("disabled {}", handler.name),
                ["enabled"] => format!("enabled {}", handler.name),
                fields => format!("changed {} ({})", handler.name, fields.join(", ")),
            });
            put.push(handler);
        }
    }
    words.extend(remove.iter().map(|name| format!("removed {name}")));
    for handler in &put {
        table.insert(&handler.name, Cow::Borrowed(handler));
    }
    if table.len() > MAX_HANDLERS {
        return Err(HandlerError::TooMany(table.len()));
    }
    let after: Vec<_> = table.into_values().map(Cow::into_owned).collect();
    let changed: BTreeSet<_> = put.iter().map(|handler| handler.name.as_str()).collect();
    check_conflicts(&after, |name| changed.contains(name))?;
    Ok(Plan { what: told(&occasion, &words), put, remove, after })
}

/// Each name once; new ones for what is added, known ones for the rest.
fn check_names(
    table: &BTreeMap<&str, Cow<'_, Handler>>,
    add: &[Handler],
    replace: &[Handler],
    remove: &[String],
) -> Result<(), HandlerError> {
    let names = |handlers: &[Handler]| handlers.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
    let (new, known) = (names(add), [names(replace), remove.to_vec()].concat());
    let mut seen = BTreeSet::new();
    if let Some(twice) = new.iter().chain(&known).find(|name| !seen.insert(*name)) {
        return Err(HandlerError::Twice(twice.clone()));
    }
    if let Some(taken) = new.iter().find(|name| table.contains_key(name.as_str())) {
        return Err(HandlerError::NameTaken(taken.clone()));
    }
    match known.iter().find(|name| !table.contains_key(name.as_str())) {
        Some(unknown) => Err(HandlerError::Unknown(unknown.clone())),
        None => Ok(()),
    }
}

/// Two handlers that conflict, of which at least one is among those that `concerns` names.
///
/// A disabled handler keeps its place, so that it can always be enabled. Proxies match the paths of one host with matchit,
/// so matchit says what conflicts, in their order: plain paths before those with a catch-all.
///
/// # Errors
/// [`HandlerError::Conflict`], told of the one that is concerned.
pub fn check_conflicts(handlers: &[Handler], concerns: impl Fn(&str) -> bool) -> Result<(), HandlerError> {
    let mut hosts: BTreeMap<&str, Vec<&Handler>> = BTreeMap::new();
    for handler in handlers {
        hosts.entry(&handler.host).or_default().push(handler);
    }
    for mut handlers in hosts.into_values() {
        if !handlers.iter().any(|handler| concerns(&handler.name)) {
            continue;
        }
        // Those that were there come first: a change is told of what it brings.
        handlers.sort_by_key(|handler| (handler.path.contains("{*"), concerns(&handler.name)));
        let mut router = Router::new();
        for handler in &handlers {
            let Err(error) = router.insert(&handler.path, ()) else { continue };
            let with = if let InsertError::Conflict { with } = &error { with } else { &handler.path };
            let other = handlers.iter().find(|other| other.path == *with && other.name != handler.name);
            let (one, other) = match other {
                Some(other) if !concerns(&handler.name) => (other, handler.name.as_str()),
                Some(other) => (handler, other.name.as_str()),
                None => (handler, with.as_str()),
            };
            if concerns(&one.name) {
                let Handler { name, host, path, .. } = (*one).clone();
                return Err(HandlerError::Conflict { name, host, path, other: other.to_owned() });
            }
        }
    }
    Ok(())
}

/// The word for a placement in files and flags; empty for one that is unknown.
#[must_use]
pub fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Owned => "owned",
        Placement::Hash => "hash",
        Placement::Spread => "spread",
        Placement::Unspecified => "",
    }
}

/// What a handler says besides its name: each field's name and value.
#[must_use]
pub fn fields(handler: &Handler) -> [(&'static str, Cow<'_, str>); 6] {
    [
        ("host", handler.host.as_str().into()),
        ("path", handler.path.as_str().into()),
        ("key", handler.key.as_str().into()),
        ("pool", handler.pool.as_str().into()),
        ("placement", placement_name(handler.placement()).into()),
        ("enabled", (!handler.disabled).to_string().into()),
    ]
}

fn changed_fields(before: &Handler, after: &Handler) -> Vec<&'static str> {
    let pairs = fields(before).into_iter().zip(fields(after));
    pairs.filter(|(before, after)| before != after).map(|((name, _), _)| name).collect()
}

/// "apply edge.toml: added rooms, removed old, and 3 more"
fn told(occasion: &str, words: &[String]) -> String {
    let mut text = words.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if words.len() > NAMED {
        text.push_str(&format!(", and {} more", words.len() - NAMED));
    }
    if occasion.is_empty() { text } else { format!("{occasion}: {text}") }
}

#[cfg(test)]
mod tests;
