//! Tokens and uploads.

use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{BeginUploadReply, BeginUploadRequest, StoredFile, TokenRefusal};

use super::{Database, begun, both, completion, content, granted, token, until, upload};
use crate::store::{Store, StoreError};

fn refused(reply: &BeginUploadReply, refusal: TokenRefusal) {
    assert_eq!(reply.refusal(), refusal);
    assert_eq!(reply.max_bytes, 0);
}

pub(crate) async fn a_token_opens_what_it_allows(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| token.host = "*.Example.com".to_owned()).await;
    let request = BeginUploadRequest { host: "a.example.com".to_owned(), ..upload("u1", &token, 7) };
    let reply = store.begin_upload(request.clone()).await.unwrap();
    assert_eq!((reply.refusal(), reply.max_bytes), (TokenRefusal::None, 7));
    assert!(token.starts_with(&format!("px_{}.", reply.token_id)), "the id is part of the token");

    let done = store.complete_upload(completion(&request, content('a', 7))).await.unwrap();
    assert!(!done.existed);
    let file = done.file.unwrap();
    assert!(!file.stored, "only staged");
    assert!((unix_ms_now() - file.created_at_ms) < 60_000);
    assert_eq!(StoredFile { created_at_ms: 0, ..file.clone() }, content('a', 7));
    let site = store.find_site("a.example.com", "/files/a").await.unwrap().unwrap();
    assert_eq!((site.file.unwrap(), site.content_type), (file.clone(), "text/html".to_owned()));
    assert_eq!(store.find_file(&file.reference).await.unwrap(), Some(file));
}

pub(crate) async fn a_check_answers_as_a_begin_would_and_takes_nothing(database: &impl Database) {
    let store = database.open().await;
    let ends = unix_ms_now() + 3_600_000;
    let token = token(&*store, |token| {
        (token.uses, token.quota_bytes, token.expires_at_ms) = (1, 500, ends);
    })
    .await;
    let check = async |id: &str, size| store.check_upload(upload(id, &token, size)).await.unwrap();
    for _ in 0..3 {
        let reply = check("", 400).await;
        assert_eq!((reply.refusal(), reply.max_bytes, reply.expires_at_ms), (TokenRefusal::None, 400, ends));
    }
    refused(&check("", 501).await, TokenRefusal::OverQuota);
    refused(&store.check_upload(upload("", "px_x.y", 1)).await.unwrap(), TokenRefusal::Forged);
    let begun = store.begin_upload(upload("u1", &token, 400)).await.unwrap();
    assert_eq!(begun.expires_at_ms, ends);
    refused(&check("u1", 1).await, TokenRefusal::UsedUp);
}

pub(crate) async fn a_folder_stands_for_the_files_below_it(database: &impl Database) {
    let store = database.open().await;
    for (prefix, folder, opened) in [
        ("/files/", "/files/", true),
        ("/files/", "/files/deep/", true),
        ("/files/deep/a", "/files/", true),
        ("/files/", "/", true),
        ("/files/", "/other/", false),
        ("/files/", "/f", false),
    ] {
        let token = token(&*store, |token| token.path_prefix = prefix.to_owned()).await;
        let request = BeginUploadRequest { path: folder.to_owned(), size: None, ..upload("", &token, 0) };
        let refusal = store.check_upload(request).await.unwrap().refusal();
        assert_eq!(refusal == TokenRefusal::None, opened, "{prefix} {folder}: {refusal:?}");
        assert!(opened || refusal == TokenRefusal::WrongPath);
    }
}

pub(crate) async fn a_public_id_belongs_to_one_token(database: &impl Database) {
    let store = database.open().await;
    let (one, other) = (token(&*store, |_| {}).await, token(&*store, |_| {}).await);
    let watched = |id: &str, token: &str, watch: &str| BeginUploadRequest {
        watch: watch.to_owned(),
        ..upload(id, token, 1)
    };
    granted(store.begin_upload(watched("u1", &one, "mine")).await);
    for refusal in [
        store.begin_upload(watched("u2", &other, "mine")).await.unwrap(),
        store.check_upload(watched("", &other, "mine")).await.unwrap(),
    ] {
        refused(&refusal, TokenRefusal::WatchTaken);
    }
    granted(store.begin_upload(watched("u2", &one, "mine")).await);
    granted(store.begin_upload(watched("u3", &other, "theirs")).await);
    granted(store.begin_upload(watched("u4", &one, "")).await);
    granted(store.begin_upload(watched("u5", &other, "")).await);

    // Neither its end nor a failure frees it.
    store.abort_upload("u1").await.unwrap();
    store.complete_upload(completion(&watched("u2", &one, "mine"), content('a', 1))).await.unwrap();
    refused(&store.begin_upload(watched("u6", &other, "mine")).await.unwrap(), TokenRefusal::WatchTaken);
}

