//! The answer of a raw upload, and forms.

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
