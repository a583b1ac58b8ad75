//! The rows of the table of bad input that are about uploads: what goes in, what is answered, that nothing is lost.

use std::process::Command;

use bytes::Bytes;
use futures_util::stream;
use protoplex_http::{Body, BodyError};

use super::rig::*;

/// A body that must not be read.
fn untouchable() -> Body {
    Body::stream(stream::poll_fn(|_| panic!("the body was read")))
}

/// What an upload with this token is refused with, before its body is read.
async fn refused(machine: &Machine, token: &str, length: u64) -> Answered {
    let child = machine.child();
    let request = request("PUT", "/files/a", token).header("content-length", length);
    let answer = child.send(request.body(untouchable()).unwrap()).await;
    assert!(machine.nothing_is_staged(), "a refused upload leaves nothing");
    assert_eq!(machine.listed().await, 0);
    assert!(answer.header("content-type").starts_with("application/problem+json"));
    answer
}

#[test]
fn row_token_missing() {
    run(async |machine| {
        let child = machine.child();
        let request = http::Request::put("/files/a").header("host", HOST).body(untouchable()).unwrap();
        let answer = child.send(request).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (401, "token-missing"));
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        assert!(machine.nothing_is_staged());
    });
}

#[test]
fn row_token_forged() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        for forged in ["x", "px_a.b", &format!("{token}x")] {
            let answer = refused(&machine, forged, 1).await;
            assert_eq!((answer.status.as_u16(), answer.problem()), (401, "token-forged"), "{forged}");
            assert_eq!(answer.header("www-authenticate"), "Bearer error=\"invalid_token\"");
        }
    });
}

#[test]
fn row_token_expired() {
    run(async |machine| {
        let token = machine.token(Terms { expires_at_ms: 1, ..Terms::default() }).await;
        let answer = refused(&machine, &token, 1).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (401, "token-expired"));
    });
}

#[test]
fn row_token_used_up() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        assert_eq!(child.send(put("/files/first", &token, b"x")).await.status, 201);
        let answer = child.send(put("/files/second", &token, b"y")).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (403, "token-used-up"));
        assert!(machine.site("/files/second").await.is_none());
        child.settle(&machine).await;
    });
}

#[test]
fn row_token_for_another_host_or_path() {
    run(async |machine| {
        let token = machine.token(Terms { host: "other.com", ..Terms::default() }).await;
        let answer = refused(&machine, &token, 1).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (403, "token-wrong-host"));
        let token = machine.token(Terms { path_prefix: "/others/", ..Terms::default() }).await;
        let answer = refused(&machine, &token, 1).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (403, "token-wrong-path"));
    });
}

#[test]
fn row_body_longer_than_the_token_or_its_quota_allows() {
    run(async |machine| {
        let token = machine.token(Terms { max_bytes: 10, ..Terms::default() }).await;
        let answer = refused(&machine, &token, 11).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (413, "upload-too-large"));
        assert_eq!(answer.json["limit_bytes"], 10);
        let token = machine.token(Terms { quota_bytes: 10, ..Terms::default() }).await;
        let answer = refused(&machine, &token, 11).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (413, "over-quota"));
    });
}

