//! The rows of bad input that concern downloads and paths, from the outside.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::{get, put, start};

#[test]
fn row_a_path_that_points_elsewhere_is_400_or_404_and_never_a_file_outside() {
    let cluster = start();
    let long = format!("/files/{}", "a".repeat(10_000));
    let paths = [
        "/../../../../etc/passwd",
        "/files/../../../../etc/passwd",
        "/files/..%2f..%2f..%2fetc/passwd",
        "/files/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/files%2f..%2fetc%2fpasswd",
        "/files/..\\..\\etc\\passwd",
        "/files/a%00b",
        "/files/%ff%fe",
        long.as_str(),
    ];
    for path in paths {
        let answer = get(&format!("{}{path}", cluster.http()), &["--path-as-is"]);
        assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
        assert!(!answer.text().contains("root:"), "{path}");
        let upload = put(&cluster, path, b"x", &["--path-as-is"]);
        assert!((400..500).contains(&upload.status), "{path}: {upload:?}");
    }
    assert_eq!(cluster.json(&["files", "list"]).as_array().unwrap().len(), 0);
}

#[test]
fn what_is_not_there_is_404_and_not_kept_for_long() {
    let cluster = start();
    let answer = get(&format!("{}/files/none", cluster.http()), &[]);
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let life = answer.header("cache-control").unwrap_or_default();
    assert!(!life.contains("max-age=31536000") && !life.contains("2592000"), "{life}");
    let reference = "A".repeat(128);
    assert_eq!(get(&format!("{}/{reference}", cluster.http()), &[]).status, 404);
}

#[test]
fn row_ranges_that_cannot_be_satisfied_and_methods_that_are_unknown_are_told() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/ten", b"0123456789", &[]).status, 201);
    let url = format!("{}/files/ten", cluster.http());
    let beyond = get(&url, &["-r", "10-20"]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
    assert_eq!(get(&url, &["-r", "-3"]).text(), "789");
    let patch = get(&url, &["-X", "TRACE"]);
    assert!([405, 501].contains(&patch.status), "{patch:?}");
}

#[test]
fn virtual_hosts_have_their_own_files() {
    let cluster = start();
    assert_eq!(put(&cluster, "/files/page", b"one", &["-H", "Host: one.example"]).status, 201);
    assert_eq!(put(&cluster, "/files/page", b"two", &["-H", "Host: TWO.example:8080"]).status, 201);
    let url = format!("{}/files/page", cluster.http());
    assert_eq!(get(&url, &["-H", "Host: one.example"]).text(), "one");
    assert_eq!(get(&url, &["-H", "Host: two.example"]).text(), "two");
    assert_eq!(get(&url, &[]).status, 404);
}

#[test]
fn a_slow_reader_gets_a_large_file_whole() {
    let cluster = start();
    let body = crate::noise(9, 8 << 20);
    assert_eq!(put(&cluster, "/files/large", &body, &[]).status, 201);
    let mut client = TcpStream::connect(cluster.http().strip_prefix("http://").unwrap()).unwrap();
    client.write_all(b"GET /files/large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 10_000];
    loop {
        let read = client.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        std::thread::yield_now();
    }
    assert!(answer.ends_with(&body), "{} bytes", answer.len());
}
