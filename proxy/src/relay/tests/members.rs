//! Members that the proxy chooses itself, keys and the refusals of what has none, and members that fail.

use proto::Placement::{Hash, Spread};

use super::*;

fn form(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn one_key_always_reaches_one_member() {
    run(async || {
        let members = [named("a").await, named("b").await, named("c").await];
        let proxy = Proxy::start(Hash, "{path}", &members.each_ref()).await;
        let mut reached = [0; 3];
        for n in 0..30 {
            let first = proxy.get(&n.to_string()).await.1;
            assert_eq!(proxy.get(&n.to_string()).await.1, first);
            reached["abc".find(&first).unwrap()] += 1;
        }
        assert!(reached.iter().all(|&count| count > 0), "{reached:?}");
    });
}

async fn named(name: &'static str) -> Member {
    Member::replying(|_, _| name.to_owned()).await
}

#[test]
fn a_key_that_is_only_hashed_may_be_long() {
    run(async || {
        let members = [Member::echo().await, Member::echo().await];
        let proxy = Proxy::start(Hash, "{path}", &members.each_ref()).await;
        let path = "x".repeat(20_000);
        for _ in 0..4 {
            let (head, echoed) = proxy.get(&path).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(echoed.starts_with(&format!("GET /at/{path} ")), "the path has changed");
            assert_eq!(
                peer::fields(&echoed, "protoplex-key").len(),
                0,
                "it would not fit a member's own limits"
            );
        }
        let mut reached = members.each_ref().map(|member| member.connections.get());
        reached.sort_unstable();
        assert_eq!(reached, [0, 1]);
    });
}

#[test]
fn a_get_that_meets_the_end_of_a_used_connection_is_sent_once_more() {
    run(async || {
        let member = Member::start(async |mut peer| {
            peer.head().await;
            peer.ok("served").await;
            // The next request is read, and the connection closed.
            peer.head().await;
        })
        .await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        for _ in 0..3 {
            assert_eq!(proxy.get("x").await.1, "served");
        }
        assert_eq!(member.connections.get(), 3);
        let unsafe_to_repeat = "POST /at/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        assert_problem(&proxy.ask(unsafe_to_repeat).await, "502", "upstream-failed");
    });
}

#[test]
fn a_member_that_fails_again_and_again_is_left_out_and_the_next_has_its_keys() {
    run(async || {
        let good = named("good").await;
        let bad = Member::start(async |mut peer| {
            peer.head().await;
            // And closes the connection.
        })
        .await;
        let proxy = Proxy::start(Hash, "{path}", &[&good, &bad]).await;
        let mut failed = 0;
        for n in 0..60 {
            failed += usize::from(!proxy.get(&n.to_string()).await.0.starts_with("HTTP/1.1 200 "));
        }
        assert!((3..12).contains(&failed), "{failed} of 60, of which some 30 were for it");
    });
}

#[test]
fn a_key_from_a_form_leaves_the_form_as_it_was() {
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Hash, "{query.topic|form.topic}", &[&member]).await;
        let (_, echoed) = proxy.ask(&form("a=1&topic=upload%2F7")).await;
        assert_eq!(peer::fields(&echoed, "protoplex-key"), ["upload/7"]);
        assert!(echoed.ends_with("\r\n\r\na=1&topic=upload%2F7"), "{echoed}");
        let (_, echoed) = proxy.get("x?topic=t").await;
        assert_eq!(peer::fields(&echoed, "protoplex-key"), ["t"]);
    });
}

#[test]
fn a_request_without_its_key_is_told_what_is_missing() {
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Hash, "{query.topic|form.topic}", &[&member]).await;
        let answer = proxy.get("x").await;
        assert_problem(&answer, "400", "no-key");
        assert!(answer.1.contains("query.topic and no form.topic"), "{}", answer.1);
        assert_problem(&proxy.ask(&form("a=1")).await, "400", "no-key");
        assert_problem(&proxy.get("x?topic=%01").await, "400", "no-key");
        assert_eq!(member.connections.get(), 0);
    });
}

