//! The contract on real SQLite files, and what only SQLite can do wrong: damaged files, foreign schemas, crashes.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::proto::{
    BeginUploadRequest, CreateTokenRequest, Handler, JoinRefusal, JoinToken, ListFilesRequest,
    PutMemberRequest, RedeemJoinTokenRequest, TakeLeaseRequest, TokenRefusal,
};
use tempfile::TempDir;

use super::*;
use crate::event_log::contract::event_contract;
use crate::store::UPLOAD_LIFE_MS;
use crate::store::contract::handlers::put;
use crate::store::contract::{Database, contract};

/// A file in a folder of its own.
struct Sqlite(TempDir);

impl Sqlite {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("datastore").join("protoplex.db")
    }

    async fn refusal(&self) -> OpenError {
        SqliteStore::open(&self.file()).await.unwrap_err()
    }
}

impl Database for Sqlite {
    type Store = SqliteStore;

    async fn open(&self) -> Arc<SqliteStore> {
        Arc::new(SqliteStore::open(&self.file()).await.unwrap())
    }
}

contract!(Sqlite::new());
event_contract!(Sqlite::new());

async fn handler(store: &SqliteStore, name: &str) -> StoreResult<u64> {
    put(store, Handler { name: name.to_owned(), path: format!("/{name}"), ..Default::default() }).await
}

async fn handlers(store: &SqliteStore) -> Vec<String> {
    store.load_routes().await.unwrap().handlers.into_iter().map(|handler| handler.name).collect()
}

#[tokio::test]
async fn files_are_private_and_commits_are_synchronous() {
    let database = Sqlite::new();
    let store = database.open().await;
    handler(&store, "a").await.unwrap();
    let folder = database.file().parent().unwrap().to_owned();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        names.push(entry.file_name());
    }
    names.sort();
    assert_eq!(names, ["protoplex.db", "protoplex.db-shm", "protoplex.db-wal", "protoplex.db.lock"]);
    let pragma = async |name: &'static str| sqlx::query(name).fetch_one(&store.writer).await.unwrap();
    assert_eq!(sqlx::Row::get::<i64, _>(&pragma("PRAGMA synchronous").await, 0), 2, "FULL");
    assert_eq!(sqlx::Row::get::<i64, _>(&pragma("PRAGMA foreign_keys").await, 0), 1);
}

#[tokio::test]
async fn readers_cannot_write() {
    let database = Sqlite::new();
    let store = database.open().await;
    let error = sqlx::query("DELETE FROM handlers").execute(&store.readers).await.unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
}

/// What a crash leaves: the files as they are now.
fn crash(database: &Sqlite) -> Sqlite {
    let left = Sqlite::new();
    fs::create_dir(left.file().parent().unwrap()).unwrap();
    for suffix in ["", "-wal"] {
        let name = |file: PathBuf| PathBuf::from(format!("{}{suffix}", file.display()));
        fs::copy(name(database.file()), name(left.file())).unwrap();
    }
    left
}

#[tokio::test]
async fn a_crash_keeps_what_was_acknowledged_and_nothing_else() {
    let database = Sqlite::new();
    let store = database.open().await;
    handler(&store, "acknowledged").await.unwrap();
    let mut change = store.change().await.unwrap();
    sqlx::query("INSERT INTO handlers VALUES ('halfway', '', '/h', '', '', 0, 0, 3)")
        .execute(&mut *change)
        .await
        .unwrap();
    // So large that SQLite has to write it before its commit.
    sqlx::query(
        "INSERT INTO members
         SELECT hex(randomblob(500)), value, '', '', 0, ''
         FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 20000) SELECT value FROM n)",
    )
    .execute(&mut *change)
    .await
    .unwrap();
    let spilled = fs::metadata(format!("{}-wal", database.file().display())).unwrap().len();
    assert!(spilled > 1 << 20, "the transaction is in the log: {spilled} bytes");

    let left = crash(&database);
    let store = left.open().await;
    assert_eq!(handlers(&store).await, ["acknowledged"]);
    assert!(store.load_routes().await.unwrap().members.is_empty());
    handler(&store, "later").await.unwrap();
}

