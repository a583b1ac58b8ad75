//! Single rules of the core that the simulation can't point at by name.

use protoplex_wire::proto::located;

use super::*;

fn at(ms: u64) -> BootTime {
    BootTime::ZERO + Duration::from_millis(100_000 + ms)
}

fn hour(from: BootTime) -> BootTime {
    from + Duration::from_secs(3600)
}

fn actions(core: &mut Ownership) -> Vec<Action> {
    std::iter::from_fn(|| core.next_action()).collect()
}

/// Leads in term 3, with nobody expected.
fn leader(max_keys: usize) -> Ownership {
    let mut core = Ownership::new(Timing::default(), Limits { max_keys, ..Limits::default() });
    core.lead(3, hour(at(0)), Vec::new(), at(0));
    actions(&mut core);
    core
}

fn joining(node: &str, zone: &str, incarnation: u64, keys: &[(&str, u64)]) -> Joining {
    let (id, pool) = (format!("{node}:0"), "rooms".to_owned());
    let keys = keys.iter().map(|(key, epoch)| OwnedKey { key: (*key).to_owned(), epoch: *epoch }).collect();
    let [zone, address, instance] = [zone, "127.0.0.1:1", node].map(ToOwned::to_owned);
    let member = Member { id, pool, zone, address, instance };
    Joining { node: node.to_owned(), member, incarnation, attempt: 1, keys }
}

/// The whole way of a hello: the row asked for is written.
fn join(core: &mut Ownership, link: LinkId, joining: Joining, now: BootTime) -> Vec<Action> {
    core.hello(link, joining, now);
    core.recorded(link, true, now);
    actions(core)
}

fn question(key: &str, zone: &str, refuted_epoch: u64) -> Question {
    Question {
        link: 99,
        id: 1,
        zone: zone.to_owned(),
        pool: "rooms".to_owned(),
        key: key.to_owned(),
        refuted_epoch,
    }
}

/// The answer to a question: member and epoch, or the reason.
fn locate(core: &mut Ownership, question: Question, now: BootTime) -> Result<(String, u64), String> {
    core.locate(question, now);
    let last = actions(core).into_iter().rev().find_map(|action| match action {
        Action::Send(99, Message::Located(located)) => located.result,
        _ => None,
    });
    match last.expect("an answer") {
        located::Result::Owner(owner) => Ok((owner.member, owner.epoch)),
        located::Result::Unavailable(why) => Err(why.reason),
    }
}

fn closed(actions: &[Action]) -> Option<String> {
    actions
        .iter()
        .find_map(|action| if let Action::Close(_, why) = action { Some(why.to_string()) } else { None })
}

#[test]
fn the_askers_zone_comes_before_the_least_load() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "a", 1, &[]), at(0));
    join(&mut core, 2, joining("live-2", "b", 1, &[]), at(0));
    for key in ["1", "2", "3"] {
        assert_eq!(locate(&mut core, question(key, "a", 0), at(1)).unwrap().0, "live-1:0");
    }
    assert_eq!(locate(&mut core, question("4", "c", 0), at(1)).unwrap().0, "live-2:0");
}

#[test]
fn the_owner_is_told_before_the_asker() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    core.locate(question("1", "", 0), at(1));
    let actions = actions(&mut core);
    assert!(matches!(&actions[0], Action::Send(1, Message::Assigned(_))), "{actions:?}");
    assert!(matches!(&actions[1], Action::Send(99, Message::Located(_))), "{actions:?}");
}

#[test]
fn a_refuted_epoch_is_replaced_once_however_many_refute_it() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    let first = locate(&mut core, question("1", "", 0), at(1)).unwrap().1;
    let second = locate(&mut core, question("1", "", first), at(1)).unwrap().1;
    assert!(second > first);
    assert_eq!(locate(&mut core, question("1", "", first), at(1)).unwrap().1, second);
}

/// A second process of a node's name: on another machine, say, with a copy of the folder `cluster`.
fn namesake(node: &str, incarnation: u64) -> Joining {
    let mut joining = joining(node, "", incarnation, &[]);
    joining.member.instance = "another".to_owned();
    joining.member.address = "127.0.0.1:2".to_owned();
    joining
}

