//! The pipeline is killed between every two of its steps, and a new child goes on in the same folder.

use std::fs;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use protoplex_http::{Body, Scheme};

use super::rig::*;
use super::tus::{create, head, patch};
use crate::digest::Hashers;
use crate::object::{BODY_OFFSET, Encoding};
use crate::staging::{Staging, Step, Taken};
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
    Withdrawing,
    Recorded,
    Pushed,
    Marked,
}

const STEPS: [Reached; 10] = [
    Reached::Journal,
    Reached::Begun,
    Reached::Received,
    Reached::Hashed,
    Reached::Shaped,
    Reached::Staged,
    Reached::Withdrawing,
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
    if last == Reached::Withdrawing {
        die_clearing(&mut upload).await;
        return None;
    }
    uploads.records.complete(&upload.journal, &staged).await.unwrap();
    until(Reached::Recorded)?;
    let kept = staged.kept?;
    uploads.bodies.put(&staged.reference, &staged.meta, &upload.slot.form_path(kept)).await.unwrap();
    until(Reached::Pushed)?;
    uploads.records.mark_stored(&staged.reference).await.unwrap();
    None
}

/// Has an upload taken back by a process that dies before the journal says so.
async fn die_clearing(upload: &mut Upload) {
    let obstacle = upload.slot.form_path(Encoding::Identity).with_file_name("journal.new");
    fs::create_dir(&obstacle).unwrap();
    upload.clear().await.unwrap_err();
    fs::remove_dir(obstacle).unwrap();
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
            successor.sweep().await;
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
            successor.sweep().await;
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
        other.sweep().await;
        assert!(!machine.nothing_is_staged());
        drop(upload);
        other.sweep().await;
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
        child.sweep().await;
        assert!(!machine.nothing_is_staged(), "nothing is decided while the datastore is away");
        there.set(true);
        child.sweep().await;
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
        child.sweep().await;
        assert!(machine.nothing_is_staged());
        assert_eq!(child.send(put("/files/a", &token, b"abc")).await.status, 201);
        child.settle(&machine).await;
        assert!(Staging::open(&machine.staging).unwrap().uploads().unwrap().is_empty());
    });
}

/// The steps of a tus upload that a child may get to before it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TusReached {
    Created,
    Part,
    Whole,
    Withdrawing,
    Staged,
    StagedWithdrawing,
    Recorded,
    Noted,
    Pushed,
    Marked,
}

const TUS_STEPS: [TusReached; 10] = [
    TusReached::Created,
    TusReached::Part,
    TusReached::Whole,
    TusReached::Withdrawing,
    TusReached::Staged,
    TusReached::StagedWithdrawing,
    TusReached::Recorded,
    TusReached::Noted,
    TusReached::Pushed,
    TusReached::Marked,
];

/// Where its client breaks off, until all has come.
const PART: usize = 100_000;

/// Walks a tus upload to a step and leaves it there; its URL.
async fn walk_tus(
    machine: &Machine,
    child: &Child,
    token: &str,
    path: &str,
    body: &[u8],
    last: TusReached,
) -> String {
    let url = create(child, token, body.len(), path).await;
    if last == TusReached::Created {
        return url;
    }
    let part = child.send(patch(&url, token, 0, Body::full(body[..PART].to_vec()))).await;
    assert_eq!(part.status, 204);
    if last == TusReached::Part {
        return url;
    }
    machine.datastore_there.set(false);
    let rest = child.send(patch(&url, token, PART, Body::full(body[PART..].to_vec()))).await;
    assert_eq!(rest.status, 503);
    machine.datastore_there.set(true);
    if last > TusReached::Whole {
        child.run(walk_on(child, url.rsplit('/').next().unwrap(), last)).await;
    }
    if last >= TusReached::Noted {
        child.heard("upload.finished").await;
    }
    url
}

fn take(child: &Child, name: &str) -> Upload {
    let Taken::Ours(ours) = child.uploads.staging.take(name).unwrap() else { panic!("not ours") };
    let (slot, journal) = *ours;
    let feed = child.uploads.live.feed(&journal.watch, &journal.path);
    Upload { slot: Arc::new(slot), journal, feed }
}