pub(crate) async fn forged_tokens_are_refused(database: &impl Database) {
    let store = database.open().await;
    let good = token(&*store, |_| {}).await;
    let other = token(&*store, |_| {}).await;
    let (id, _) = good.split_once('.').unwrap();
    let (_, secret) = other.split_once('.').unwrap();
    let unknown = good.replacen("px_", "px_x", 1);
    let swapped = format!("{id}.{secret}");
    let cut = &good[..good.len() - 1];
    for token in ["", "px_", "Bearer", &swapped, cut, &format!("{good}x"), &unknown] {
        let reply = store.begin_upload(upload("u1", token, 1)).await.unwrap();
        refused(&reply, TokenRefusal::Forged);
        assert_eq!(reply.token_id, "", "nobody is told of a token whose secret he lacks");
    }
    assert_eq!(granted(store.begin_upload(upload("u1", &good, 1)).await), 1);
}

pub(crate) async fn a_token_ends_in_time(database: &impl Database) {
    let store = database.open().await;
    let ends = unix_ms_now() + 200;
    let short = token(&*store, |token| token.expires_at_ms = ends).await;
    let mut tried = 0;
    until("expired", async || {
        tried += 1;
        let reply = store.begin_upload(upload(&format!("u{tried}"), &short, 1)).await.unwrap();
        (reply.refusal() == TokenRefusal::Expired).then_some(())
    })
    .await;
    assert!(unix_ms_now() >= ends, "not before its time");
    let past = token(&*store, |token| token.expires_at_ms = unix_ms_now() - 1).await;
    refused(&store.begin_upload(upload("past", &past, 1)).await.unwrap(), TokenRefusal::Expired);
}

pub(crate) async fn refusals_tell_the_limit(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| (token.quota_bytes, token.uses) = (1_500, 3)).await;
    let ask = async |id: &str, change: &dyn Fn(&mut BeginUploadRequest)| {
        let mut request = upload(id, &token, 600);
        change(&mut request);
        store.begin_upload(request).await.unwrap()
    };
    refused(&ask("u", &|u| u.host = "example.org".to_owned()).await, TokenRefusal::WrongHost);
    refused(&ask("u", &|u| u.path = "/filesystem".to_owned()).await, TokenRefusal::WrongPath);
    let large = ask("u", &|u| u.size = Some(1_001)).await;
    refused(&large, TokenRefusal::TooLarge);
    assert_eq!(large.limit_bytes, 1_000);
    assert!(!large.token_id.is_empty());

    assert_eq!(ask("u1", &|_| {}).await.max_bytes, 600);
    assert_eq!(ask("u2", &|_| {}).await.max_bytes, 600);
    let over = ask("u3", &|_| {}).await;
    refused(&over, TokenRefusal::OverQuota);
    assert_eq!(over.limit_bytes, 300);
    assert_eq!(ask("u3", &|u| u.size = Some(300)).await.max_bytes, 300, "a refusal has taken nothing");
    refused(&ask("u4", &|u| u.size = Some(0)).await, TokenRefusal::UsedUp);
}

pub(crate) async fn one_use_goes_to_exactly_one_of_many(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| token.uses = 1).await;
    let racers = (0..16).map(|n| store.begin_upload(upload(&format!("u{n}"), &token, 1)));
    let replies = futures_util::future::try_join_all(racers).await.unwrap();
    let won = replies.iter().filter(|reply| reply.refusal() == TokenRefusal::None).count();
    let lost = replies.iter().filter(|reply| reply.refusal() == TokenRefusal::UsedUp).count();
    assert_eq!((won, lost), (1, 15));
}

pub(crate) async fn no_race_takes_more_than_the_quota(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| token.quota_bytes = 1_000).await;
    let racers = (0..16).map(|n| store.begin_upload(upload(&format!("u{n}"), &token, 300)));
    let replies = futures_util::future::try_join_all(racers).await.unwrap();
    let taken: u64 = replies.iter().map(|reply| reply.max_bytes).sum();
    assert_eq!(taken, 900);
    assert!(replies.iter().all(|reply| reply.max_bytes == 300 || reply.refusal() == TokenRefusal::OverQuota));
}

