//! Real SQLite files and a real PostgreSQL server, filled by the calls that fill them.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::stream;
use protoplex_testkit::postgres::Server;
use protoplex_wire::proto::{
    AppendEventsRequest, Asset, ChangeHandlersRequest, DeadEvent, FindSiteReply, Handler, JoinToken,
    ListFilesRequest, Member, NewEvent, PostponeEventsRequest, PutMemberRequest, PutSubscriptionRequest,
    ReadEventsRequest, RedeemJoinTokenRequest, Revocation, RevokeJoinTokenRequest, TakeLeaseRequest,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use super::flow::{BATCH_BYTES, BATCH_ROWS};
use super::tables::TABLES;
use super::*;
use crate::event_log::EventLog;
use crate::postgres::PgStore;
use crate::sqlite::SqliteStore;
use crate::store::Store;
use crate::store::contract::{begun, content, put};

/// Places for databases, none of which is there yet.
struct Bench {
    folder: TempDir,
    server: Arc<Server>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: Server::shared() }
    }

    fn file(&self, name: &str) -> Database {
        Database::File(self.folder.path().join(name).join("protoplex.db"))
    }

    fn database(&self) -> Database {
        Database::server(Target::parse(&self.server.database(), None).unwrap())
    }
}

async fn sqlite(database: &Database) -> SqliteStore {
    let Database::File(file) = database else { panic!("{database} is no file") };
    SqliteStore::open(file).await.unwrap()
}

async fn postgres(database: &Database) -> PgStore {
    let Database::Server(target) = database else { panic!("{database} is no server's") };
    PgStore::open(target).await.unwrap()
}

fn asset(path: &str, bytes: &[u8]) -> StoreAsset {
    Ok(Asset {
        path: path.to_owned(),
        content_type: "text/html".to_owned(),
        identity: bytes.to_owned(),
        gzip: vec![31, 139, 0],
        brotli: Vec::new(),
    })
}

type StoreAsset = crate::store::StoreResult<Asset>;

fn handler(name: &str, path: &str) -> Handler {
    Handler { name: name.to_owned(), path: path.to_owned(), placement: 2, ..Default::default() }
}

/// At least one row in each table, two of most, and all that is awkward in them.
async fn fill(store: &(impl Store + EventLog)) {
    let long = format!("/files/{}", "ä".repeat(1500));
    for (letter, path) in [('a', "/files/a"), ('b', "/files/b \"' \u{1f600}"), ('c', &long)] {
        put(store, path, content(letter, 10)).await;
    }
    store.mark_stored(&"a".repeat(128)).await.unwrap();
    begun(store, "/files/open", 7).await;
    store.abort_upload("never-began").await.unwrap();
    let change = |base, put, remove| ChangeHandlersRequest {
        base,
        put,
        remove,
        operator: "ann".to_owned(),
        what: "a test".to_owned(),
        term: 0,
    };
    let three = vec![handler("x", "/x"), handler("y", "/y"), handler("z", "/z/{*rest}")];
    store.change_handlers(change(1, three, Vec::new())).await.unwrap();
    let disabled = Handler { disabled: true, ..handler("y", "/y/{key}") };
    store.change_handlers(change(2, vec![disabled], vec!["x".to_owned()])).await.unwrap();
    for build in 0..5_u8 {
        let assets = vec![asset("/index.html", &[build; 3000]), asset("/ü", &[0, 255, 10, 13])];
        store.put_build("*.example.com", 0, stream::iter(assets)).await.unwrap();
    }
    let token = JoinToken {
        id: "t".to_owned(),
        secret_sha256: vec![7; 32],
        kind: "backend".to_owned(),
        pools: vec!["rooms".to_owned(), "chat".to_owned()],
        uses: 3,
        expires_at_ms: i64::MAX,
        created_by: "ann".to_owned(),
        ..JoinToken::default()
    };
    store.put_join_token(token.clone()).await.unwrap();
    store.revoke_join_token(RevokeJoinTokenRequest { id: "t".to_owned(), term: 0 }).await.unwrap();
    let spare = JoinToken { id: "u".to_owned(), kind: "proxy".to_owned(), pools: Vec::new(), ..token };
    store.put_join_token(spare).await.unwrap();
    for (node, key_sha256) in [("proxy-7", vec![255; 32]), ("of-an-earlier-version", Vec::new())] {
        let joins = RedeemJoinTokenRequest {
            id: "u".to_owned(),
            secret_sha256: vec![7; 32],
            kind: "proxy".to_owned(),
            node: node.to_owned(),
            key_sha256,
            ..Default::default()
        };
        assert_eq!(store.redeem_join_token(joins).await.unwrap().kind, "proxy");
    }
    let gone = Revocation {
        name: "live-9".to_owned(),
        revoked: true,
        operator: "ann".to_owned(),
        ..Revocation::default()
    };
    store.change_revocation(gone).await.unwrap();
    let member = Member {
        id: "live-1:0".to_owned(),
        pool: "live".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        zone: "a".to_owned(),
        instance: "i".to_owned(),
    };
    store.put_member(PutMemberRequest { member: Some(member), revision: 1 << 40, term: 0 }).await.unwrap();
    let term = lease(store, "one").await;
    let event = |n: u8| NewEvent { key: vec![n; 32], event: vec![0, n, 255] };
    let events = vec![event(1), event(2), event(3)];
    store.append_events(AppendEventsRequest { term, events }).await.unwrap();
    let later = PostponeEventsRequest { events: vec![event(4)], delay_ms: 3_600_000 };
    store.postpone_events(later).await.unwrap();
    let patterns = vec!["a.*".to_owned(), "#".to_owned()];
    let kept = PutSubscriptionRequest { name: "s".to_owned(), patterns, after: Some(1) };
    store.put_subscription(kept).await.unwrap();
    let dead = DeadEvent { subscription: "s".to_owned(), position: 1, attempts: 3, ..Default::default() };
    store.bury_event(dead).await.unwrap();
}