async fn walk_on(child: &Child, name: &str, last: TusReached) -> Option<()> {
    let uploads = &child.uploads;
    let until = |step: TusReached| (last > step).then_some(());
    let mut upload = take(child, name);
    let Step::Resumable(checkpoint) = upload.journal.step.clone() else { panic!("{:?}", upload.journal) };
    if last == TusReached::Withdrawing {
        die_clearing(&mut upload).await;
        return None;
    }
    let hashers = Hashers::restore(&checkpoint.hashers).unwrap_or_default();
    let intake = upload.intake(checkpoint.offset, hashers).await.unwrap();
    let content = upload.whole(intake).await.unwrap();
    let staged = uploads.shape(&upload, content, Some(checkpoint.lease)).await.unwrap();
    upload.stage(&staged).await.unwrap();
    until(TusReached::Staged)?;
    if last == TusReached::StagedWithdrawing {
        die_clearing(&mut upload).await;
        return None;
    }
    uploads.records.complete(&upload.journal, &staged).await.unwrap();
    until(TusReached::Recorded)?;
    upload.feed.finished(serde_json::json!({}));
    upload.note_recorded(&staged).await;
    until(TusReached::Noted)?;
    uploads.bodies.put(&staged.reference, &staged.meta, &upload.slot.form_path(staged.kept?)).await.unwrap();
    until(TusReached::Pushed)?;
    uploads.records.mark_stored(&staged.reference).await.unwrap();
    None
}

#[test]
fn a_tus_upload_killed_at_any_step_keeps_what_its_client_was_promised() {
    run(async |machine| {
        for (number, last) in TUS_STEPS.into_iter().enumerate() {
            for sweep_first in [true, false] {
                let path = format!("/files/{number}-{sweep_first}.txt");
                let body = [text(300_000 + number), path.clone().into_bytes()].concat();
                let size = body.len().to_string();
                let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
                let child = machine.child();
                let url = walk_tus(&machine, &child, &token, &path, &body, last).await;
                let told = Rc::clone(&child.events);
                drop(child);

                let successor = machine.child();
                let finished = || {
                    let (before, after) = (told.borrow(), successor.events.borrow());
                    before.iter().chain(&*after).filter(|event| event["type"] == "upload.finished").count()
                };
                if sweep_first {
                    successor.sweep().await;
                }
                let asked = successor.send(head(&url, &token)).await;
                assert_eq!(asked.status, 200, "{last:?} {sweep_first} {asked:?}");
                let come = [0, PART].get(number).copied();
                assert_eq!(asked.header("upload-offset"), come.unwrap_or(body.len()).to_string(), "{last:?}");
                if let Some(come) = come {
                    let rest = patch(&url, &token, come, Body::full(body[come..].to_vec()));
                    assert_eq!(successor.send(rest).await.status, 204, "{last:?}");
                }
                // Whoever was told of the full offset finds the file.
                let reference = machine.site(&path).await.unwrap().file.unwrap().reference;
                // The push of a process that is no more is for the sweep.
                successor.sweep().await;
                successor.run(until("upload.finished", || finished() > 0)).await;
                successor.heard("file.stored").await;
                let again = successor.send(head(&url, &token)).await;
                assert_eq!((again.status.as_u16(), again.header("upload-offset")), (200, &*size), "{last:?}");
                assert_eq!(again.header("protoplex-reference"), reference, "{last:?}");
                assert_eq!(machine.stored(&reference).await, body, "{last:?}");
                assert!(!successor.kinds().contains(&"upload.failed".to_owned()), "{last:?}");
                assert_eq!(finished(), 1, "its end is told once: {last:?}");
                let used = successor.send(put("/files/more", &token, b"x")).await;
                assert_eq!(used.problem(), "token-used-up", "its one use was taken once: {last:?}");
            }
        }
        assert_eq!(machine.listed().await, 2 * TUS_STEPS.len(), "each is recorded once");
    });
}

#[test]
fn a_whole_tus_upload_that_the_datastore_has_ended_is_taken_back() {
    run(async |machine| {
        for last in [TusReached::Whole, TusReached::Staged] {
            let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
            let child = machine.child();
            let body = text(300_000);
            let url = walk_tus(&machine, &child, &token, "/files/a.txt", &body, last).await;
            let upload = url.rsplit('/').next().unwrap();
            child.run(child.uploads.records.abort(upload)).await.unwrap();
            assert_eq!(child.send(head(&url, &token)).await.status, 410, "{last:?}");
            child.heard("upload.failed").await;
            assert!(machine.nothing_is_staged(), "{last:?}");
            assert!(machine.site("/files/a.txt").await.is_none());
        }
    });
}

