//! Bodies both ways: whole, streamed, refused early, cut short; directly and through a relay.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use protoplex_http::{Body, BodyError, Limits, Response};
use tokio::sync::mpsc;

use crate::kit::{OnDrop, Raw, begun_and_lost, curl, limits, run, settle, start, start_relay, text, until};

fn too_large() -> Response {
    let mut response = text("too large\n");
    *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
    response
}

/// A file of so many bytes.
fn file(bytes: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![b'x'; bytes]).unwrap();
    file
}

#[test]
fn bodies_of_known_and_of_unknown_length_go_both_ways() {
    run(async {
        let origin = start(limits(), |request, _| async move {
            let exact = request.body().exact_length();
            let bytes = request.into_body().collect(100).await.unwrap();
            text(format!("{exact:?} {}", String::from_utf8_lossy(&bytes)))
        });
        let relay = start_relay(origin.address);
        for address in [origin.address, relay.address] {
            let mut client = Raw::connect(address).await;
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
            assert_eq!(client.answer().await.body, "Some(5) hello");
            client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n").await;
            assert_eq!(client.answer().await.body, "None hello");
        }
    });
}

#[test]
fn trailers_are_relayed_both_ways() {
    run(async {
        let origin = start(limits(), |request, _| async move {
            let mut response = Response::new(request.into_body());
            response.headers_mut().insert("trailer", "digest".parse().unwrap());
            response
        });
        let relay = start_relay(origin.address);
        let mut client = Raw::connect(relay.address).await;
        client
            .send(
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, TE\r\nTE: trailers\r\n\
                 Transfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n2\r\nhi\r\n0\r\nDigest: x\r\n\r\n",
            )
            .await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(answer.ends_with("\r\n\r\n2\r\nhi\r\n0\r\ndigest: x\r\n\r\n"), "{answer}");
    });
}

#[test]
fn curl_sees_a_413_that_came_before_the_body_was_read() {
    run(async {
        let origin = start(limits(), |_, _| async { too_large() });
        let relay = start_relay(origin.address);
        let file = file(20 << 20);
        let path = file.path().to_str().unwrap();
        for address in [origin.address, relay.address] {
            for expect in ["Expect:", "Expect: 100-continue"] {
                let url = format!("http://{address}/");
                let (fine, text) =
                    curl(&["-T", path, "-H", expect, "-w", "%{http_code} %{size_upload}", &url]).await;
                assert!(fine, "{text}");
                assert!(text.starts_with("too large\n413 "), "{text}");
                assert!(expect == "Expect:" || text.ends_with(" 0"), "the body was not to be sent: {text}");
            }
        }
    });
}

