//! The rows of bad input that concern uploads, from the outside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use protoplex_testkit::cluster::Cluster;
use protoplex_testkit::curl::{Answer, Events, curl};
use protoplex_testkit::until;
use serde_json::Value;

use crate::{get, noise, put, put_with, start, token};

fn paths(cluster: &Cluster) -> Vec<String> {
    let files = cluster.json(&["files", "list"]);
    files.as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

fn assert_problem(answer: &Answer, status: u16, says: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert!(problem.to_string().to_lowercase().contains(says), "{says} in {problem}");
}

#[test]
fn row_a_token_that_does_not_open_this_upload_is_refused_by_name_before_a_byte_is_stored() {
    let cluster = start();
    let missing = curl(["-T", "/etc/hostname", &format!("{}/files/x", cluster.http())]);
    assert_problem(&missing, 401, "token");
    assert!(missing.header("www-authenticate").unwrap().starts_with("Bearer"));

    let good = cluster.token();
    let forged = format!("{}{}", &good[..good.len() - 1], if good.ends_with('A') { 'B' } else { 'A' });
    assert_problem(&put_with(&cluster, &forged, "/files/x", b"x", &[]), 401, "forged");
    let expired = token(&cluster, &["--expires", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    assert_problem(&put_with(&cluster, &expired, "/files/x", b"x", &[]), 401, "expired");
    let other_host = token(&cluster, &["--host", "elsewhere.example"]);
    assert_problem(&put_with(&cluster, &other_host, "/files/x", b"x", &[]), 403, "host");
    assert_problem(&put(&cluster, "/elsewhere/x", b"x", &[]), 403, "path");
    let once = token(&cluster, &["--uses", "1"]);
    assert_eq!(put_with(&cluster, &once, "/files/once", b"once", &[]).status, 201);
    assert_problem(&put_with(&cluster, &once, "/files/twice", b"twice", &[]), 403, "used");
    assert_eq!(paths(&cluster), ["/files/once"]);
}

#[test]
fn row_a_body_over_the_limit_or_the_quota_is_413_and_leaves_nothing() {
    let cluster = start();
    let small = token(&cluster, &["--max-size", "100KiB"]);
    let body = noise(1, 300 << 10);
    assert_problem(&put_with(&cluster, &small, "/files/large", &body, &[]), 413, "large");
    let quota = token(&cluster, &["--quota", "400KiB"]);
    assert_eq!(put_with(&cluster, &quota, "/files/first", &body, &[]).status, 201);
    assert_problem(&put_with(&cluster, &quota, "/files/second", &body, &[]), 413, "quota");

    // Without a Content-Length the limit is met on the way.
    let events = Events::open(&format!("{}/.well-known/mercure?topic=upload/chunked", cluster.http()), &[]);
    let chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Upload-Id: chunked", "-H", "Content-Length:"];
    assert_problem(&put_with(&cluster, &small, "/files/chunked", &body, &chunked), 413, "large");
    events.next_json(|event| event["type"] == "upload.failed");
    assert_eq!(paths(&cluster), ["/files/first"]);
    assert_nothing_staged(&cluster);
    // What was refused has cost no quota.
    assert_eq!(put_with(&cluster, &quota, "/files/third", &body[..50 << 10], &[]).status, 201);
}

#[test]
fn row_a_client_that_goes_mid_way_leaves_nothing_and_is_told_of() {
    let cluster = start();
    let once = token(&cluster, &["--uses", "1"]);
    let events = Events::open(&format!("{}/.well-known/mercure?topic=upload/gone", cluster.http()), &[]);
    let head = format!(
        "PUT /files/gone HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {once}\r\nUpload-Id: gone\r\n\
         Content-Length: 1000000\r\n\r\n"
    );
    let mut client = TcpStream::connect(cluster.http().strip_prefix("http://").unwrap()).unwrap();
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&noise(2, 400_000)).unwrap();
    events.next_json(|event| event["type"] == "upload.progress");
    drop(client);
    let failed = events.next_json(|event| event["type"] == "upload.failed");
    assert!(failed["data"]["reason"].is_string(), "{failed}");
    assert_eq!(paths(&cluster), Vec::<String>::new());
    assert_nothing_staged(&cluster);
    // Its use was given back.
    until("the token's use is back", || {
        (put_with(&cluster, &once, "/files/again", b"again", &[]).status == 201).then_some(())
    });
}

#[test]
fn row_a_body_shorter_than_its_content_length_is_no_upload() {
    let cluster = start();
    let mut client = TcpStream::connect(cluster.http().strip_prefix("http://").unwrap()).unwrap();
    let head = format!(
        "PUT /files/short HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 100\r\n\r\nshort",
        cluster.token()
    );
    client.write_all(head.as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    assert!(!answer.contains(" 201 "), "{answer}");
    assert_eq!(paths(&cluster), Vec::<String>::new());
    assert_nothing_staged(&cluster);
}

#[test]
fn row_zero_bytes_are_stored_and_the_same_content_is_stored_once() {
    let cluster = start();
    let empty = put(&cluster, "/files/empty", b"", &[]);
    assert_eq!((empty.status, &empty.json()["size"]), (201, &Value::from(0)));
    let got = get(&format!("{}/files/empty", cluster.http()), &[]);
    assert_eq!((got.status, got.body.len()), (200, 0));

    let body = noise(3, 100_000);
    let one = put(&cluster, "/files/one", &body, &[]).json();
    let two = put(&cluster, "/files/two", &body, &[]).json();
    assert_eq!(one["reference"], two["reference"]);
    assert_eq!((&one["existed"], &two["existed"]), (&Value::from(false), &Value::from(true)));
    let stored = || files_below(&cluster.data().join("files"));
    until("both bodies are in the storage", || (stored().len() >= 2).then_some(()));
    assert_eq!(stored().len(), 2, "the empty one and the other");
}

#[test]
fn row_two_uploads_to_one_path_at_once_are_both_answered_truthfully() {
    let cluster = start();
    let bodies = [noise(4, 500_000), noise(5, 500_000)];
    let answers = std::thread::scope(|scope| {
        let uploads = bodies.each_ref().map(|body| scope.spawn(|| put(&cluster, "/files/both", body, &[])));
        uploads.map(|upload| upload.join().unwrap())
    });
    let references = answers.map(|answer| {
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["reference"].as_str().unwrap().to_owned()
    });
    let by_path = get(&format!("{}/files/both", cluster.http()), &[]).body;
    assert!(bodies.contains(&by_path), "one of them, whole");
    for (reference, body) in references.iter().zip(&bodies) {
        assert_eq!(&get(&format!("{}/{reference}", cluster.http()), &[]).body, body);
    }
}

#[test]
fn a_path_that_was_404_is_served_as_soon_as_its_upload_is_answered() {
    let cluster = start();
    for n in 0..20 {
        let (path, body) = (format!("/files/soon-{n}"), format!("body {n}"));
        assert_eq!(get(&format!("{}{path}", cluster.http()), &[]).status, 404);
        assert_eq!(put(&cluster, &path, body.as_bytes(), &[]).status, 201);
        assert_eq!(get(&format!("{}{path}", cluster.http()), &[]).text(), body);
    }
}

#[test]
fn a_form_uploads_its_files() {
    let cluster = start();
    let bearer = format!("Authorization: Bearer {}", cluster.token());
    let url = format!("{}/files/", cluster.http());
    let answer = curl([
        "-H",
        &bearer,
        "-F",
        "a=@/etc/hostname;filename=a.txt",
        "-F",
        "b=@/etc/passwd;filename=b.txt",
        &url,
    ]);
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(paths(&cluster), ["/files/a.txt", "/files/b.txt"]);
}

#[test]
fn tus_uploads_in_parts_and_resumes() {
    let cluster = start();
    let bearer = format!("Authorization: Bearer {}", cluster.token());
    let body = noise(6, 300_000);
    // "path /files/tus.bin" in base64.
    let metadata = "Upload-Metadata: path L2ZpbGVzL3R1cy5iaW4=";
    let (length, version) = (format!("Upload-Length: {}", body.len()), "Tus-Resumable: 1.0.0");
    let create = format!("{}/.well-known/tus/", cluster.http());
    let created = curl(["-X", "POST", "-H", &bearer, "-H", version, "-H", &length, "-H", metadata, &create]);
    assert_eq!(created.status, 201, "{created:?}");
    let location = created.header("location").unwrap();
    let upload =
        if location.starts_with('/') { format!("{}{location}", cluster.http()) } else { location.to_owned() };

    let part = tempfile::NamedTempFile::new().unwrap();
    let patch = |offset: usize, bytes: &[u8]| {
        std::fs::write(part.path(), bytes).unwrap();
        let (offset, data) = (format!("Upload-Offset: {offset}"), format!("@{}", part.path().display()));
        let kind = "Content-Type: application/offset+octet-stream";
        curl([
            "-X",
            "PATCH",
            "-H",
            &bearer,
            "-H",
            version,
            "-H",
            &offset,
            "-H",
            kind,
            "--data-binary",
            &data,
            &upload,
        ])
    };
    assert_eq!(patch(0, &body[..100_000]).status, 204);
    assert_eq!(patch(5, &body[5..10]).status, 409, "a wrong offset");
    let head = curl(["-I", "-H", &bearer, "-H", version, &upload]);
    assert_eq!(head.header("upload-offset"), Some("100000"));
    let last = patch(100_000, &body[100_000..]);
    assert!([200, 204].contains(&last.status), "{last:?}");
    assert_eq!(get(&format!("{}/files/tus.bin", cluster.http()), &[]).body, body);
}

fn assert_nothing_staged(cluster: &Cluster) {
    let staging = cluster.data().join("staging");
    until("nothing is staged", || {
        let bytes: u64 =
            files_below(&staging).iter().map(|file| file.metadata().map_or(0, |meta| meta.len())).sum();
        (bytes == 0).then_some(())
    });
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
