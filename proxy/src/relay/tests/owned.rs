//! Keys with one owner: found, asked for once, and asked for once more when the owner denies them.

use proto::Placement::Owned;

use super::*;

const MISDIRECTED: &str =
    "HTTP/1.1 421 Misdirected Request\r\nProtoplex-Misdirected: not-owner\r\nContent-Length: 0\r\n\r\n";

/// Denies every key, after it has read the bodies whole or not at all.
async fn denying(reads_body: bool) -> Member {
    Member::start(async move |mut peer| {
        loop {
            let head = peer.head().await;
            if head.is_empty() {
                return;
            }
            if reads_body {
                peer.body(&head).await;
            }
            peer.say(MISDIRECTED).await;
        }
    })
    .await
}

#[test]
fn the_owner_is_told_key_and_epoch_and_is_asked_for_once() {
    run(async || {
        let (owner, other) = (Member::echo().await, Member::echo().await);
        let proxy = Proxy::start(Owned, "room:{rest}", &[&owner, &other]).await;
        proxy.seed.owners("room:zoë", &[(owner.address, (7 << 32) | 9)]);
        for _ in 0..3 {
            let (_, echoed) = proxy.get("zo%C3%AB").await;
            assert_eq!(peer::fields(&echoed, "protoplex-key"), ["room:zoë"]);
            assert_eq!(peer::fields(&echoed, "protoplex-epoch"), ["30064771081"]);
        }
        assert_eq!(proxy.seed.asked().len(), 1);
        assert_eq!(other.connections.get(), 0);
    });
}

#[test]
fn a_421_is_answered_by_one_new_question_and_the_same_request() {
    for reads_body in [true, false] {
        run(async || {
            let (before, after) = (denying(reads_body).await, Member::echo().await);
            let proxy = Proxy::start(Owned, "k", &[]).await;
            proxy.seed.owners("k", &[(before.address, 1), (after.address, 2)]);
            let body = "0123456789".repeat(5_000);
            let request =
                format!("POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let (head, echoed) = proxy.ask(&request).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(echoed.ends_with(&format!("\r\n\r\n{body}")), "the body changed on its second way");
            assert_eq!(peer::fields(&echoed, "protoplex-epoch"), ["2"]);
            let refuted: Vec<_> = proxy.seed.asked().iter().map(|question| question.refuted_epoch).collect();
            assert_eq!(refuted, [0, 1]);
        });
    }
}

#[test]
fn a_421_that_does_not_deny_the_key_is_an_answer_like_others() {
    run(async || {
        let owner = Member::start(async |mut peer| {
            while !peer.head().await.is_empty() {
                peer.say("HTTP/1.1 421 Misdirected Request\r\nContent-Length: 4\r\n\r\nmine").await;
            }
        })
        .await;
        let proxy = Proxy::start(Owned, "k", &[]).await;
        proxy.seed.owners("k", &[(owner.address, 1)]);
        for _ in 0..2 {
            let (head, body) = proxy.get("x").await;
            assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
            assert_eq!(body, "mine");
        }
        assert_eq!(proxy.seed.asked().len(), 1, "its owner is not in doubt");
    });
}

#[test]
fn that_a_key_was_denied_is_between_members_and_us() {
    run(async || {
        let member = Member::start(async |mut peer| {
            peer.head().await;
            peer.say(MISDIRECTED).await;
            peer.until_closed().await;
        })
        .await;
        let proxy = Proxy::start(proto::Placement::Spread, "", &[&member]).await;
        let (head, _) = proxy.get("x").await;
        assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
        assert_eq!(peer::fields(&head, "protoplex-misdirected").len(), 0);
    });
}

#[test]
fn a_421_in_the_middle_of_a_body_is_followed_by_all_of_it() {
    run(async || {
        let before = Member::start(async |mut peer| {
            peer.head().await;
            assert_eq!(peer.chunk().await, "one");
            peer.say(MISDIRECTED).await;
            peer.until_closed().await;
        })
        .await;
        let after = Member::echo().await;
        let proxy = Proxy::start(Owned, "k", &[]).await;
        proxy.seed.owners("k", &[(before.address, 1), (after.address, 2)]);
        let mut client = proxy.connect().await;
        client.say("POST /at/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.say_chunk("one").await;
        while proxy.seed.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        client.say_chunk("two").await;
        client.say_chunk("").await;
        assert!(client.answer().await.1.ends_with("\r\n\r\nonetwo"));
    });
}

#[test]
fn a_421_after_more_than_can_be_sent_again_is_a_503() {
    run(async || {
        let (before, after) = (denying(true).await, Member::echo().await);
        let proxy = Proxy::start(Owned, "k", &[]).await;
        proxy.seed.owners("k", &[(before.address, 1), (after.address, 2)]);
        let body = "x".repeat(200_000);
        let request =
            format!("POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_problem(&proxy.ask(&request).await, "503", "key-moving");
        assert_eq!(after.connections.get(), 0);
        assert!(proxy.get("x").await.0.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn two_owners_that_deny_a_key_are_a_503() {
    run(async || {
        let denying = denying(true).await;
        let proxy = Proxy::start(Owned, "k", &[]).await;
        proxy.seed.owners("k", &[(denying.address, 1), (denying.address, 2)]);
        assert_problem(&proxy.get("x").await, "503", "key-moving");
        assert_eq!(proxy.seed.asked().len(), 2);
    });
}

#[test]
fn a_key_that_is_too_long_to_be_owned_is_a_400_that_says_so() {
    run(async || {
        let proxy = Proxy::start(Owned, "{rest}", &[]).await;
        let answer = proxy.get(&"x".repeat(1_025)).await;
        assert_problem(&answer, "400", "no-key");
        assert!(answer.1.contains("longer than 1024 bytes"), "{}", answer.1);
        assert_eq!(proxy.seed.asked().len(), 0);
    });
}

#[test]
fn a_key_without_an_owner_is_a_503_that_says_when() {
    run(async || {
        let proxy = Proxy::start(Owned, "k", &[]).await;
        let answer = proxy.get("x").await;
        assert_problem(&answer, "503", "no-owner");
        assert_eq!(peer::fields(&answer.0, "retry-after"), ["3"]);
    });
}

#[test]
fn an_owner_that_can_not_be_reached_is_a_503_and_asked_for_anew() {
    run(async || {
        let (away, new) = (Member::absent(), Member::echo().await);
        let proxy = Proxy::start(Owned, "k", &[]).await;
        proxy.seed.owners("k", &[(away.address, 5), (new.address, 6)]);
        assert_problem(&proxy.get("x").await, "503", "owner-away");
        assert!(proxy.get("x").await.0.starts_with("HTTP/1.1 200 "));
        assert_eq!(proxy.seed.asked()[1].refuted_epoch, 5);
    });
}

#[test]
fn known_owners_go_on_while_the_seed_is_away() {
    run(async || {
        let owner = Member::echo().await;
        let proxy = Proxy::start(Owned, "{rest}", &[]).await;
        proxy.seed.owners("known", &[(owner.address, 1)]);
        proxy.seed.owners("new", &[(owner.address, 2)]);
        assert!(proxy.get("known").await.0.starts_with("HTTP/1.1 200 "));
        proxy.seed.go_away();
        while proxy.relay.link.connected() {
            tokio::task::yield_now().await;
        }
        assert!(proxy.get("known").await.0.starts_with("HTTP/1.1 200 "));
        assert_problem(&proxy.get("new").await, "503", "no-owner");
        assert!(proxy.get("known").await.0.starts_with("HTTP/1.1 200 "));
    });
}