#[tokio::test]
async fn a_torn_write_ahead_log_loses_its_end_alone() {
    let database = Sqlite::new();
    let store = database.open().await;
    handler(&store, "early").await.unwrap();
    let log = |database: &Sqlite| PathBuf::from(format!("{}-wal", database.file().display()));
    let early = fs::metadata(log(&database)).unwrap().len();
    handler(&store, "late").await.unwrap();

    let torn = crash(&database);
    let late = fs::metadata(log(&torn)).unwrap().len();
    assert!(late > early);
    fs::OpenOptions::new().write(true).open(log(&torn)).unwrap().set_len(late - 1).unwrap();
    assert_eq!(handlers(&*torn.open().await).await, ["early"]);
}

#[tokio::test]
async fn a_clean_end_leaves_one_file_and_its_lock() {
    let database = Sqlite::new();
    let store = database.open().await;
    handler(&store, "a").await.unwrap();
    store.close().await;
    let folder = fs::read_dir(database.file().parent().unwrap()).unwrap();
    let mut left: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["protoplex.db", "protoplex.db.lock"]);
    assert_eq!(handlers(&*database.open().await).await, ["a"]);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let database = Sqlite::new();
    let store = database.open().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', 1, x'00', 0)",
    )
    .execute(&store.writer)
    .await
    .unwrap();
    store.close().await;
    let before = fs::read(database.file()).unwrap();
    let error = database.refusal().await;
    assert!(matches!(error, OpenError::Newer { found: 9999, known: 7, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("protoplex.db: its schema is version 9999"), "{text}");
    assert!(text.contains("Start the newer version"), "{text}");
    assert!(fs::read(database.file()).unwrap() == before, "nothing was changed");
}

#[tokio::test]
async fn a_member_of_the_first_schema_is_kept_and_is_of_no_known_instance() {
    let database = Sqlite::new();
    let store = database.open().await;
    for statement in [
        "DROP TABLE join_token_uses",
        "DROP TABLE join_tokens",
        "DROP TABLE revocations",
        "DROP TABLE event_log",
        "DROP TABLE event_head",
        "DROP TABLE event_keys",
        "DROP TABLE due_events",
        "DROP TABLE subscriptions",
        "DROP TABLE dead_events",
        "DROP TABLE handler_versions",
        "DROP TABLE former_handlers",
        "ALTER TABLE handlers DROP COLUMN disabled",
        "ALTER TABLE handlers DROP COLUMN since",
        "DROP INDEX uploads_by_watch",
        "ALTER TABLE uploads DROP COLUMN watch",
        "ALTER TABLE members DROP COLUMN instance",
        "DELETE FROM _sqlx_migrations WHERE version > 1",
        "INSERT INTO members (pool, id, address, zone, revision) VALUES ('rooms', 'live-1:0', 'a', 'z', 7)",
    ] {
        sqlx::query(statement).execute(&store.writer).await.unwrap();
    }
    store.close().await;
    let members = database.open().await.load_routes().await.unwrap().members;
    assert_eq!((members[0].id.as_str(), members[0].instance.as_str()), ("live-1:0", ""));
}

#[tokio::test]
async fn handlers_of_an_earlier_schema_are_kept_and_their_history_begins() {
    let database = Sqlite::new();
    let store = database.open().await;
    for statement in [
        "DROP TABLE join_token_uses",
        "DROP TABLE join_tokens",
        "DROP TABLE revocations",
        "DROP TABLE event_log",
        "DROP TABLE event_head",
        "DROP TABLE event_keys",
        "DROP TABLE due_events",
        "DROP TABLE subscriptions",
        "DROP TABLE dead_events",
        "DROP TABLE handler_versions",
        "DROP TABLE former_handlers",
        "ALTER TABLE handlers DROP COLUMN disabled",
        "ALTER TABLE handlers DROP COLUMN since",
        "DELETE FROM _sqlx_migrations WHERE version > 3",
        "INSERT INTO handlers (name, host, path, key, pool, placement) VALUES ('old', '*', '/old', '', 'p', 3)",
        "UPDATE table_version SET version = 7",
    ] {
        sqlx::query(statement).execute(&store.writer).await.unwrap();
    }
    store.close().await;
    let store = database.open().await;
    let loaded = store.load_routes().await.unwrap();
    assert_eq!((loaded.table_version, loaded.handlers[0].since, loaded.handlers[0].disabled), (7, 7, false));
    assert_eq!(store.handlers_at(7).await.unwrap(), loaded.handlers);
    assert_eq!(handler(&store, "new").await.unwrap(), 8);
    assert_eq!(store.handlers_at(7).await.unwrap(), loaded.handlers);
    assert_eq!(store.handler_history().await.unwrap().len(), 2);
}

#[tokio::test]
async fn who_joined_by_an_earlier_schema_has_no_known_key() {
    let database = Sqlite::new();
    let store = database.open().await;
    let token = JoinToken {
        id: "t".to_owned(),
        secret_sha256: vec![1; 32],
        kind: "proxy".to_owned(),
        uses: 1,
        expires_at_ms: unix_ms_now() + 60_000,
        ..Default::default()
    };
    store.put_join_token(token).await.unwrap();
    for statement in [
        "DROP TABLE join_token_uses",
        "CREATE TABLE join_token_uses (
             token TEXT NOT NULL REFERENCES join_tokens (id) ON DELETE CASCADE, node TEXT NOT NULL,
             used_at_ms INTEGER NOT NULL, PRIMARY KEY (token, node)) STRICT, WITHOUT ROWID",
        "INSERT INTO join_token_uses (token, node, used_at_ms) VALUES ('t', 'proxy-1', 1)",
        "DELETE FROM _sqlx_migrations WHERE version > 6",
    ] {
        sqlx::query(statement).execute(&store.writer).await.unwrap();
    }
    store.close().await;
    let store = database.open().await;
    assert_eq!(store.list_join_tokens().await.unwrap()[0].uses_taken, 1);
    let asks = |key_sha256| {
        let [id, kind, node] = ["t", "proxy", "proxy-1"].map(ToOwned::to_owned);
        store.redeem_join_token(RedeemJoinTokenRequest {
            id,
            secret_sha256: vec![1; 32],
            kind,
            node,
            key_sha256,
            ..Default::default()
        })
    };
    assert_eq!(asks(vec![2; 32]).await.unwrap().refusal(), JoinRefusal::UsedUp);
    // A seed of that version says no key.
    assert_eq!(asks(Vec::new()).await.unwrap().refusal(), JoinRefusal::None);
}

