//! tus 1.0.0, request by request.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Builder;
use protoplex_http::{Body, Request};

use super::rig::*;
use crate::digest::{Hashers, hex};
use crate::object::{Encoding, Meta};
use crate::staging::{Checkpoint, Staged, Staging, Step, Taken};
use crate::upload::steps::Upload;

pub(super) fn tus(method: &str, target: &str, token: &str) -> Builder {
    request(method, target, token).header("tus-resumable", "1.0.0")
}

pub(super) fn creation(token: &str, length: usize, path: &str) -> Builder {
    tus("POST", "/.well-known/tus", token)
        .header("upload-length", length)
        .header("upload-metadata", format!("path {},other", STANDARD.encode(path)))
}

pub(super) fn patch(target: &str, token: &str, offset: usize, body: Body) -> Request {
    let builder = tus("PATCH", target, token).header("upload-offset", offset);
    builder.header("content-type", "application/offset+octet-stream").body(body).unwrap()
}

pub(super) fn head(target: &str, token: &str) -> Request {
    tus("HEAD", target, token).body(Body::empty()).unwrap()
}

/// Creates an upload; the path of its URL.
pub(super) async fn create(child: &Child, token: &str, length: usize, path: &str) -> String {
    let answer = child.send(creation(token, length, path).body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(!answer.header("upload-expires").is_empty());
    answer.header("location").strip_prefix("http://example.com").unwrap().to_owned()
}

#[test]
fn a_file_comes_in_parts() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(700_000);
        let url = create(&child, &token, body.len(), "/files/a.txt").await;
        let answer = child.send(patch(&url, &token, 0, Body::full(body[..300_000].to_vec()))).await;
        assert_eq!((answer.status.as_u16(), answer.header("upload-offset")), (204, "300000"));
        let answer = child.send(head(&url, &token)).await;
        assert_eq!((answer.status.as_u16(), answer.header("upload-offset")), (200, "300000"));
        assert_eq!(answer.header("upload-length"), "700000");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(
            answer.header("upload-metadata"),
            format!("path {},other", STANDARD.encode("/files/a.txt"))
        );

        // Another child has the rest.
        let other = machine.child();
        let answer = other.send(patch(&url, &token, 300_000, Body::full(body[300_000..].to_vec()))).await;
        assert_eq!((answer.status.as_u16(), answer.header("upload-offset")), (204, "700000"));
        let site = machine.site("/files/a.txt").await.unwrap();
        assert_eq!(answer.header("protoplex-reference"), site.file.unwrap().reference);
        assert_eq!(other.heard("upload.finished").await["data"]["path"], "/files/a.txt");
        other.heard("file.stored").await;
        assert_eq!(machine.stored(answer.header("protoplex-reference")).await, body);
        // A client that missed the answer learns that all of it has arrived.
        let answer = child.send(head(&url, &token)).await;
        assert_eq!((answer.status.as_u16(), answer.header("upload-offset")), (200, "700000"));
    });
}

#[test]
fn a_part_may_come_with_the_creation() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let with = |body: &'static str| {
            let builder =
                creation(&token, 5, "/files/a").header("content-type", "application/offset+octet-stream");
            builder.body(Body::full(body)).unwrap()
        };
        let answer = child.send(with("hel")).await;
        assert_eq!((answer.status.as_u16(), answer.header("upload-offset")), (201, "3"));
        let answer = child.send(with("hello")).await;
        assert_eq!((answer.status.as_u16(), answer.header("upload-offset")), (201, "5"));
        assert!(machine.site("/files/a").await.is_some());
    });
}

#[test]
fn an_upload_of_nothing_is_whole_when_it_is_created() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        create(&child, &token, 0, "/files/empty").await;
        assert_eq!(machine.site("/files/empty").await.unwrap().file.unwrap().size, 0);
    });
}

#[test]
fn a_part_that_breaks_off_counts_as_far_as_it_came() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(500_000);
        let url = create(&child, &token, body.len(), "/files/a").await;
        let broken = broken_off(vec![Bytes::copy_from_slice(&body[..400_000])]);
        assert_eq!(child.send(patch(&url, &token, 0, broken)).await.problem(), "client-gone");
        assert!(!child.kinds().contains(&"upload.failed".to_owned()));
        drop(child);
        let successor = machine.child();
        successor.sweep().await;
        assert_eq!(successor.send(head(&url, &token)).await.header("upload-offset"), "400000");
        let answer = successor.send(patch(&url, &token, 400_000, Body::full(body[400_000..].to_vec()))).await;
        successor.heard("file.stored").await;
        assert_eq!(machine.stored(answer.header("protoplex-reference")).await, body);
    });
}

