//! Meta ports that other machines reach, asked by curl.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use protoplex_wire::identity::{Identity, SERVER_NAME};
use serde_json::json;

use super::rig::{Arguments, DEADLINE, Node};

/// Asks a page by this name and with these arguments; its status, 0 where there is no connection to ask on.
fn ask(node: &Node, name: &str, page: &str, arguments: &[&str]) -> u16 {
    let port = node.meta().port();
    let (scheme, host) = name.split_once("://").unwrap();
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "20"])
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(arguments)
        .arg(format!("{scheme}://{host}:{port}{page}"))
        .output()
        .expect("curl is installed");
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

/// A certificate of its own authority, for `localhost`.
fn certificate(folder: &Path) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args(["-keyout", "key.pem", "-out", "certificate.pem", "-subj", "/CN=own"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Writes the certificate and the key of an operator of this cluster, which is made where it isn't there.
fn operator(cluster: &Path) {
    let pem = Identity::open_or_create(cluster).unwrap().pem();
    std::fs::write(cluster.join("node.pem"), &pem.0).unwrap();
    std::fs::write(cluster.join("node.key"), &pem.1).unwrap();
}

#[test]
fn row_a_meta_port_that_others_reach_wants_a_certificate_or_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["scrapers", "strangers"] {
        operator(&folder.path().join(name));
    }
    certificate(folder.path());
    let node = Node::start(&Arguments {
        meta: "0.0.0.0:0".to_owned(),
        meta_token: Some("let-me-in"),
        meta_tls: json!({
            "certificate": path("certificate.pem"), "key": path("key.pem"), "client_ca": path("scrapers/ca.pem"),
        }),
        ..Arguments::default()
    });
    operator(&node.data().join("cluster"));
    let ours = |name: &str| node.data().join("cluster").join(name).display().to_string();
    let with = |certificate: String, key: String| {
        ["--cacert".to_owned(), ours("ca.pem"), "--cert".to_owned(), certificate, "--key".to_owned(), key]
    };
    let nobody = ["--cacert".to_owned(), ours("ca.pem")];
    let member = with(ours("node.pem"), ours("node.key"));
    let scraper = with(path("scrapers/node.pem"), path("scrapers/node.key"));
    let stranger = with(path("strangers/node.pem"), path("strangers/node.key"));
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let (good, bad, order) = (bearer("let-me-in"), bearer("let-me-im"), bearer("do-as-i-say"));
    let drain = ["-X", "POST", "-H", "Protoplex-Operator: test"];
    let tls = format!("https://{SERVER_NAME}");
    for (who, more, page, status) in [
        (&nobody[..], &[][..], "/status", 401),
        (&nobody, &["-H", &bad], "/metrics", 401),
        (&nobody, &drain, "/rpc/drain", 401),
        // Who may read may not command.
        (&nobody, &[&drain[..], &["-H", &good]].concat(), "/rpc/drain", 403),
        (&scraper, &drain, "/rpc/drain", 403),
        (&nobody, &[&drain[..], &["-H", &order]].concat(), "/rpc/restart", 200),
        (&nobody, &[], "/readyz", 200),
        (&nobody, &["-H", &good], "/status", 200),
        (&member, &[], "/config", 200),
        (&scraper, &[], "/metrics", 200),
        (&member, &drain, "/rpc/restart", 200),
        // A certificate of an authority that nobody trusts is worse than none: there is no connection.
        (&stranger, &[], "/status", 0),
        (&stranger, &["-H", &good], "/readyz", 0),
    ] {
        let arguments: Vec<_> = who.iter().map(String::as_str).chain(more.iter().copied()).collect();
        assert_eq!(ask(&node, &tls, page, &arguments), status, "{page} {arguments:?}");
    }
    // In the clear only health is told, whatever comes along.
    for (page, status) in [("/healthz", 200), ("/readyz", 200), ("/status", 400), ("/metrics", 400)] {
        assert_eq!(ask(&node, "http://localhost", page, &["-H", &good]), status, "{page}");
    }
    assert_eq!(ask(&node, "http://localhost", "/rpc/drain", &[&drain[..], &["-H", &good]].concat()), 400);
    // By any other name the port shows the certificate that is configured.
    let own = ["--cacert".to_owned(), path("certificate.pem")];
    let own: Vec<_> = own.iter().map(String::as_str).chain(["-H", &good]).collect();
    assert_eq!(ask(&node, "https://localhost", "/status", &own), 200);
    assert_eq!(ask(&node, "https://localhost", "/status", &["--cacert", &ours("ca.pem"), "-H", &good]), 0);
    assert!(node.is_ready(), "it was told to drain by nobody who may");
}

#[test]
fn certificate_and_token_are_renewed_by_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let arguments = Arguments {
        meta: "0.0.0.0:0".to_owned(),
        meta_token: Some("the-old-one"),
        meta_tls: json!({"certificate": path("certificate.pem"), "key": path("key.pem")}),
        ..Arguments::default()
    };
    let node = Node::start(&arguments);
    operator(&node.data().join("cluster"));
    let identity = |name: &str| node.data().join("cluster").join(name).display().to_string();
    let member =
        ["--cacert", &identity("ca.pem"), "--cert", &identity("node.pem"), "--key", &identity("node.key")]
            .map(str::to_owned);
    let reload = || {
        let order = ["-X", "POST", "-H", "Protoplex-Operator: test"].map(str::to_owned);
        let arguments: Vec<_> = member.iter().chain(&order).map(String::as_str).collect();
        ask(&node, &format!("https://{SERVER_NAME}"), "/rpc/reload", &arguments)
    };
    let by = |certificate: &str, token: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        ask(&node, "https://localhost", "/status", &["--cacert", &path(certificate), "-H", &bearer])
    };
    std::fs::rename(path("certificate.pem"), path("old.pem")).unwrap();
    assert_eq!(reload(), 422, "there is none");
    assert_eq!(by("old.pem", "the-old-one"), 200);
    let children = || {
        let pid = node.pid();
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    };
    let before = children();
    certificate(folder.path());
    node.rewrite(&Arguments { meta_token: Some("the-new-one"), ..arguments.clone() });
    assert_eq!(reload(), 200);
    assert_eq!(by("old.pem", "the-new-one"), 0);
    assert_eq!(by("certificate.pem", "the-old-one"), 401);
    assert_eq!(by("certificate.pem", "the-new-one"), 200);
    assert_eq!(children(), before, "no child has to do with it");
}

