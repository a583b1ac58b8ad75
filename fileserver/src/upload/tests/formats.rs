//! The answer of a raw upload, and forms.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::stream;
use protoplex_http::{Body, BodyError, Request};

use super::rig::*;

const BOUNDARY: &str = "----boundary";

fn form(target: &str, token: &str, parts: &[(&str, &str, &str)]) -> Request {
    let mut body = String::new();
    for (disposition, content_type, content) in parts {
        body += &format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n");
        if !content_type.is_empty() {
            body += &format!("Content-Type: {content_type}\r\n");
        }
        body += &format!("\r\n{content}\r\n");
    }
    body += &format!("--{BOUNDARY}--\r\n");
    sent_in_pieces(target, token, body.into_bytes())
}

/// A form's body that begins so and goes on so for ever, and how many bytes of it were taken.
fn endless(start: &str, more: &'static [u8]) -> (Body, Rc<Cell<usize>>) {
    let taken = Rc::new(Cell::new(0));
    let counted = Rc::clone(&taken);
    let pieces = std::iter::once(Bytes::copy_from_slice(start.as_bytes()))
        .chain(std::iter::repeat(Bytes::from_static(more)));
    let pieces = pieces.map(move |piece| {
        counted.set(counted.get() + piece.len());
        Ok::<_, BodyError>(piece)
    });
    (Body::stream(stream::iter(pieces)), taken)
}

fn form_request(target: &str, token: &str, body: Body) -> Request {
    let builder = request("POST", target, token);
    builder.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}")).body(body).unwrap()
}

/// Places of a child that no upload has.
fn places(child: &Child) -> usize {
    child.uploads.in_flight.available_permits()
}

const ENDLESS: [(&str, &str, &[u8]); 5] = [
    ("before the first part", "", &[b'x'; 4096]),
    ("a part's head", "------boundary\r\nContent-Disposition: ", &[b'x'; 4096]),
    ("a boundary's padding", "------boundary", &[b' '; 4096]),
    ("a field", "------boundary\r\nContent-Disposition: form-data; name=\"comment\"\r\n\r\n", &[b'x'; 4096]),
    ("fields", "", b"------boundary\r\nContent-Disposition: form-data; name=\"comment\"\r\n\r\ntext\r\n"),
];

#[test]
fn row_endless_form_with_a_token_that_opens_nothing_is_refused_before_its_body_is_read() {
    run(async |machine| {
        let good = machine.token(Terms::default()).await;
        let expired = machine.token(Terms { expires_at_ms: 1, ..Terms::default() }).await;
        let elsewhere = machine.token(Terms { path_prefix: "/elsewhere/", ..Terms::default() }).await;
        let child = machine.child();
        let free = places(&child);
        let forged = format!("{good}x");
        for (token, status, problem) in [
            ("px_a.b", 401, "token-forged"),
            (&forged, 401, "token-forged"),
            (&expired, 401, "token-expired"),
            (&elsewhere, 403, "token-wrong-path"),
        ] {
            for (case, start, more) in ENDLESS {
                let (body, taken) = endless(start, more);
                let answer = child.send(form_request("/in/", token, body)).await;
                assert_eq!((answer.status.as_u16(), answer.problem()), (status, problem), "{case}");
                assert_eq!(taken.get(), 0, "{case}");
            }
        }
        assert!(machine.nothing_is_staged());
        assert_eq!(places(&child), free);
    });
}

#[test]
fn row_endless_form_with_a_good_token_is_cut_after_a_bounded_number_of_bytes() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let free = places(&child);
        for (case, start, more) in ENDLESS {
            let (body, taken) = endless(start, more);
            let answer = child.send(form_request("/in/", &token, body)).await;
            assert_eq!((answer.status.as_u16(), answer.problem()), (413, "form-too-large"), "{case}");
            assert!(answer.text("detail").starts_with("the form has "), "{case}: {answer:?}");
            assert!(taken.get() < 128 << 10, "{case}: {} bytes were taken", taken.get());
            assert!(machine.nothing_is_staged(), "{case}");
            assert_eq!(places(&child), free, "{case}");
        }
        let parts = [("name=\"f\"; filename=\"one\"", "", "first")];
        assert_eq!(child.send(form("/in/", &token, &parts)).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn row_form_after_whose_first_file_comes_an_endless_head_keeps_that_file_alone() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let start = "------boundary\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\nwhole\r\n\
                     ------boundary\r\nContent-Disposition: ";
        let (body, taken) = endless(start, &[b'x'; 4096]);
        let answer = child.send(form_request("/in/", &token, body)).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (413, "form-too-large"));
        assert_eq!(answer.json["stored"][0]["path"], "/in/a");
        assert!(taken.get() < 128 << 10);
        child.settle(&machine).await;
        assert_eq!(machine.listed().await, 1);
    });
}

#[test]
fn row_clients_without_a_good_token_take_no_place_from_others() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let crowd = (0..300).map(|_| {
            let (body, _) = endless("", b"x");
            child.send(form_request("/in/", "px_a.b", body))
        });
        let crowd = futures_util::future::join_all(crowd);
        let (answers, stored) = tokio::join!(crowd, child.send(put("/in/a", &token, b"good")));
        assert!(answers.iter().all(|answer| answer.status == 401), "none of them was even counted as busy");
        assert_eq!(stored.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn row_form_with_too_many_files_keeps_those_that_it_may_have() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let names: Vec<_> = (0..101).map(|n| format!("name=\"f\"; filename=\"{n}\"")).collect();
        let parts: Vec<_> = names.iter().map(|name| (name.as_str(), "", "same")).collect();
        let answer = child.send(form("/in/", &token, &parts)).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (400, "bad-upload"));
        assert_eq!(answer.text("detail"), "a form may have at most 100 files");
        assert_eq!(answer.json["stored"].as_array().unwrap().len(), 100);
        child.settle(&machine).await;
    });
}