#[test]
fn a_tus_upload_killed_while_its_body_is_dropped_is_taken_back() {
    run(async |machine| {
        for (last, promised) in [
            (TusReached::Part, Encoding::Identity),
            (TusReached::Whole, Encoding::Identity),
            (TusReached::Staged, Encoding::Gzip),
        ] {
            let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
            let child = machine.child();
            let body = text(300_000);
            let url = walk_tus(&machine, &child, &token, "/files/a.txt", &body, last).await;
            let mut upload = take(&child, url.rsplit('/').next().unwrap());
            let obstacle = upload.slot.form_path(promised);
            fs::remove_file(&obstacle).unwrap();
            fs::create_dir(&obstacle).unwrap();
            child.run(upload.clear()).await.unwrap_err();
            fs::remove_dir(obstacle).unwrap();
            drop((upload, child));

            let successor = machine.child();
            assert_eq!(successor.send(head(&url, &token)).await.status, 404, "{last:?}");
            let more = patch(&url, &token, PART, Body::full(body[PART..].to_vec()));
            assert_eq!(successor.send(more).await.status, 404, "{last:?}");
            successor.sweep().await;
            successor.heard("upload.failed").await;
            assert!(machine.nothing_is_staged(), "{last:?}");
            assert!(machine.site("/files/a.txt").await.is_none(), "{last:?}");
            create(&successor, &token, 1, "/files/a.txt").await;
            machine.forget_staging();
        }
    });
}

/// The regression of `Upload::intake` by which a body that was gone was made anew, of zeros, under the digests of the
/// bytes that had been received.
#[test]
fn a_body_that_is_shorter_than_its_journal_says_is_never_recorded() {
    run(async |machine| {
        for last in [TusReached::Part, TusReached::Whole, TusReached::Staged] {
            for gone in [true, false] {
                let token = machine.token(Terms { uses: 1, ..Terms::default() }).await;
                let child = machine.child();
                let body = text(300_000);
                let url = walk_tus(&machine, &child, &token, "/files/a.txt", &body, last).await;
                let upload = take(&child, url.rsplit('/').next().unwrap());
                for form in [Encoding::Identity, Encoding::Gzip].map(|form| upload.slot.form_path(form)) {
                    match fs::File::options().write(true).open(&form) {
                        Ok(_) if gone => fs::remove_file(&form).unwrap(),
                        Ok(file) => file.set_len(BODY_OFFSET + 1000).unwrap(),
                        Err(_) => {}
                    }
                }
                drop((upload, child));

                let successor = machine.child();
                successor.sweep().await;
                let offset = if last == TusReached::Part { PART } else { body.len() };
                let more = patch(&url, &token, offset, Body::full(body[offset..].to_vec()));
                let answer = successor.send(more).await;
                assert_eq!(answer.problem(), "upload-failed", "{last:?}, gone: {gone}");
                assert!(machine.site("/files/a.txt").await.is_none(), "{last:?}, gone: {gone}");
                machine.forget_staging();
            }
        }
    });
}

/// The regression of `upload/recover.rs` by which files that were answered with 201 waited for their way to the storage
/// until others had been compressed.
#[test]
fn what_is_recorded_is_pushed_while_all_that_may_be_recorded_at_once_is() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(200_000);
        let url = walk_tus(&machine, &child, &token, "/files/tus.txt", &body, TusReached::Whole).await;
        child.run(walk(&child, intent(&token, "/files/raw", b"raw"), b"raw", Reached::Recorded)).await;
        drop(child);

        let successor = machine.child();
        let uploads = &successor.uploads;
        let all = u32::try_from(uploads.recordings.available_permits()).unwrap();
        let places = uploads.recordings.clone().acquire_many_owned(all).await.unwrap();
        successor.run(uploads.sweep()).await.unwrap();
        successor.heard("file.stored").await;
        assert!(machine.site("/files/raw").await.unwrap().file.unwrap().stored);
        assert_eq!(successor.send(head(&url, &token)).await.status, 423);
        assert!(machine.site("/files/tus.txt").await.is_none());
        // What had no place is recorded as soon as there is one.
        drop(places);
        successor
            .run(until("both are finished", || {
                successor.kinds().iter().filter(|kind| *kind == "upload.finished").count() == 2
            }))
            .await;
        let reference = machine.site("/files/tus.txt").await.unwrap().file.unwrap().reference;
        successor
            .run(until("it is stored", || {
                successor.kinds().iter().filter(|kind| *kind == "file.stored").count() == 2
            }))
            .await;
        assert_eq!(machine.stored(&reference).await, body);
    });
}

/// The regression of `upload/recover.rs` by which nothing was recorded while as many bodies waited for the storage as may.
#[test]
fn a_whole_upload_is_recorded_while_all_that_may_be_pushed_at_once_is() {
    run(async |machine| {
        let token = machine.token(Terms::default()).await;
        let child = machine.child();
        let body = text(200_000);
        walk_tus(&machine, &child, &token, "/files/tus.txt", &body, TusReached::Whole).await;
        drop(child);

        let successor = machine.child();
        let uploads = &successor.uploads;
        let all = u32::try_from(uploads.pushes.available_permits()).unwrap();
        let _pushing = uploads.pushes.clone().acquire_many_owned(all).await.unwrap();
        successor.sweep().await;
        assert!(!machine.site("/files/tus.txt").await.unwrap().file.unwrap().stored);
    });
}