#[test]
fn row_body_that_did_not_say_its_length_is_too_long() {
    run(async |machine| {
        let terms = Terms { quota_bytes: 1000, uses: 1, ..Terms::default() };
        let token = machine.token(terms).await;
        let child = machine.child();
        let pieces = (0..20).map(|_| Ok::<_, BodyError>(Bytes::from(vec![7; 100])));
        let request = request("PUT", "/files/a", &token).body(Body::stream(stream::iter(pieces))).unwrap();
        let answer = child.send(request).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (413, "upload-too-large"));
        assert_eq!(child.heard("upload.failed").await["data"]["reason"], "upload-too-large");
        assert!(machine.nothing_is_staged());
        // Use and quota were given back.
        assert_eq!(child.send(put("/files/a", &token, &[7; 1000])).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn row_body_shorter_than_its_content_length() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let request =
            request("PUT", "/files/a", &token).header("content-length", 10).header("upload-id", "short");
        let answer = child.send(request.body(Body::full("four")).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (400, "body-too-short"));
        let failed = child.heard("upload.failed").await;
        assert_eq!(
            (&failed["subject"], &failed["data"]["reason"]),
            (&"upload/short".into(), &"body-too-short".into())
        );
        assert!(machine.nothing_is_staged());
        assert_eq!(machine.listed().await, 0);
        assert_eq!(child.send(put("/files/a", &token, b"the use was given back")).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn row_client_gone_mid_way() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let body = broken_off(vec![Bytes::from(text(600_000)), Bytes::from(text(10))]);
        let request =
            request("PUT", "/files/a", &token).header("content-length", 1_000_000).body(body).unwrap();
        let answer = child.send(request).await;
        assert_eq!(answer.problem(), "client-gone");
        assert_eq!(child.heard("upload.failed").await["data"]["reason"], "client-gone");
        assert!(machine.nothing_is_staged());
        assert_eq!(machine.listed().await, 0);
        assert_eq!(child.send(put("/files/a", &token, b"the use was given back")).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn row_client_gone_whose_request_is_dropped_at_once() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let request =
            request("PUT", "/files/a", &token).body(broken_off(vec![Bytes::from_static(b"some")])).unwrap();
        let uploads = child.uploads.clone();
        child
            .run(async {
                let task = tokio::task::spawn_local(async move {
                    uploads.in_its_own_task(request, protoplex_http::Scheme::Http).await
                });
                tokio::task::yield_now().await;
                task.abort();
            })
            .await;
        child.heard("upload.failed").await;
        child.run(child.tasks.finished()).await;
        assert!(machine.nothing_is_staged());
        assert_eq!(child.send(put("/files/a", &token, b"the use was given back")).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn row_upload_id_of_another_token_is_refused_and_its_watchers_hear_nothing() {
    run(async |machine| {
        let (mine, theirs) = (machine.token(Terms::default()).await, machine.token(Terms::default()).await);
        let child = machine.child();
        let named = |method: &str, target: &str, token: &str| {
            request(method, target, token).header("upload-id", "shared").header("content-length", 1)
        };
        assert_eq!(
            child.send(named("PUT", "/files/a", &mine).body(Body::full("x")).unwrap()).await.status,
            201
        );
        child.heard("file.stored").await;
        let heard = child.kinds();
        let form = ("content-type", "multipart/form-data; boundary=b");
        let tus = |builder: http::request::Builder| {
            let path = "path L2ZpbGVzL2I=";
            builder
                .header("tus-resumable", "1.0.0")
                .header("upload-length", 1)
                .header("upload-metadata", path)
        };
        for request in [
            named("PUT", "/files/b", &theirs),
            named("POST", "/files/", &theirs).header(form.0, form.1),
            tus(named("POST", "/.well-known/tus", &theirs)),
        ] {
            let answer = child.send(request.body(untouchable()).unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.problem()), (409, "upload-id-taken"));
        }
        assert_eq!(child.kinds(), heard);
        // The same token may come again with it: after a failure it does.
        assert_eq!(
            child.send(named("PUT", "/files/c", &mine).body(Body::full("y")).unwrap()).await.status,
            201
        );
        child.settle(&machine).await;
    });
}

#[test]
fn row_zero_bytes() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let answer = child.send(put("/files/empty.txt", &token, b"")).await;
        assert_eq!((answer.status.as_u16(), &answer.json["size"]), (201, &0.into()));
        let sha256_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(answer.text("sha256"), sha256_of_nothing);
        child.settle(&machine).await;
        assert_eq!(machine.stored(answer.text("reference")).await, b"");
        assert!(machine.site("/files/empty.txt").await.unwrap().file.unwrap().stored);
    });
}

#[test]
fn row_same_content_twice_is_stored_once() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(100_000);
        let first = child.send(put("/files/a.txt", &token, &body)).await;
        let second_while_staged = child.send(put("/files/b.txt", &token, &body)).await;
        child.settle(&machine).await;
        let third_when_stored = child.send(put("/files/c.png", &token, &body)).await;
        child.settle(&machine).await;
        for (answer, existed) in [(&first, false), (&second_while_staged, true), (&third_when_stored, true)] {
            assert_eq!((answer.status.as_u16(), &answer.json["existed"]), (201, &existed.into()));
            for field in ["reference", "encoding", "stored_size"] {
                assert_eq!(answer.json[field], first.json[field]);
            }
        }
        assert_eq!(first.text("encoding"), "gzip");
        let reference = first.text("reference");
        assert_eq!(machine.stored(reference).await, body);
        for path in ["/files/a.txt", "/files/b.txt", "/files/c.png"] {
            assert_eq!(machine.site(path).await.unwrap().file.unwrap().reference, reference);
        }
    });
}