#[test]
fn a_form_too_long_to_be_read_is_a_413() {
    run(async || {
        let member = Member::echo().await;
        let proxy = Proxy::start(Hash, "{form.topic}", &[&member]).await;
        let long = format!("topic=t&x={}", "x".repeat(64 << 10));
        assert_problem(&proxy.ask(&form(&long)).await, "413", "form-too-long");
        assert_eq!(member.connections.get(), 0);
    });
}

#[test]
fn no_handler_is_a_404() {
    run(async || {
        let proxy = Proxy::start(Spread, "", &[]).await;
        assert_problem(&proxy.ask("GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n").await, "404", "no-handler");
    });
}

#[test]
fn no_table_is_a_503() {
    run(async || {
        let proxy = Proxy::without_table(Settings::default()).await;
        assert_problem(&proxy.get("x").await, "503", "no-routing-table");
    });
}

#[test]
fn an_empty_pool_is_a_503() {
    for placement in [Hash, Spread] {
        run(async || {
            let proxy = Proxy::start(placement, "k", &[]).await;
            assert_problem(&proxy.get("x").await, "503", "no-member");
        });
    }
}

#[test]
fn what_could_not_be_sent_to_one_member_is_sent_to_another() {
    for placement in [Hash, Spread] {
        run(async || {
            let (up, down) = (Member::echo().await, Member::absent());
            let proxy = Proxy::start(placement, "{path}", &[&up, &down]).await;
            for n in 0..20 {
                let request = format!("POST /at/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nping");
                let (head, echoed) = proxy.ask(&request).await;
                assert!(head.starts_with("HTTP/1.1 200 ") && echoed.ends_with("ping"), "{head}{echoed}");
            }
        });
    }
}

#[test]
fn members_that_can_not_be_reached_are_a_502() {
    run(async || {
        let (one, two) = (Member::absent(), Member::absent());
        let proxy = Proxy::start(Spread, "", &[&one]).await;
        assert_problem(&proxy.get("x").await, "502", "upstream-unreachable");
        let proxy = Proxy::start(Spread, "", &[&one, &two]).await;
        assert_problem(&proxy.get("x").await, "502", "upstream-unreachable");
    });
}

#[test]
fn an_answer_that_is_none_is_a_502() {
    for answer in [
        "",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    ] {
        run(async || {
            let member = Member::start(async move |mut peer| {
                peer.head().await;
                peer.say(answer).await;
            })
            .await;
            let proxy = Proxy::start(Spread, "", &[&member]).await;
            assert_problem(&proxy.get("x").await, "502", "upstream-failed");
        });
    }
}

#[test]
fn a_member_that_does_not_answer_in_time_is_a_504() {
    run(async || {
        let member = Member::start(async |mut peer| {
            peer.head().await;
            peer.until_closed().await;
        })
        .await;
        let impatient = Settings { first_byte_timeout: Duration::from_millis(50), ..Settings::default() };
        let proxy = Proxy::with(impatient, Spread, "", &[&member]).await;
        assert_problem(&proxy.get("x").await, "504", "upstream-too-slow");
    });
}

#[test]
fn requests_are_outstanding_until_their_answers_have_ended() {
    run(async || {
        let member = Member::start(async |mut peer| {
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            peer.say_chunk("begun").await;
            peer.line().await;
        })
        .await;
        let proxy = Proxy::start(Spread, "", &[&member]).await;
        let outstanding = || {
            let table = Rc::clone(&proxy.relay.table.borrow());
            let (handler, _) = table.find("a", "/at/x").unwrap();
            handler.pool.members[0].outstanding()
        };
        let mut client = proxy.connect().await;
        client.say("GET /at/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        client.chunk().await;
        assert_eq!(outstanding(), 1);
        drop(client);
        while outstanding() > 0 {
            tokio::task::yield_now().await;
        }
    });
}