/// A file with some content, closed.
async fn filled() -> Sqlite {
    let database = Sqlite::new();
    let store = database.open().await;
    for n in 0..500 {
        let member =
            protoplex_wire::proto::Member { id: n.to_string(), pool: "x".repeat(500), ..Default::default() };
        store.put_member(PutMemberRequest { member: Some(member), revision: 1, term: 0 }).await.unwrap();
    }
    store.close().await;
    database
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    const PAGE: u64 = 4096;
    type Damage = fn(&File);
    let damages: [(&str, Damage); 4] = [
        ("no database", |file| file.write_all_at(b"this is not a database at all", 0).unwrap()),
        ("a broken page", |file| file.write_all_at(&[0xff; PAGE as usize], 40 * PAGE).unwrap()),
        ("an empty page", |file| file.write_all_at(&[0; PAGE as usize], 40 * PAGE).unwrap()),
        ("cut short", |file| file.set_len(file.metadata().unwrap().len() / 2).unwrap()),
    ];
    for (what, damage) in damages {
        let database = filled().await;
        damage(&fs::OpenOptions::new().write(true).open(database.file()).unwrap());
        let before = fs::read(database.file()).unwrap();
        let error = database.refusal().await;
        assert!(matches!(error, OpenError::Damaged { .. }), "{what}: {error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&database.file().display().to_string()), "{text}");
        assert!(text.contains("restore a backup") && text.contains(".recover"), "{text}");
        assert!(fs::read(database.file()).unwrap() == before, "{what}: nothing was changed");
    }
}

#[tokio::test]
async fn a_folder_that_is_none_is_refused() {
    let database = Sqlite::new();
    fs::write(database.0.path().join("datastore"), "a file").unwrap();
    let error = database.refusal().await;
    assert!(matches!(error, OpenError::File { .. }), "{error:?}");
    assert!(error.to_string().contains("protoplex.db: "), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() {
    let database = Sqlite::new();
    let store = database.open().await;
    handler(&store, "before").await.unwrap();
    let limit = async |pages: &'static str| {
        sqlx::query(pages).fetch_one(&store.writer).await.unwrap();
    };
    limit("PRAGMA max_page_count = 1").await;
    let mut written = 0;
    let error = loop {
        match handler(&store, &format!("{written}{}", "x".repeat(1_000))).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full), "{error:?}");
    limit("PRAGMA max_page_count = 1000000").await;
    assert_eq!(handlers(&store).await.len(), written + 1);
    handler(&store, "after").await.unwrap();
}

/// A seed that asks who leads must be told so on a full disk as well, and nobody may lead on after that answer.
#[tokio::test]
async fn a_lease_is_seen_to_end_on_a_full_disk() {
    let database = Sqlite::new();
    let store = database.open().await;
    let take = async |ttl_ms, term| {
        let holder = "seed-1".to_owned();
        let request = TakeLeaseRequest { name: "seed".to_owned(), holder, ttl_ms, term };
        store.take_lease(request).await
    };
    assert!(take(50, 0).await.unwrap().granted);
    for statement in [
        "CREATE TABLE filler (bytes BLOB)",
        "CREATE TRIGGER fill BEFORE INSERT ON leases BEGIN INSERT INTO filler VALUES (zeroblob(1000000)); END",
    ] {
        sqlx::query(statement).execute(&store.writer).await.unwrap();
    }
    sqlx::query("PRAGMA max_page_count = 1").fetch_one(&store.writer).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let taken = take(50, 0).await;
    assert!(matches!(taken, Err(StoreError::Full)), "the next term can't be kept: {taken:?}");
    let seen = store.peek_lease("seed").await.unwrap();
    assert_eq!((seen.held, seen.term), (false, 1));
    assert!(!take(50, 1).await.unwrap().granted, "it was seen to have ended");
}

#[tokio::test]
async fn an_abandoned_reservation_is_given_back_after_a_week() {
    let database = Sqlite::new();
    let store = database.open().await;
    let terms = CreateTokenRequest {
        host: "*".to_owned(),
        path_prefix: "/".to_owned(),
        max_bytes: 10,
        quota_bytes: 10,
        uses: 1,
        ..Default::default()
    };
    let token = store.create_token(terms).await.unwrap().token;
    let request = |upload: &str| BeginUploadRequest {
        token: token.clone(),
        host: "example.com".to_owned(),
        path: "/a".to_owned(),
        size: None,
        upload: upload.to_owned(),
        watch: String::new(),
    };
    let now = unix_ms_now();
    let begin = async |upload: &str, now_ms| uploads::begin(&store, &request(upload), now_ms).await.unwrap();
    assert_eq!(begin("u1", now).await.max_bytes, 10);
    assert_eq!(begin("u2", now + UPLOAD_LIFE_MS).await.refusal(), TokenRefusal::UsedUp);
    assert_eq!(begin("u2", now + UPLOAD_LIFE_MS + 1).await.max_bytes, 10);
    let late = uploads::abort(&store, "u1", now + UPLOAD_LIFE_MS + 2).await;
    assert!(late.is_ok(), "a late abort gives nothing back twice: {late:?}");
    assert_eq!(begin("u3", now + UPLOAD_LIFE_MS + 3).await.refusal(), TokenRefusal::UsedUp);
}

#[tokio::test]
async fn a_page_of_one_host_needs_no_sorting() {
    let database = Sqlite::new();
    let store = database.open().await;
    let request = ListFilesRequest {
        host: "example.com".to_owned(),
        prefix: "/files/".to_owned(),
        after: "example.com/files/a".to_owned(),
        ..Default::default()
    };
    let page = files::page(&request, 10).unwrap();
    let explained = format!("EXPLAIN QUERY PLAN {}", page.sql().as_str());
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(explained))
        .bind("/files/")
        .bind("/files/")
        .bind("example.com")
        .bind("/files/")
        .bind("example.com")
        .bind("/files/a")
        .bind(10)
        .fetch_all(&store.readers)
        .await
        .unwrap();
    let plan: Vec<_> = plan.into_iter().map(|(_, _, _, step)| step).collect();
    assert!(plan[0].contains("SEARCH sites USING PRIMARY KEY (host=?"), "{plan:?}");
    assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
}