#[test]
fn a_child_killed_in_the_middle_of_a_part_leaves_the_last_checkpoint() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(40 << 20);
        let url = create(&child, &token, body.len(), "/files/a").await;
        // The part arrives for the most part, and stops; then the child is killed.
        let (more, pieces) = tokio::sync::mpsc::channel(1);
        let sent = patch(&url, &token, 0, Body::stream(tokio_stream(pieces)));
        let uploads = child.uploads.clone();
        child
            .run(async {
                tokio::task::spawn_local(
                    async move { uploads.respond(sent, protoplex_http::Scheme::Http).await },
                );
                for piece in body[..36 << 20].chunks(1 << 20) {
                    more.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
                }
            })
            .await;
        let staging = Staging::open(&machine.staging).unwrap();
        let name = url.rsplit('/').next().unwrap();
        let offset = || match staging.read(name).unwrap().unwrap().step {
            Step::Resumable(checkpoint) => checkpoint.offset,
            other => panic!("{other:?}"),
        };
        child.run(until("the second checkpoint", || offset() == 32 << 20)).await;
        drop(child);

        let successor = machine.child();
        successor.sweep().await;
        assert_eq!(successor.send(head(&url, &token)).await.header("upload-offset"), (32 << 20).to_string());
        let answer =
            successor.send(patch(&url, &token, 32 << 20, Body::full(body[32 << 20..].to_vec()))).await;
        assert_eq!(answer.status, 204);
        successor.heard("file.stored").await;
        assert!(machine.stored(answer.header("protoplex-reference")).await == body);
    });
}

fn tokio_stream<T>(receiver: tokio::sync::mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

#[test]
fn what_arrived_whole_is_recorded_although_its_child_died() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let url = create(&child, &token, 5, "/files/a").await;
        // The datastore goes away just before the end: all of the body is here, and promised.
        machine.datastore_there.set(false);
        assert_eq!(child.send(patch(&url, &token, 0, Body::full("hello"))).await.status, 503);
        drop(child);
        machine.datastore_there.set(true);
        let successor = machine.child();
        successor.sweep().await;
        successor.heard("file.stored").await;
        assert_eq!(successor.heard("upload.finished").await["data"]["path"], "/files/a");
        assert_eq!(successor.send(head(&url, &token)).await.header("upload-offset"), "5");
        assert!(machine.site("/files/a").await.unwrap().file.unwrap().stored);
    });
}

#[test]
fn a_client_that_missed_the_end_may_send_nothing_more_and_is_told_of_it() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let url = create(&child, &token, 5, "/files/a").await;
        let first = child.send(patch(&url, &token, 0, Body::full("hello"))).await;
        let reference = first.header("protoplex-reference").to_owned();
        for while_it_is in ["on its way to the storage", "stored"] {
            let again = child.send(patch(&url, &token, 5, Body::empty())).await;
            assert_eq!((again.status.as_u16(), again.header("upload-offset")), (204, "5"), "{while_it_is}");
            assert_eq!(again.header("protoplex-reference"), reference);
            assert_eq!(again.header("content-location"), "http://example.com/files/a");
            let asked = child.send(head(&url, &token)).await;
            assert_eq!((asked.status.as_u16(), asked.header("protoplex-reference")), (200, &*reference));
            assert_eq!(child.send(patch(&url, &token, 3, Body::empty())).await.status, 409);
            assert_eq!(child.send(patch(&url, &token, 5, Body::full("more"))).await.status, 413);
            child.heard("file.stored").await;
        }
    });
}

