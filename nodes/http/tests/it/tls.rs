//! TLS: versions, ALPN, certificates that clients take, handshakes that don't come.

use std::sync::Arc;
use std::time::Duration;

use protoplex_http::tls::{Local, ensure_local, load};
use protoplex_http::{AccessLog, Limits};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kit::{Raw, Server, curl, limits, run, start_with, text, within};

fn start(limits: Limits) -> (Server, Local, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let local = ensure_local(dir.path(), &[]).unwrap();
    let tls = load(&local.certificate, &local.key).unwrap();
    let server = start_with(limits, Some(tls), AccessLog::off(), |request, exchange| async move {
        text(format!("{} {:?}", exchange.scheme, request.version()))
    });
    (server, local, dir)
}

async fn request(server: &Server, local: &Local, version: &'static SupportedProtocolVersion) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&local.authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    // Without a close_notify this would be an error.
    within(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_ended_in_good_order() {
    run(async {
        let (server, local, _dir) = start(limits());
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let answer = request(&server, &local, version).await;
            assert!(answer.ends_with("https HTTP/1.1"), "{answer}");
        }
    });
}

#[test]
fn curl_takes_the_local_certificate_and_chooses_http_2_by_alpn() {
    run(async {
        let (server, local, _dir) = start(limits());
        let authority = local.authority.to_str().unwrap();
        let url = format!("https://localhost:{}/", server.address.port());
        for (version, expected) in [("--http2", "https HTTP/2.0"), ("--http1.1", "https HTTP/1.1")] {
            let (fine, text) = curl(&["-4", "--cacert", authority, version, &url]).await;
            assert!(fine && text == expected, "{text}");
        }
        let (fine, text) = curl(&["-4", &url]).await;
        assert!(!fine && text.contains("certificate"), "{text}");
    });
}

#[test]
fn a_bad_head_over_tls_is_answered_too() {
    run(async {
        let (server, local, _dir) = start(limits());
        let authority = local.authority.to_str().unwrap();
        let url = format!("https://127.0.0.1:{}/", server.address.port());
        let (fine, text) =
            curl(&["--cacert", authority, "--http1.1", "-H", "Host:", "-w", "%{http_code}", &url]).await;
        assert!(fine && text.contains("missing-host") && text.ends_with("400"), "{text}");
    });
}

#[test]
fn a_handshake_that_does_not_come_is_given_up() {
    run(async {
        let (server, _local, _dir) =
            start(Limits { tls_handshake_timeout: Duration::from_millis(150), ..limits() });
        let mut client = Raw::connect(server.address).await;
        assert_eq!(client.rest().await, b"");
    });
}