#[test]
fn another_instance_of_a_name_waits_for_the_leases_end_and_is_told_what_to_do() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 5, &[]), at(0));
    core.hello(2, namesake("live-1", 9), at(1));
    let refused = actions(&mut core);
    let why = closed(&refused).unwrap();
    assert!(why.contains("taken by another instance, at 127.0.0.1:1") && why.contains("--node"), "{why}");
    assert_eq!(refused.len(), 1, "its row is not written: {refused:?}");
    assert!(
        closed(&join(&mut core, 3, joining("live-1", "", 4, &[]), at(1))).unwrap().contains("later hello")
    );
    assert_eq!(
        closed(&join(&mut core, 4, namesake("live-1", 9), at(5_000))).as_deref(),
        Some("the lease has ended")
    );
    assert_eq!(locate(&mut core, question("1", "", 0), at(5_001)).unwrap().0, "live-1:0");
    let why = closed(&join(&mut core, 5, joining("live-1", "", 10, &[]), at(5_002))).unwrap();
    assert!(why.contains("at 127.0.0.1:2"), "now the name is the other one's: {why}");
}

#[test]
fn another_instance_gets_in_by_no_child_that_the_first_does_not_have() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    let mut third = namesake("live-1", 2);
    third.member.id = "live-1:2".to_owned();
    let why = closed(&join(&mut core, 2, third.clone(), at(4_999))).unwrap();
    assert!(why.contains("another instance"), "{why}");
    let told = join(&mut core, 3, third, at(5_001));
    let welcome = |action: &Action| matches!(action, Action::Welcome(3));
    assert!(told.iter().any(welcome), "the first one's lease is over: {told:?}");
}

#[test]
fn another_instance_is_not_the_member_that_a_new_term_expects() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    core.lead(4, hour(at(0)), vec![joining("live-1", "", 1, &[]).member], at(0));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(1));
    assert!(closed(&join(&mut core, 3, namesake("live-1", 9), at(1))).unwrap().contains("another instance"));
    core.locate(question("1", "", 0), at(2));
    assert!(actions(&mut core).is_empty(), "it may still be served by the one that is expected");
    assert_eq!(closed(&join(&mut core, 4, joining("live-1", "", 1, &[("1", 7)]), at(3))), None);
    assert_eq!(locate(&mut core, question("1", "", 0), at(4)), Ok(("live-1:0".to_owned(), 7)));
}

#[test]
fn another_instance_does_not_keep_a_node_out_that_a_new_term_expects() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    core.lead(3, hour(at(0)), vec![joining("live-1", "", 1, &[]).member], at(0));
    actions(&mut core);
    let mut third = namesake("live-1", 2);
    third.member.id = "live-1:2".to_owned();
    assert!(closed(&join(&mut core, 1, third, at(1))).unwrap().contains("another instance"));
    let told = join(&mut core, 2, joining("live-1", "", 1, &[("1", 7)]), at(2));
    assert!(told.iter().any(|action| matches!(action, Action::Welcome(2))), "{told:?}");
}

#[test]
fn a_row_of_before_instances_were_known_is_nobodys() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    let row = Member { instance: String::new(), ..joining("live-1", "", 1, &[]).member };
    core.lead(4, hour(at(0)), vec![row], at(0));
    let hello = joining("live-1", "", 1, &[("1", 7)]);
    assert!(closed(&join(&mut core, 3, hello.clone(), at(4_999))).unwrap().contains("another instance"));
    assert_eq!(closed(&join(&mut core, 4, hello, at(5_000))), None);
}

#[test]
fn of_two_instances_that_come_at_once_the_second_does_not_write_over_the_firsts_row() {
    let mut core = leader(100);
    core.hello(1, joining("live-1", "", 1, &[]), at(0));
    core.hello(2, namesake("live-1", 9), at(1));
    let told = actions(&mut core);
    assert!(matches!(&told[0], Action::Record(1, _, _)), "{told:?}");
    assert!(closed(&told[1..]).unwrap().contains("another instance"), "{told:?}");
    core.recorded(1, true, at(2));
    assert!(matches!(&actions(&mut core)[..], [Action::Welcome(1), ..]));
}

#[test]
fn a_restarted_member_gets_its_keys_at_new_epochs_at_once() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(0));
    let (owner, epoch) = locate(&mut core, question("1", "", 0), at(1)).unwrap();
    let node = owner.trim_end_matches(":0").to_owned();
    let told = join(&mut core, 3, joining(&node, "", 2, &[]), at(10));
    assert!(
        told.iter().any(|action| matches!(action, Action::Broadcast(_, Message::MemberGone(_)))),
        "{told:?}"
    );
    let again = locate(&mut core, question("1", "", 0), at(11)).unwrap();
    assert_eq!(again.0, owner);
    assert!(again.1 > epoch);
}

