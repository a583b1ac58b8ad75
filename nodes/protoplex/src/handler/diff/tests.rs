//! A difference says all that differs and nothing else, and leads where it should.

use proptest::prelude::*;
use protoplex_seed::handlers::{HandlerError, Plan, plan};
use protoplex_wire::proto::Placement;

use super::*;

fn handler(name: &str, path: &str, pool: &str) -> Handler {
    Handler {
        name: name.into(),
        host: "*".into(),
        path: path.into(),
        key: "{path}".into(),
        pool: pool.into(),
        placement: Placement::Hash.into(),
        ..Handler::default()
    }
}

#[test]
fn each_handler_and_each_field_that_differs_has_a_line() {
    let now =
        [handler("files", "/{*rest}", "files"), handler("old", "/old", "p"), handler("same", "/s", "p")];
    let files = Handler { disabled: true, key: String::new(), ..handler("files", "/{*rest}", "other") };
    let wanted = [files, handler("new", "/new", "p"), Handler { since: 9, ..handler("same", "/s", "p") }];
    let text = "\
+ new
+   host      *
+   path      /new
+   key       {path}
+   pool      p
+   placement hash
+   enabled   true
- old
-   host      *
-   path      /old
-   key       {path}
-   pool      p
-   placement hash
-   enabled   true
~ files
~   key       {path} -> \"\"
~   pool      files -> other
~   enabled   true -> false
";
    assert_eq!(Diff::between(&now, &wanted, true).text(), text);
    let kept = Diff::between(&now, &wanted, false);
    assert!(!kept.text().contains("old") && kept.kept().contains("Handler old is not in the file"));
    assert_eq!(kept.json()["change"][0]["fields"]["pool"], json!({"from": "files", "to": "other"}));
    assert_eq!(kept.json()["add"][0]["name"], "new");
}

/// Handlers that don't conflict: names of a few, each with a path of its own, shuffled.
fn table() -> impl Strategy<Value = Vec<Handler>> {
    let paths = Just((0..6).map(|n| format!("/{n}")).collect::<Vec<_>>()).prop_shuffle();
    let chosen = proptest::collection::vec((any::<bool>(), any::<bool>(), 0..3_usize), 6);
    (paths, chosen).prop_map(|(paths, chosen)| {
        let numbered = paths.into_iter().zip(chosen).enumerate();
        let some = numbered.filter(|(_, (_, (there, ..)))| *there);
        some.map(|(n, (path, (_, disabled, pool)))| Handler {
            disabled,
            ..handler(&format!("h{n}"), &path, ["a", "b", "c"][pool])
        })
        .collect()
    })
}

fn plan_of(now: &[Handler], diff: Diff) -> Result<Plan, HandlerError> {
    plan(now, 4, diff.changes())
}

proptest! {
    #[test]
    fn what_was_applied_is_as_the_file_says(now in table(), wanted in table()) {
        let diff = Diff::between(&now, &wanted, true);
        let plan = plan(&now, 3, HandlerChanges { base: 3, ..diff.changes() }).unwrap();
        prop_assert_eq!(&plan.after, &wanted);
        prop_assert_eq!(plan.is_empty(), diff.is_empty());
        prop_assert!(Diff::between(&plan.after, &wanted, true).is_empty(), "a second time nothing changes");
        let back = Diff::between(&plan.after, &now, true);
        let undone = plan_of(&plan.after, back).unwrap();
        prop_assert_eq!(&undone.after, &now, "and it can be taken back");
    }

    #[test]
    fn without_prune_nobody_goes(now in table(), wanted in table()) {
        let diff = Diff::between(&now, &wanted, false);
        prop_assert!(diff.remove.is_empty());
        // What is kept may stand in the way of what is wanted: then the seed refuses all of it.
        if let Ok(plan) = plan(&now, 1, diff.changes()) {
            let names = |handlers: &[Handler]| handlers.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
            let after = names(&plan.after);
            prop_assert!(names(&now).iter().chain(&names(&wanted)).all(|name| after.contains(name)));
            prop_assert!(wanted.iter().all(|handler| plan.after.contains(handler)));
        }
    }
}
