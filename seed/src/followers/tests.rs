//! What a follower that returns is told, and what becomes of a slow one.

use prost::Message as _;
use protoplex_wire::proto::{Invalidate, Known, MemberGone, ResetOwners};

use tonic::Code;

use super::*;

fn at(term: u64, sequence: u64) -> Position {
    Position { term, sequence }
}

fn invalid(sequence: u64) -> Message {
    let invalid = Invalidate { sequence, pool: "rooms".into(), keys: vec![sequence.to_string()] };
    Message::Invalidate(invalid.encode_to_vec().into())
}

/// Three invalidations in term 2, sequences 5 to 7.
fn followers() -> Followers {
    let mut followers = Followers::default();
    followers.broadcast(at(1, 9), &invalid(9));
    for sequence in 5..=7 {
        followers.broadcast(at(2, sequence), &invalid(sequence));
    }
    followers
}

fn link(room: usize) -> (Outgoing, mpsc::Receiver<Result<FollowReply, Status>>, oneshot::Receiver<()>) {
    let (messages, received) = mpsc::channel(room);
    let (_reader, ended) = oneshot::channel();
    (Outgoing { messages, _reader }, received, ended)
}

#[test]
fn one_that_returns_gets_what_it_missed_or_forgets_everything() {
    let followers = followers();
    let now = at(2, 7);
    assert_eq!(followers.missed(at(2, 5), now, false), Missed::These(vec![invalid(6), invalid(7)]));
    assert_eq!(
        followers.missed(at(2, 4), now, false),
        Missed::These(vec![invalid(5), invalid(6), invalid(7)])
    );
    assert_eq!(followers.missed(at(2, 3), now, false), Missed::Unknown, "4 is not kept any more");
    assert_eq!(followers.missed(at(2, 7), now, false), Missed::These(vec![]));
    assert_eq!(followers.missed(at(2, 8), now, false), Missed::Unknown, "from a future that is none");
    assert_eq!(followers.missed(at(1, 9), now, false), Missed::Unknown);
    assert_eq!(followers.missed(at(1, 9), now, true), Missed::Undecided);
    assert_eq!(
        followers.missed(at(0, 0), now, false),
        Missed::These(vec![]),
        "one that is new has nothing to forget"
    );
}

#[test]
fn what_is_kept_for_those_that_return_has_a_limit_in_bytes_and_all_are_sent_the_same_ones() {
    let mut followers = Followers::default();
    let large = |bytes: usize| Message::Invalidate(vec![0; bytes].into());
    for sequence in 1..=4 {
        followers.broadcast(at(2, sequence), &large(MAX_RECENT_BYTES / 4));
    }
    assert_eq!(
        followers.missed(at(2, 0), at(2, 4), false),
        Missed::Unknown,
        "four have more than their bodies"
    );
    let Missed::These(kept) = followers.missed(at(2, 1), at(2, 4), false) else { panic!("2 is kept") };
    let at_of = |message: &Message| match message {
        Message::Invalidate(bytes) => bytes.as_ptr(),
        other => panic!("{other:?}"),
    };
    let (outgoing, mut received, _ended) = link(8);
    followers.open(1, outgoing, at(2, 3), "proxy-1", String::new(), None);
    followers.welcome(1, Vec::new(), at(2, 4), false);
    let sent = received.try_recv().unwrap().unwrap().message.unwrap();
    assert_eq!(at_of(&sent), at_of(&kept[2]), "encoded once");
    followers.broadcast(at(2, 5), &large(MAX_RECENT_BYTES));
    assert_eq!((followers.recent.len(), followers.recent_bytes), (0, 0));
    assert_eq!(followers.missed(at(2, 4), at(2, 5), false), Missed::Unknown);
    followers.broadcast(at(2, 6), &invalid(6));
    assert_eq!(followers.missed(at(2, 5), at(2, 6), false), Missed::These(vec![invalid(6)]));
}

