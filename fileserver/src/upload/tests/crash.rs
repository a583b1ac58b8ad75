//! The pipeline is killed between every two of its steps, and a new child goes on in the same folder.

use bytes::Bytes;
use protoplex_http::Scheme;

use super::rig::*;
use crate::digest::Hashers;
use crate::staging::Staging;
use crate::upload::Uploads;
use crate::upload::intent::Intent;
use crate::upload::steps::Upload;

/// The steps that a child may get to before it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Journal,
    Begun,
    Received,
    Hashed,
    Shaped,
    Staged,
    Recorded,
    Pushed,
    Marked,
}

const STEPS: [Reached; 9] = [
    Reached::Journal,
    Reached::Begun,
    Reached::Received,
    Reached::Hashed,
    Reached::Shaped,
    Reached::Staged,
    Reached::Recorded,
    Reached::Pushed,
    Reached::Marked,
];

/// Walks an upload to a step and leaves it there.
async fn walk(child: &Child, intent: Intent, body: &[u8], last: Reached) -> Option<()> {
    let uploads = &child.uploads;
    let until = |step: Reached| (last > step).then_some(());
    if last == Reached::Journal {
        uploads.make_slot(&Uploads::journal(&intent)).await.unwrap();
        return None;
    }
    let mut upload: Upload = uploads.begin(intent).await.unwrap();
    until(Reached::Begun)?;
    let mut intake = upload.intake(0, Hashers::default()).await.unwrap();
    let mut pieces = body.chunks(70_000).map(|piece| Ok(Bytes::copy_from_slice(piece)));
    upload.receive(&mut intake, async || pieces.next()).await.unwrap();
    until(Reached::Received)?;
    let content = upload.whole(intake).await.unwrap();
    until(Reached::Hashed)?;
    let staged = uploads.shape(&upload, content, None).await.unwrap();
    until(Reached::Shaped)?;
    upload.stage(&staged).await.unwrap();
    until(Reached::Staged)?;
    uploads.records.complete(&upload.journal, &staged).await.unwrap();
    until(Reached::Recorded)?;
    let kept = staged.kept?;
    uploads.bodies.put(&staged.reference, &staged.meta, &upload.slot.form_path(kept)).await.unwrap();
    until(Reached::Pushed)?;
    uploads.records.mark_stored(&staged.reference).await.unwrap();
    None
}

fn intent(token: &str, path: &str, body: &[u8]) -> Intent {
    let (head, _) = put(path, token, body).into_parts();
    Intent::of(&head, Scheme::Http).unwrap()
}

#[test]
fn an_upload_killed_at_any_step_is_whole_or_was_never_there() {
    run(async |machine| {
        for (number, last) in STEPS.into_iter().enumerate() {
            let path = format!("/files/{number}.txt");
            let body = [text(300_000 + number), vec![number as u8]].concat();
            let token = machine.token(Terms { uses: 1, quota_bytes: 400_000, ..Terms::default() }).await;
            let child = machine.child();
            child.run(walk(&child, intent(&token, &path, &body), &body, last)).await;
            drop(child);

            let successor = machine.child();
            successor.run(successor.uploads.sweep()).await.unwrap();
            successor.settle(&machine).await;
            match machine.site(&path).await {
                Some(site) => {
                    assert!(last >= Reached::Recorded, "{last:?}");
                    let file = site.file.unwrap();
                    assert!(file.stored, "{last:?}");
                    assert_eq!(machine.stored(&file.reference).await, body, "{last:?}");
                    assert_eq!(successor.heard("upload.finished").await["data"]["reference"], file.reference);
                    successor.heard("file.stored").await;
                    assert!(
                        successor.invalidated.borrow().contains(&format!("site:{HOST}:{path}")),
                        "{last:?}"
                    );
                }
                None => {
                    assert!(last < Reached::Recorded, "{last:?}");
                    successor.heard("upload.failed").await;
                    let again = successor.send(put(&path, &token, &body)).await;
                    assert_eq!(again.status, 201, "use and quota are given back after {last:?}: {again:?}");
                    successor.settle(&machine).await;
                }
            }
        }
    });
}

