//! Files, sites and their listing.

use protoplex_wire::proto::{BeginUploadRequest, ListFilesRequest, Site, StoredFile};

use super::{Database, HOST, begun, both, completion, content, put, token, upload};
use crate::store::{Store, StoreError};

pub(crate) async fn what_is_not_there_is_none(database: &impl Database) {
    let store = database.open().await;
    assert_eq!(store.find_site(HOST, "/").await.unwrap(), None);
    assert_eq!(store.find_site("", "../\0").await.unwrap(), None);
    assert_eq!(store.find_file(&content('a', 0).reference).await.unwrap(), None);
    let page = store.list_files(ListFilesRequest::default()).await.unwrap();
    assert!(page.sites.is_empty() && page.next.is_empty());
}

pub(crate) async fn the_last_to_complete_has_the_path(database: &impl Database) {
    let store = database.open().await;
    let (early, late) = (begun(&*store, "/a", 1).await, begun(&*store, "/a", 2).await);
    store.complete_upload(completion(&late, content('b', 2))).await.unwrap();
    store.complete_upload(completion(&early, content('a', 1))).await.unwrap();
    let site = store.find_site(HOST, "/a").await.unwrap().unwrap();
    assert_eq!(site.file.unwrap().reference, content('a', 1).reference);
    assert!(store.find_file(&content('b', 2).reference).await.unwrap().is_some(), "the other is still there");

    let (one, other) = (begun(&*store, "/b", 1).await, begun(&*store, "/b", 2).await);
    let replies = both(
        store.complete_upload(completion(&one, content('c', 1))),
        store.complete_upload(completion(&other, content('d', 2))),
    )
    .await
    .map(|reply| reply.unwrap().file.unwrap());
    let shown = store.find_site(HOST, "/b").await.unwrap().unwrap().file.unwrap();
    assert!(replies.contains(&shown), "one of the two, whole");
}

/// The same content as `content`, but stored by another node in another form.
fn otherwise(letter: char, size: u64) -> StoredFile {
    StoredFile {
        stored_size: 5,
        encoding: "gzip".to_owned(),
        content_type: "text/css".to_owned(),
        node: "files-2".to_owned(),
        stored_sha256: "1".repeat(64),
        ..content(letter, size)
    }
}

pub(crate) async fn the_same_content_keeps_its_first_form(database: &impl Database) {
    let store = database.open().await;
    let first = put(&*store, "/a", otherwise('a', 9)).await;
    let second = put(&*store, "/b", content('a', 9)).await;
    assert_eq!((first.existed, second.existed), (false, true));
    assert_eq!(first.file, second.file);
    for path in ["/a", "/b"] {
        let site = store.find_site(HOST, path).await.unwrap().unwrap();
        assert_eq!(site.content_type, "text/html", "the site's own");
        assert_eq!(site.file, first.file);
    }
}

pub(crate) async fn content_staged_on_two_nodes_is_stored_by_either(database: &impl Database) {
    let store = database.open().await;
    put(&*store, "/a", content('a', 9)).await;
    let reply = put(&*store, "/b", otherwise('a', 9)).await;
    let told = reply.file.unwrap();
    // Enough for the second node to know that it must keep its copy, and which form the storage is to have.
    assert!(reply.existed && !told.stored);
    assert_eq!((told.node.as_str(), told.encoding.as_str()), ("files-1", "identity"));
    assert_eq!(told.stored_sha256, content('a', 9).stored_sha256);

    store.mark_stored(&told.reference).await.unwrap();
    for path in ["/a", "/b"] {
        let file = store.find_site(HOST, path).await.unwrap().unwrap().file.unwrap();
        assert_eq!(file, StoredFile { stored: true, ..told.clone() });
    }
    assert!(put(&*store, "/c", otherwise('a', 9)).await.file.unwrap().stored, "no copy is needed any more");
}

pub(crate) async fn two_completions_of_one_content_agree(database: &impl Database) {
    let store = database.open().await;
    let (one, other) = (begun(&*store, "/a", 9).await, begun(&*store, "/b", 9).await);
    let [a, b] = both(
        store.complete_upload(completion(&one, content('a', 9))),
        store.complete_upload(completion(&other, otherwise('a', 9))),
    )
    .await
    .map(Result::unwrap);
    assert_eq!(a.file, b.file);
    assert_ne!(a.existed, b.existed, "exactly one was first");
}

pub(crate) async fn stored_is_marked_once(database: &impl Database) {
    let store = database.open().await;
    let reference = put(&*store, "/a", content('a', 9)).await.file.unwrap().reference;
    for _ in 0..2 {
        store.mark_stored(&reference).await.unwrap();
        assert!(store.find_file(&reference).await.unwrap().unwrap().stored);
    }
    let unknown = store.mark_stored(&content('b', 0).reference).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))), "{unknown:?}");
}

