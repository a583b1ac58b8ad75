//! Why a handler matches a request, or doesn't: asked of the proxy's own table, one handler and one piece of path at a time.

use protoplex_proxy::table::Table;
use protoplex_wire::pattern::HostPattern;
use protoplex_wire::proto::{Handler, Placement};
use serde::Serialize;

/// Handlers that are told of; of thousands the nearest are enough.
const MAX_SHOWN: usize = 20;

/// A handler, and what was found of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Considered {
    pub handler: String,
    pub host: String,
    pub path: String,
    /// Whether it would answer, were it not for others, and enabled.
    pub matches: bool,
    pub verdict: String,
}

/// How near a handler is, the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Distance {
    not_chosen: bool,
    no_match: bool,
    other_host: bool,
    /// Segments of the path that it doesn't have, from the first one that differs.
    segments_off: usize,
    /// How unlike the text is with which it parts from the request, from 0 to [`UNLIKE`].
    unlike: u32,
}

/// What has nothing in common.
const UNLIKE: f64 = 1000.0;

/// The nearest handlers, the chosen one first, and how many are left out.
pub(super) fn consider(
    handlers: &[Handler],
    host: &str,
    path: &str,
    chosen: Option<&str>,
) -> (Vec<Considered>, usize) {
    let mut all: Vec<_> = handlers.iter().map(|handler| judge(handler, host, path, chosen)).collect();
    // Among equals, the order in which they are tried.
    all.sort_by_key(|(distance, _)| *distance);
    let left_out = all.iter().skip(MAX_SHOWN).filter(|(distance, _)| distance.no_match).count();
    let matching = all.iter().filter(|(distance, _)| !distance.no_match).count();
    all.truncate(MAX_SHOWN.max(matching));
    (all.into_iter().map(|(_, considered)| considered).collect(), left_out)
}

fn judge(handler: &Handler, host: &str, path: &str, chosen: Option<&str>) -> (Distance, Considered) {
    let is_chosen = chosen == Some(&*handler.name);
    let for_host = HostPattern::parse(&handler.host).is_ok_and(|pattern| pattern.matches(host));
    let alone = compile(&handler.path);
    let has_path = alone.find("", path).is_some();
    let matches = for_host && has_path;
    let at = if has_path { segments(path).len() } else { matched(handler, path) };
    let verdict = match () {
        () if is_chosen => "matches, and is chosen".to_owned(),
        () if matches && handler.disabled => {
            format!("would match, but is disabled (protoplex handler enable {})", handler.name)
        }
        () if matches => format!(
            "matches too, but {} goes first, whose host or path is more exact",
            chosen.unwrap_or("another")
        ),
        () if for_host => mismatch(handler, path, at),
        () if has_path => "is for another host".to_owned(),
        () => "is for another host and path".to_owned(),
    };
    let unlike = match (for_host, segments(&handler.path).get(at), segments(path).get(at)) {
        (false, ..) => unlikeness(&handler.host, host),
        (true, Some(wanted), Some(given)) => unlikeness(wanted, given),
        (true, ..) => 0,
    };
    let distance = Distance {
        not_chosen: !is_chosen,
        no_match: !matches,
        other_host: !for_host,
        segments_off: segments(path).len().saturating_sub(at),
        unlike,
    };
    let Handler { name, host, path, .. } = handler.clone();
    (distance, Considered { handler: name, host, path, matches, verdict })
}

/// Where the path leaves the pattern.
fn mismatch(handler: &Handler, path: &str, at: usize) -> String {
    let (pattern, given) = (segments(&handler.path), segments(path));
    match (pattern.get(at), given.get(at)) {
        (Some(wanted), Some(given)) if wanted.eq_ignore_ascii_case(given) => {
            format!(
                "its path has {wanted:?} where the request has {given:?}: small and capital letters differ"
            )
        }
        (Some(wanted), Some(given)) => format!("its path has {wanted:?} where the request has {given:?}"),
        (Some(wanted), None) => format!("its path goes on with {wanted:?} where that of the request ends"),
        (None, Some(given)) => format!("its path ends where that of the request goes on with {given:?}"),
        (None, None) => "its path is another".to_owned(),
    }
}

