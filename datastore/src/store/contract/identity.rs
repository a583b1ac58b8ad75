//! Join tokens, and names that are revoked.

use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{
    JoinRefusal, JoinToken, RedeemJoinTokenRequest, Revocation, RevokeJoinTokenRequest, TakeLeaseRequest,
};
use tokio::task::JoinSet;

use super::Database;
use crate::store::{Store, StoreError};

fn token(id: &str, kind: &str) -> JoinToken {
    JoinToken {
        id: id.to_owned(),
        secret_sha256: vec![1; 32],
        kind: kind.to_owned(),
        expires_at_ms: unix_ms_now() + 60_000,
        created_by: "ann".to_owned(),
        ..JoinToken::default()
    }
}

fn redeem(id: &str, kind: &str, node: &str) -> RedeemJoinTokenRequest {
    let [id, kind, node] = [id, kind, node].map(ToOwned::to_owned);
    let (secret_sha256, key_sha256) = (vec![1; 32], vec![3; 32]);
    RedeemJoinTokenRequest { id, secret_sha256, kind, node, key_sha256, ..Default::default() }
}

pub(crate) async fn a_join_token_lets_in_whom_it_is_for(database: &impl Database) {
    let store = database.open().await;
    let one = JoinToken { uses: 1, ..token("one", "proxy") };
    store.put_join_token(one.clone()).await.unwrap();
    store.put_join_token(one).await.unwrap();
    let rooms = JoinToken { pools: vec!["rooms".to_owned(), "b".to_owned()], ..token("rooms", "backend") };
    store.put_join_token(rooms).await.unwrap();
    store.put_join_token(JoinToken { expires_at_ms: 1, ..token("old", "live") }).await.unwrap();
    let now = unix_ms_now();
    store.put_join_token(JoinToken { expires_at_ms: now, ..token("over", "live") }).await.unwrap();
    drop(store);
    let store = database.open().await;
    let ask = async |request| {
        let reply = store.redeem_join_token(request).await.unwrap();
        (reply.refusal(), reply.kind)
    };
    assert_eq!(ask(redeem("none", "proxy", "a")).await, (JoinRefusal::Unknown, String::new()));
    let forged = RedeemJoinTokenRequest { secret_sha256: vec![2; 32], ..redeem("one", "proxy", "a") };
    assert_eq!(ask(forged).await.0, JoinRefusal::Unknown);
    assert_eq!(ask(redeem("over", "live", "a")).await.0, JoinRefusal::Expired);
    assert_eq!(ask(redeem("one", "live", "a")).await.0, JoinRefusal::WrongKind);
    let peek = |node: &str| RedeemJoinTokenRequest { peek: true, ..redeem("one", "proxy", node) };
    assert_eq!(ask(peek("b")).await.0, JoinRefusal::None, "a look takes no use");
    assert_eq!(ask(redeem("one", "proxy", "a")).await, (JoinRefusal::None, "proxy".to_owned()));
    assert_eq!(ask(redeem("one", "proxy", "a")).await.0, JoinRefusal::None, "the same name, once more");
    assert_eq!(ask(redeem("one", "proxy", "b")).await.0, JoinRefusal::UsedUp);
    assert_eq!(ask(peek("b")).await.0, JoinRefusal::UsedUp);
    let reply = store.redeem_join_token(redeem("rooms", "backend", "c")).await.unwrap();
    assert_eq!(reply.pools, ["rooms", "b"]);

    let listed = store.list_join_tokens().await.unwrap();
    let told: Vec<_> = listed.iter().map(|it| (it.id.as_str(), it.uses_taken, it.revoked)).collect();
    assert_eq!(told.len(), 3, "what ended long ago is forgotten: {told:?}");
    assert!(told.contains(&("one", 1, false)) && told.contains(&("over", 0, false)));
    assert!(listed.iter().all(|it| it.created_by == "ann" && it.created_at_ms > 0));
    let revoke =
        async |id: &str| store.revoke_join_token(RevokeJoinTokenRequest { id: id.to_owned(), term: 0 }).await;
    revoke("rooms").await.unwrap();
    revoke("rooms").await.unwrap();
    assert_eq!(ask(redeem("rooms", "backend", "c")).await.0, JoinRefusal::Revoked);
    assert!(matches!(revoke("none").await, Err(StoreError::NotFound(_))));
}

pub(crate) async fn a_name_stays_of_the_kind_as_which_a_token_has_let_it_in(database: &impl Database) {
    let store = database.open().await;
    store.put_join_token(token("lives", "live")).await.unwrap();
    store.put_join_token(token("proxies", "proxy")).await.unwrap();
    let ask = async |request| {
        let reply = store.redeem_join_token(request).await.unwrap();
        (reply.refusal(), reply.known_as)
    };
    assert_eq!(ask(redeem("lives", "live", "a")).await.0, JoinRefusal::None);
    let other = RedeemJoinTokenRequest { key_sha256: vec![4; 32], ..redeem("proxies", "proxy", "a") };
    assert_eq!(ask(other).await, (JoinRefusal::OtherKind, "live".to_owned()));
    assert_eq!(ask(redeem("proxies", "proxy", "b")).await.0, JoinRefusal::None);
    assert_eq!(ask(redeem("lives", "live", "a")).await.0, JoinRefusal::None);
    let taken = store.list_join_tokens().await.unwrap().iter().map(|it| it.uses_taken).sum::<u32>();
    assert_eq!(taken, 2, "who is refused takes no use");
}

