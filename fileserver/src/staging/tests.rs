//! Locks, links and journals of the staging folder.

use super::*;

fn reference(byte: u8) -> Reference {
    Reference::new(&[byte; 32], &[byte; 64])
}

fn journal(upload: &str) -> Journal {
    Journal {
        upload: upload.to_owned(),
        watch: "watch".to_owned(),
        host: "example.com".to_owned(),
        path: "/a".to_owned(),
        url_path: "/a".to_owned(),
        origin: "http://example.com".to_owned(),
        content_type: "text/plain".to_owned(),
        declared: Some(3),
        max_bytes: 10,
        step: Step::Receiving,
    }
}

fn staging() -> (tempfile::TempDir, Staging) {
    let folder = tempfile::tempdir().unwrap();
    let staging = Staging::open(&folder.path().join("staging")).unwrap();
    (folder, staging)
}

fn ours(taken: Taken) -> (Slot, Journal) {
    match taken {
        Taken::Ours(ours) => *ours,
        other => panic!("not ours: {other:?}"),
    }
}

#[test]
fn an_upload_has_one_owner_at_a_time() {
    let (_folder, staging) = staging();
    let slot = staging.create(&journal("one")).unwrap();
    assert!(matches!(staging.take("one").unwrap(), Taken::Busy));
    drop(slot);
    let (_slot, found) = ours(staging.take("one").unwrap());
    assert_eq!(found.host, "example.com");
    assert!(matches!(staging.take("one").unwrap(), Taken::Busy));
    assert!(matches!(staging.take("two").unwrap(), Taken::Gone));
}

#[test]
fn a_name_is_given_once() {
    let (_folder, staging) = staging();
    let _slot = staging.create(&journal("one")).unwrap();
    assert_eq!(staging.create(&journal("one")).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_content_stays_readable_until_its_last_upload_is_removed() {
    let (_folder, staging) = staging();
    let content = reference(1);
    assert_eq!(staging.staged(&content), None);
    let slots = ["one", "two"].map(|upload| {
        let slot = staging.create(&journal(upload)).unwrap();
        slot.make_form(Encoding::Identity).unwrap().write_all(b"abc").unwrap();
        slot.link(&content, Encoding::Identity).unwrap();
        slot.link(&content, Encoding::Identity).unwrap();
        slot
    });
    let [one, two] = slots;
    one.remove(Some(&content)).unwrap();
    assert_eq!(fs::read(staging.staged(&content).unwrap()).unwrap(), b"abc");
    two.remove(Some(&content)).unwrap();
    assert_eq!(staging.staged(&content), None);
    assert!(staging.uploads().unwrap().is_empty());
    assert_eq!(fs::read_dir(&staging.objects).unwrap().count(), 0);
}

#[test]
fn links_and_removals_of_one_content_do_not_disturb_each_other() {
    let (_folder, staging) = staging();
    std::thread::scope(|threads| {
        for worker in 0..4 {
            let staging = &staging;
            threads.spawn(move || {
                for round in 0..50 {
                    let slot = staging.create(&journal(&format!("{worker}-{round}"))).unwrap();
                    slot.make_form(Encoding::Gzip).unwrap();
                    slot.link(&reference(7), Encoding::Gzip).unwrap();
                    assert!(slot.object(&reference(7)).1.exists());
                    slot.remove(Some(&reference(7))).unwrap();
                }
            });
        }
    });
    assert_eq!(staging.staged(&reference(7)), None);
}

#[test]
fn a_folder_without_a_journal_is_left_alone_while_it_is_young() {
    let (_folder, staging) = staging();
    let young = staging.uploads.join("young");
    let old = staging.uploads.join("old");
    fs::create_dir(&young).unwrap();
    fs::create_dir(&old).unwrap();
    fs::write(old.join("body"), b"left over").unwrap();
    let past = std::time::SystemTime::now() - 2 * ORPHAN_AGE;
    File::open(&old).unwrap().set_modified(past).unwrap();
    assert!(matches!(staging.take("young").unwrap(), Taken::Gone));
    assert!(matches!(staging.take("old").unwrap(), Taken::Gone));
    assert!(young.exists() && !old.exists());
}

#[test]
fn the_journal_survives_as_it_was_last_written() {
    let (_folder, staging) = staging();
    let slot = staging.create(&journal("one")).unwrap();
    let lease = TusLease { expires_at_ms: 5, token_sha256: "00".to_owned(), metadata: String::new() };
    let hashers = crate::digest::Hashers::default().save();
    let checkpoint = Checkpoint { offset: 9, hashers: hashers.clone(), lease: lease.clone() };
    slot.write_journal(&Journal { step: Step::Resumable(checkpoint), ..journal("one") }).unwrap();
    drop(slot);
    let (_slot, found) = ours(staging.take("one").unwrap());
    let Step::Resumable(found) = found.step else { panic!("{:?}", found.step) };
    assert_eq!((found.offset, found.hashers, found.lease), (9, hashers, lease));
}