fn unlikeness(one: &str, other: &str) -> u32 {
    let likeness = strsim::normalized_damerau_levenshtein(&one.to_lowercase(), &other.to_lowercase());
    ((1.0 - likeness) * UNLIKE) as u32
}

/// How many segments from the first on its path and the request's have in common.
fn matched(handler: &Handler, path: &str) -> usize {
    let (pattern, given) = (segments(&handler.path), segments(path));
    let both = pattern.len().min(given.len());
    let up_to = |n: usize, segments: &[&str]| format!("/{}", segments[..n].join("/"));
    (1..=both)
        .take_while(|n| compile(&up_to(*n, &pattern)).find("", &up_to(*n, &given)).is_some())
        .last()
        .unwrap_or_default()
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

/// A table of one path.
fn compile(path: &str) -> Table {
    let handler = Handler {
        host: "*".to_owned(),
        path: path.to_owned(),
        placement: Placement::Spread.into(),
        ..Handler::default()
    };
    let sent = protoplex_wire::proto::Table { version: 1, handlers: vec![handler], pools: Vec::new() };
    Table::compile(&sent, &Table::default()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(name: &str, host: &str, path: &str) -> Handler {
        let [name, host, path] = [name, host, path].map(ToOwned::to_owned);
        Handler { name, host, path, ..Handler::default() }
    }

    fn verdict(handler: &Handler, path: &str) -> String {
        consider(std::slice::from_ref(handler), "example.com", path, None).0[0].verdict.clone()
    }

    #[test]
    fn it_is_said_where_the_path_leaves_the_pattern() {
        let rooms = handler("rooms", "*", "/room/{room}/{*rest}");
        for (path, words) in [
            ("/rom/42/chat", "has \"room\" where the request has \"rom\""),
            ("/Room/42/chat", "small and capital letters differ"),
            ("/room", "goes on with \"{room}\" where that of the request ends"),
            ("/room/42", "goes on with \"{*rest}\" where that of the request ends"),
            ("/room//chat", "has \"{room}\" where the request has \"\""),
        ] {
            let verdict = verdict(&rooms, path);
            assert!(verdict.contains(words), "{path}: {verdict}");
        }
        let plain = handler("plain", "*", "/room/{room}");
        assert!(
            verdict(&plain, "/room/42/chat").contains("ends where that of the request goes on with \"chat\"")
        );
        assert!(verdict(&handler("x", "other.com", "/a"), "/a").contains("another host"));
    }

    #[test]
    fn the_chosen_one_comes_first_then_what_matches_then_what_comes_near() {
        let disabled = Handler { disabled: true, ..handler("off", "example.com", "/room/{x}") };
        let handlers = [
            disabled,
            handler("far", "example.com", "/other/x"),
            handler("near", "example.com", "/room/x/y"),
            handler("elsewhere", "example.org", "/room/x"),
            handler("all", "*", "/{*rest}"),
            handler("chosen", "*", "/room/x"),
        ];
        let (considered, more) = consider(&handlers, "example.com", "/room/x", Some("chosen"));
        let names: Vec<_> = considered.iter().map(|it| it.handler.as_str()).collect();
        assert_eq!(names, ["chosen", "off", "all", "near", "far", "elsewhere"]);
        assert!(
            considered[1].verdict.contains("handler enable off")
                && considered[2].verdict.contains("chosen goes first")
        );
        assert_eq!(more, 0);
        let near = [
            handler("live", "*", "/live"),
            handler("rooms", "*", "/room/{x}"),
            handler("all", "x.org", "/{*r}"),
        ];
        let (considered, _) = consider(&near, "example.com", "/rom/1", None);
        assert_eq!(considered[0].handler, "rooms", "a slip is near");
        let many: Vec<_> = (0..50).map(|n| handler(&format!("h{n}"), "*", &format!("/{n}"))).collect();
        let (considered, more) = consider(&many, "example.com", "/x", None);
        assert_eq!((considered.len(), more), (MAX_SHOWN, 30));
    }
}
