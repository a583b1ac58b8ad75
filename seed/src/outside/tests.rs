//! What the JSON of the link means, and what is refused of it.

use protoplex_wire::identity::{Kind, Peer};
use protoplex_wire::proto::follow_reply::Message as Told;
use protoplex_wire::proto::follow_request::Message as Said;
use protoplex_wire::proto::{
    Assigned, Directory, FollowHello, LeaseLost, OwnedKey, Renew, Renewed, Table, Yield,
};
use protoplex_wire::seeds::Redirect;
use serde_json::{Value, json};

use super::is_encoded;
use super::message::{Registration, closed, said, told};

fn peer(kind: Kind) -> Peer {
    let (cluster, node) = ("c".to_owned(), "ada".to_owned());
    Peer { cluster, kind, node, pools: vec!["rooms".to_owned()] }
}

fn line(message: Told) -> Value {
    let line = told(message).unwrap();
    assert_eq!(line.matches('\n').count(), 1, "{line:?}");
    serde_json::from_str(&line).unwrap()
}

#[test]
fn a_registration_becomes_the_hello_of_a_backend() {
    let body = json!({
        "pool": "rooms", "address": "127.0.0.1:3000", "instance": "Abc_1", "zone": "a", "capacity": 2, "movable": true,
        "incarnation": 7, "attempt": 9, "owned": [{"key": "room:1", "epoch": 1_099_511_627_777_u64}],
    });
    let registration = Registration::read(body.to_string().as_bytes()).unwrap();
    let (member, opening) = registration.opening(&peer(Kind::Operator));
    assert_eq!((&*member.id, &*member.instance), ("rooms/127.0.0.1:3000", "Abc_1"));
    let [Said::Hello(hello), Said::Owned(owned)] = &*opening else { panic!("{opening:?}") };
    let FollowHello { node, kind, zone, incarnation, attempt, capacity, yields, .. } = hello;
    assert_eq!((&**node, &**kind, &**zone), ("join-abc-1-rooms-127-0-0-1-3000", "backend", "a"));
    assert_eq!((*incarnation, *attempt, *capacity, *yields), (7, 9, 2, true));
    assert_eq!(owned.keys, [OwnedKey { key: "room:1".to_owned(), epoch: (1 << 40) + 1 }]);
    assert!(owned.last);
}

