//! Other parsers take for the same what we take at all: httparse for every head, hyper's server for those without a body.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::corpus::{REQUESTS, RESPONSES};
use super::cuts::{fields, framing, name, target, written};
use super::*;
use crate::http1::checks::{Head, request_head, response_head};

/// A head that both have to take for the same.
fn assert_same(head: &Head, version: Option<u8>, others: &[httparse::Header<'_>]) {
    assert_eq!(version, Some(u8::from(!head.is_http_10)));
    let fields: Vec<_> = head.fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let others: Vec<_> = others.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
    assert_eq!(fields, others);
}

fn compare_request(bytes: &[u8]) {
    let Some(head) = request_head(bytes, &[]) else { return };
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Request::new(&mut headers);
    let status = other.parse(bytes);
    assert_eq!(status, Ok(httparse::Status::Complete(head.length)), "{}", bytes.escape_ascii());
    assert_eq!(other.method, Some(&*head.start));
    let asked = other.path.unwrap();
    // Of a whole URL we have made something else, as we should.
    if asked.starts_with('/') || asked == "*" || head.start == "CONNECT" {
        assert_eq!(asked, head.target);
        assert_same(&head, other.version, other.headers);
    }
}

fn compare_response(bytes: &[u8]) {
    let Some(head) = response_head(bytes, &[], &Method::GET) else { return };
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Response::new(&mut headers);
    let status = other.parse(bytes);
    assert_eq!(status, Ok(httparse::Status::Complete(head.length)), "{}", bytes.escape_ascii());
    assert_eq!(other.code.map(|code| code.to_string()), Some(head.start.clone()));
    assert_same(&head, other.version, other.headers);
}

/// What hyper's server hands to its handler: method, target, and the fields by name.
fn seen_by_hyper(bytes: &[u8]) -> Option<(String, String, http::HeaderMap)> {
    let seen = Rc::new(RefCell::new(None));
    let note = Rc::clone(&seen);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (parts, _) = request.into_parts();
            let target = parts.uri.to_string();
            note.borrow_mut().get_or_insert((parts.method.to_string(), target, parts.headers));
            async { Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new())) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(server), service);
        let client = async {
            client.write_all(bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let _ = client.read_to_end(&mut Vec::new()).await;
        };
        let _ = tokio::join!(connection, client);
    });
    seen.take()
}

fn compare_with_hyper(bytes: &[u8]) {
    let Some(head) = request_head(bytes, &[]) else { return };
    let told = seen_by_hyper(&bytes[..head.length]);
    let (method, target, map) = told.unwrap_or_else(|| panic!("hyper refuses {}", bytes.escape_ascii()));
    assert_eq!(method, head.start);
    if target.starts_with('/') {
        assert_eq!(target, head.target);
        let mut fields = crate::Fields::new();
        head.fields.iter().for_each(|(name, value)| fields.push(name, value));
        assert_eq!(fields.to_map(), map);
    }
}

#[test]
fn other_parsers_read_the_corpus_as_we_do() {
    for (_, bytes) in REQUESTS {
        compare_request(bytes);
        compare_with_hyper(bytes);
    }
    RESPONSES.iter().for_each(|(_, bytes)| compare_response(bytes));
}

proptest! {
    #[test]
    fn httparse_reads_what_we_read(
        method in name(), target in target(), fields in fields(), framing in framing(),
        fragments in prop::collection::vec(fragment(), 0..12),
    ) {
        let mut fields = fields;
        fields.push(("host".into(), b"a".to_vec()));
        compare_request(&written(&format!("{method} {target} HTTP/1.1"), &fields, framing));
        compare_response(&written("HTTP/1.1 200 OK", &fields, framing));
        compare_request(&fragments.concat());
        compare_request(&[b"GET / HTTP/1.0\r\n", &fragments.concat()[..]].concat());
        compare_response(&[b"HTTP/1.0 200 OK\r\n", &fragments.concat()[..]].concat());
    }

    #[test]
    fn hyper_reads_what_we_read(
        method in name(), target in target(), fields in fields(),
        fragments in prop::collection::vec(fragment(), 0..6),
    ) {
        let mut fields = fields;
        fields.push(("host".into(), b"a".to_vec()));
        compare_with_hyper(&written(&format!("{method} {target} HTTP/1.1"), &fields, None));
        compare_with_hyper(&[b"GET / HTTP/1.1\r\nHost: a\r\n", &fragments.concat()[..]].concat());
    }
}
