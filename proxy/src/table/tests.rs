//! Which handler a request meets, and what stays when the table is swapped.

use proto::Placement::{Hash, Owned, Spread};

use super::*;
use crate::placement::Outstanding;

fn handler(name: &str, host: &str, path: &str) -> proto::Handler {
    proto::Handler {
        name: name.into(),
        host: host.into(),
        path: path.into(),
        pool: "rooms".into(),
        placement: Spread.into(),
        ..proto::Handler::default()
    }
}

fn keyed(key: &str, path: &str, placement: proto::Placement) -> proto::Handler {
    proto::Handler { key: key.into(), placement: placement.into(), ..handler("keyed", "*", path) }
}

fn member(id: &str, address: &str) -> proto::Member {
    proto::Member { id: id.into(), address: address.into(), pool: "rooms".into(), ..proto::Member::default() }
}

fn compile(handlers: Vec<proto::Handler>) -> (Table, Vec<Unusable>) {
    Table::compile(&proto::Table { version: 1, handlers, pools: Vec::new() }, &Table::default())
}

fn found(table: &Table, host: &str, path: &str) -> Option<String> {
    table.find(host, path).map(|(handler, _)| handler.name.to_string())
}

#[test]
fn the_exact_host_goes_before_the_longest_suffix_before_any() {
    let (table, unusable) = compile(vec![
        handler("any", "*", "/{*rest}"),
        handler("com", "*.com", "/{*rest}"),
        handler("example", "*.example.com", "/{*rest}"),
        handler("exact", "a.example.com", "/{*rest}"),
    ]);
    assert!(unusable.is_empty());
    for (host, expected) in [
        ("a.example.com", "exact"),
        ("b.example.com", "example"),
        ("x.a.example.com", "example"),
        ("example.com", "com"),
        ("notexample.com", "com"),
        ("com", "any"),
        ("localhost", "any"),
        ("", "any"),
    ] {
        assert_eq!(found(&table, host, "/x").as_deref(), Some(expected), "{host}");
    }
}

#[test]
fn a_path_that_the_nearer_host_does_not_have_is_looked_for_in_the_wider() {
    let (table, _) =
        compile(vec![handler("files", "*", "/{*rest}"), handler("rooms", "a.example.com", "/room/{room}")]);
    assert_eq!(found(&table, "a.example.com", "/room/1").as_deref(), Some("rooms"));
    assert_eq!(found(&table, "a.example.com", "/style.css").as_deref(), Some("files"));
}

#[test]
fn plain_text_goes_before_captures_and_an_empty_rest_is_caught() {
    let (table, _) = compile(vec![
        handler("files", "*", "/{*rest}"),
        handler("hub", "*", "/.well-known/mercure"),
        handler("room", "*", "/room/{room}/{*rest}"),
        handler("lobby", "*", "/room/lobby/"),
    ]);
    for (path, expected) in [
        ("/", "files"),
        ("/.well-known/mercure", "hub"),
        ("/.well-known/mercure/x", "files"),
        ("/room/1/", "room"),
        ("/room/1/a/b", "room"),
        ("/room/1", "files"),
        ("/room/lobby/", "lobby"),
    ] {
        assert_eq!(found(&table, "h", path).as_deref(), Some(expected), "{path}");
    }
    assert_eq!(table.find("h", "/room/1/a/b").unwrap().1.get("rest"), Some("a/b"));
}

#[test]
fn no_handler_no_match() {
    let (table, _) = compile(vec![handler("exact", "a.example.com", "/x")]);
    assert_eq!(found(&table, "b.example.com", "/x"), None);
    assert_eq!(found(&table, "a.example.com", "/y"), None);
    assert_eq!(found(&table, "a.example.com", "*"), None);
    assert_eq!(found(&Table::default(), "a", "/"), None);
}

#[test]
fn what_this_version_does_not_understand_is_left_out_and_named() {
    let (table, unusable) = compile(vec![
        handler("good", "*", "/good"),
        handler("twice", "*", "/good"),
        keyed("{room}", "/no-capture", Owned),
        keyed("{query.}", "/no-name", Hash),
        proto::Handler { placement: 77, ..handler("future", "*", "/future") },
    ]);
    assert_eq!(found(&table, "h", "/good").as_deref(), Some("good"));
    let told: Vec<_> = unusable.iter().map(Unusable::to_string).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(
        told[0].contains("\"twice\"") && told[1].contains("{room}") && told[3].contains("placement"),
        "{told:?}"
    );
}

#[test]
fn members_keep_their_requests_when_the_table_is_swapped() {
    let pool = |members| proto::Pool { name: "rooms".into(), members };
    let sent = |version, members| proto::Table {
        version,
        handlers: vec![handler("h", "*", "/")],
        pools: vec![pool(members)],
    };
    let first =
        sent(1, vec![member("a", "127.0.0.1:1"), member("b", "127.0.0.1:2"), member("bad", "nowhere")]);
    let (before, _) = Table::compile(&first, &Table::default());
    let members = &before.find("h", "/").unwrap().0.pool.members;
    assert_eq!(members.len(), 2);
    let _requests: Vec<_> = members.iter().map(Outstanding::at).collect();

    let (after, _) =
        Table::compile(&sent(2, vec![member("b", "127.0.0.1:3"), member("a", "127.0.0.1:1")]), &before);
    let pool = &after.find("h", "/").unwrap().0.pool;
    let outstanding: Vec<_> = pool.members.iter().map(|member| (&*member.id, member.outstanding())).collect();
    assert_eq!(outstanding, [("b", 0), ("a", 1)], "a moved member is another one");
}

#[test]
fn hosts_are_compared_without_case_port_and_final_dot() {
    for (sent, expected) in [
        ("Example.COM", Some("example.com")),
        ("example.com:8080", Some("example.com")),
        ("example.com.:80", Some("example.com")),
        ("[::1]:8080", Some("[::1]")),
        ("[::1", None),
        ("user@example.com", None),
        ("a b", None),
        ("a/b", None),
        ("", None),
        (":80", None),
        (".com", None),
    ] {
        assert_eq!(host(Some(sent)).as_deref(), expected, "{sent}");
    }
    assert_eq!(host(None).as_deref(), Some(""));
}