#[test]
fn the_greeting_comes_before_what_was_missed_and_nothing_before_the_welcome() {
    let mut followers = followers();
    let (outgoing, mut received, _ended) = link(8);
    followers.open(1, outgoing, at(1, 9), "proxy-1", "a".into(), None);
    followers.broadcast(at(2, 8), &invalid(8));
    followers.welcome(1, vec![invalid(100)], at(2, 8), false);
    followers.broadcast(at(2, 9), &invalid(9));
    let mut next = || received.try_recv().unwrap().unwrap().message.unwrap();
    assert_eq!(next(), invalid(100));
    assert_eq!(next(), Message::ResetOwners(ResetOwners { position: Some(at(2, 8)) }));
    assert_eq!(next(), invalid(9));
    assert_eq!(followers.zone(1), "a");
}

#[test]
fn a_slow_follower_is_cut_off_and_its_reader_ends() {
    let mut followers = Followers::default();
    let (outgoing, mut received, mut ended) = link(1);
    followers.open(1, outgoing, at(0, 0), "proxy-1", String::new(), None);
    followers.send(1, invalid(1));
    assert!(followers.take_cut().is_empty());
    followers.send(1, invalid(2));
    assert_eq!(followers.take_cut(), [1]);
    assert_eq!(followers.len(), 0);
    assert!(received.try_recv().is_ok() && received.try_recv().is_err());
    assert!(matches!(ended.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
}

#[test]
fn a_closed_link_says_why_after_what_was_sent() {
    let mut followers = Followers::default();
    let (outgoing, mut received, _ended) = link(2);
    followers.open(1, outgoing, at(0, 0), "proxy-1", String::new(), None);
    followers.send(1, invalid(1));
    followers.close(1, Status::failed_precondition("left"));
    assert!(received.try_recv().unwrap().is_ok());
    let refused = received.try_recv().unwrap().unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "left"));

    let (outgoing, mut received, _ended) = link(1);
    followers.open(2, outgoing, at(0, 0), "proxy-1", String::new(), None);
    followers.close_all(&Status::unavailable("the seed is ending"));
    assert_eq!(received.try_recv().unwrap().unwrap_err().code(), Code::Unavailable);
}

#[test]
fn what_is_shared_reaches_the_other_welcomed_children_of_the_node_alone() {
    let mut followers = Followers::default();
    let mut received: Vec<_> = [(1, "proxy-1"), (2, "proxy-1"), (3, "proxy-1"), (4, "proxy-2")]
        .into_iter()
        .map(|(number, node)| {
            let (outgoing, messages, _ended) = link(8);
            followers.open(number, outgoing, at(0, 0), node, String::new(), None);
            if number != 3 {
                followers.welcome(number, Vec::new(), at(1, 0), false);
            }
            messages
        })
        .collect();
    let told = Message::Known(Known { pool: "rooms".into(), key: "1".into(), owner: None });
    followers.share(1, &told);
    let counts: Vec<_> = received.iter_mut().map(|messages| messages.try_recv().is_ok()).collect();
    assert_eq!(counts, [false, true, false, false]);
    followers.close(2, Status::unavailable("closed"));
    followers.share(1, &told);
    followers.close(1, Status::unavailable("closed"));
    followers.close(3, Status::unavailable("closed"));
    followers.close(4, Status::unavailable("closed"));
    assert!(followers.nodes.is_empty(), "no node is remembered without children");
}

#[test]
fn a_server_of_the_users_own_hears_of_its_pools_alone() {
    let mut followers = Followers::default();
    let (outgoing, mut received, _ended) = link(16);
    followers.open(1, outgoing, at(0, 0), "room-1", String::new(), Some(vec!["rooms".into()]));
    let other = Invalidate { sequence: 2, pool: "live".into(), keys: vec!["a-cookie".into()] };
    let gone = |pool: &str| Message::MemberGone(MemberGone { pool: pool.into(), ..Default::default() });
    let table = Message::Table(Vec::new().into());
    followers.welcome(1, vec![table.clone(), Message::Build(Default::default())], at(2, 1), false);
    let messages =
        [invalid(1), Message::Invalidate(other.encode_to_vec().into()), gone("live"), gone("rooms"), table];
    messages.iter().for_each(|message| followers.send_all(message));
    followers.send(1, invalid(3));
    let heard: Vec<_> = std::iter::from_fn(|| received.try_recv().ok())
        .map(|reply| reply.unwrap().message.unwrap())
        .collect();
    assert_eq!(heard, [invalid(1), gone("rooms"), invalid(3)]);
}