/// Takes the lease anew; answers the term.
async fn lease(store: &impl Store, holder: &str) -> u64 {
    let request = TakeLeaseRequest {
        name: "seed".to_owned(),
        holder: holder.to_owned(),
        ttl_ms: 60_000,
        ..Default::default()
    };
    let taken = store.take_lease(request).await.unwrap();
    assert!(taken.granted);
    taken.term
}

/// An archive, without its head.
async fn rows(database: &Database) -> String {
    let mut out = Vec::new();
    export(database, &mut out, || {}).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    text.split_once('\n').unwrap().1.to_owned()
}

async fn import_text(database: &Database, text: &str, replace: bool) -> Result<Summary, ArchiveError> {
    import(database, text.as_bytes(), replace, || {}).await
}

/// An archive that was taken at this moment of Unix time.
fn archive(rows: &str, taken_at_ms: i64) -> String {
    let head = Head { protoplex_datastore: FORMAT, version: String::new(), from: String::new(), taken_at_ms };
    String::from_utf8(lines::head(&head)).unwrap() + rows
}

/// Columns of all tables as they really are, without those that a database makes itself.
async fn columns(database: &Database) -> BTreeSet<(String, String)> {
    let pairs: Vec<(String, String)> = match database {
        Database::File(file) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
            let query = sqlx::query_as(
                "SELECT tables.name, columns.name FROM sqlite_master AS tables
                 JOIN pragma_table_info(tables.name) AS columns
                 WHERE tables.type = 'table' AND tables.name NOT IN ('sqlite_sequence', '_sqlx_migrations')",
            );
            query.fetch_all(&mut options.connect().await.unwrap()).await.unwrap()
        }
        Database::Server(target) => {
            let query = sqlx::query_as(
                "SELECT table_name::text, column_name::text FROM information_schema.columns
                 WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'
                   AND column_name NOT IN ('path_sha256', 'renewals')",
            );
            let mut connection = target.connect().await.unwrap();
            let pairs = query.fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            pairs
        }
    };
    pairs.into_iter().collect()
}

#[tokio::test]
async fn every_column_of_every_table_is_archived() {
    let bench = Bench::new();
    let told: BTreeSet<_> = TABLES
        .iter()
        .flat_map(|table| table.columns.iter().map(|column| (table.name.to_owned(), column.name.to_owned())))
        .collect();
    for database in [bench.file("a"), bench.database()] {
        let [before, after] = upgrade(&database).await.unwrap();
        assert!(before == 0 && after > 0);
        assert_eq!(columns(&database).await, told, "{database}");
    }
}