#[test]
fn a_backend_is_known_by_the_name_of_its_certificate() {
    let registration = Registration::read(br#"{"pool":"rooms","address":"127.0.0.1:3000"}"#).unwrap();
    let (member, opening) = registration.opening(&peer(Kind::Backend));
    assert_eq!(member.id, "ada/127.0.0.1:3000");
    assert!(matches!(&opening[0], Said::Hello(FollowHello { node, .. }) if node == "ada"), "{opening:?}");
}

#[test]
fn what_a_registration_leaves_out_grows_by_itself() {
    let read = || {
        Registration::read(br#"{"pool":"rooms","address":"127.0.0.1:3000"}"#)
            .unwrap()
            .opening(&peer(Kind::Operator))
    };
    let ((first, one), (second, other)) = (read(), read());
    assert_ne!(first.instance, second.instance);
    let number = |opening: &[Said]| match opening {
        [Said::Hello(hello), ..] => (hello.incarnation, hello.attempt),
        _ => panic!("{opening:?}"),
    };
    assert!(number(&one) < number(&other));
}

#[test]
fn a_registration_that_is_none_is_told_what_is_wrong() {
    for (body, why) in [
        ("", "a JSON object is expected"),
        (r#"["rooms","127.0.0.1:1"]"#, "a JSON object is expected"),
        ("{", "EOF while parsing"),
        (r#"{"address":"127.0.0.1:1"}"#, r#"missing key "pool""#),
        (r#"{"pool":"rooms"}"#, r#"missing key "address""#),
        (r#"{"pool":"rooms","adress":"127.0.0.1:1"}"#, r#"unknown key "adress", did you mean "address"?"#),
        (r#"{"pool":7,"address":"127.0.0.1:1"}"#, "invalid type: integer `7`, expected a string"),
        (r#"{"pool":"r","address":"a","capacity":-1}"#, "invalid value: integer `-1`, expected u32"),
        (r#"{"pool":"r","address":"a","capacity":0}"#, "a member's capacity is from 1 to 1000"),
        (r#"{"pool":"r","address":"a","owned":[{"key":"k"}]}"#, r#"missing key "epoch""#),
        (r#"{"pool":"r","address":"a","owned":[{"key":"k","epoch":1.5}]}"#, "invalid type: floating point"),
        (r#"{"pool":"r","address":"a"} {}"#, "trailing characters"),
        (r#"{"pool":"r","pool":"r","address":"a"}"#, "duplicate field `pool`"),
    ] {
        let error = Registration::read(body.as_bytes()).map(drop).unwrap_err();
        assert!(error.contains(why), "{body}: {error}");
    }
}

#[test]
fn lines_are_taken_in_their_order_or_not_at_all() {
    let body = br#"{"renew":{"sequence":7}}

        {"released":{"keys":[{"key":"a","epoch":1}]}}
        {"draining":{}}
        {"leave":{}}"#;
    let messages = said(body).unwrap();
    let [Said::Renew(Renew { sequence: 7 }), Said::Released(released), Said::Draining(_), Said::Leave(_)] =
        &*messages
    else {
        panic!("{messages:?}")
    };
    assert_eq!((released.keys.len(), released.kept.len()), (1, 0));
    for (body, why) in [
        ("", "nothing is said"),
        (" \n\n", "nothing is said"),
        (r#"{"renw":{"sequence":7}}"#, r#"line 1: unknown value "renw", did you mean "renew"?"#),
        ("{\"leave\":{}}\n{\"renew\":{}}", r#"line 2: missing key "sequence""#),
        (r#"{"renew":{"sequence":7,"at":1}}"#, r#"line 1: unknown key "at""#),
        (r#"{"renew":{"sequence":7},"leave":{}}"#, "line 1: "),
        (r#""leave""#, "line 1: a JSON object is expected"),
        (r#"{"hello":{}}"#, r#"line 1: unknown value "hello""#),
        ("{\"leave\":{}", "line 1: EOF"),
        ("\u{1}", "line 1: a JSON object is expected"),
    ] {
        let error = said(body.as_bytes()).unwrap_err();
        assert!(error.contains(why), "{body}: {error}");
    }
}

#[test]
fn each_word_of_the_seed_is_a_line_and_what_is_for_proxies_is_none() {
    let key = |key: &str, epoch| OwnedKey { key: key.to_owned(), epoch };
    assert_eq!(
        line(Told::Assigned(Assigned { key: "a\nb".to_owned(), epoch: u64::MAX })),
        json!({"assigned": {"key": "a\nb", "epoch": u64::MAX}})
    );
    assert_eq!(
        line(Told::Yield(Yield { keys: vec![key("a", 1)], idle: true })),
        json!({"yield": {"keys": [{"key": "a", "epoch": 1}], "idle": true}})
    );
    assert_eq!(line(Told::Renewed(Renewed { sequence: 7 })), json!({"renewed": {"sequence": 7}}));
    assert_eq!(line(Told::LeaseLost(LeaseLost {})), json!({"lease_lost": {}}));
    let directory = Directory { seeds: vec!["10.0.0.1:8050".to_owned()], datastores: vec!["b:1".to_owned()] };
    assert_eq!(line(Told::Directory(directory)), json!({"seeds": {"addresses": ["10.0.0.1:8050"]}}));
    assert_eq!(told(Told::Table(Table::default().version.to_be_bytes().to_vec().into())), None);
}

#[test]
fn the_last_line_says_why_and_who_leads() {
    let leader = Redirect { address: "10.0.0.2:8050".to_owned(), term: 8 };
    let line: Value = serde_json::from_str(&closed(&Redirect::status("it ends", Some(&leader)))).unwrap();
    assert_eq!(line, json!({"closed": {"reason": "it ends", "leader": "10.0.0.2:8050"}}));
    let line: Value = serde_json::from_str(&closed(&Redirect::status("it ends", None))).unwrap();
    assert_eq!(line, json!({"closed": {"reason": "it ends", "leader": null}}));
}

#[test]
fn row_a_key_with_a_broken_percent_encoding_is_told() {
    for good in ["/v1/keys/rooms/a", "/v1/keys/rooms/%2Froom%20a", "/v1/keys/rooms/%ff"] {
        assert!(is_encoded(good), "{good}");
    }
    for broken in ["/v1/keys/rooms/a%zz", "/v1/keys/rooms/a%", "/v1/keys/rooms/a%2", "/v1/keys/r%%41/a"] {
        assert!(!is_encoded(broken), "{broken}");
    }
}
