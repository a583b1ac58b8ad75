//! What a member may report, and a follower ask.

use protoplex_wire::clock::BootTime;
use protoplex_wire::identity::Kind;
use protoplex_wire::proto::follow_reply::Message as Reply;
use protoplex_wire::proto::{LoadRoutesReply, Locate};
use tonic::Code;

use super::*;
use crate::cluster::Myself;
use crate::events;
use crate::ownership::{Limits, Ownership};

fn report(keys: usize, last: bool) -> Result<FollowRequest, Status> {
    let keys = (0..keys).map(|number| OwnedKey { key: format!("{number:032}"), epoch: 1 }).collect();
    Ok(FollowRequest { message: Some(follow_request::Message::Owned(Owned { keys, last })) })
}

#[tokio::test]
async fn a_name_that_reports_much_on_many_links_is_refused_and_others_are_not() {
    let of_one = 100 * (size_of::<OwnedKey>() + 32);
    let bytes = Places::new("bytes of reports", 2 * of_one, of_one);
    let greeted = async |name: &str, reports: &[(usize, bool)]| {
        let member = Member {
            id: name.to_owned(),
            pool: "rooms".to_owned(),
            address: "10.0.0.1:80".to_owned(),
            instance: "i".to_owned(),
            ..Member::default()
        };
        let (node, kind) = (name.to_owned(), "backend".to_owned());
        let hello = FollowHello { node, kind, member: Some(member), ..FollowHello::default() };
        let hello = Ok(FollowRequest { message: Some(follow_request::Message::Hello(hello)) });
        let reports = reports.iter().map(|(keys, last)| report(*keys, *last));
        let mut requests = tokio_stream::iter(std::iter::once(hello).chain(reports));
        let pools = vec!["rooms".to_owned()];
        let peer = Peer { cluster: "c".to_owned(), kind: Kind::Backend, node: name.to_owned(), pools };
        let mut place = bytes.none(name);
        let greeted = greet(&peer, &|_| Ok(()), &mut place, &mut requests).await;
        // What it has reported is in memory until the core has it.
        greeted.map(|(_, keys)| (place, keys.len()))
    };
    let (first, keys) = greeted("a", &[(60, false), (20, true)]).await.unwrap();
    assert_eq!(keys, 80);
    let refused = greeted("a", &[(20, false), (1, false)]).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let why = format!("a has {of_one} bytes of reports here, as many as it may have");
    assert_eq!(refused.message(), why);
    assert!(greeted("b", &[(100, true)]).await.is_ok());
    drop(first);
    assert!(greeted("a", &[(100, true)]).await.is_ok());
}

#[tokio::test]
async fn who_reads_no_answers_is_asked_nothing_more_until_it_does() {
    const QUESTIONS: u64 = 20_000;
    let (errands, _) = mpsc::channel(1);
    let (announcements, _) = events::announcements();
    let myself = Myself { node: "seed-1".to_owned(), address: "127.0.0.1:1".to_owned() };
    let core = Ownership::new(Timing::default(), Limits::default());
    let cluster = Cluster::new(core, Timing::default(), myself, Vec::new(), errands, announcements);
    let (cluster, task) = cluster.task();
    tokio::spawn(task);
    let until = BootTime::now() + Duration::from_secs(60);
    let lead = move |cluster: &mut Cluster, now| cluster.lead(1, until, LoadRoutesReply::default(), now);
    assert_eq!(cluster.ask(lead).await, Some(true));

    let hello = FollowHello { node: "a".to_owned(), kind: "proxy".to_owned(), ..FollowHello::default() };
    let questions = (0..QUESTIONS).map(|id| {
        let (pool, key) = ("rooms".to_owned(), "1".to_owned());
        follow_request::Message::Locate(Locate { id, pool, key, refuted_epoch: 0 })
    });
    let messages = std::iter::once(follow_request::Message::Hello(hello)).chain(questions);
    let requests = messages.map(|message| Ok(FollowRequest { message: Some(message) }));
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let peer = Peer { cluster: "c".to_owned(), kind: Kind::Proxy, node: "a".to_owned(), pools: Vec::new() };
    let report = Places::new("bytes of reports", 1, 1).none("a");
    let (messages, mut replies) = mpsc::channel(MAX_WAITING_MESSAGES);
    let reading = read_follower(1, &peer, |_| Ok(()), report, requests, &cluster, messages);
    let asking = async {
        while replies.len() <= MAX_UNREAD {
            sleep(READING_PAUSE).await;
        }
        // Those that were on the way to the core come, too.
        sleep(READING_PAUSE * 40).await;
        assert!(replies.len() < QUESTIONS as usize / 2, "{}", replies.len());
        let mut answered = 0;
        while answered < QUESTIONS {
            let reply = replies.recv().await.unwrap().unwrap().message;
            answered += u64::from(matches!(reply, Some(Reply::Located(_))));
        }
    };
    tokio::select! {
        () = reading => panic!("the link has ended"),
        () = asking => {}
    }
}
