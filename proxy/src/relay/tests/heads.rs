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
fn what_a_client_forges_is_not_passed_on_by_any_version_of_http() {
    for version in ["--http1.1", "--http2"] {
        run(async || {
            let owner = Member::echo().await;
            let proxy = Proxy::start(Owned, "k", &[&owner]).await;
            proxy.seed.owners("k", &[(owner.address, 3)]);
            let forged = [
                "Protoplex-Key",
                "protoplex_key",
                "Protoplex_Epoch",
                "Protoplex-Misdirected",
                "X-Forwarded-For",
                "X_Forwarded_For",
                "X-Forwarded-Port",
                "x_forwarded-proto",
                "Forwarded",
                "X-Real-IP",
                "x_real_ip",
                "X_Request_Id",
            ];
            let forged: Vec<_> = forged.iter().map(|name| format!("{name}: forged")).collect();
            let (head, echoed) = proxy.curl(version, "/at/x", &forged).await;
            assert!(head.starts_with("HTTP/") && head.contains(" 200"), "{head}");
            assert!(!echoed.contains("forged"), "{echoed}");
            assert_eq!(peer::fields(&echoed, "protoplex-key"), ["k"]);
            assert_eq!(peer::fields(&echoed, "protoplex-epoch"), ["3"]);
            assert_eq!(peer::fields(&echoed, "x-forwarded-for"), ["127.0.0.1"]);
            assert_eq!(peer::fields(&echoed, "x-forwarded-proto"), ["https"]);
        });
    }
}

#[test]
fn a_path_that_servers_read_differently_is_a_400() {
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        for path in [
            "/at/../x",
            "/at/x/..",
            "/at/./x",
            "/at/%2e%2e/x",
            "/at/.%2E/x",
            "/at/%2e",
            "/at/..%2fx",
            "/at/x%2F..",
            "/at/..;a/x",
            "/at/..\\x",
            "/at/x\\y",
            "/at/x%5cy",
            "/at/x%00",
            "/at/x%0d%0ay",
            "/at/x%7f",
            "/at/x%",
            "/at/x%zz",
            "/../at/x",
        ] {
            let answer = proxy.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_problem(&answer, "400", "ambiguous-target");
            let absolute = format!("GET http://a{path} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_problem(&proxy.ask(&absolute).await, "400", "ambiguous-target");
            for version in ["--http1.1", "--http2"] {
                let (head, body) = proxy.curl(version, path, &[]).await;
                assert!(head.contains(" 400"), "{version} {path}: {head}");
                assert!(body.contains("ambiguous-target"), "{version} {path}: {body}");
            }
        }
        assert_eq!(member.connections.get(), 0);
    });
}

#[test]
fn an_encoded_slash_is_a_character_of_its_segment_for_everybody() {
    run(async || {
        let owner = Member::echo().await;
        let proxy = Proxy::start(Owned, "{rest}", &[&owner]).await;
        proxy.seed.owners("a%2Fb", &[(owner.address, 1)]);
        for path in ["a%2Fb", "a%2fb", "%61%2fb"] {
            let (head, echoed) = proxy.get(path).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(echoed.starts_with(&format!("GET /at/{path} HTTP/1.1\r\n")), "{echoed}");
            assert_eq!(peer::fields(&echoed, "protoplex-key"), ["a%2Fb"]);
        }
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
fn row_a_malformed_request_is_never_forwarded_and_its_connection_is_closed() {
    let long = "x".repeat(40 << 10);
    let many = "X: y\r\n".repeat(200);
    let (long_field, many_fields) = (format!("Host: a\r\nX: {long}"), format!("Host: a\r\n{many}X: y"));
    let mut heads: Vec<String> = [
        "Host: a\r\nHost: b",
        "Host: a b",
        "Host: user@a",
        "Host: a/../b",
        "Host:",
        "X-Nothing: 1",
        "Host: a\r\nContent-Length: 1\r\nContent-Length: 2",
        "Host: a\r\nContent-Length: 1\r\nContent-Length: 1",
        "Host: a\r\nContent-Length: 1, 1",
        "Host: a\r\nContent-Length: +1",
        "Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        "Host: a\r\nTransfer-Encoding: gzip",
        "Host: a\r\nTransfer-Encoding: gzip, chunked",
        "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Host: a\r\nX : 1",
        "Host: a\r\nX: 1\r\n 2",
        "Host: a\r\nX: 1\r2",
        "Host: a\r\nX: 1\n2: 3",
        "Host: a\r\nX: 1\0",
        "Host: a\r\nX\0: 1",
        "Host: a\r\n: 1",
        "Host: a\r\nX",
        &long_field,
        &many_fields,
    ]
    .iter()
    .map(|fields| format!("POST /at/x HTTP/1.1\r\n{fields}\r\n\r\n"))
    .collect();
    heads.extend(
        [
            "POST /at/x HTTP/1.1\nHost: a\n\n",
            "POST /at/x HTTP/2.0\r\nHost: a\r\n\r\n",
            "POST /at/x\r\n",
            "P(ST /at/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /at/\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST at/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
            "POST /at/x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ]
        .map(str::to_owned),
    );
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        for head in &heads {
            let mut client = proxy.connect().await;
            // What a server that took the head for sound would read as a second request.
            client.say(format!("{head}GET /at/smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let (answer, _) = client.answer().await;
            let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
            assert!([400, 431, 501, 505].contains(&status), "{head:?}: {answer}");
            assert_eq!(peer::fields(&answer, "connection"), ["close"], "{head:?}");
            assert_eq!(client.until_closed().await, b"", "{head:?}");
        }
        assert_eq!(member.connections.get(), 0);
    });
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