#[test]
fn a_new_term_waits_one_lease_for_a_member_that_it_expects_and_for_no_other_pool() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    let expected = joining("live-1", "", 1, &[]).member;
    core.lead(4, hour(at(0)), vec![expected], at(0));
    join(&mut core, 2, joining("live-2", "", 1, &[("2", 7)]), at(1));
    assert_eq!(locate(&mut core, question("2", "", 0), at(2)), Ok(("live-2:0".to_owned(), 7)), "reported");
    let elsewhere = Question { pool: "files".to_owned(), ..question("1", "", 0) };
    assert_eq!(locate(&mut core, elsewhere, at(2)), Err("no live node in the pool".to_owned()));
    core.locate(question("1", "", 0), at(2));
    assert!(actions(&mut core).is_empty(), "held");
    core.renew(2, 1, at(4_000));
    core.tick(at(4_999));
    assert!(!actions(&mut core).iter().any(|action| matches!(action, Action::Send(99, _))));
    core.tick(at(5_000));
    let told = actions(&mut core);
    assert!(told.iter().any(|action| matches!(action, Action::Send(99, Message::Located(_)))), "{told:?}");
    assert!(
        told.iter().any(|action| matches!(action, Action::Broadcast(_, Message::ResetOwners(_)))),
        "{told:?}"
    );
}

#[test]
fn a_lead_that_has_lapsed_is_not_taken_up_again() {
    let mut core = leader(100);
    let mut core_of = |until| {
        core.lead(5, until, Vec::new(), at(0));
        join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
        let renewed = core.lead_renewed(5, hour(until), at(2_000));
        (renewed, closed(&actions(&mut core)))
    };
    assert_eq!(core_of(at(2_001)), (true, None));
    assert_eq!(core_of(at(2_000)), (false, Some("the seed's own lease has ended".to_owned())));
    assert_eq!(locate(&mut core, question("1", "", 0), at(2_001)), Err("the seed does not lead".to_owned()));
}

#[test]
fn a_full_seed_forgets_what_it_only_remembers_and_then_refuses() {
    let mut core = leader(2);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    locate(&mut core, question("1", "", 0), at(1)).unwrap();
    locate(&mut core, question("2", "", 0), at(1)).unwrap();
    assert!(locate(&mut core, question("3", "", 0), at(1)).unwrap_err().contains("max_keys"));
    core.leave(1, at(2));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(2));
    assert!(locate(&mut core, question("3", "", 0), at(3)).is_err(), "swept at most once a lease");
    core.renew(2, 1, at(4_000));
    locate(&mut core, question("3", "", 0), at(5_001)).unwrap();
    assert_eq!(core.keys(), 1);
}

#[test]
fn a_removal_never_outruns_the_row_of_a_hello_under_way() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    let mut moved = joining("live-1", "", 2, &[]);
    moved.member.address = "127.0.0.1:2".to_owned();
    core.hello(2, moved, at(4_999));
    assert!(matches!(&actions(&mut core)[..], [Action::Record(2, _, _)]));
    core.tick(at(5_000));
    let told = actions(&mut core);
    assert!(!told.iter().any(|action| matches!(action, Action::Erase(..))), "{told:?}");
    core.closed(2);
    core.recorded(2, true, at(5_001));
    assert!(matches!(&actions(&mut core)[..], [Action::Erase(..)]), "it has not come");
}

#[test]
fn draining_nodes_get_no_new_keys_and_keep_what_they_have() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    locate(&mut core, question("1", "", 0), at(1)).unwrap();
    core.set_draining("live-1", true);
    assert!(locate(&mut core, question("1", "", 0), at(1)).is_ok());
    assert!(locate(&mut core, question("2", "", 0), at(1)).is_err());
    core.set_draining("live-1", false);
    assert!(locate(&mut core, question("2", "", 0), at(1)).is_ok());
}

#[test]
fn hints_bring_keys_back_to_their_last_member() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    let hint = |key: &str, node: &str| Hint {
        pool: "rooms".to_owned(),
        key: key.to_owned(),
        member: format!("{node}:0"),
        epoch: 7,
    };
    core.restore([hint("1", "live-2"), hint("2", "live-2"), hint("3", "live-9")]);
    core.lead(3, hour(at(0)), Vec::new(), at(0));
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(0));
    let explained = core.explain("rooms", "1", "");
    assert_eq!(
        (explained.last_member.as_str(), explained.next.unwrap().member.as_str()),
        ("live-2:0", "live-2:0")
    );
    assert_eq!(core.explain("nobody", "1", "").next, None);
    for (key, owner) in [("1", "live-2:0"), ("2", "live-2:0"), ("3", "live-1:0")] {
        assert_eq!(locate(&mut core, question(key, "", 0), at(1)).unwrap().0, owner);
    }
    let unknown = core.explain("rooms", "4", "");
    assert_eq!((unknown.last_member.as_str(), unknown.next.unwrap().member.as_str()), ("", "live-1:0"));
}
