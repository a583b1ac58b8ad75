//! What is taken, what is refused and in which words, and what a change leaves.

use proptest::prelude::*;

use super::*;
use Placement::{Hash, Owned, Spread, Unspecified};

fn handler(name: &str, host: &str, path: &str, key: &str, placement: Placement) -> Handler {
    Handler {
        name: name.into(),
        host: host.into(),
        path: path.into(),
        key: key.into(),
        pool: "rooms".into(),
        placement: placement.into(),
        ..Handler::default()
    }
}

fn table() -> Vec<Handler> {
    vec![
        handler("all", "*", "/{*rest}", "", Spread),
        handler("wide", "*.example.com", "/{*rest}", "{path}", Hash),
        handler("rooms", "example.com", "/room/{room}", "{room}", Owned),
    ]
}

fn add(handler: Handler) -> HandlerChanges {
    HandlerChanges { add: vec![handler], ..HandlerChanges::default() }
}

#[test]
fn hosts_are_stored_in_lower_case() {
    let added = add(handler("b", "EXAMPLE.com", "/room/{a}/x", "{a}", Owned));
    let plan = plan(&table(), 1, added).unwrap();
    assert_eq!((plan.put[0].host.as_str(), plan.what.as_str()), ("example.com", "added b"));
    assert_eq!(plan.after.len(), 4);
}

#[test]
fn what_is_wrong_with_a_handler_is_said_with_what_to_do() {
    for (handler, field, words) in [
        (handler("", "*", "/", "", Spread), "name", "handler name"),
        (handler("rooms", "*", "/x", "", Spread), "name", "choose another name"),
        (handler("b", "a b", "/x", "", Spread), "host", "host \"a b\""),
        (handler("b", "*", "x", "", Spread), "path", "begins with no slash"),
        (handler("b", "*", "/x", "", Unspecified), "placement", "choose \"owned\""),
        (handler("b", "*", "/x", "{path}", Spread), "key", "leave it out"),
        (handler("b", "*", "/x", "", Owned), "key", "key \"\": it is empty"),
        (
            handler("b", "*", "/x/{id}", "{room}", Owned),
            "key",
            "{room} is no capture of the path (it has {id})",
        ),
        (handler("b", "Example.com", "/room/{id}", "{id}", Owned), "path", "those of handler \"rooms\""),
        (handler("b", "*", "/{*other}", "", Spread), "path", "those of handler \"all\""),
        (Handler { pool: "A".into(), ..handler("b", "*", "/x", "", Spread) }, "pool", "pool \"A\""),
    ] {
        let error = plan(&table(), 1, add(handler)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words), "{words}: {text}");
        assert_eq!(error.field(), field, "{text}");
    }
}

#[test]
fn a_change_is_made_of_the_table_that_is_there() {
    let changes = |base| HandlerChanges { base, remove: vec!["all".into()], ..HandlerChanges::default() };
    assert_eq!(plan(&table(), 7, changes(6)), Err(HandlerError::Moved { base: 6, now: 7 }));
    for base in [0, 7] {
        assert_eq!(plan(&table(), 7, changes(base)).unwrap().what, "removed all");
    }
    let nobody = HandlerChanges { remove: vec!["nobody".into()], ..HandlerChanges::default() };
    assert_eq!(plan(&table(), 7, nobody), Err(HandlerError::Unknown("nobody".into())));
    let twice = HandlerChanges { replace: vec![table()[0].clone()], ..changes(7) };
    assert_eq!(plan(&table(), 7, twice), Err(HandlerError::Twice("all".into())));
    let words = HandlerChanges { operator: "x".repeat(256), ..changes(7) };
    assert_eq!(plan(&table(), 7, words), Err(HandlerError::Words("the operator's name")));
}

#[test]
fn what_stays_as_it_is_is_no_change() {
    let mut same = table();
    same[0].since = 5;
    let changes = HandlerChanges { replace: same, ..HandlerChanges::default() };
    assert!(plan(&table(), 1, changes).unwrap().is_empty());
}