#[test]
fn a_client_that_reads_only_after_it_has_sent_everything_sees_the_413_too() {
    run(async {
        let server = start(limits(), |_, _| async { too_large() });
        let mut client = Raw::connect(server.address).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 << 20)).await;
        client.send(vec![b'x'; 8 << 20]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn curl_uploads_with_expect_end_to_end() {
    run(async {
        let origin = start(limits(), |request, _| async move {
            let expects = request.headers().contains_key("expect");
            let bytes = request.into_body().collect(u64::MAX).await.unwrap();
            text(format!("{expects} {}", bytes.len()))
        });
        let relay = start_relay(origin.address);
        let file = file(3 << 20);
        let path = file.path().to_str().unwrap();
        for address in [origin.address, relay.address] {
            let url = format!("http://{address}/");
            let (fine, text) =
                curl(&["-T", path, "-H", "Expect: 100-continue", "--expect100-timeout", "10", &url]).await;
            assert!(fine && text == format!("true {}", 3 << 20), "{text}");
        }
    });
}

#[test]
fn a_body_cut_short_is_an_error_and_never_an_end() {
    for head in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        run(async move {
            let (ends, mut ended) = mpsc::unbounded_channel();
            let origin = start(limits(), move |request, _| {
                let ends = ends.clone();
                async move {
                    let _ = ends.send(request.into_body().collect(100).await);
                    text("")
                }
            });
            let relay = start_relay(origin.address);
            for address in [origin.address, relay.address] {
                let mut client = Raw::connect(address).await;
                client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}")).await;
                drop(client);
                let error = ended.recv().await.unwrap().unwrap_err();
                assert!(matches!(error, BodyError::ClientGone), "{error}");
            }
        });
    }
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_be_incomplete() {
    run(async {
        let origin =
            start(limits(), |_, _| async { Response::new(begun_and_lost(BodyError::Other("lost".into()))) });
        let relay = start_relay(origin.address);
        for address in [origin.address, relay.address] {
            let url = format!("http://{address}/");
            for (version, fault) in [
                ("--http1.1", "curl: (18)"),
                ("--http1.0", "curl: (56)"),
                ("--http2-prior-knowledge", "curl: (92)"),
            ] {
                let (fine, text) = curl(&[version, &url]).await;
                assert!(!fine && text.contains(fault), "{version} {text}");
            }
        }
    });
}

#[test]
fn an_endless_answer_goes_no_faster_than_the_client_reads_and_ends_with_it() {
    run(async {
        let (sent, dropped) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0)));
        let (count, gone) = (Rc::clone(&sent), Rc::clone(&dropped));
        let origin = start(limits(), move |_, _| {
            let (count, guard) = (Rc::clone(&count), OnDrop(Rc::clone(&gone)));
            async move {
                let chunk = Bytes::from(vec![b'x'; 1 << 16]);
                Response::new(Body::stream(stream::repeat_with(move || {
                    let _ = &guard;
                    count.set(count.get() + chunk.len() as u64);
                    Ok(chunk.clone())
                })))
            }
        });
        let relay = start_relay(origin.address);
        for (at, address) in [origin.address, relay.address].into_iter().enumerate() {
            let mut client = Raw::connect(address).await;
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            // Until the buffers on the way are full.
            let mut before = 0;
            while before == 0 || sent.get() != before {
                before = sent.get();
                settle().await;
            }
            drop(client);
            until(|| dropped.get() as usize == at + 1).await;
            assert!(sent.get() < (at as u64 + 1) * (64 << 20), "{}", sent.get());
        }
    });
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    run(async {
        let limits = Limits { write_timeout: Duration::from_millis(200), ..limits() };
        let dropped = Rc::new(Cell::new(0));
        let gone = Rc::clone(&dropped);
        let server = start(limits, move |_, _| {
            let guard = OnDrop(Rc::clone(&gone));
            async move {
                Response::new(Body::stream(stream::repeat_with(move || {
                    let _ = &guard;
                    Ok(Bytes::from_static(&[b'x'; 1 << 14]))
                })))
            }
        });
        let mut client = Raw::connect(server.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until(|| dropped.get() == 1).await;
    });
}

#[test]
fn an_echo_may_answer_while_it_still_reads() {
    run(async {
        let origin = start(limits(), |request, _| async move { Response::new(request.into_body()) });
        let relay = start_relay(origin.address);
        for address in [origin.address, relay.address] {
            let file = file(5 << 20);
            let url = format!("http://{address}/");
            let path = format!("@{}", file.path().display());
            let (fine, text) = curl(&[
                "--data-binary",
                &path,
                "-H",
                "Expect:",
                "-o",
                "/dev/null",
                "-w",
                "%{size_download}",
                &url,
            ])
            .await;
            assert!(fine && text == (5 << 20).to_string(), "{text}");
        }
    });
}

#[test]
fn a_part_of_a_file_is_sent_byte_by_byte_as_it_is_however_it_goes() {
    run(async {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let (file, range) = (Arc::new(file), 5..2_999_990);
        let part = bytes[5..2_999_990].to_vec();
        let server = start(limits(), move |request, _| {
            // One that is shorter than it was said to be.
            let short = request.uri().path() == "/short";
            let range = if short { range.start..range.end + 100 } else { range.clone() };
            let body = Body::file(Arc::clone(&file), range);
            async move { Response::new(body) }
        });
        let address = server.address;
        for _ in 0..2 {
            // Twice on one connection: what follows a file is framed soundly.
            let mut client = Raw::connect(address).await;
            client
                .send(
                    "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                )
                .await;
            let all = client.rest().await;
            let second = all.len() - part.len();
            assert_eq!(all[second..], part[..]);
            let first = all.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            assert_eq!(all[first..first + part.len()], part[..]);
        }
        let url = format!("http://{address}/");
        let (fine, size) =
            curl(&["--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{size_download}", &url]).await;
        assert!(fine && size == part.len().to_string(), "{size}");
        let (fine, text) = curl(&["-o", "/dev/null", &format!("{url}short")]).await;
        assert!(!fine && text.contains("curl: (18)"), "{text}");
    });
}
