//! The contract on a real server, and what only PostgreSQL can do wrong: several writers, foreign schemas, a server that
//! goes away.

mod crowd;
mod outage;
mod refusals;

use std::sync::Arc;

use protoplex_testkit::postgres::Server;
use protoplex_wire::proto::{
    BeginUploadRequest, CompleteUploadRequest, CreateTokenRequest, Handler, ListFilesRequest, StoredFile,
    TokenRefusal,
};

use super::*;
use crate::event_log::contract::event_contract;
use crate::store::UPLOAD_LIFE_MS;
use crate::store::contract::{self, Database, contract};

/// A database of its own on the process' server.
struct Postgres {
    server: Arc<Server>,
    url: String,
}

impl Postgres {
    fn new() -> Self {
        let server = Server::shared();
        Self { url: server.database(), server }
    }

    /// On a server of its own, which it may end.
    fn alone() -> Self {
        let server = Arc::new(Server::start());
        Self { url: server.database(), server }
    }

    fn target(&self) -> Target {
        Target::parse(&self.url, None).unwrap()
    }

    fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap()
    }

    /// As the superuser.
    fn run(&self, statement: &str) -> String {
        self.server.run(self.name(), statement)
    }
}

impl Database for Postgres {
    type Store = PgStore;

    async fn open(&self) -> Arc<PgStore> {
        Arc::new(PgStore::open(&self.target()).await.unwrap())
    }
}

contract!(Postgres::new());
event_contract!(Postgres::new());

/// Adds one, also where others are faster again and again.
async fn handler(store: &PgStore, name: &str) -> StoreResult<u64> {
    loop {
        let handler = Handler { name: name.to_owned(), path: format!("/{name}"), ..Default::default() };
        match contract::handlers::put(store, handler).await {
            Err(StoreError::Conflict(_)) => {}
            put => return put,
        }
    }
}

async fn handlers(store: &PgStore) -> Vec<String> {
    store.load_routes().await.unwrap().handlers.into_iter().map(|handler| handler.name).collect()
}

/// A token for everything, changed as the test needs it.
async fn token(store: &PgStore, change: impl FnOnce(&mut CreateTokenRequest)) -> String {
    let mut terms = CreateTokenRequest {
        host: "*".to_owned(),
        path_prefix: "/".to_owned(),
        max_bytes: 1_000,
        ..Default::default()
    };
    change(&mut terms);
    store.create_token(terms).await.unwrap().token
}

fn upload(id: &str, token: &str, size: Option<u64>) -> BeginUploadRequest {
    BeginUploadRequest {
        token: token.to_owned(),
        host: "example.com".to_owned(),
        path: format!("/{id}"),
        size,
        upload: id.to_owned(),
        watch: String::new(),
    }
}

/// Its content is its own, told apart by a number.
fn completion(begun: &BeginUploadRequest, content: u32, size: u64) -> CompleteUploadRequest {
    CompleteUploadRequest {
        upload: begun.upload.clone(),
        file: Some(StoredFile {
            reference: format!("{content:0128}"),
            size,
            stored_size: size,
            encoding: "identity".to_owned(),
            node: "files-1".to_owned(),
            stored_sha256: "0".repeat(64),
            ..Default::default()
        }),
        host: begun.host.clone(),
        path: begun.path.clone(),
        content_type: "text/plain".to_owned(),
    }
}

#[tokio::test]
async fn an_abandoned_reservation_is_given_back_after_a_week() {
    let database = Postgres::new();
    let store = database.open().await;
    let token = token(&store, |terms| (terms.quota_bytes, terms.uses) = (10, 1)).await;
    let now = unix_ms_now();
    let begin =
        async |id: &str, now_ms| uploads::begin(&store, &upload(id, &token, None), now_ms).await.unwrap();
    assert_eq!(begin("u1", now).await.max_bytes, 10);
    assert_eq!(begin("u2", now + UPLOAD_LIFE_MS).await.refusal(), TokenRefusal::UsedUp);
    assert_eq!(begin("u2", now + UPLOAD_LIFE_MS + 1).await.max_bytes, 10);
    let late = uploads::abort(&store, "u1", now + UPLOAD_LIFE_MS + 2).await;
    assert!(late.is_ok(), "a late abort gives nothing back twice: {late:?}");
    assert_eq!(begin("u3", now + UPLOAD_LIFE_MS + 3).await.refusal(), TokenRefusal::UsedUp);
}

/// So random that no compression makes it fit into an index.
fn long_path(n: u8) -> String {
    use sha2::{Digest, Sha256};
    let mut path = String::from("/");
    for piece in 0_u32.. {
        let digest = Sha256::digest([&[n][..], &piece.to_be_bytes()].concat());
        path.extend(digest.iter().map(|byte| format!("{byte:02x}")));
        if path.len() > 4_096 {
            break;
        }
    }
    path.truncate(4_096);
    path
}