/// The regression of `upload/recover.rs` by which an upload was taken back whose client had been told that all of it
/// was there.
#[test]
fn a_whole_upload_is_locked_until_it_is_recorded_and_never_taken_back() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let url = create(&child, &token, 5, "/files/a").await;
        machine.datastore_there.set(false);
        assert_eq!(child.send(patch(&url, &token, 0, Body::full("hello"))).await.status, 503);
        let asked = child.send(head(&url, &token)).await;
        assert_eq!((asked.status.as_u16(), asked.header("retry-after")), (423, "2"), "not at its end");
        assert_eq!(asked.header("upload-offset"), "");
        let elsewhere = async || {
            for offset in [0, 3, 6] {
                let answer = child.send(patch(&url, &token, offset, Body::empty())).await;
                let told = (answer.status.as_u16(), answer.header("upload-offset"));
                assert_eq!(told, (423, ""), "from {offset}: {answer:?}");
            }
        };
        elsewhere().await;
        assert_eq!(child.send(patch(&url, &token, 5, Body::empty())).await.status, 503);
        elsewhere().await;
        // So it is once it is staged.
        let staging = Staging::open(&machine.staging).unwrap();
        let Taken::Ours(ours) = staging.take(url.rsplit('/').next().unwrap()).unwrap() else {
            panic!("not ours")
        };
        let (slot, journal) = *ours;
        let Step::Resumable(checkpoint) = journal.step.clone() else { panic!("{journal:?}") };
        let feed = child.uploads.live.feed(&journal.watch, &journal.path);
        let mut upload = Upload { slot: Arc::new(slot), journal, feed };
        child.run(stage(&mut upload, checkpoint)).await;
        drop(upload);
        elsewhere().await;
        child.sweep().await;
        assert!(!machine.nothing_is_staged(), "what was promised is kept");
        machine.datastore_there.set(true);
        let asked = child.send(head(&url, &token)).await;
        assert_eq!((asked.status.as_u16(), asked.header("upload-offset")), (200, "5"));
        assert_eq!(
            asked.header("protoplex-reference"),
            machine.site("/files/a").await.unwrap().file.unwrap().reference
        );
        child.heard("file.stored").await;
        assert!(!child.kinds().contains(&"upload.failed".to_owned()));
    });
}

/// Stages a body without a thought of its form.
async fn stage(upload: &mut Upload, checkpoint: Checkpoint) {
    let hashers = Hashers::restore(&checkpoint.hashers).unwrap_or_default();
    let intake = upload.intake(checkpoint.offset, hashers).await.unwrap();
    let content = upload.whole(intake).await.unwrap();
    let meta = Meta {
        size: content.size,
        stored_size: content.size,
        encoding: Encoding::Identity,
        content_type: upload.journal.content_type.clone(),
        stored_sha256: hex(&content.digests.sha256),
    };
    let reference = content.digests.reference();
    let kept = Some(Encoding::Identity);
    upload.stage(&Staged { reference, meta, kept, tus: Some(checkpoint.lease) }).await.unwrap();
}

#[test]
fn a_whole_upload_that_has_expired_is_recorded_by_whatever_request() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        for asking in ["HEAD", "PATCH"] {
            let child = machine.child();
            let path = format!("/files/{asking}");
            let url = create(&child, &token, 5, &path).await;
            machine.datastore_there.set(false);
            assert_eq!(child.send(patch(&url, &token, 0, Body::full("hello"))).await.status, 503);
            machine.datastore_there.set(true);
            expire(&machine, &url);
            let answer = match asking {
                "HEAD" => child.send(head(&url, &token)).await,
                _ => child.send(patch(&url, &token, 5, Body::empty())).await,
            };
            assert!(answer.status.is_success(), "{asking}: {answer:?}");
            assert_eq!(answer.header("upload-offset"), "5", "{asking}");
            assert!(machine.site(&path).await.is_some(), "{asking}");
            child.heard("file.stored").await;
        }
    });
}

#[test]
fn an_upload_may_take_six_hours_longer_than_its_token() {
    run(async |machine| {
        let now = std::time::SystemTime::now();
        let ends = now + std::time::Duration::from_secs(3600);
        let expires_at_ms = crate::upload::unix_ms(ends).try_into().unwrap();
        let token = machine.token(Terms { expires_at_ms, ..Terms::default() }).await;
        let child = machine.child();
        let answer = child.send(creation(&token, 5, "/files/a").body(Body::empty()).unwrap()).await;
        let told = httpdate::parse_http_date(answer.header("upload-expires")).unwrap();
        let grace = told.duration_since(ends).unwrap_or_default().as_secs();
        assert!((6 * 3600 - 2..=6 * 3600).contains(&grace), "{grace} s");
    });
}

