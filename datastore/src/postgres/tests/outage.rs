//! A server that is away at the start, goes away later, or dies in the middle of writes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;

/// Until the store knows that the server is away, at most 30 s; why.
async fn gone(store: &PgStore) -> String {
    let mut away = store.away();
    let gone = away.wait_for(Option::is_some);
    timeout(Duration::from_secs(30), gone).await.expect("it is noticed").unwrap().clone().unwrap()
}

/// Until the store answers again, at most 30 s.
async fn back(store: &PgStore) {
    let mut away = store.away();
    let there = away.wait_for(Option::is_none);
    timeout(Duration::from_secs(30), there).await.expect("it comes back by itself").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_writes_loses_nothing_acknowledged() {
    const WRITERS: u32 = 8;
    let database = Postgres::alone();
    let store = database.open().await;
    let token = token(&store, |_| {}).await;
    let count = Arc::new(AtomicU32::new(0));
    // Each writes until it is refused; then it tells what was acknowledged.
    let writer = |number: u32| {
        let (store, token, count) = (Arc::clone(&store), token.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            let mut done = Vec::new();
            for n in 0.. {
                let begun = upload(&format!("u{number}-{n}"), &token, Some(5));
                let content = number * 1_000_000 + n;
                let outcome = match store.begin_upload(begun.clone()).await {
                    Ok(_) => store.complete_upload(completion(&begun, content, 5)).await.map(drop),
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(()) => {
                        done.push(begun.path);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => return (done, error),
                }
            }
            unreachable!("it ends with an error")
        })
    };
    for round in 0..3 {
        let writers: Vec<_> = (0..WRITERS).map(|n| writer(round * WRITERS + n)).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        while count.swap(0, Ordering::Relaxed) < WRITERS {
            assert!(Instant::now() < deadline, "nobody writes");
            sleep(Duration::from_millis(50)).await;
        }
        database.server.kill();
        let written = future::join_all(writers).await.into_iter().map(Result::unwrap);
        let mut acknowledged = Vec::new();
        for (done, error) in written {
            assert!(matches!(error, StoreError::Away(_) | StoreError::Busy), "{error:?}");
            acknowledged.extend(done);
        }
        assert!(!acknowledged.is_empty(), "something was written before");
        gone(&store).await;
        database.server.resume();
        back(&store).await;
        for path in acknowledged {
            assert!(store.find_site("example.com", &path).await.unwrap().is_some(), "{path} is lost");
        }
    }
    // What a token has taken is what its uploads have: no transaction was made by half.
    let kept = database.run("SELECT uses_taken, bytes_taken FROM tokens");
    let summed = database.run("SELECT count(*), sum(reserved_bytes) FROM uploads WHERE state <> 'aborted'");
    assert_eq!(kept, summed);
}

#[tokio::test]
async fn calls_are_refused_at_once_while_it_is_away_and_answered_when_it_is_back() {
    let database = Postgres::alone();
    let store = database.open().await;
    handler(&store, "before").await.unwrap();
    assert!(store.take_lease(lease("a", 0)).await.unwrap().granted);
    database.server.kill();
    let reason = gone(&store).await;
    assert!(reason.contains("refused"), "{reason}");
    let asked = Instant::now();
    for _ in 0..100 {
        let error = handler(&store, "meanwhile").await.unwrap_err();
        assert!(matches!(error, StoreError::Away(_)), "{error:?}");
        assert!(error.to_string().starts_with("the database is away: "), "{error}");
    }
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for it");
    database.server.resume();
    back(&store).await;
    assert_eq!(handlers(&store).await, ["before"]);
    assert!(store.take_lease(lease("a", 1)).await.unwrap().granted, "its holder goes on");
}

fn lease(holder: &str, term: u64) -> TakeLeaseRequest {
    TakeLeaseRequest { name: "seed".to_owned(), holder: holder.to_owned(), ttl_ms: 60_000, term }
}

/// Passes on what comes to a port of its own, while it is open: closed, it swallows what a network that is cut does.
async fn door(server: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = watch::Sender::new(true);
    let opened = open.subscribe();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(pass_on(from_client, to_server, opened.clone()));
            tokio::spawn(pass_on(from_server, to_client, opened.clone()));
        }
    });
    (port, open)
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_is_noticed_and_passes() {
    let database = Postgres::new();
    let port = database.server.port();
    let (through, open) = door(port).await;
    let url = database.url.replace(&format!(":{port}/"), &format!(":{through}/"));
    let store = PgStore::open(&Target::parse(&url, None).unwrap()).await.unwrap();
    handler(&store, "before").await.unwrap();
    open.send_replace(false);
    let asked = Instant::now();
    let error = handler(&store, "meanwhile").await.unwrap_err();
    assert!(matches!(error, StoreError::Away(_) | StoreError::Busy), "{error:?}");
    assert!(asked.elapsed() < CALL_TIMEOUT * 2, "it has an end");
    assert!(gone(&store).await.ends_with(" within 5 s"), "of an answer, or of a connection");
    assert!(matches!(handler(&store, "meanwhile").await, Err(StoreError::Away(_))));
    open.send_replace(true);
    back(&store).await;
    // The call that was cut may have been made.
    let names = handlers(&store).await;
    assert!(names == ["before"] || names == ["before", "meanwhile"], "{names:?}");
    handler(&store, "after").await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_ended_costs_one_call_at_most() {
    let database = Postgres::new();
    let store = database.open().await;
    for n in 0..5 {
        handler(&store, &format!("h{n}")).await.unwrap();
        // Waits until they have ended.
        database.run(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
             WHERE usename = 'protoplex' AND datname = current_database()",
        );
        // An idle connection is tried before it is used.
        handler(&store, &format!("i{n}")).await.unwrap();
    }
    assert!(store.away().borrow().is_none());
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let database = Postgres::alone();
    database.server.kill();
    let error = PgStore::open(&database.target()).await.unwrap_err();
    assert!(error.is_away(), "{error:?}");
    assert!(error.to_string().starts_with("postgres://protoplex@127.0.0.1:"), "{error}");
    let target = database.target();
    let mut opening = tokio::spawn(async move { PgStore::open_patiently(&target, |_| {}).await });
    assert!(timeout(reach::RETRY_EVERY * 2, &mut opening).await.is_err(), "it goes on trying");
    database.server.resume();
    let store = timeout(Duration::from_secs(30), opening).await.unwrap().unwrap().unwrap();
    handler(&store, "a").await.unwrap();
}