#[tokio::test]
async fn the_longest_paths_are_kept_and_put_in_order() {
    let database = Postgres::new();
    let store = database.open().await;
    let token = token(&store, |_| {}).await;
    // The last two differ only behind what the index has of them.
    let (mut paths, common) = ((0..6).map(long_path).collect::<Vec<_>>(), long_path(9));
    paths.extend(["b", "a"].map(|end| format!("{}{end}", &common[..4_095])));
    for (n, path) in paths.iter().enumerate() {
        let begun = BeginUploadRequest { path: path.clone(), ..upload(&format!("u{n}"), &token, Some(1)) };
        store.begin_upload(begun.clone()).await.unwrap();
        store.complete_upload(completion(&begun, 1, 1)).await.unwrap();
        assert_eq!(store.find_site("example.com", path).await.unwrap().unwrap().path, *path);
    }
    paths.sort();
    let mut listed = Vec::new();
    let mut after = String::new();
    loop {
        let request =
            ListFilesRequest { host: "example.com".to_owned(), limit: 3, after, ..Default::default() };
        let page = store.list_files(request).await.unwrap();
        listed.extend(page.sites.into_iter().map(|site| site.path));
        if page.next.is_empty() {
            break;
        }
        after = page.next;
    }
    assert_eq!(listed, paths);

    let asset = |path: &str| Asset { path: path.to_owned(), ..Default::default() };
    let assets = futures_util::stream::iter(paths.iter().rev().map(|path| Ok(asset(path))));
    let build = store.put_build("*", 0, assets).await.unwrap();
    let mut read = String::new();
    for path in &paths {
        read = store.next_asset(build.version, &read).await.unwrap().unwrap().path;
        assert_eq!(read, *path);
    }
    assert!(store.next_asset(build.version, &read).await.unwrap().is_none());
}

#[tokio::test]
async fn a_page_of_one_host_follows_the_index() {
    let database = Postgres::new();
    let store = database.open().await;
    // So many that sorting them would cost more.
    database.run("INSERT INTO files VALUES ('r', 1, 1, 'identity', '', true, 'n', '', 0)");
    database.run(
        "INSERT INTO sites SELECT 'example.com', '/files/' || n, sha256(n::text::bytea), 'r', '', 0
         FROM generate_series(1, 20000) AS n",
    );
    database.run("ANALYZE");
    let request = ListFilesRequest {
        host: "example.com".to_owned(),
        prefix: "/files/".to_owned(),
        after: "example.com/files/1".to_owned(),
        ..Default::default()
    };
    let page = files::page(&request, 10).unwrap();
    let explained = format!("EXPLAIN {}", page.sql().as_str());
    let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(explained))
        .bind("/files/")
        .bind("example.com")
        .bind("/files/1")
        .bind("/files/1")
        .bind(10_i64)
        .fetch_all(&store.pool)
        .await
        .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("Index Scan using sites_in_order"), "{plan}");
    assert!(plan.contains("Presorted Key"), "{plan}");
}

#[tokio::test]
async fn what_no_text_can_have_is_the_callers_fault() {
    let database = Postgres::new();
    let store = database.open().await;
    for name in ["a\0".to_owned(), long_path(0)] {
        let error = handler(&store, &name).await;
        assert!(matches!(error, Err(StoreError::Invalid(_))), "{error:?}");
    }
    assert_eq!(store.find_file("a\0").await.ok().flatten(), None);
    assert!(handlers(&store).await.is_empty());
}

#[tokio::test]
async fn a_commit_is_synchronous_whatever_the_database_says() {
    let database = Postgres::new();
    let name = database.name();
    let asked = async |before: &'static str| {
        database.run(&format!("ALTER DATABASE {name} SET synchronous_commit = {before}"));
        let store = database.open().await;
        let setting: String =
            sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&store.pool).await.unwrap();
        store.close().await;
        setting
    };
    assert_eq!(asked("off").await, "on");
    assert_eq!(asked("remote_apply").await, "remote_apply", "what is stronger is left");
}

#[tokio::test]
async fn tls_is_verified() {
    let database = Postgres::alone();
    let certificate = database.server.speak_tls();
    let verified = |host: &str, root: &str| {
        let url = database.url.replace("127.0.0.1", host);
        Target::parse(&format!("{url}?sslmode=verify-full&sslrootcert={root}"), None).unwrap()
    };
    let root = certificate.to_str().unwrap();
    let store = PgStore::open(&verified("localhost", root)).await.unwrap();
    let tls: bool = sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&store.pool)
        .await
        .unwrap();
    assert!(tls);
    // The certificate is of another name.
    let error = PgStore::open(&verified("127.0.0.1", root)).await.unwrap_err();
    assert!(!error.is_away() && error.to_string().contains("certificate"), "{error}");
}