fn sent_in_pieces(target: &str, token: &str, body: Vec<u8>) -> Request {
    let pieces: Vec<_> =
        body.chunks(97).map(|piece| Ok::<_, BodyError>(Bytes::copy_from_slice(piece))).collect();
    request("POST", target, token)
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(Body::stream(stream::iter(pieces)))
        .unwrap()
}

#[test]
fn the_answer_says_what_was_stored_and_where() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(1_000_000);
        let builder =
            request("PUT", "/files/a%20b.txt", &token).header("upload-id", "mine").header("host", "x");
        let mut sent = builder.body(Body::full(body.clone())).unwrap();
        sent.headers_mut().insert("host", "Example.com:8080".parse().unwrap());
        let answer = child.send(sent).await;
        assert_eq!(answer.status, 201);
        let reference = answer.text("reference");
        assert_eq!(reference.len(), 128);
        assert_eq!(answer.text("url"), "http://Example.com:8080/files/a%20b.txt");
        assert_eq!(answer.header("location"), answer.text("url"));
        assert_eq!(answer.text("reference_url"), format!("http://Example.com:8080/{reference}"));
        assert_eq!((answer.text("path"), answer.text("host")), ("/files/a b.txt", "example.com"));
        assert_eq!((answer.text("upload"), answer.text("encoding")), ("mine", "gzip"));
        assert_eq!(answer.text("content_type"), "text/plain");
        assert_eq!(answer.json["size"], 1_000_000);
        assert!(answer.json["stored_size"].as_u64().unwrap() < 900_000);
        assert_eq!((answer.text("sha256").len(), answer.text("whirlpool").len()), (64, 128));
        assert_eq!(answer.json["existed"], false);
        child.settle(&machine).await;
        assert_eq!(machine.stored(reference).await, body);
    });
}

#[test]
fn watchers_see_an_upload_from_its_start_to_its_storage() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let answer = child.send(put("/files/a", &token, &text(1_000_000))).await;
        child.settle(&machine).await;
        child.heard("file.stored").await;
        let mut kinds = child.kinds();
        kinds.dedup();
        assert_eq!(kinds, ["upload.started", "upload.progress", "upload.finished", "file.stored"]);
        let finished = child.heard("upload.finished").await;
        assert_eq!(finished["data"], answer.json);
        assert_eq!(finished["subject"], format!("upload/{}", answer.text("upload")));
    });
}

#[test]
fn a_form_with_one_file_is_answered_like_a_raw_upload() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let parts = [
            ("name=\"comment\"", "", "not a file"),
            ("name=\"file\"; filename=\"a.bin\"", "application/x-thing", "content"),
            ("name=\"none\"; filename=\"\"", "application/octet-stream", ""),
        ];
        let answer = child.send(form("/files/", &token, &parts)).await;
        assert_eq!((answer.status.as_u16(), answer.text("path")), (201, "/files/a.bin"));
        assert_eq!(answer.text("content_type"), "application/x-thing");
        let named = child.send(form("/files/other", &token, &parts)).await;
        assert_eq!(named.text("path"), "/files/other");
        child.settle(&machine).await;
        assert_eq!(machine.stored(answer.text("reference")).await, b"content");
    });
}

#[test]
fn a_form_with_several_files_is_answered_with_a_list() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let parts = [
            ("name=\"f\"; filename=\"one.txt\"", "", "first"),
            ("name=\"f\"; filename=\"two words.txt\"", "", "second"),
        ];
        let answer = child.send(form("/in/", &token, &parts)).await;
        let paths: Vec<_> =
            answer.json.as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["/in/one.txt", "/in/two words.txt"]);
        child.settle(&machine).await;
    });
}

#[test]
fn a_form_that_fails_half_way_says_what_is_stored() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let parts =
            [("name=\"f\"; filename=\"one\"", "", "first"), ("name=\"f\"; filename=\"two\"", "", "second")];
        let answer = child.send(form("/in/", &token, &parts)).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (403, "token-used-up"));
        assert_eq!(answer.json["stored"][0]["path"], "/in/one");
        child.settle(&machine).await;
        assert_eq!(machine.listed().await, 1);
    });
}

#[test]
fn forms_that_make_no_sense_leave_nothing() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let start = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\nhalf a fi"
        );
        let table = [
            ("broken off", sent_in_pieces("/in/", &token, start.into_bytes())),
            ("no form", sent_in_pieces("/in/", &token, b"something else".to_vec())),
            ("no file", form("/in/", &token, &[("name=\"comment\"", "", "text")])),
            ("bad name", form("/in/", &token, &[("name=\"f\"; filename=\"../up\"", "", "x")])),
        ];
        for (case, request) in table {
            assert_eq!(child.send(request).await.status, 400, "{case}");
            assert!(machine.nothing_is_staged(), "{case}");
        }
        assert_eq!(machine.listed().await, 0);
    });
}

#[test]
fn a_form_whose_client_goes_away_leaves_nothing() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let start = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\nhalf a fi"
        );
        let request = request("POST", "/in/", &token)
            .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(broken_off(vec![start.into()]))
            .unwrap();
        assert_eq!(child.send(request).await.problem(), "client-gone");
        child.heard("upload.failed").await;
        assert!(machine.nothing_is_staged());
    });
}