#[test]
fn whoever_says_nothing_keeps_nobody_out() {
    let node = Node::start(&Arguments::default());
    let silent = |_| {
        let mut stream = TcpStream::connect(node.meta()).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost").unwrap();
        stream
    };
    let mut silent: Vec<_> = (0..600).map(silent).collect();
    assert_eq!(ask(&node, "http://localhost", "/healthz", &[]), 200);
    let open = node.status()["open_files"].as_u64().unwrap();
    assert!(open < 320, "{open}");
    let first = &mut silent[0];
    first.set_read_timeout(Some(DEADLINE)).unwrap();
    assert!(!matches!(first.read(&mut [0]), Ok(1..)), "the first one was given up");
}

#[test]
fn followers_of_the_log_that_take_nothing_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let node = Node::start(&Arguments { log: Some(log.clone()), ..Arguments::default() });
    // More than all buffers hold.
    let line = std::fs::read_to_string(&log).unwrap().lines().next().unwrap().replacen(
        "\"message\":\"",
        &format!("\"message\":\"{}", "x".repeat(10_000)),
        1,
    );
    std::fs::write(&log, format!("{line}\n").repeat(2_000)).unwrap();
    let stalled: Vec<_> = (0..32)
        .map(|_| {
            let mut stream = TcpStream::connect(node.meta()).unwrap();
            stream
                .write_all(b"GET /logs?follow=true&lines=2000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        })
        .collect();
    assert_eq!(ask(&node, "http://localhost", "/logs?follow=true", &[]), 503);
    assert_eq!(
        ask(&node, "http://localhost", "/logs?lines=1", &[]),
        200,
        "who does not follow is no follower"
    );
    // They are waited for half a minute.
    let deadline = Instant::now() + 3 * DEADLINE;
    while ask(&node, "http://localhost", "/logs?follow=true", &["--max-time", "1"]) != 200 {
        assert!(Instant::now() < deadline, "there is room again");
    }
    drop(stalled);
}

#[test]
fn row_a_certificate_for_the_meta_port_that_is_none_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("rubbish"), "rubbish").unwrap();
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    for (tls, says) in [
        (json!({"client_ca": path("rubbish")}), "meta.tls.client_ca: there is no certificate in it (PEM)"),
        (json!({"client_ca": path("none")}), "meta.tls.client_ca: "),
        (json!({"certificate": path("rubbish"), "key": key}), "meta.tls.certificate: "),
        (json!({"certificate": certificate, "key": path("none")}), "meta.tls.key: "),
        (json!({"certificate": certificate, "key": path("rubbish")}), "meta.tls.certificate: "),
    ] {
        let meta = "0.0.0.0:0".to_owned();
        let arguments = Arguments { meta, meta_token: Some("x"), meta_tls: tls, ..Arguments::default() };
        let (code, told) = Node::refused(&arguments);
        assert!(code == Some(2) && told.lines().any(|line| line.starts_with(says)), "{says}: {told}");
    }
}
