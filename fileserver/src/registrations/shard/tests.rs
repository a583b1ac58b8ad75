use std::future::Future;

use tokio::io::{DuplexStream, Lines, ReadHalf, WriteHalf, duplex, split};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// Live's end of a connection.
struct Peer {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    stream: WriteHalf<DuplexStream>,
}

impl Peer {
    async fn hears(&mut self, line: &str) {
        assert_eq!(timeout(DEADLINE, self.lines.next_line()).await.unwrap().unwrap().unwrap(), line);
    }

    async fn says(&mut self, lines: &str) {
        self.stream.write_all(lines.as_bytes()).await.unwrap();
    }
}

fn connect(shard: &Rc<Shard>) -> Peer {
    let (ours, theirs) = duplex(64 * 1024);
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        let _ = shard.attend(ours).await;
        shard.lose();
    });
    let (reader, stream) = split(theirs);
    Peer { lines: BufReader::new(reader).lines(), stream }
}

fn waiting(asked: Asked) -> oneshot::Receiver<Registration> {
    match asked {
        Asked::Waiting { answer, .. } => answer,
        _ => panic!("no answer is on its way"),
    }
}

async fn registered(shard: &Shard, peer: &mut Peer, name: &str) -> Registration {
    let answer = waiting(shard.register(name));
    peer.hears(&format!(r#"{{"register":"{name}"}}"#)).await;
    peer.says(&format!("{{\"registered\":\"{name}\"}}\n")).await;
    timeout(DEADLINE, answer).await.unwrap().unwrap()
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_registration_stands_until_it_is_invalidated_and_the_next_one_stands_again() {
    local(async {
        let shard = Rc::<Shard>::default();
        let first = shard.register("file:a");
        assert!(matches!(first, Asked::Waiting { unconnected: true, .. }));
        assert!(matches!(shard.register("file:a"), Asked::Waiting { unconnected: false, .. }));
        let mut peer = connect(&shard);
        peer.hears(r#"{"register":"file:a"}"#).await;
        peer.says("{\"registered\":\"file:a\"}\n").await;
        let registration = waiting(first).await.unwrap();
        assert!(registration.stands());
        peer.says("{\"invalidate\":\"file:a\",\"id\":7}\n").await;
        peer.hears(r#"{"ack":7}"#).await;
        assert_eq!(registration.promise(), Promise::Invalidated);
        let Asked::Standing(again) = shard.register("file:a") else { panic!("live keeps the registration") };
        assert!(again.stands());
    });
}

#[test]
fn an_invalidation_right_behind_a_registration_ends_it_before_anyone_wakes() {
    local(async {
        let shard = Rc::<Shard>::default();
        let answer = waiting(shard.register("file:a"));
        let mut peer = connect(&shard);
        peer.hears(r#"{"register":"file:a"}"#).await;
        peer.says("{\"registered\":\"file:a\"}\n{\"invalidate\":\"file:a\",\"id\":1}\n").await;
        peer.hears(r#"{"ack":1}"#).await;
        assert!(!answer.await.unwrap().stands());
    });
}

#[test]
fn a_lost_connection_ends_all_that_stands_and_all_that_waits() {
    local(async {
        let shard = Rc::<Shard>::default();
        let waits = waiting(shard.register("file:a"));
        let mut peer = connect(&shard);
        peer.hears(r#"{"register":"file:a"}"#).await;
        let stands = registered(&shard, &mut peer, "file:b").await;
        drop(peer);
        assert!(timeout(DEADLINE, waits).await.unwrap().is_err());
        assert_eq!(stands.promise(), Promise::Lost);
        assert!(matches!(shard.register("file:b"), Asked::Away));
    });
}

#[test]
fn a_refused_name_has_no_registration() {
    local(async {
        let shard = Rc::<Shard>::default();
        let answer = waiting(shard.register("file:a"));
        let mut peer = connect(&shard);
        peer.hears(r#"{"register":"file:a"}"#).await;
        peer.says("{\"refused\":\"file:a\"}\n").await;
        assert!(timeout(DEADLINE, answer).await.unwrap().is_err());
    });
}

#[test]
fn the_name_unused_longest_makes_room_and_is_taken_back() {
    local(async {
        let shard = Rc::<Shard>::default();
        let mut peer = connect(&shard);
        let first = registered(&shard, &mut peer, "file:first").await;
        for number in 1..NAMES_MAX.get() {
            registered(&shard, &mut peer, &format!("file:{number}")).await;
        }
        assert!(first.stands());
        registered(&shard, &mut peer, "file:last").await;
        peer.hears(r#"{"unregister":"file:first"}"#).await;
        assert!(!first.stands());
    });
}

#[test]
fn what_live_should_not_say_ends_the_connection() {
    local(async {
        for line in ["nonsense\n", "{\"other\":1}\n", "{\"registered\":"] {
            let shard = Rc::<Shard>::default();
            let mut peer = connect(&shard);
            let stands = registered(&shard, &mut peer, "file:a").await;
            peer.says(line).await;
            peer.stream.shutdown().await.unwrap();
            assert!(timeout(DEADLINE, peer.lines.next_line()).await.unwrap().unwrap().is_none());
            assert!(!stands.stands(), "{line}");
        }
    });
}