#[test]
fn row_two_uploads_to_one_path_at_once() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let (first, second) = tokio::join!(
            child.send(put("/files/a", &token, b"one")),
            child.send(put("/files/a", &token, b"two"))
        );
        child.settle(&machine).await;
        assert_eq!((first.status, second.status), (201.try_into().unwrap(), 201.try_into().unwrap()));
        assert_eq!(machine.stored(first.text("reference")).await, b"one");
        assert_eq!(machine.stored(second.text("reference")).await, b"two");
        // The path shows whichever was recorded last; a third, later upload wins in any case.
        let shown = machine.site("/files/a").await.unwrap().file.unwrap().reference;
        assert!([first.text("reference"), second.text("reference")].contains(&shown.as_str()));
        let third = child.send(put("/files/a", &token, b"three")).await;
        assert_eq!(machine.site("/files/a").await.unwrap().file.unwrap().reference, third.text("reference"));
        child.settle(&machine).await;
    });
}

#[test]
fn row_same_content_by_two_uploads_at_once() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let (child, other) = (machine.child(), machine.child());
        let body = text(300_000);
        let (first, second) = tokio::join!(
            child.send(put("/files/a.png", &token, &body)),
            other.send(put("/files/b.txt", &token, &body))
        );
        assert_eq!((first.status, second.status), (201.try_into().unwrap(), 201.try_into().unwrap()));
        tokio::join!(child.settle(&machine), other.settle(&machine));
        assert_eq!(machine.stored(first.text("reference")).await, body);
        assert_eq!(first.json["stored_size"], second.json["stored_size"]);
    });
}

#[test]
fn row_path_that_is_no_path() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let long = format!("/{}", "a".repeat(10_000));
        for target in ["/a/../b", "/a%2fb", "/a%00b", &long] {
            let answer = child.send(put(target, &token, b"x")).await;
            assert_eq!(answer.status, 400, "{target}");
        }
        assert!(machine.nothing_is_staged());
    });
}

/// A disk of one mebibyte: a file system of its own where we may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).output();
        mount.is_ok_and(|done| done.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Where nobody may mount, no file of this process may grow over a mebibyte, which the system tells by another code.
fn limit_files() -> tokio::signal::unix::Signal {
    let sigxfsz = tokio::signal::unix::SignalKind::from_raw(25);
    let caught = tokio::signal::unix::signal(sigxfsz).unwrap();
    let limit = rustix::process::Rlimit { current: Some(1 << 20), maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    caught
}

#[test]
fn row_disk_full() {
    run(async |mut machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let disk = SmallDisk::mount();
        let limit = disk.is_none().then(limit_files);
        if let Some(disk) = &disk {
            machine.staging = disk.0.path().join("staging");
        }
        let child = machine.child();
        let answer = child.send(put("/files/a", &token, &text(3 << 20))).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (507, "disk-full"));
        assert_eq!(child.heard("upload.failed").await["data"]["reason"], "disk-full");
        assert!(machine.nothing_is_staged());
        assert_eq!(machine.listed().await, 0);
        let answer = child.send(put("/files/a", &token, &text(100_000))).await;
        assert_eq!(answer.status, 201, "use and space were given back");
        child.settle(&machine).await;
        drop((child, limit, disk));
    });
}