/// All rows, by pages of `limit` rows.
async fn listed<S: Store>(store: &S, host: &str, prefix: &str, limit: u32) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let request = ListFilesRequest { host: host.to_owned(), prefix: prefix.to_owned(), limit, after };
        let page = store.list_files(request).await.unwrap();
        assert!(page.sites.len() <= limit as usize);
        names.extend(page.sites.iter().map(|Site { host, path, .. }| format!("{host}{path}")));
        if page.next.is_empty() {
            return names;
        }
        assert!(!page.sites.is_empty(), "each page goes on");
        after = page.next;
    }
}

/// Seven files, named by their place in the order of a listing.
async fn seven<S: Store>(store: &S) -> Vec<String> {
    let places = [
        "a.example/",
        "a.example/x",
        "a.example/x%",
        "a.example/x/1",
        "a.example/é",
        "b.example/",
        "b.example/x",
    ];
    let token =
        token(store, |token| (token.host, token.path_prefix) = ("*".to_owned(), "/".to_owned())).await;
    for place in places.iter().rev() {
        let (host, path) = place.split_at(place.find('/').unwrap());
        let upload =
            BeginUploadRequest { host: host.to_owned(), path: path.to_owned(), ..upload(place, &token, 1) };
        store.begin_upload(upload.clone()).await.unwrap();
        store.complete_upload(completion(&upload, content('a', 1))).await.unwrap();
    }
    places.map(str::to_owned).to_vec()
}

pub(crate) async fn pages_show_each_row_once(database: &impl Database) {
    let store = database.open().await;
    let all = seven(&*store).await;
    for limit in [1, 2, 3, 6, 7, 8] {
        assert_eq!(listed(&*store, "", "", limit).await, all, "by {limit}");
    }
    let whole = store.list_files(ListFilesRequest::default()).await.unwrap();
    assert_eq!((whole.sites.len(), whole.next.as_str()), (7, ""));
    assert!(whole.sites.iter().all(|site| site.file.is_some() && site.updated_at_ms > 0));

    // A row that comes meanwhile doesn't move the others.
    let request = ListFilesRequest { limit: 3, ..Default::default() };
    let first = store.list_files(request.clone()).await.unwrap();
    put(&*store, "/", content('b', 1)).await;
    let rest = store.list_files(ListFilesRequest { limit: 9, after: first.next, ..request }).await.unwrap();
    assert_eq!(rest.sites[0].path, "/x/1");
    assert_eq!(rest.sites.last().unwrap().host, HOST);
}

pub(crate) async fn pages_stay_within_host_and_prefix(database: &impl Database) {
    let store = database.open().await;
    seven(&*store).await;
    let table: [(&str, &str, &[&str]); 7] = [
        ("a.example", "/x", &["a.example/x", "a.example/x%", "a.example/x/1"]),
        ("a.example", "/x%", &["a.example/x%"]),
        ("a.example", "/X", &[]),
        ("a.example", "/é", &["a.example/é"]),
        ("b.example", "", &["b.example/", "b.example/x"]),
        ("", "/x", &["a.example/x", "a.example/x%", "a.example/x/1", "b.example/x"]),
        ("c.example", "", &[]),
    ];
    for (host, prefix, expected) in table {
        for limit in [1, 2, 9] {
            assert_eq!(listed(&*store, host, prefix, limit).await, expected, "{host} {prefix} by {limit}");
        }
    }
    // A cursor may come from a listing of all hosts.
    for (host, after, expected) in [("b.example", "a.example/x", 2), ("a.example", "b.example/", 0)] {
        let [host, after] = [host, after].map(str::to_owned);
        let page = store.list_files(ListFilesRequest { host, after, ..Default::default() }).await.unwrap();
        assert_eq!(page.sites.len(), expected);
    }
}

pub(crate) async fn a_page_has_a_limit_in_bytes(database: &impl Database) {
    let store = database.open().await;
    // 300 of the longest paths are over 1 MiB.
    let long = "x".repeat(4_080);
    let token = token(&*store, |token| token.path_prefix = "/".to_owned()).await;
    for n in 0..300 {
        let path = format!("/{n:03}{long}");
        let upload = BeginUploadRequest { path, ..upload(&format!("u{n}"), &token, 1) };
        store.begin_upload(upload.clone()).await.unwrap();
        store.complete_upload(completion(&upload, content('a', 1))).await.unwrap();
    }
    let page = store.list_files(ListFilesRequest::default()).await.unwrap();
    assert!((200..300).contains(&page.sites.len()), "{}", page.sites.len());
    let rest = store.list_files(ListFilesRequest { after: page.next, ..Default::default() }).await.unwrap();
    assert_eq!(page.sites.len() + rest.sites.len(), 300);
    assert_eq!(rest.next, "");
}

pub(crate) async fn a_broken_cursor_is_refused(database: &impl Database) {
    let store = database.open().await;
    for after in ["x", "/x"] {
        let request = ListFilesRequest { after: after.to_owned(), ..Default::default() };
        assert!(matches!(store.list_files(request).await, Err(StoreError::Invalid(_))), "{after}");
    }
}