pub(crate) async fn an_undeclared_size_reserves_what_is_left(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| token.quota_bytes = 1_300).await;
    let undeclared = |id| BeginUploadRequest { size: None, ..upload(id, &token, 0) };
    assert_eq!(granted(store.begin_upload(undeclared("u1")).await), 1_000);
    assert_eq!(granted(store.begin_upload(undeclared("u2")).await), 300);
    let none = store.begin_upload(undeclared("u3")).await.unwrap();
    refused(&none, TokenRefusal::OverQuota);
    assert_eq!(none.limit_bytes, 0);
    assert_eq!(granted(store.begin_upload(upload("empty", &token, 0)).await), 0, "nothing needs no quota");
}

pub(crate) async fn an_abort_gives_back_once(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| (token.uses, token.quota_bytes) = (2, 1_000)).await;
    granted(store.begin_upload(upload("u1", &token, 400)).await);
    granted(store.begin_upload(upload("u2", &token, 600)).await);
    for _ in 0..3 {
        store.abort_upload("u1").await.unwrap();
    }
    assert_eq!(granted(store.begin_upload(upload("u3", &token, 400)).await), 400);
    refused(&store.begin_upload(upload("u4", &token, 0)).await.unwrap(), TokenRefusal::UsedUp);

    // What is completed stays charged.
    let completed = upload("u2", &token, 600);
    store.complete_upload(completion(&completed, content('a', 600))).await.unwrap();
    store.abort_upload("u2").await.unwrap();
    refused(&store.begin_upload(upload("u5", &token, 0)).await.unwrap(), TokenRefusal::UsedUp);
    assert!(store.find_site("example.com", "/files/a").await.unwrap().is_some());
}

pub(crate) async fn an_abort_that_overtakes_its_begin_wins(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| token.uses = 1).await;
    store.abort_upload("u1").await.unwrap();
    let late = store.begin_upload(upload("u1", &token, 1)).await;
    assert!(matches!(late, Err(StoreError::Conflict(_))), "{late:?}");
    assert_eq!(granted(store.begin_upload(upload("u2", &token, 1)).await), 1, "the use is left");
}

pub(crate) async fn a_repeated_begin_takes_once(database: &impl Database) {
    let store = database.open().await;
    let one = token(&*store, |token| token.uses = 1).await;
    let other = token(&*store, |_| {}).await;
    for _ in 0..3 {
        assert_eq!(granted(store.begin_upload(upload("u1", &one, 5)).await), 5);
    }
    let [a, b] =
        both(store.begin_upload(upload("u2", &other, 5)), store.begin_upload(upload("u2", &other, 5))).await;
    assert_eq!((granted(a), granted(b)), (5, 5));

    let another = store.begin_upload(upload("u1", &other, 5)).await;
    assert!(matches!(another, Err(StoreError::AlreadyExists(_))), "{another:?}");
    store.complete_upload(completion(&upload("u1", &one, 5), content('a', 5))).await.unwrap();
    let again = store.begin_upload(upload("u1", &one, 5)).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists(_))), "{again:?}");
}

pub(crate) async fn completing_charges_what_the_file_has(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| token.quota_bytes = 1_000).await;
    let whole = BeginUploadRequest { size: None, ..upload("u1", &token, 0) };
    assert_eq!(granted(store.begin_upload(whole.clone()).await), 1_000);
    store.complete_upload(completion(&whole, content('a', 300))).await.unwrap();
    let rest = BeginUploadRequest { size: None, ..upload("u2", &token, 0) };
    assert_eq!(granted(store.begin_upload(rest.clone()).await), 700);
    store.complete_upload(completion(&rest, content('a', 300))).await.unwrap();
    let last = BeginUploadRequest { size: None, ..upload("u3", &token, 0) };
    assert_eq!(granted(store.begin_upload(last).await), 400, "content that existed is charged as well");
}

pub(crate) async fn a_repeated_completion_changes_nothing(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| (token.quota_bytes, token.uses) = (100, 2)).await;
    let (one, two) = (upload("u1", &token, 10), upload("u2", &token, 20));
    granted(store.begin_upload(one.clone()).await);
    granted(store.begin_upload(two.clone()).await);
    let first = store.complete_upload(completion(&one, content('a', 10))).await.unwrap();
    store.complete_upload(completion(&two, content('b', 20))).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.complete_upload(completion(&one, content('a', 10))).await.unwrap(), first);
    }
    let shown = store.find_site("example.com", "/files/a").await.unwrap().unwrap().file.unwrap();
    assert_eq!(shown.reference, content('b', 0).reference, "the last to finish, not the last to repeat");
    let [a, b] = both(
        store.complete_upload(completion(&two, content('b', 20))),
        store.complete_upload(completion(&two, content('b', 20))),
    )
    .await;
    assert_eq!(a.unwrap(), b.unwrap());
    refused(&store.begin_upload(upload("u3", &token, 0)).await.unwrap(), TokenRefusal::UsedUp);
}