#[tokio::test]
async fn a_cluster_moves_to_postgresql_and_back_without_loss() {
    let bench = Bench::new();
    let (first, second, third) = (bench.file("a"), bench.database(), bench.file("b"));
    let store = sqlite(&first).await;
    fill(&store).await;
    let term = lease(&store, "one").await;
    let history = store.handler_history().await.unwrap();
    assert_eq!(history.len(), 3);
    let secret = begun(&store, "/files/later", 1).await.token;
    store.close().await;
    drop(store);

    let taken = rows(&first).await;
    for table in TABLES {
        assert!(taken.contains(&format!("{{\"{}\":{{", table.name)), "a row of {}", table.name);
    }
    let moved = migrate(&first, &second, false, || {}).await.unwrap();
    assert_eq!(rows(&second).await, taken);
    assert!(matches!(migrate(&second, &second, true, || {}).await, Err(ArchiveError::Same(_))));

    // What works there: the history, a token, counters that go on, leases in later terms.
    let store = postgres(&second).await;
    assert_eq!(store.handler_history().await.unwrap(), history);
    assert_eq!(store.handlers_at(2).await.unwrap().len(), 3);
    let again = protoplex_wire::proto::BeginUploadRequest {
        token: secret,
        host: "example.com".to_owned(),
        path: "/files/after".to_owned(),
        size: Some(1),
        upload: "after".to_owned(),
        watch: String::new(),
    };
    assert_eq!(store.begin_upload(again).await.unwrap().refusal, 0);
    let site = store.find_site("example.com", "/files/b \"' \u{1f600}").await.unwrap();
    assert!(FindSiteReply { site }.site.is_some(), "found by its digest");
    let build = store.put_build("*", 0, stream::iter(vec![asset("/", b"6")])).await.unwrap();
    assert_eq!(build.version, 6, "never given before");
    assert_eq!(lease(&store, "one").await, term + 1);
    let log = store.read_events(ReadEventsRequest { after: 1, limit: 10 }).await.unwrap();
    assert_eq!(log.events.iter().map(|event| event.position).collect::<Vec<_>>(), [2, 3]);
    let event = NewEvent { key: vec![9; 32], event: b"9".to_vec() };
    let next = AppendEventsRequest { term: term + 1, events: vec![event] };
    assert_eq!(store.append_events(next).await.unwrap().positions, [4]);
    let listed = store.list_files(ListFilesRequest { limit: 10, ..Default::default() }).await.unwrap();
    assert_eq!(listed.sites.len(), 3);
    store.close().await;

    let back = migrate(&second, &third, false, || {}).await.unwrap();
    assert!(back.iter().map(|sum| sum.rows).sum::<u64>() > moved.iter().map(|sum| sum.rows).sum());
    reopen(&second).await.unwrap();
    // Terms and counters of the one that is opened again go on behind those of the other.
    let plain = async |database: &Database| {
        let text = rows(database).await;
        let goes_on =
            |line: &&str| ["{\"leases\"", "{\"counter\"", "{\"end\""].iter().any(|tag| line.starts_with(tag));
        text.lines().filter(|line| !goes_on(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(plain(&third).await, plain(&second).await);
    let store = sqlite(&third).await;
    let build = store.put_build("*", 0, stream::iter(vec![asset("/", b"7")])).await.unwrap();
    assert_eq!(build.version, 7);
    assert_eq!(lease(&store, "one").await, term + 2);
}

#[tokio::test]
async fn what_was_moved_away_is_opened_by_nobody_until_it_is_reopened() {
    let bench = Bench::new();
    let (file, database, other) = (bench.file("a"), bench.database(), bench.file("b"));
    fill(&sqlite(&file).await).await;
    migrate(&file, &database, false, || {}).await.unwrap();
    let Database::File(path) = &file else { unreachable!() };
    let refusal = SqliteStore::open(path).await.unwrap_err().to_string();
    assert!(refusal.contains(&format!("moved to {database}")) && refusal.contains("--undo"), "{refusal}");
    let refusal = export(&file, &mut Vec::new(), || {}).await.unwrap_err().to_string();
    assert!(refusal.contains("moved to"), "{refusal}");
    assert_eq!(reopen(&file).await.unwrap(), Some(database.to_string()));
    assert_eq!(reopen(&file).await.unwrap(), None);
    assert_eq!(sqlite(&file).await.handler_history().await.unwrap().len(), 3);

    // Back again: the first one is there no more where it is only in the way.
    migrate(&file, &other, false, || {}).await.unwrap();
    let refusal = migrate(&database, &file, false, || {}).await.unwrap_err().to_string();
    assert!(refusal.contains("was moved to"), "{refusal}");
    migrate(&database, &file, true, || {}).await.unwrap();
    sqlite(&file).await.close().await;
    assert_eq!(reopen(&database).await.unwrap(), Some(file.to_string()));

    migrate(&database, &other, true, || {}).await.unwrap();
    let Database::Server(target) = &database else { unreachable!() };
    let refusal = PgStore::open(target).await.unwrap_err().to_string();
    assert!(refusal.contains(&format!("moved to {other}")), "{refusal}");
    assert_eq!(reopen(&database).await.unwrap(), Some(other.to_string()));
    postgres(&database).await.close().await;
}

#[tokio::test]
async fn no_term_is_given_twice_where_a_move_is_undone() {
    let bench = Bench::new();
    let (file, database, other) = (bench.file("a"), bench.database(), bench.file("b"));
    lease(&sqlite(&file).await, "one").await;
    migrate(&file, &database, false, || {}).await.unwrap();
    let store = postgres(&database).await;
    let mut last = 0;
    for _ in 0..3 {
        last = lease(&store, "one").await;
    }
    store.close().await;
    reopen(&file).await.unwrap();
    let store = sqlite(&file).await;
    assert!(lease(&store, "one").await > last);
    store.close().await;

    migrate(&database, &other, false, || {}).await.unwrap();
    let store = sqlite(&other).await;
    for _ in 0..3 {
        last = lease(&store, "one").await;
    }
    store.close().await;
    reopen(&database).await.unwrap();
    let store = postgres(&database).await;
    assert!(lease(&store, "one").await > last);
    store.close().await;
}

#[tokio::test]
async fn row_a_database_that_is_not_there_is_said_and_not_made() {
    let bench = Bench::new();
    for nothing in [bench.file("nothing"), bench.database()] {
        let said = [
            export(&nothing, &mut Vec::new(), || {}).await.unwrap_err().to_string(),
            migrate(&nothing, &bench.file("b"), false, || {}).await.unwrap_err().to_string(),
            reopen(&nothing).await.unwrap_err().to_string(),
        ];
        assert!(said.iter().all(|said| said.contains("there is no database at")), "{said:?}");
    }
    assert_eq!(std::fs::read_dir(bench.folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn row_a_database_of_a_newer_schema_is_left_to_the_newer_version() {
    let bench = Bench::new();
    let (file, database) = (bench.file("a"), bench.database());
    let columns = "_sqlx_migrations (version, description, success, checksum, execution_time)";
    for newer in [&file, &database] {
        upgrade(newer).await.unwrap();
        let insert =
            |zero: &str| format!("INSERT INTO {columns} VALUES (9999, 'from the future', true, {zero}, 0)");
        match newer {
            Database::File(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
                let mut connection = options.connect().await.unwrap();
                sqlx::query(AssertSqlSafe(insert("x'00'"))).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Database::Server(target) => {
                let mut connection = target.connect().await.unwrap();
                sqlx::query(AssertSqlSafe(insert("'\\x00'"))).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
        let said = [
            export(newer, &mut Vec::new(), || {}).await.unwrap_err().to_string(),
            migrate(newer, &bench.file("b"), false, || {}).await.unwrap_err().to_string(),
            import_text(newer, &archive("", 0), true).await.unwrap_err().to_string(),
            upgrade(newer).await.unwrap_err().to_string(),
        ];
        let right = |said: &String| {
            said.contains("its schema is version 9999") && said.contains("Start the newer version")
        };
        assert!(said.iter().all(right), "{said:#?}");
    }
}

#[tokio::test]
async fn row_a_database_in_use_is_exported_but_not_moved() {
    let bench = Bench::new();
    let (file, database) = (bench.file("a"), bench.database());
    let (one, other) = (sqlite(&file).await, postgres(&database).await);
    fill(&one).await;
    fill(&other).await;
    // The watcher takes its part of the database right after the start.
    crate::store::contract::until("it is in use", async || {
        matches!(import_text(&database, &archive("", 0), true).await, Err(ArchiveError::InUse(_)))
            .then_some(())
    })
    .await;
    for (from, to) in [(&file, bench.file("b")), (&database, bench.file("c"))] {
        let taken = rows(from).await;
        assert!(taken.contains("\"end\""));
        let moved = migrate(from, &to, false, || {}).await;
        assert!(matches!(moved, Err(ArchiveError::InUse(_))), "{moved:?}");
        let replaced = import_text(from, &archive(&taken, 0), true).await;
        assert!(matches!(replaced, Err(ArchiveError::InUse(_))), "{replaced:?}");
    }
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn a_datastore_waits_while_its_database_is_replaced() {
    let bench = Bench::new();
    let database = bench.database();
    let Database::Server(target) = &database else { unreachable!() };
    let alone = PgArchive::alone(target, false).await.unwrap();
    let store = postgres(&database).await;
    let mut away = store.away();
    let reason = away.wait_for(Option::is_some).await.unwrap().clone();
    assert!(reason.unwrap().contains("is being moved, or replaced"));
    drop(alone);
    away.wait_for(Option::is_none).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn row_an_archive_that_is_not_whole_changes_nothing() {
    let bench = Bench::new();
    let source = bench.file("a");
    fill(&sqlite(&source).await).await;
    let good = archive(&rows(&source).await, unix_ms_now());
    let cut = |text: &str| text[..text.len() / 2].rsplit_once('\n').unwrap().0.to_owned() + "\n";
    let without_end = good[..good.rfind("{\"end\"").unwrap()].to_owned();
    let term = |term: &str| {
        let (before, after) = good.split_once("{\"leases\":").unwrap();
        let (row, rest) = after.split_once("\"term\":").unwrap();
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{before}{{\"leases\":{row}\"term\":{term}{rest}")
    };
    let table = [
        (term("4000"), "table leases is not what was taken"),
        (term("9223372036854775807"), "a term is at most 16777215"),
        (good.replacen("\"protoplex_datastore\":1", "\"protoplex_datastore\":0", 1), "there is no format 0"),
        (cut(&good), "cut off"),
        (without_end, "cut off"),
        (good[..good.len() / 2].to_owned(), "cut off"),
        (good[..40].to_owned(), "cut off"),
        (good.replacen("{\"files\"", "{\"files", 1), "this is no JSON"),
        (good.replacen("\"size\":10,", "\"size\":11,", 1), "table files: what has come"),
        (good.replacen("{\"members\":{", "{\"elders\":{", 1), "\"elders\" is no table"),
        (
            good.replacen("\"protoplex_datastore\":1", "\"protoplex_datastore\":2", 1),
            "take the newer version",
        ),
        (String::new(), "no archive of a datastore"),
        ("<html>".to_owned(), "line 1: this is no archive of a datastore"),
    ];
    for place in [bench.file("b"), bench.database()] {
        import_text(&place, &good, false).await.unwrap();
        let before = rows(&place).await;
        for (text, why) in &table {
            let error = import_text(&place, text, true).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert_eq!(rows(&place).await, before);
        }
        let error = import_text(&place, &good, false).await.unwrap_err().to_string();
        assert!(error.contains("3 rows of files") && error.contains("--replace"), "{error}");
        import_text(&place, &good, true).await.unwrap();
    }
}

#[tokio::test]
async fn what_may_have_been_given_since_is_not_given_again() {
    let bench = Bench::new();
    let source = bench.file("a");
    let store = sqlite(&source).await;
    fill(&store).await;
    let term = lease(&store, "one").await;
    let taken = rows(&source).await;
    let a_day_ago = unix_ms_now() - 24 * 3600 * 1000;
    for (name, taken_at_ms, ahead) in [("b", a_day_ago, 1000 + 24 * 60), ("c", i64::MAX, 1000)] {
        let place = bench.file(name);
        import_text(&place, &archive(&taken, taken_at_ms), false).await.unwrap();
        let store = sqlite(&place).await;
        assert_eq!(lease(&store, "one").await, term + ahead + 1);
        let build = store.put_build("*", 0, stream::iter(vec![asset("/", b"")])).await.unwrap();
        assert_eq!(build.version, 5 + ahead + 1);
    }
    // Over one that has come further, whatever the archive says.
    let place = bench.file("d");
    import_text(&place, &archive(&taken, 0), false).await.unwrap();
    let far = lease(&sqlite(&place).await, "one").await;
    import_text(&place, &archive(&taken, unix_ms_now()), true).await.unwrap();
    assert_eq!(lease(&sqlite(&place).await, "one").await, far + 1);
}

#[tokio::test]
async fn an_older_schema_is_not_exported_but_upgraded() {
    let bench = Bench::new();
    let file = bench.file("a");
    let [before, present] = upgrade(&file).await.unwrap();
    assert_eq!(before, 0, "it was not there");
    assert_eq!(upgrade(&file).await.unwrap(), [present; 2]);
    export(&file, Vec::new(), || {}).await.unwrap();
    // As an earlier version would have left it, as far as can be told.
    let Database::File(path) = &file else { unreachable!() };
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let forget = sqlx::query("DELETE FROM _sqlx_migrations WHERE version = ?").bind(present);
    forget.execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let older = export(&file, Vec::new(), || {}).await.unwrap_err().to_string();
    let told = format!("schema is version {}", present - 1);
    assert!(older.contains(&told) && older.contains("datastore migrate"), "{older}");
}

#[tokio::test]
async fn more_rows_than_one_batch_come_whole() {
    let bench = Bench::new();
    let (source, place) = (bench.file("a"), bench.database());
    let store = sqlite(&source).await;
    let handlers = (0..2 * BATCH_ROWS + 1).map(|n| handler(&format!("h{n}"), &format!("/h{n}"))).collect();
    let change = ChangeHandlersRequest { base: 1, put: handlers, ..Default::default() };
    store.change_handlers(change).await.unwrap();
    let big = vec![asset("/a", &vec![7; BATCH_BYTES]), asset("/b", &vec![8; BATCH_BYTES])];
    store.put_build("*", 0, stream::iter(big)).await.unwrap();
    drop(store);
    let passed = std::cell::Cell::new(0);
    let summary = migrate(&source, &place, false, || passed.set(passed.get() + 1)).await.unwrap();
    let rows = summary.iter().map(|sum| sum.rows).sum::<u64>();
    assert!(rows > 2 * BATCH_ROWS as u64);
    assert_eq!(passed.get(), rows + 3, "with two counters and the end");
}

#[tokio::test]
async fn a_move_that_is_cut_off_has_moved_nothing() {
    let bench = Bench::new();
    let (file, database) = (bench.file("a"), bench.database());
    let store = sqlite(&file).await;
    let handlers = (0..3 * BATCH_ROWS).map(|n| handler(&format!("h{n}"), &format!("/h{n}"))).collect();
    store
        .change_handlers(ChangeHandlersRequest { base: 1, put: handlers, ..Default::default() })
        .await
        .unwrap();
    drop(store);
    for (from, to) in [(file.clone(), database.clone()), (database, bench.file("b"))] {
        let passed = std::cell::Cell::new(0);
        let some = async {
            while passed.get() < 2 * BATCH_ROWS {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            moved = migrate(&from, &to, false, || passed.set(passed.get() + 1)) => panic!("{moved:?}"),
            () = some => {}
        }
        // PostgreSQL notices the end of a connection in its own time.
        let moved = crate::store::contract::until("it can be moved", async || {
            migrate(&from, &to, false, || {}).await.ok()
        });
        assert!(moved.await.iter().any(|sum| sum.rows == 3 * BATCH_ROWS as u64));
    }
}
