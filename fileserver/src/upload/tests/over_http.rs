//! Uploads by curl, through the real server.

use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::rc::Rc;

use protoplex_http::{AccessLog, Exchange, Fronts, Handler, Limits, Listener, Request, Response};
use protoplex_runtime::drain::{Drain, Trigger};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::rig::*;
use super::tus::{create, head, patch};
use crate::upload::Uploads;

struct Door(Rc<Uploads>);

impl Handler for Door {
    async fn handle(&self, request: Request, exchange: &Rc<Exchange>) -> Response {
        self.0.handle(request, exchange).await
    }
}

/// Serves a child's upload side; its address, and what keeps it open.
fn serve(child: &Child) -> (String, Trigger) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (trigger, drain) = Drain::new();
    let listeners = vec![Listener { socket, tls: None, fronts: Fronts::default() }];
    let door = Rc::new(Door(child.uploads.clone()));
    child.spawn(async {
        protoplex_http::serve(listeners, Limits::default(), AccessLog::off(), drain, door).await.unwrap()
    });
    (format!("http://{address}"), trigger)
}

/// curl with a token; its exit code counts for nothing, what it prints does: the body, then status and bytes sent.
fn curl(token: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code} %{size_upload}"])
        .args(["-H", &format!("Authorization: Bearer {token}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    curl
}

/// JSON, status, bytes sent.
fn printed(output: Output) -> (Value, u16, u64) {
    let text = String::from_utf8(output.stdout).unwrap();
    let (json, numbers) = text.rsplit_once('\n').unwrap();
    let (status, sent) = numbers.split_once(' ').unwrap();
    (serde_json::from_str(json).unwrap_or_default(), status.parse().unwrap(), sent.parse().unwrap())
}

#[test]
fn curl_uploads_in_every_way_that_it_knows() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let (url, _open) = serve(&child);
        let body = text(3_000_000);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &body).unwrap();
        let name = file.path().to_str().unwrap();
        let field = format!("file=@{name};filename=f.txt");
        // With its length (and Expect: 100-continue), in chunks, as an h2 stream, as a raw POST, as a form.
        let ways: [&[&str]; 5] = [
            &["-T", name],
            &["-T", name, "-H", "Transfer-Encoding: chunked"],
            &["-T", name, "--http2-prior-knowledge"],
            &["--data-binary", &format!("@{name}")],
            &["-F", &field],
        ];
        for (number, way) in ways.into_iter().enumerate() {
            let target = format!("{url}/files/{number}.txt");
            let output = child.run(curl(&token).args(way).arg(&target).output()).await.unwrap();
            let (json, status, _) = printed(output);
            assert_eq!((status, &json["size"]), (201, &body.len().into()), "{way:?}");
            assert_eq!(
                (json["url"].as_str().unwrap(), &json["existed"]),
                (target.as_str(), &(number > 0).into())
            );
        }
        child.settle(&machine).await;
        let reference = machine.site_of("127.0.0.1", "/files/4.txt").await.unwrap().file.unwrap().reference;
        assert_eq!(machine.stored(&reference).await, body);
    });
}

#[test]
fn a_refused_upload_that_asks_first_sends_nothing() {
    run(async |machine| {
        let child = machine.child();
        let (url, _open) = serve(&child);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text(3_000_000)).unwrap();
        let mut curl = curl("px_forged.token");
        curl.args(["-H", "Expect: 100-continue", "--expect100-timeout", "15", "-T"]).arg(file.path());
        let output = child.run(curl.arg(format!("{url}/files/a")).output()).await.unwrap();
        let (json, status, sent) = printed(output);
        assert_eq!((status, sent), (401, 0));
        assert_eq!(json["type"], "urn:protoplex:problem:token-forged");
        assert!(machine.nothing_is_staged());
    });
}

#[test]
fn a_body_that_turns_out_too_long_is_told_so_while_it_is_sent() {
    run(async |machine| {
        let token = machine.token(Terms { max_bytes: 1_000_000, ..Terms::default() }).await;
        let child = machine.child();
        let (url, _open) = serve(&child);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text(3_000_000)).unwrap();
        let mut curl = curl(&token);
        curl.args(["-H", "Transfer-Encoding: chunked", "-T"]).arg(file.path());
        let output = child.run(curl.arg(format!("{url}/files/a")).output()).await.unwrap();
        let (json, status, _) = printed(output);
        assert_eq!((status, &json["limit_bytes"]), (413, &1_000_000.into()));
        assert!(machine.nothing_is_staged());
    });
}