#[test]
fn requests_that_tus_refuses() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let stranger = machine.token(Terms::default()).await;
        let child = machine.child();
        let url = create(&child, &token, 10, "/files/a").await;
        let hello = || Body::full("hello");
        let plain = request("PATCH", &url, &token).body(hello()).unwrap();
        let old = request("HEAD", &url, &token).header("tus-resumable", "0.2.2").body(Body::empty()).unwrap();
        let untyped = tus("PATCH", &url, &token).header("upload-offset", 0).body(hello()).unwrap();
        let table = [
            ("no version", plain, 412),
            ("another version", old, 412),
            ("no type", untyped, 415),
            ("wrong offset", patch(&url, &token, 3, hello()), 409),
            ("too long", patch(&url, &token, 0, Body::full("hello world")), 413),
            ("unknown", patch("/.well-known/tus/nobody", &token, 0, hello()), 404),
            ("no name of ours", patch("/.well-known/tus/a%2fb", &token, 0, hello()), 404),
            ("another token", patch(&url, &stranger, 0, hello()), 401),
            ("another token", head(&url, &stranger), 401),
            ("no length", tus("POST", "/.well-known/tus", &token).body(Body::empty()).unwrap(), 400),
            (
                "no path",
                tus("POST", "/.well-known/tus", &token)
                    .header("upload-length", 1)
                    .body(Body::empty())
                    .unwrap(),
                400,
            ),
            ("forged", creation("px_a.b", 10, "/files/a").body(Body::empty()).unwrap(), 401),
            ("climbing", creation(&token, 10, "/files/../a").body(Body::empty()).unwrap(), 400),
            ("method", tus("PUT", &url, &token).body(Body::empty()).unwrap(), 405),
        ];
        for (case, request, status) in table {
            let answer = child.send(request).await;
            assert_eq!(answer.status.as_u16(), status, "{case}: {answer:?}");
            assert_eq!(answer.header("tus-resumable"), "1.0.0");
        }
        // What a part that was too long brought up to its length counts; the rest of the table changed nothing.
        assert_eq!(child.send(patch(&url, &token, 0, Body::full("helloworld"))).await.status, 204);
    });
}

#[test]
fn one_request_at_a_time_works_on_an_upload() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let url = create(&child, &token, 10, "/files/a").await;
        let staging = Staging::open(&machine.staging).unwrap();
        let taken = staging.take(url.rsplit('/').next().unwrap()).unwrap();
        assert!(matches!(taken, Taken::Ours(_)));
        assert_eq!(child.send(patch(&url, &token, 0, Body::full("hello"))).await.status, 423);
        assert_eq!(child.send(head(&url, &token)).await.status, 423);
        drop(taken);
        assert_eq!(child.send(patch(&url, &token, 0, Body::full("hello"))).await.status, 204);
    });
}

#[test]
fn a_terminated_upload_leaves_nothing() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let url = create(&child, &token, 10, "/files/a").await;
        child.send(patch(&url, &token, 0, Body::full("hello"))).await;
        let answer = child.send(tus("DELETE", &url, &token).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 204);
        assert_eq!(child.heard("upload.failed").await["data"]["reason"], "terminated");
        assert!(machine.nothing_is_staged());
        assert_eq!(child.send(head(&url, &token)).await.status, 404);
        create(&child, &token, 10, "/files/a").await;
    });
}

#[test]
fn an_upload_that_nobody_finishes_expires() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let url = create(&child, &token, 10, "/files/a").await;
        child.sweep().await;
        assert_eq!(child.send(head(&url, &token)).await.status, 200, "not yet");
        expire(&machine, &url);
        assert_eq!(child.send(head(&url, &token)).await.status, 410);
        assert_eq!(child.send(patch(&url, &token, 0, Body::full("hello"))).await.status, 410);
        child.sweep().await;
        assert!(machine.nothing_is_staged());
        create(&child, &token, 10, "/files/a").await;
    });
}

/// Has the time of an upload be over.
fn expire(machine: &Machine, url: &str) {
    let staging = Staging::open(&machine.staging).unwrap();
    let Taken::Ours(ours) = staging.take(url.rsplit('/').next().unwrap()).unwrap() else {
        panic!("not ours")
    };
    let (slot, mut journal) = *ours;
    let Step::Resumable(checkpoint) = &mut journal.step else { panic!("{journal:?}") };
    checkpoint.lease.expires_at_ms = 1;
    slot.write_journal(&journal).unwrap();
}

#[test]
fn a_server_says_what_it_can() {
    run(async |machine| {
        let child = machine.child();
        let options = http::Request::options("/.well-known/tus").body(Body::empty()).unwrap();
        let answer = child.send(options).await;
        assert_eq!((answer.status.as_u16(), answer.header("tus-version")), (204, "1.0.0"));
        assert_eq!(answer.header("tus-extension"), "creation,creation-with-upload,expiration,termination");
    });
}