pub(crate) async fn another_key_under_a_name_that_has_joined_is_somebody_else(database: &impl Database) {
    let store = database.open().await;
    store.put_join_token(JoinToken { uses: 2, ..token("two", "proxy") }).await.unwrap();
    let ask = async |key: u8| {
        let request = RedeemJoinTokenRequest { key_sha256: vec![key; 32], ..redeem("two", "proxy", "a") };
        store.redeem_join_token(request).await.unwrap().refusal()
    };
    for (key, answer) in [
        (1, JoinRefusal::None),
        (1, JoinRefusal::None),
        (2, JoinRefusal::None),
        (3, JoinRefusal::UsedUp),
        (1, JoinRefusal::None),
        (2, JoinRefusal::None),
    ] {
        assert_eq!(ask(key).await, answer, "{key}");
    }
    assert_eq!(store.list_join_tokens().await.unwrap()[0].uses_taken, 2);
}

pub(crate) async fn one_use_of_a_join_token_goes_to_exactly_one_of_many(database: &impl Database) {
    let store = database.open().await;
    store.put_join_token(JoinToken { uses: 1, ..token("one", "proxy") }).await.unwrap();
    let mut all = JoinSet::new();
    for index in 0..8 {
        let store = store.clone();
        all.spawn(
            async move { store.redeem_join_token(redeem("one", "proxy", &format!("proxy-{index}"))).await },
        );
    }
    let replies = all.join_all().await;
    let joined = replies.iter().filter(|it| it.as_ref().unwrap().refusal() == JoinRefusal::None);
    assert_eq!(joined.count(), 1);
}

pub(crate) async fn what_no_join_token_can_be_is_refused(database: &impl Database) {
    let store = database.open().await;
    let pool = |pool: &str| vec![pool.to_owned()];
    for none in [
        token("", "proxy"),
        token("a", "king"),
        token("a", "backend"),
        JoinToken { pools: pool("no name"), ..token("a", "backend") },
        JoinToken { pools: pool("rooms"), ..token("a", "proxy") },
        JoinToken { secret_sha256: vec![1], ..token("a", "proxy") },
    ] {
        let refused = store.put_join_token(none.clone()).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{none:?}: {refused:?}");
    }
    let short = RedeemJoinTokenRequest { key_sha256: vec![1], ..redeem("a", "proxy", "a") };
    for none in [redeem("a", "", ""), short] {
        let refused = store.redeem_join_token(none.clone()).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{none:?}: {refused:?}");
    }
}

pub(crate) async fn names_are_revoked_and_readmitted(database: &impl Database) {
    let store = database.open().await;
    let change = async |name: &str, revoked| {
        let wanted = Revocation {
            name: name.to_owned(),
            revoked,
            operator: "ann".to_owned(),
            ..Revocation::default()
        };
        store.change_revocation(wanted).await
    };
    for name in ["proxy-1", "operator/ada", "proxy-1"] {
        change(name, true).await.unwrap();
    }
    let names = async || -> Vec<String> {
        store.list_revocations().await.unwrap().into_iter().map(|it| it.name).collect()
    };
    assert_eq!(names().await, ["operator/ada", "proxy-1"]);
    change("proxy-1", false).await.unwrap();
    change("proxy-1", false).await.unwrap();
    assert_eq!(names().await, ["operator/ada"]);
    assert!(matches!(change("", true).await, Err(StoreError::Invalid(_))));
}

pub(crate) async fn who_leads_no_more_lets_nobody_in_and_shuts_nobody_out(database: &impl Database) {
    let store = database.open().await;
    let begin_term = async || {
        let (name, holder) = ("seed".to_owned(), "a".to_owned());
        let taken =
            store.take_lease(TakeLeaseRequest { name, holder, ttl_ms: 60_000, term: 0 }).await.unwrap();
        taken.term
    };
    let put =
        async |id: &str, term| store.put_join_token(JoinToken { uses: 2, term, ..token(id, "proxy") }).await;
    let redeem = async |node: &str, term| {
        store.redeem_join_token(RedeemJoinTokenRequest { term, ..redeem("one", "proxy", node) }).await
    };
    let revoke_token =
        async |term| store.revoke_join_token(RevokeJoinTokenRequest { id: "one".to_owned(), term }).await;
    let revoke = async |name: &str, revoked, term| {
        let operator = "ann".to_owned();
        store
            .change_revocation(Revocation {
                name: name.to_owned(),
                revoked,
                operator,
                at_ms: 0,
                term,
                only_known: false,
            })
            .await
    };
    let old = begin_term().await;
    put("one", old).await.unwrap();
    redeem("a", old).await.unwrap();
    let new = begin_term().await;
    revoke("proxy-1", true, new).await.unwrap();
    let state = async || (store.list_join_tokens().await.unwrap(), store.list_revocations().await.unwrap());
    let before = state().await;

    for refused in [
        put("two", old).await,
        redeem("a", old).await.map(drop),
        redeem("b", old).await.map(drop),
        revoke_token(old).await,
        revoke("proxy-1", false, old).await,
        revoke("proxy-2", true, old).await,
    ] {
        assert!(matches!(refused, Err(StoreError::Fenced(newest)) if newest == new), "{refused:?}");
    }
    assert_eq!(state().await, before, "nothing has changed");

    put("two", new).await.unwrap();
    assert_eq!(redeem("b", new).await.unwrap().refusal(), JoinRefusal::None);
    revoke_token(new).await.unwrap();
    revoke("proxy-1", false, new).await.unwrap();
}
