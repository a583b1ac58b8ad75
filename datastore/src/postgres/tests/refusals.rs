//! Databases that can't be used, each with its answer; and the way from an empty one to the present schema.

use protoplex_testkit::postgres::{PASSWORD, USER};
use protoplex_wire::proto::{JoinRefusal, RedeemJoinTokenRequest};

use super::*;

async fn refusal(url: &str) -> OpenError {
    let error = PgStore::open(&Target::parse(url, None).unwrap()).await.unwrap_err();
    assert!(!error.is_away(), "nothing to wait for: {error:?}");
    assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    error
}

fn assert_says(error: &OpenError, parts: &[&str]) {
    let text = error.to_string();
    assert!(text.starts_with("postgres://protoplex@127.0.0.1:"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text}: no {part:?}");
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let database = Postgres::new();
    database.open().await.close().await;
    database.run(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', true, '\\x00', 0)",
    );
    let error = refusal(&database.url).await;
    assert!(matches!(error, OpenError::Newer { found: 9999, known: 4, .. }), "{error:?}");
    assert_says(&error, &[database.name(), "its schema is version 9999", "Start the newer version"]);
    assert_eq!(database.run("SELECT count(*) FROM _sqlx_migrations"), "5", "nothing was changed");
    // Whoever was refused holds no lock.
    database.run("DELETE FROM _sqlx_migrations WHERE version = 9999");
    handler(&*database.open().await, "a").await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let database = Postgres::new();
    let wrong = database.url.replace(&PASSWORD.replace(' ', "%20"), "hush");
    let error = refusal(&wrong).await;
    assert!(matches!(error, OpenError::Refused { .. }), "{error:?}");
    assert_says(&error, &["password authentication failed for user", "PROTOPLEX_DATASTORE__PASSWORD"]);
    assert!(!error.to_string().contains("hush"));
    // The one that is given apart counts.
    PgStore::open(&Target::parse(&wrong, Some(PASSWORD)).unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_missing_is_refused() {
    let error = refusal(&Server::shared().url("nowhere")).await;
    assert!(matches!(error, OpenError::Missing { .. }), "{error:?}");
    assert_says(&error, &["database \"nowhere\" does not exist", "CREATE DATABASE"]);
}

#[tokio::test]
async fn a_database_of_another_owner_is_refused() {
    let database = Postgres::new();
    database.run(&format!("ALTER DATABASE {} OWNER TO postgres", database.name()));
    let error = refusal(&database.url).await;
    assert!(matches!(error, OpenError::Denied { .. }), "{error:?}");
    assert_says(&error, &["permission denied", "ALTER DATABASE"]);
}

#[tokio::test]
async fn an_encoding_that_lacks_letters_is_refused() {
    let server = Server::shared();
    let url = server.database_with("ENCODING 'LATIN1' TEMPLATE template0");
    let error = refusal(&url).await;
    assert!(matches!(error, OpenError::Encoding { .. }), "{error:?}");
    assert_says(&error, &["its encoding is LATIN1", "ENCODING 'UTF8'"]);
}

#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    let database = Postgres::new();
    database.run(&format!("CREATE TABLE builds (mine INTEGER); ALTER TABLE builds OWNER TO {USER}"));
    let error = refusal(&database.url).await;
    assert!(matches!(error, OpenError::Migration { .. }), "{error:?}");
    assert_says(&error, &["the schema could not be upgraded", "\"builds\" already exists"]);
    assert_eq!(database.run("SELECT to_regclass('files') IS NULL"), "t");
    database.run("DROP TABLE builds");
    handler(&*database.open().await, "a").await.unwrap();
}

#[tokio::test]
async fn who_joined_by_an_earlier_schema_has_no_known_key() {
    let database = Postgres::new();
    database.open().await.close().await;
    database.run(
        "DELETE FROM _sqlx_migrations WHERE version > 3;
         ALTER TABLE join_token_uses DROP CONSTRAINT join_token_uses_pkey, DROP COLUMN key_sha256,
             ADD PRIMARY KEY (token, node);
         INSERT INTO join_tokens (id, secret_sha256, kind, pools, uses, expires_at_ms, created_at_ms, created_by)
             VALUES ('t', decode(repeat('01', 32), 'hex'), 'proxy', '', 1, 9000000000000, 1, 'ann');
         INSERT INTO join_token_uses (token, node, used_at_ms) VALUES ('t', 'proxy-1', 1)",
    );
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datastores_that_start_together_make_one_schema() {
    let database = Postgres::new();
    let stores = futures_util::future::join_all((0..6).map(|_| database.open())).await;
    for (n, store) in stores.iter().enumerate() {
        handler(store, &format!("h{n}")).await.unwrap();
    }
    assert_eq!(handlers(&stores[0]).await.len(), 6);
    assert_eq!(database.run("SELECT version FROM _sqlx_migrations"), "1\n2\n3\n4");
}