#[test]
fn a_known_content_killed_at_any_step_stays_whole() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let body = text(200_000);
        let child = machine.child();
        let first = child.send(put("/files/first.txt", &token, &body)).await;
        child.settle(&machine).await;
        drop(child);
        for last in STEPS {
            let child = machine.child();
            child.run(walk(&child, intent(&token, "/files/again.txt", &body), &body, last)).await;
            drop(child);
            let successor = machine.child();
            successor.run(successor.uploads.sweep()).await.unwrap();
            successor.settle(&machine).await;
            assert_eq!(machine.stored(first.text("reference")).await, body, "{last:?}");
        }
        assert!(machine.site("/files/again.txt").await.is_some());
    });
}

#[test]
fn what_is_staged_is_readable_whoever_dies() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let body = text(100_000);
        let child = machine.child();
        child.run(walk(&child, intent(&token, "/files/a", &body), &body, Reached::Recorded)).await;
        let reference = machine.site("/files/a").await.unwrap().file.unwrap().reference;
        assert_eq!(machine.staged(&reference).unwrap(), body);
        drop(child);
        assert_eq!(machine.staged(&reference).unwrap(), body);
    });
}

#[test]
fn an_upload_whose_owner_lives_is_left_alone() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let upload = child.run(child.uploads.begin(intent(&token, "/files/a", b"abc"))).await.unwrap();
        let other = machine.child();
        other.run(other.uploads.sweep()).await.unwrap();
        assert!(!machine.nothing_is_staged());
        drop(upload);
        other.run(other.uploads.sweep()).await.unwrap();
        assert!(machine.nothing_is_staged());
    });
}

#[test]
fn a_datastore_that_does_not_say_whether_it_recorded_decides_when_it_is_back() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let body = text(100_000);
        let mut upload = child.run(child.uploads.begin(intent(&token, "/files/a", &body))).await.unwrap();
        let there = machine.datastore_there.clone();
        let refusal = child
            .run(async {
                let mut intake = upload.intake(0, Hashers::default()).await.unwrap();
                let mut pieces = [Ok(Bytes::from(body))].into_iter();
                upload.receive(&mut intake, async || pieces.next()).await.unwrap();
                let content = upload.whole(intake).await.unwrap();
                let staged = child.uploads.shape(&upload, content, None).await.unwrap();
                upload.stage(&staged).await.unwrap();
                there.set(false);
                let refusal = child.uploads.records.complete(&upload.journal, &staged).await.unwrap_err();
                child.uploads.undo(&mut upload, &refusal).await;
                refusal
            })
            .await;
        assert_eq!(refusal.kind(), "upload-undecided");
        drop(upload);
        child.run(child.uploads.sweep()).await.unwrap();
        assert!(!machine.nothing_is_staged(), "nothing is decided while the datastore is away");
        there.set(true);
        child.run(child.uploads.sweep()).await.unwrap();
        assert!(machine.nothing_is_staged());
        child.heard("upload.failed").await;
        assert_eq!(child.send(put("/files/a", &token, b"again")).await.status, 201);
        child.settle(&machine).await;
    });
}

#[test]
fn what_was_undone_while_the_datastore_was_away_is_given_back_later() {
    run(async |machine| {
        let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
        let child = machine.child();
        let mut upload = child.run(child.uploads.begin(intent(&token, "/files/a", b"abc"))).await.unwrap();
        machine.datastore_there.set(false);
        child.run(child.uploads.withdraw(&mut upload, "client-gone")).await;
        drop(upload);
        assert!(!machine.nothing_is_staged());
        machine.datastore_there.set(true);
        child.run(child.uploads.sweep()).await.unwrap();
        assert!(machine.nothing_is_staged());
        assert_eq!(child.send(put("/files/a", &token, b"abc")).await.status, 201);
        child.settle(&machine).await;
        assert!(Staging::open(&machine.staging).unwrap().uploads().unwrap().is_empty());
    });
}