#[test]
fn row_storage_away() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        // A file where the storage's folder should be: every write to it fails.
        std::fs::write(machine.files(), b"in the way").unwrap();
        let child = machine.child();
        let body = text(50_000);
        let answer = child.send(put("/files/a.txt", &token, &body)).await;
        assert_eq!(answer.status, 201);
        let reference = answer.text("reference");
        assert_eq!(machine.staged(reference).unwrap(), body, "readable at once, while the storage is away");
        assert!(!machine.site("/files/a.txt").await.unwrap().file.unwrap().stored);
        assert!(!child.kinds().contains(&"file.stored".to_owned()));
        std::fs::remove_file(machine.files()).unwrap();
        child.settle(&machine).await;
        assert_eq!(machine.stored(reference).await, body);
        assert!(machine.site("/files/a.txt").await.unwrap().file.unwrap().stored);
        child.heard("file.stored").await;
    });
}

#[test]
fn row_storage_away_across_a_restart() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        std::fs::write(machine.files(), b"in the way").unwrap();
        let child = machine.child();
        let answer = child.send(put("/files/a.txt", &token, b"answered with 201")).await;
        assert_eq!(answer.status, 201);
        drop(child);
        assert_eq!(machine.staged(answer.text("reference")).unwrap(), b"answered with 201");
        std::fs::remove_file(machine.files()).unwrap();
        let (child, other) = (machine.child(), machine.child());
        let (swept, swept_too) =
            tokio::join!(child.run(child.uploads.sweep()), other.run(other.uploads.sweep()));
        swept.and(swept_too).unwrap();
        tokio::join!(child.settle(&machine), other.settle(&machine));
        assert_eq!(machine.stored(answer.text("reference")).await, b"answered with 201");
        let stored = |child: &Child| child.kinds().iter().filter(|kind| *kind == "file.stored").count();
        assert_eq!(stored(&child) + stored(&other), 1, "exactly one child pushes");
    });
}

#[test]
fn a_drain_does_not_wait_for_a_storage_that_is_away() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        std::fs::write(machine.files(), b"in the way").unwrap();
        let child = machine.child();
        assert_eq!(child.send(put("/files/a.txt", &token, b"kept")).await.status, 201);
        child.drain.pull();
        child.run(child.tasks.finished()).await;
        assert!(!machine.nothing_is_staged());
    });
}

#[test]
fn row_datastore_away() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        machine.datastore_there.set(false);
        let answer = child.send(put("/files/a", &token, b"x")).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (503, "datastore-away"));
        assert!(!answer.header("retry-after").is_empty());
        machine.datastore_there.set(true);
        child.sweep().await;
        assert!(machine.nothing_is_staged());
        assert_eq!(child.send(put("/files/a", &token, b"x")).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn stale_cache_entries_are_told_of_before_the_answer_and_again_until_they_are_gone() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let answer = child.send(put("/files/a", &token, b"x")).await;
        let names = [format!("file:{}", answer.text("reference")), "site:example.com:/files/a".to_owned()];
        assert_eq!(*child.invalidated.borrow(), names, "before the answer");
        child.settle(&machine).await;
        assert_eq!(*child.invalidated.borrow(), names, "and only then");

        child.live_there.set(false);
        let answer = child.send(put("/files/b", &token, b"y")).await;
        assert_eq!(answer.status, 201, "an upload does not wait for live for ever");
        child.live_there.set(true);
        child.settle(&machine).await;
        assert!(child.invalidated.borrow().contains(&"site:example.com:/files/b".to_owned()));
    });
}