#[test]
fn handlers_may_swap_their_places_in_one_change() {
    let [one, other] = [("a", "/b"), ("b", "/a")].map(|(name, path)| handler(name, "*", path, "", Spread));
    let before = [handler("a", "*", "/a", "", Spread), handler("b", "*", "/b", "", Spread)];
    let swap = HandlerChanges { replace: vec![one.clone(), other], ..HandlerChanges::default() };
    assert_eq!(plan(&before, 1, swap).unwrap().what, "changed a (path), changed b (path)");
    let half = HandlerChanges { replace: vec![one], ..HandlerChanges::default() };
    let error = plan(&before, 1, half).unwrap_err();
    assert!(
        matches!(&error, HandlerError::Conflict { name, other, .. } if name == "a" && other == "b"),
        "{error}"
    );
}

#[test]
fn a_disabled_handler_keeps_its_place() {
    let mut before = table();
    before[2].disabled = true;
    let error = plan(&before, 1, add(handler("b", "example.com", "/room/{id}", "{id}", Owned))).unwrap_err();
    assert!(error.to_string().contains("handler \"rooms\""), "{error}");
    let enabled = HandlerChanges { replace: vec![table()[2].clone()], ..HandlerChanges::default() };
    assert_eq!(plan(&before, 1, enabled).unwrap().what, "enabled rooms");
}

#[test]
fn a_long_change_is_told_in_few_words() {
    let many = (0..9).map(|n| handler(&format!("h{n}"), "*", &format!("/{n}"), "", Spread)).collect();
    let changes =
        HandlerChanges { add: many, occasion: "apply edge.toml".into(), ..HandlerChanges::default() };
    let what = plan(&table(), 1, changes).unwrap().what;
    assert_eq!(what, "apply edge.toml: added h0, added h1, added h2, added h3, added h4, and 4 more");
}

#[test]
fn there_is_a_limit() {
    let many = |count: usize| {
        (0..count).map(|n| handler(&format!("h{n}"), "*", &format!("/{n}"), "", Spread)).collect()
    };
    let changes = |count| HandlerChanges { add: many(count), ..HandlerChanges::default() };
    assert_eq!(plan(&table(), 1, changes(MAX_HANDLERS)), Err(HandlerError::TooMany(MAX_HANDLERS + 3)));
    assert_eq!(plan(&[], 1, changes(MAX_HANDLERS)).unwrap().after.len(), MAX_HANDLERS);
}

/// Paths of which many conflict.
fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![Just("a"), Just("b"), Just("{x}"), Just("{y}"), Just("{z}.png")];
    (proptest::collection::vec(segment, 0..3), any::<bool>()).prop_map(|(segments, rest)| {
        let mut path = String::new();
        for (n, segment) in segments.iter().enumerate() {
            // Captures of one path have names of their own.
            path.push('/');
            path.push_str(&segment.replace('}', &format!("{n}}}")));
        }
        if rest || path.is_empty() { format!("{path}/{{*rest}}") } else { path }
    })
}

proptest! {
    /// What was taken one after the other is in no conflict as a whole, in whatever order it comes back, and what a
    /// proxy compiles of it leaves nothing out.
    #[test]
    fn a_table_that_was_taken_is_taken_again(paths in proptest::collection::vec(path(), 1..12)) {
        let mut table: Vec<Handler> = Vec::new();
        for (n, path) in paths.iter().enumerate() {
            if let Ok(plan) = plan(&table, 1, add(handler(&format!("h{n}"), "*", path, "{path}", Hash))) {
                prop_assert_eq!(plan.after.len(), table.len() + 1);
                table = plan.after;
            }
        }
        table.reverse();
        prop_assert_eq!(check_conflicts(&table, |_| true), Ok(()));
        let mut router = Router::new();
        let (rests, plain): (Vec<_>, Vec<_>) = table.iter().partition(|handler| handler.path.contains("{*"));
        for handler in plain.into_iter().chain(rests) {
            prop_assert!(router.insert(&handler.path, ()).is_ok(), "{}", handler.path);
        }
    }
}