pub(crate) async fn what_was_not_begun_is_not_completed(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |_| {}).await;
    let request = upload("u1", &token, 10);
    let unknown = store.complete_upload(completion(&request, content('a', 10))).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))), "{unknown:?}");

    granted(store.begin_upload(request.clone()).await);
    let elsewhere = BeginUploadRequest { path: "/files/b".to_owned(), ..request.clone() };
    let host = BeginUploadRequest { host: "example.org".to_owned(), ..request.clone() };
    for (case, size) in [(&elsewhere, 10), (&host, 10), (&request, 11)] {
        let conflict = store.complete_upload(completion(case, content('a', size))).await;
        assert!(matches!(conflict, Err(StoreError::Conflict(_))), "{conflict:?}");
    }
    assert_eq!(store.find_file(&content('a', 0).reference).await.unwrap(), None, "nothing is left of it");

    store.complete_upload(completion(&request, content('a', 10))).await.unwrap();
    let other = store.complete_upload(completion(&request, content('b', 10))).await;
    assert!(matches!(other, Err(StoreError::Conflict(_))), "{other:?}");

    let aborted = upload("u2", &token, 10);
    granted(store.begin_upload(aborted.clone()).await);
    store.abort_upload("u2").await.unwrap();
    let late = store.complete_upload(completion(&aborted, content('b', 10))).await;
    assert!(matches!(late, Err(StoreError::Conflict(_))), "{late:?}");
    assert_eq!(store.find_file(&content('b', 0).reference).await.unwrap(), None);
}

pub(crate) async fn malformed_uploads_are_refused(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |_| {}).await;
    let good = upload("u1", &token, 10);
    let begins = [
        BeginUploadRequest { upload: String::new(), ..good.clone() },
        BeginUploadRequest { upload: "u".repeat(129), ..good.clone() },
        BeginUploadRequest { host: "Example.com".to_owned(), ..good.clone() },
        BeginUploadRequest { path: "/files/../a".to_owned(), ..good.clone() },
        BeginUploadRequest { path: "/files/\0".to_owned(), ..good },
    ];
    for request in begins {
        let error = store.begin_upload(request).await;
        assert!(matches!(error, Err(StoreError::Invalid(_))), "{error:?}");
    }
    let begun = begun(&*store, "/a", 10).await;
    let file = content('a', 10);
    let files = [
        StoredFile { reference: "a".repeat(127), ..file.clone() },
        StoredFile { reference: "!".repeat(128), ..file.clone() },
        StoredFile { stored_sha256: "A".repeat(64), ..file.clone() },
        StoredFile { encoding: "br".to_owned(), ..file.clone() },
        StoredFile { stored_size: u64::MAX, ..file.clone() },
        StoredFile { content_type: "t".repeat(256), ..file.clone() },
        StoredFile { node: String::new(), ..file.clone() },
    ];
    for file in files {
        let error = store.complete_upload(completion(&begun, file)).await;
        assert!(matches!(error, Err(StoreError::Invalid(_))), "{error:?}");
    }
    let mut empty = completion(&begun, file);
    empty.file = None;
    assert!(matches!(store.complete_upload(empty).await, Err(StoreError::Invalid(_))));
    assert_eq!(store.find_site("example.com", "/a").await.unwrap(), None);
}

pub(crate) async fn uploads_outlive_a_crash(database: &impl Database) {
    let store = database.open().await;
    let token = token(&*store, |token| (token.quota_bytes, token.uses) = (1_000, 3)).await;
    let (done, open) = (upload("u1", &token, 400), upload("u2", &token, 500));
    granted(store.begin_upload(done.clone()).await);
    granted(store.begin_upload(open.clone()).await);
    let first = store.complete_upload(completion(&done, content('a', 400))).await.unwrap();
    drop(store);

    let store = database.open().await;
    assert_eq!(store.complete_upload(completion(&done, content('a', 400))).await.unwrap(), first);
    let over = store.begin_upload(upload("u3", &token, 101)).await.unwrap();
    assert_eq!((over.refusal(), over.limit_bytes), (TokenRefusal::OverQuota, 100));
    store.abort_upload("u2").await.unwrap();
    assert_eq!(granted(store.begin_upload(upload("u3", &token, 600)).await), 600);
}
