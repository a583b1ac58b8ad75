//! What a member is told of the client, and that no client can tell it otherwise.

use proto::Placement::{Owned, Spread};

use super::*;

/// The head that a member gets for this one; none where it is refused.
async fn passed_on(head: &str) -> Option<String> {
    let member = Member::echo().await;
    let proxy = Proxy::start(Spread, "", &[&member]).await;
    let (answer, echoed) = proxy.ask(head).await;
    let passed = answer.starts_with("HTTP/1.1 200 ");
    assert_eq!(member.connections.get(), usize::from(passed));
    passed.then_some(echoed)
}

#[test]
fn a_member_is_told_who_asks_and_for_what() {
    run(async || {
        let head = "GET /at/x?q=1%202 HTTP/1.1\r\nHost: A.Example:8080\r\nX-Request-Id: mine-1\r\nX-Own: a\r\nX-Own: b\r\n\r\n";
        let head = passed_on(head).await.unwrap();
        assert!(head.starts_with("GET /at/x?q=1%202 HTTP/1.1\r\n"), "{head}");
        for (field, expected) in [
            ("host", &["A.Example:8080"][..]),
            ("x-forwarded-for", &["127.0.0.1"]),
            ("x-forwarded-proto", &["http"]),
            ("x-forwarded-host", &["A.Example:8080"]),
            ("x-request-id", &["mine-1"]),
            ("x-own", &["a", "b"]),
            ("protoplex-key", &[]),
        ] {
            assert_eq!(peer::fields(&head, field), expected, "{field}");
        }
        assert!(peer::fields(&head, "via")[0].starts_with("1.1 "), "{head}");
    });
}

#[test]
fn what_a_client_forges_is_not_passed_on() {
    run(async || {
        let owner = Member::echo().await;
        let proxy = Proxy::start(Owned, "k", &[&owner]).await;
        proxy.seed.owners("k", &[(owner.address, 3)]);
        let forged = "GET /at/x HTTP/1.1\r\nHost: a\r\nProtoplex-Key: other\r\nProtoplex-Epoch: 99\r\nPROTOPLEX-New: 1\r\n\
                      X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
                      Connection: x-forwarded-for, protoplex-key, protoplex-epoch, x-forwarded-proto\r\n\r\n";
        let (_, head) = proxy.ask(forged).await;
        assert_eq!(peer::fields(&head, "protoplex-key"), ["k"]);
        assert_eq!(peer::fields(&head, "protoplex-epoch"), ["3"]);
        assert_eq!(peer::fields(&head, "protoplex-new").len(), 0);
        assert_eq!(peer::fields(&head, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(peer::fields(&head, "x-forwarded-proto"), ["http"]);
        assert_eq!(peer::fields(&head, "x-forwarded-host"), ["a"]);
    });
}

#[test]
fn fields_of_one_connection_stay_on_it() {
    run(async || {
        let head = "GET /at/x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Private, TE\r\nX-Private: 1\r\nTE: trailers, gzip\r\n\
                    Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n\r\n";
        let head = passed_on(head).await.unwrap();
        for field in ["x-private", "keep-alive", "proxy-connection", "proxy-authorization"] {
            assert_eq!(peer::fields(&head, field).len(), 0, "{field} in {head}");
        }
        assert!(!peer::fields(&head, "te").contains(&"gzip".to_owned()), "{head}");
        assert!(peer::fields(&head, "te").iter().all(|te| te == "trailers"), "{head}");
    });
}

#[test]
fn ambiguous_heads_are_refused() {
    for fields in [
        "Host: a\r\nHost: b",
        "Host: a b",
        "Host: user@a",
        "X-Nothing: 1",
        "Host: a\r\nContent-Length: 1\r\nContent-Length: 2",
        "Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "Host: a\r\nTransfer-Encoding: gzip",
        "Host: a\r\nX : 1",
    ] {
        run(async || {
            assert_eq!(passed_on(&format!("GET /at/x HTTP/1.1\r\n{fields}\r\n\r\n")).await, None, "{fields}");
        });
    }
}

#[test]
fn an_absolute_target_has_its_own_host() {
    run(async || {
        let head =
            passed_on("GET http://real.example/at/x HTTP/1.1\r\nHost: other.example\r\n\r\n").await.unwrap();
        assert_eq!(peer::fields(&head, "host"), ["real.example"]);
        assert!(head.starts_with("GET /at/x HTTP/1.1\r\n"), "{head}");
    });
}
