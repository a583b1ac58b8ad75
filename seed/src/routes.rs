//! Handlers and builds as this seed knows them: checked before they are stored, in the order in which they are tried.

use matchit::{InsertError, Router};
use protoplex_wire::pattern::{HostPattern, KeyTemplate, PathPattern, PatternError, check_name};
use protoplex_wire::proto::{Build, Handler, LoadRoutesReply, Placement};
use thiserror::Error;

/// The most handlers of one cluster: each proxy child holds them all.
const MAX_HANDLERS: usize = 10_000;

/// Why a handler is not taken; the words are for its author.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum RouteError {
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("placement: choose \"owned\", \"hash\" or \"spread\"")]
    Placement,
    #[error("key: with placement \"spread\" requests have no key; leave it out")]
    NeedlessKey,
    #[error("there are {MAX_HANDLERS} handlers already, which is the limit; remove one first")]
    TooMany,
    #[error("a handler named {0:?} exists; remove it first, or choose another name")]
    NameTaken(String),
    #[error(
        "host {host:?} and path {path:?} conflict with those of handler {other:?}; requests could mean either"
    )]
    Conflict { host: String, path: String, other: String },
}

/// What is known of routes; swapped whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    pub(crate) handlers: Vec<Handler>,
    pub(crate) builds: Vec<Build>,
}

impl Routes {
    pub(crate) fn new(loaded: LoadRoutesReply) -> Self {
        let mut handlers = loaded.handlers;
        handlers.sort_by_cached_key(|handler| (HostPattern::parse(&handler.host).ok(), handler.path.clone()));
        Self { handlers, builds: loaded.builds }
    }

    /// May this handler be added? Answers it as it is to be stored.
    pub(crate) fn check(&self, mut handler: Handler) -> Result<Handler, RouteError> {
        check_name("handler name", &handler.name)?;
        check_name("pool", &handler.pool)?;
        HostPattern::parse(&handler.host)?;
        handler.host.make_ascii_lowercase();
        let path = PathPattern::parse(&handler.path)?;
        match handler.placement() {
            Placement::Unspecified => return Err(RouteError::Placement),
            Placement::Spread if handler.key.is_empty() => {}
            Placement::Spread => return Err(RouteError::NeedlessKey),
            Placement::Owned | Placement::Hash => drop(KeyTemplate::parse(&handler.key, &path)?),
        }
        if self.handlers.len() >= MAX_HANDLERS {
            return Err(RouteError::TooMany);
        }
        if self.handlers.iter().any(|other| other.name == handler.name) {
            return Err(RouteError::NameTaken(handler.name));
        }
        self.check_conflict(&handler)?;
        Ok(handler)
    }

    /// Proxies match the paths of one host with matchit, so matchit says what conflicts.
    fn check_conflict(&self, handler: &Handler) -> Result<(), RouteError> {
        let mut router = Router::new();
        for other in self.handlers.iter().filter(|other| other.host == handler.host) {
            // Those that are stored were checked.
            let _ = router.insert(&other.path, ());
        }
        let Err(error) = router.insert(&handler.path, ()) else { return Ok(()) };
        let with = if let InsertError::Conflict { with } = &error { with } else { &handler.path };
        let same = |other: &&Handler| other.host == handler.host && other.path == *with;
        let other = self.handlers.iter().find(same).map_or_else(|| with.clone(), |other| other.name.clone());
        Err(RouteError::Conflict { host: handler.host.clone(), path: handler.path.clone(), other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(name: &str, host: &str, path: &str, key: &str, placement: Placement) -> Handler {
        Handler {
            name: name.into(),
            host: host.into(),
            path: path.into(),
            key: key.into(),
            pool: "rooms".into(),
            placement: placement.into(),
        }
    }

    fn routes() -> Routes {
        let loaded = LoadRoutesReply {
            handlers: vec![
                handler("all", "*", "/{*rest}", "", Placement::Spread),
                handler("wide", "*.example.com", "/{*rest}", "{path}", Placement::Hash),
                handler("rooms", "example.com", "/room/{room}", "{room}", Placement::Owned),
            ],
            ..LoadRoutesReply::default()
        };
        Routes::new(loaded)
    }

    #[test]
    fn exact_hosts_come_first_and_hosts_are_stored_in_lower_case() {
        let names: Vec<_> = routes().handlers.into_iter().map(|handler| handler.name).collect();
        assert_eq!(names, ["rooms", "wide", "all"]);
        let added =
            routes().check(handler("b", "EXAMPLE.com", "/room/{a}/x", "{a}", Placement::Owned)).unwrap();
        assert_eq!(added.host, "example.com");
    }

    #[test]
    fn what_is_wrong_with_a_handler_is_said_with_what_to_do() {
        use Placement::{Hash, Owned, Spread, Unspecified};
        for (handler, words) in [
            (handler("", "*", "/", "", Spread), "handler name"),
            (handler("rooms", "*", "/x", "", Spread), "choose another name"),
            (handler("b", "a b", "/x", "", Spread), "host \"a b\""),
            (handler("b", "*", "x", "", Spread), "begins with no slash"),
            (handler("b", "*", "/x", "", Unspecified), "choose \"owned\""),
            (handler("b", "*", "/x", "{path}", Spread), "leave it out"),
            (handler("b", "*", "/x", "", Owned), "key \"\": it is empty"),
            (handler("b", "*", "/{doc}", "{room}", Hash), "it has {doc}"),
            (handler("b", "Example.com", "/room/{id}", "{id}", Owned), "those of handler \"rooms\""),
            (handler("b", "*", "/{*other}", "", Spread), "those of handler \"all\""),
            (Handler { pool: "A".into(), ..handler("b", "*", "/x", "", Spread) }, "pool \"A\""),
        ] {
            let error = routes().check(handler).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
