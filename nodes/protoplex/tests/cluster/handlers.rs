//! Handlers as operators change them: one at a time, by a file, back to an earlier version; and what nobody may change.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::thread;

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::until;
use serde_json::{Value, json};

use crate::faults::kill;
use crate::{get, plan, start};

/// What `--dry-run` exits with where something would change.
const WOULD_CHANGE: i32 = 4;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn file(cluster: &Cluster, text: &str) -> PathBuf {
    let file = cluster.folder().join("edge.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn apply(cluster: &Cluster, file: &std::path::Path, more: &[&str]) -> Output {
    cluster.run(&[&["apply", file.to_str().unwrap()], more].concat())
}

fn list(cluster: &Cluster) -> Vec<Value> {
    cluster.json(&["handler", "list"]).as_array().unwrap().clone()
}

fn names(cluster: &Cluster) -> Vec<String> {
    let mut names: Vec<_> =
        list(cluster).iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn version(cluster: &Cluster) -> u64 {
    cluster.json(&["handler", "history"])[0]["version"].as_u64().unwrap()
}

fn status(cluster: &Cluster, path: &str) -> u16 {
    get(&format!("{}{path}", cluster.http()), &[]).status
}

/// A handler of a file, whose pool has nobody: requests that follow it are answered with 503.
fn entry(name: &str, path: &str, more: &str) -> String {
    format!(
        "[[handler]]\nname = \"{name}\"\npath = \"{path}\"\nkey = \"{{path}}\"\npool = \"nobody\"\n{more}\n"
    )
}

fn add(cluster: &Cluster, name: &str, path: &str) {
    cluster.json(&["handler", "add", name, "--path", path, "--key", "{path}", "--pool", "nobody"]);
}

#[test]
fn one_handler_is_shown_edited_disabled_and_enabled_and_repeating_it_changes_nothing() {
    let cluster = start();
    add(&cluster, "rooms", "/room/{room}");
    until("the proxy follows it", || (status(&cluster, "/room/1") == 503).then_some(()));
    let shown = cluster.json(&["handler", "show", "rooms"]);
    assert_eq!(
        (&shown["path"], &shown["enabled"], &shown["members"]),
        (&json!("/room/{room}"), &json!(true), &json!([]))
    );
    assert_eq!(shown["since"], version(&cluster));
    let files = cluster.json(&["handler", "show", "files"]);
    assert_eq!(files["members"].as_array().unwrap().len(), 2);
    assert!(
        files["operator"] == "local (says protoplex up)" && files["changed_at_ms"].as_i64().unwrap() > 0,
        "{files}"
    );

    let edited =
        cluster.json(&["handler", "edit", "rooms", "--path", "/hall/{hall}", "--key", "hall:{hall}"]);
    assert_eq!((&edited["changed"], &edited["memberless_pools"]), (&json!(true), &json!(["nobody"])));
    let shown = cluster.json(&["handler", "show", "rooms"]);
    assert_eq!(
        (&shown["key"], &shown["pool"], &shown["since"]),
        (&json!("hall:{hall}"), &json!("nobody"), &edited["version"])
    );
    until("the proxy follows that", || (status(&cluster, "/hall/1") == 503).then_some(()));
    assert_eq!(status(&cluster, "/room/1"), 404, "the fileserver's answer");

    for (command, word) in [("disable", "disabled"), ("enable", "enabled")] {
        let done = cluster.run(&["handler", command, "rooms"]);
        assert!(done.status.success() && text(&done.stdout).to_lowercase().starts_with(word), "{done:?}");
        let status_is = if command == "disable" { 404 } else { 503 };
        until("the proxy has heard of it", || (status(&cluster, "/hall/1") == status_is).then_some(()));
        let before = version(&cluster);
        let again = cluster.run(&["handler", command, "rooms"]);
        assert!(
            again.status.success() && text(&again.stdout).contains(&format!("is {word} already")),
            "{again:?}"
        );
        assert_eq!(version(&cluster), before);
        assert_eq!(cluster.json(&["handler", "show", "rooms"])["enabled"], command == "enable");
    }
    let same = cluster.json(&["handler", "edit", "rooms", "--pool", "nobody"]);
    assert_eq!(same["changed"], false);
    let same =
        &["handler", "add", "rooms", "--path", "/hall/{hall}", "--key", "hall:{hall}", "--pool", "nobody"];
    assert_eq!(cluster.json(same)["changed"], false);
    assert_eq!(cluster.json(&["handler", "remove", "rooms"])["changed"], true);
    let gone = cluster.run(&["handler", "remove", "rooms"]);
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn a_file_is_applied_whole_after_its_difference_was_printed() {
    let cluster = start();
    add(&cluster, "old", "/old");
    let wanted = entry("a", "/a/{x}", "") + &*entry("b", "/b", "enabled = false");
    let edge = file(&cluster, &wanted);
    let before = version(&cluster);

    let dry = apply(&cluster, &edge, &["--dry-run"]);
    assert_eq!(dry.status.code(), Some(WOULD_CHANGE));
    for line in [
        "+ a\n",
        "+   path      /a/{x}\n",
        "+   enabled   false\n",
        "nothing was changed",
        "pool nobody has no member now; pools with members: files, live\n",
        "Handlers files, live, old are not in the file",
    ] {
        assert!(text(&dry.stdout).contains(line), "{line}: {}", text(&dry.stdout));
    }
    assert_eq!(version(&cluster), before);

    let done = apply(&cluster, &edge, &["--base", &before.to_string()]);
    assert!(done.status.success(), "{done:?}");
    assert!(
        text(&done.stdout).contains("+ a\n") && text(&done.stdout).contains("Changed 2 handlers"),
        "{done:?}"
    );
    assert_eq!(names(&cluster), ["a", "b", "files", "live", "old"]);
    assert_eq!(version(&cluster), before + 1, "one version for all of it");
    until("the proxy follows it", || (status(&cluster, "/a/1") == 503).then_some(()));
    assert_eq!(status(&cluster, "/b"), 404, "disabled");
    for more in [&[][..], &["--dry-run"]] {
        let again = apply(&cluster, &edge, more);
        assert!(again.status.success() && text(&again.stdout).contains("Nothing to change"), "{again:?}");
    }

    let other = entry("a", "/a/{x}", "").replace("nobody", "files");
    let edge = file(&cluster, &other);
    let answer = cluster.json(&["apply", edge.to_str().unwrap(), "--prune"]);
    assert_eq!(
        answer["change"],
        json!([{"name": "a", "fields": {"pool": {"from": "nobody", "to": "files"}}}])
    );
    assert_eq!((answer["remove"].as_array().unwrap().len(), &answer["changed"]), (4, &json!(true)));
    assert_eq!(names(&cluster), ["a"]);

    let mut piped = cluster.command(&["apply", "-"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut piped.stdin.take().unwrap(), entry("piped", "/p", "").as_bytes()).unwrap();
    assert!(piped.wait().unwrap().success());
    assert_eq!(names(&cluster), ["a", "piped"]);
}

#[test]
fn each_change_is_a_version_that_is_told_and_can_be_gone_back_to() {
    let cluster = start();
    let first = version(&cluster);
    let before = list(&cluster);
    let mut command =
        cluster.command(&["handler", "add", "rooms", "--path", "/r", "--key", "k", "--pool", "nobody"]);
    assert!(command.env("PROTOPLEX_OPERATOR", "ada").output().unwrap().status.success());
    let edge = file(&cluster, &(entry("rooms", "/r2", "") + &*entry("more", "/more", "")));
    assert!(apply(&cluster, &edge, &[]).status.success());

    let history = cluster.json(&["handler", "history"]);
    let (by, what) = (&history[1]["operator"], &history[1]["what"]);
    assert_eq!((by, what), (&json!("local (says ada)"), &json!("added rooms")));
    let what = history[0]["what"].as_str().unwrap();
    assert!(what.starts_with("apply edge.toml: added more, changed rooms (path, key"), "{what}");
    let diff = cluster.run(&["handler", "history", &(first + 2).to_string()]);
    assert!(text(&diff.stdout).contains("~   path      /r -> /r2"), "{}", text(&diff.stdout));

    let dry = cluster.run(&["handler", "rollback", &first.to_string(), "--dry-run"]);
    assert_eq!(dry.status.code(), Some(WOULD_CHANGE));
    let back = cluster.json(&["handler", "rollback", &first.to_string()]);
    assert_eq!((back["version"].as_u64(), &back["changed"]), (Some(first + 3), &json!(true)));
    assert_eq!(list(&cluster), before, "as it was, since when it was");
    let again = cluster.run(&["handler", "rollback", &first.to_string()]);
    assert!(again.status.success() && text(&again.stdout).contains("Nothing to change"), "{again:?}");
    // Without a version it is the last change that is taken back.
    cluster.json(&["handler", "rollback"]);
    assert_eq!(names(&cluster), ["files", "live", "more", "rooms"]);
    assert_eq!(
        cluster.json(&["handler", "history"])[0]["what"].as_str().unwrap().split(':').next(),
        Some(&*format!("rollback to {}", first + 2))
    );
}

#[test]
fn route_tells_each_step_and_what_is_nearest() {
    let cluster = start();
    add(&cluster, "rooms", "/room/{room}/chat");
    add(&cluster, "off", "/off/{x}");
    cluster.json(&["handler", "disable", "off"]);
    let url = |path: &str| format!("{}{path}", cluster.http());
    let way = cluster.json(&["route", &url("/room/1/chat")]);
    let considered = |way: &Value, n: usize, verdict: &str| {
        let it = &way["considered"][n];
        assert!(it["verdict"].as_str().unwrap().contains(verdict), "{it}");
        it["handler"].as_str().unwrap().to_owned()
    };
    assert_eq!(considered(&way, 0, "is chosen"), "rooms");
    assert_eq!(considered(&way, 1, "rooms goes first"), "files");
    assert!(
        way["why"].as_str().unwrap().contains("pool nobody has no member now: the answer is 503"),
        "{way}"
    );
    let off = cluster.json(&["route", &url("/off/1")]);
    assert_eq!(
        (&off["handler"], considered(&off, 1, "handler enable off")),
        (&json!("files"), "off".to_owned())
    );

    let mercure = url("/.well-known/mercure");
    let unmade = cluster.json(&["route", &mercure]);
    assert!(unmade["why"].as_str().unwrap().contains("no query.topic and no form.topic"), "{unmade}");
    let form = cluster.json(&["route", &mercure, "--form", "topic=news&data=x"]);
    assert_eq!(
        (&form["method"], &form["key"], &form["member"]),
        (&json!("POST"), &json!("news"), &json!(""))
    );
    assert!(form["next_member"].as_str().unwrap().starts_with("live-1:"), "{form}");
    assert!(form["why"].as_str().unwrap().contains("the first request would give it to live-1:"), "{form}");

    cluster.json(&["handler", "remove", "files"]);
    let none = cluster.json(&["route", &url("/rom/1/chat"), "-H", "Host: EXAMPLE.com:80"]);
    assert_eq!(none["host"], "example.com");
    let why = none["why"].as_str().unwrap();
    assert!(why.contains("the answer is 404; the nearest is rooms: its path has \"room\""), "{why}");
    let words = text(&cluster.run(&["route", &url("/room/1/chat")]).stdout);
    assert!(words.contains("rooms for * /room/{room}/chat: matches, and is chosen"), "{words}");
    assert!(words.contains("/room/1/chat (made by {path})"), "{words}");
}

#[test]
fn row_a_handler_whose_key_names_no_capture_is_refused() {
    let cluster = start();
    let before = version(&cluster);
    let refused = cluster.run(&["handler", "add", "x", "--path", "/a/{b}", "--key", "{c}", "--pool", "p"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("{c} is no capture of the path (it has {b})"), "{refused:?}");
    add(&cluster, "rooms", "/a/{b}");
    let refused = cluster.run(&["handler", "edit", "rooms", "--key", "{c}"]);
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(cluster.json(&["handler", "show", "rooms"])["key"], "{path}");
    let edge = file(&cluster, &entry("y", "/y/{z}", "").replace("{path}", "{c}"));
    let refused = apply(&cluster, &edge, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("edge.toml:4: handler \"y\": key \"{c}\""), "{refused:?}");
    assert_eq!(version(&cluster), before + 1);
}

#[test]
fn row_two_handlers_that_conflict_are_refused() {
    let cluster = start();
    add(&cluster, "rooms", "/room/{room}");
    let before = version(&cluster);
    let says = "conflict with those of handler \"rooms\"";
    let refused = cluster.run(&["handler", "add", "x", "--path", "/room/{id}", "--key", "k", "--pool", "p"]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains(says), "{refused:?}");
    let edge = file(&cluster, &(entry("good", "/good", "") + &*entry("x", "/room/{id}", "")));
    for more in [&["--dry-run"][..], &[]] {
        let refused = apply(&cluster, &edge, more);
        assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains(says), "{refused:?}");
        assert!(text(&refused.stderr).contains("nothing was changed"), "{refused:?}");
        assert!(text(&refused.stderr).contains("edge.toml:9: handler \"x\": host"), "{refused:?}");
    }
    let edge = file(&cluster, &(entry("a", "/x/{a}", "") + &*entry("b", "/x/{b}", "")));
    let refused = apply(&cluster, &edge, &[]);
    assert!(
        refused.status.code() == Some(2)
            && text(&refused.stderr).contains("edge.toml:9: handler \"b\": host"),
        "{refused:?}"
    );
    assert_eq!(version(&cluster), before);
}

#[test]
fn row_what_is_no_name_host_path_or_placement_is_refused() {
    let cluster = start();
    add(&cluster, "rooms", "/room/{room}");
    let before = version(&cluster);
    for (arguments, code, says) in [
        (&["handler", "edit", "rooms", "--placement", "ownd"][..], 2, "owned"),
        (&["handler", "edit", "rooms", "--placement", "spread"], 2, "leave it out, or empty"),
        (&["handler", "edit", "rooms", "--host", "http://x"], 2, "leave out scheme and port"),
        (&["handler", "edit", "rooms", "--path", "room"], 2, "begins with no slash"),
        (&["handler", "edit", "rooms", "--path", "/{*a}/b"], 2, "must be the whole last segment"),
        (&["handler", "edit", "rooms", "--pool", "A B"], 2, "pool \"A B\""),
        (&["handler", "edit", "rooms"], 2, "--path"),
        (
            &["handler", "add", "UPPER", "--path", "/x", "--key", "k", "--pool", "p"],
            2,
            "handler name \"UPPER\"",
        ),
        (&["handler", "edit", "room", "--path", "/x"], 1, "did you mean \"rooms\"?"),
        (&["handler", "show", "zzz"], 1, "`protoplex handler list`"),
        (&["handler", "enable", "rooom"], 1, "did you mean \"rooms\"?"),
        (&["handler", "rollback", "999"], 1, "version 999 of the handlers is not kept: there are 1 to"),
        (&["handler", "history", "999"], 1, "is not kept"),
        (&["handler", "history", "1"], 1, "version 1 is the oldest that is kept"),
    ] {
        let refused = cluster.run(arguments);
        let error = text(&refused.stderr);
        assert!(
            refused.status.code() == Some(code) && error.contains(says),
            "{arguments:?}: {says}: {error}"
        );
    }
    assert_eq!(version(&cluster), before);
}

#[test]
fn row_a_broken_file_changes_nothing_and_is_told_with_its_line() {
    let cluster = start();
    let before = version(&cluster);
    for (broken, says) in [
        ("[[handler]]\nname = \n", "edge.toml:2: "),
        (
            &entry("a", "/a", "pth = 1"),
            "edge.toml:6: handler \"a\": unknown key \"pth\", did you mean \"path\"?",
        ),
        (
            &(entry("good", "/good", "") + &*entry("a", "/a", "placement = \"ownd\"")),
            "edge.toml:12: handler \"a\": placement: unknown value \"ownd\", did you mean \"owned\"?",
        ),
        (&(entry("good", "/good", "") + "[[handler]]\nname = \"a\"\n"), "missing key"),
        (
            &(entry("a", "/a", "") + &*entry("a", "/b", "")),
            "edge.toml:8: handler \"a\": name: another handler of this file has it",
        ),
    ] {
        let edge = file(&cluster, broken);
        for more in [&[][..], &["--dry-run"], &["--prune"]] {
            let refused = apply(&cluster, &edge, more);
            let error = text(&refused.stderr);
            assert!(refused.status.code() == Some(2) && error.contains(says), "{says}: {error}");
        }
    }
    let empty = apply(&cluster, &file(&cluster, ""), &["--prune"]);
    assert!(empty.status.code() == Some(2) && text(&empty.stderr).contains("would remove all"), "{empty:?}");
    let nowhere = apply(&cluster, &cluster.folder().join("nowhere.toml"), &[]);
    assert!(
        nowhere.status.code() == Some(2) && text(&nowhere.stderr).contains("nowhere.toml"),
        "{nowhere:?}"
    );
    assert_eq!(version(&cluster), before);
}

#[test]
fn row_a_table_that_somebody_else_has_changed_is_left_as_it_is() {
    let cluster = start();
    let edge = file(&cluster, &entry("a", "/a", ""));
    let seen = version(&cluster).to_string();
    add(&cluster, "meanwhile", "/meanwhile");
    let late = apply(&cluster, &edge, &["--base", &seen]);
    assert_eq!(late.status.code(), Some(1));
    assert!(text(&late.stderr).contains(&format!("not {seen}: nothing was changed")), "{late:?}");
    assert_eq!(names(&cluster), ["files", "live", "meanwhile"]);

    // Of many that apply at once, each is either done whole or refused whole; nobody's change is lost.
    let commands: Vec<_> = (0..6)
        .map(|n| {
            let file = cluster.folder().join(format!("edge-{n}.toml"));
            std::fs::write(&file, entry(&format!("h{n}"), &format!("/h{n}"), "")).unwrap();
            let mut command = cluster.command(&["apply", file.to_str().unwrap()]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outputs: Vec<_> = commands.into_iter().map(|command| command.wait_with_output().unwrap()).collect();
    let there = names(&cluster);
    for (n, output) in outputs.iter().enumerate() {
        let done = output.status.success();
        assert!(
            done || text(&output.stderr).contains("somebody else has changed the handlers"),
            "{output:?}"
        );
        assert_eq!(there.contains(&format!("h{n}")), done, "{output:?}");
    }
    assert!(outputs.iter().any(|output| output.status.success()));
}

#[test]
fn row_a_datastore_killed_in_the_middle_of_an_apply_leaves_all_or_nothing() {
    // More than SQLite holds in memory, so that it writes to its log long before it commits.
    const MANY: usize = 900;
    const LONG: usize = 850;
    let cluster = plan().set("proxy.children=1").set("fileserver.children=1").set("live.children=1").start();
    let log = cluster.data().join("datastore").join("protoplex.db-wal");
    let written = || std::fs::metadata(&log).map_or(0, |log| log.len());
    let file_of = |generation: usize| {
        let path = |n| format!("/g{generation}/{n}/{}", "x".repeat(LONG));
        file(&cluster, &(0..MANY).map(|n| entry(&format!("h{n}"), &path(n), "")).collect::<String>())
    };
    let there = |generation: usize| {
        let prefix = format!("/g{generation}/");
        list(&cluster).iter().filter(|row| row["path"].as_str().unwrap().starts_with(&prefix)).count()
    };
    assert!(apply(&cluster, &file_of(0), &[]).status.success());
    let mut present = 0;
    // Supervisors give a node up that dies five times in a minute.
    for round in 1..=4 {
        let edge = file_of(round);
        let pid = cluster.node("datastore-1")["pid"].as_u64().unwrap();
        let (before, log_before) = (version(&cluster), written());
        let mut command = cluster.command(&["apply", edge.to_str().unwrap()]);
        let applying = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = thread::spawn(|| applying.wait_with_output().unwrap());
        // Without a pause between two looks: what is written is committed soon.
        while written() == log_before && !output.is_finished() {
            thread::yield_now();
        }
        kill(pid);
        let output = output.join().unwrap();
        // What the seed knows agrees with what is stored from the next change on, at the latest.
        let (mark, path) = (format!("mark{round}"), format!("/mark{round}"));
        until("changes are made again", || {
            let add = ["handler", "add", &mark, "--path", &path, "--key", "k", "--pool", "p"];
            cluster.run(&add).status.success().then_some(())
        });
        let (old, new) = (there(present), there(round));
        assert!((old, new) == (MANY, 0) || (old, new) == (0, MANY), "round {round}: {old} old, {new} new");
        println!("round {round}: {new} new, exit code {:?}: {}", output.status.code(), text(&output.stderr));
        match output.status.code() {
            Some(0) => assert_eq!(new, MANY, "what was acknowledged is there"),
            code => assert!(matches!(code, Some(1 | 3)), "{code:?}"),
        }
        assert_eq!(version(&cluster), before + u64::from(new == MANY) + 1, "one version for all of it");
        if new == MANY {
            present = round;
        }
    }
}
