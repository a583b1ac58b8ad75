use super::*;

fn register(registrations: &mut Registrations, peer: PeerId, name: &str) -> Told {
    registrations.hear(peer, Heard::Register(name.into())).unwrap().unwrap()
}

fn ack(registrations: &mut Registrations, peer: PeerId, round: RoundId) -> Result<Option<Told>, Misbehaved> {
    registrations.hear(peer, Heard::Ack(round.0))
}

#[test]
fn lines_read_and_written_as_documented() {
    let heard = |line| serde_json::from_str::<Heard>(line);
    assert_eq!(heard(r#"{"register":"site:h:/p"}"#).unwrap(), Heard::Register("site:h:/p".into()));
    assert_eq!(heard(r#"{"unregister":"x"}"#).unwrap(), Heard::Unregister("x".into()));
    assert_eq!(heard(r#"{"ack":7}"#).unwrap(), Heard::Ack(7));
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"register":1}"#,
        r#"{"ack":-1}"#,
        r#"{"ack":1,"register":"x"}"#,
        r#"{"drop":"x"}"#,
    ] {
        assert!(heard(bad).is_err(), "{bad}");
    }
    let told = |told: &Told| serde_json::to_string(told).unwrap();
    assert_eq!(told(&Told::Registered { registered: "x".into() }), r#"{"registered":"x"}"#);
    assert_eq!(told(&Told::Refused { refused: "x".into() }), r#"{"refused":"x"}"#);
    assert_eq!(told(&Told::Invalidate { invalidate: "x".into(), id: 7 }), r#"{"invalidate":"x","id":7}"#);
}

#[test]
fn a_round_settles_when_all_registrants_have_acknowledged() {
    let mut registrations = Registrations::default();
    let (a, b, other) = (registrations.connect(), registrations.connect(), registrations.connect());
    register(&mut registrations, a, "x");
    register(&mut registrations, b, "x");
    register(&mut registrations, b, "x");
    register(&mut registrations, other, "y");

    let (round, _, mut peers) = registrations.invalidate("x");
    peers.sort_by_key(|peer| peer.0);
    assert_eq!(peers, [a, b]);
    ack(&mut registrations, a, round).unwrap();
    assert!(!registrations.settled(round));
    assert_eq!(ack(&mut registrations, a, round), Err(Misbehaved), "twice");
    assert_eq!(ack(&mut registrations, other, round), Err(Misbehaved), "was not asked");
    ack(&mut registrations, b, round).unwrap();
    assert!(registrations.settled(round));
    assert_eq!(registrations.close(round), Some(Outcome { registrants: 2, acked: 2, late: vec![] }));
    assert_eq!(ack(&mut registrations, b, round), Err(Misbehaved), "after the end");
}

#[test]
fn a_registrant_that_leaves_is_not_waited_for_and_one_that_is_late_is_named() {
    let mut registrations = Registrations::default();
    let (gone, late) = (registrations.connect(), registrations.connect());
    register(&mut registrations, gone, "x");
    register(&mut registrations, late, "x");
    let (round, ..) = registrations.invalidate("x");
    registrations.disconnect(gone);
    assert!(!registrations.settled(round));
    assert_eq!(registrations.close(round), Some(Outcome { registrants: 2, acked: 0, late: vec![late] }));
}

#[test]
fn nobody_registered_is_settled_at_once() {
    let mut registrations = Registrations::default();
    let (round, _, peers) = registrations.invalidate("x");
    assert!(peers.is_empty() && registrations.settled(round));
    assert_eq!(registrations.close(round), Some(Outcome { registrants: 0, acked: 0, late: vec![] }));
}

#[test]
fn registrations_end_with_their_connection_or_when_taken_back() {
    let mut registrations = Registrations::default();
    let (a, b) = (registrations.connect(), registrations.connect());
    for (peer, name) in [(a, "x"), (a, "y"), (b, "x")] {
        register(&mut registrations, peer, name);
    }
    registrations.hear(a, Heard::Unregister("x".into())).unwrap();
    registrations.hear(a, Heard::Unregister("never".into())).unwrap();
    assert_eq!(registrations.invalidate("x").2, [b]);
    assert_eq!(registrations.count(), 2);
    registrations.disconnect(a);
    registrations.disconnect(a);
    registrations.disconnect(b);
    assert_eq!((registrations.count(), registrations.names.len()), (0, 0));
}

#[test]
fn names_are_bounded_and_bad_ones_a_misbehaviour() {
    let mut registrations = Registrations::default();
    let peer = registrations.connect();
    for name in 0..MAX_NAMES_A_PEER {
        register(&mut registrations, peer, &name.to_string());
    }
    assert_eq!(register(&mut registrations, peer, "more"), Told::Refused { refused: "more".into() });
    assert_eq!(register(&mut registrations, peer, "0"), Told::Registered { registered: "0".into() });
    for bad in [String::new(), "x".repeat(MAX_NAME_BYTES + 1)] {
        assert_eq!(registrations.hear(peer, Heard::Register(bad)), Err(Misbehaved));
    }
}