#[test]
fn row_client_killed_mid_way() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let (url, _open) = serve(&child);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text(3_000_000)).unwrap();
        let mut curl = curl(&token);
        curl.args(["--limit-rate", "500k", "-T"]).arg(file.path()).arg(format!("{url}/files/a"));
        let mut client = curl.spawn().unwrap();
        child.heard("upload.progress").await;
        client.kill().await.unwrap();
        assert_eq!(child.heard("upload.failed").await["data"]["reason"], "client-gone");
        child.settle(&machine).await;
        assert_eq!(machine.listed().await, 0);
        assert_eq!(child.send(put("/files/a", &token, b"the use was given back")).await.status, 201);
        child.settle(&machine).await;
    });
}

/// Begins a part that says it has all of the body, and sends this much of it.
async fn begin_patch(address: &str, url: &str, token: &str, declared: usize, sent: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(address.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "PATCH {url} HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer {token}\r\nTus-Resumable: 1.0.0\r\n\
         Upload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\nContent-Length: {declared}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(sent).await.unwrap();
    client
}

/// Asks until nobody works on the upload any more.
async fn offset(child: &Child, url: &str, token: &str) -> usize {
    let start = std::time::Instant::now();
    loop {
        let answer = child.send(head(url, token)).await;
        match answer.status.as_u16() {
            200 => return answer.header("upload-offset").parse().unwrap(),
            423 => assert!(start.elapsed().as_secs() < 20, "locked for ever"),
            _ => panic!("{answer:?}"),
        }
    }
}

#[test]
fn row_tus_client_vanishes_in_the_middle_of_a_part_and_goes_on_where_it_was() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let (address, _open) = serve(&child);
        let body = text(700_000);
        let url = create(&child, &token, body.len(), "/files/a").await;
        let client = child.run(begin_patch(&address, &url, &token, body.len(), &body[..300_000])).await;
        child.heard("upload.progress").await;
        drop(client);
        assert_eq!(offset(&child, &url, &token).await, 300_000, "every byte that came counts");
        assert!(machine.site("/files/a").await.is_none());
        let answer = child.send(patch(&url, &token, 300_000, body[300_000..].to_vec().into())).await;
        assert_eq!(answer.status, 204);
        child.heard("file.stored").await;
        assert_eq!(machine.stored(answer.header("protoplex-reference")).await, body);
        assert!(!child.kinds().contains(&"upload.failed".to_owned()));
    });
}

#[test]
fn row_tus_part_shorter_than_its_content_length_is_no_whole_part() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let (address, _open) = serve(&child);
        let body = text(400_000);
        let url = create(&child, &token, body.len(), "/files/a").await;
        let told = child
            .run(async {
                let mut client = begin_patch(&address, &url, &token, body.len(), &body[..399_999]).await;
                client.shutdown().await.unwrap();
                let mut told = String::new();
                client.read_to_string(&mut told).await.unwrap();
                told
            })
            .await;
        assert!(!told.contains(" 204 "), "{told}");
        assert_eq!(offset(&child, &url, &token).await, 399_999);
        assert!(machine.site("/files/a").await.is_none(), "one byte is missing");
        let answer = child.send(patch(&url, &token, 399_999, body[399_999..].to_vec().into())).await;
        assert_eq!(answer.status, 204);
        child.heard("file.stored").await;
        assert_eq!(machine.stored(answer.header("protoplex-reference")).await, body);
    });
}

/// The most memory that this process has had, in KiB. It holds the datastore, the server and the upload side.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn a_large_upload_takes_no_more_memory_than_a_small_one() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let (url, _open) = serve(&child);
        let size = 256 << 20;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        let before = peak_kib();
        let output =
            child.run(curl(&token).arg("-T").arg(file.path()).arg(format!("{url}/a.txt")).output()).await;
        let (json, status, _) = printed(output.unwrap());
        assert_eq!((status, &json["size"], &json["encoding"]), (201, &size.into(), &"gzip".into()));
        child.settle(&machine).await;
        let grown = peak_kib() - before;
        assert!(grown < 32 << 10, "{grown} KiB for {size} bytes");
    });
}
