//! Single rules of the core that the simulation can't point at by name.

use prost::Message as _;
use protoplex_wire::proto::{Invalidate, located};

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
    Joining { node: node.to_owned(), member, incarnation, attempt: 1, keys, capacity: 1, yields: true }
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
    let none = "pool \"files\" has no member now that could take the key";
    assert_eq!(locate(&mut core, elsewhere, at(2)), Err(none.to_owned()));
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
fn a_lead_that_was_seen_to_lapse_is_not_taken_up_again() {
    let mut core = leader(100);
    let mut core_of = |until, looks: bool, renewed_until| {
        core.lead(5, until, Vec::new(), at(0));
        join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
        if looks {
            core.tick(at(2_000));
        }
        let renewed = core.lead_renewed(5, renewed_until, at(2_000));
        (renewed, closed(&actions(&mut core)))
    };
    let over = (false, Some("the seed's own lease has ended".to_owned()));
    assert_eq!(core_of(at(2_001), true, at(3_000)), (true, None));
    // It was busy, or stopped, and renewed all the same.
    assert_eq!(core_of(at(2_000), false, at(3_000)), (true, None));
    assert_eq!(core_of(at(2_000), false, at(2_000)), over);
    assert_eq!(core_of(at(2_000), true, at(3_000)), over);
    core.locate(question("1", "", 0), at(2_001));
    assert!(actions(&mut core).is_empty(), "whoever leads next is asked again");
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
    // It looks for room part by part, so that no question waits for a look at all keys.
    let tries = (0..600).find(|turn| locate(&mut core, question("3", "", 0), at(3 + turn * 2)).is_ok());
    assert!(tries.is_some_and(|tries| tries <= PARTS as u64), "{tries:?}");
    assert!((1..=2).contains(&core.keys()), "whether the other is still remembered depends on its part");
}

/// Its successor in the pool got the key while the first was told that it is its own no more.
#[test]
fn a_key_that_was_given_to_its_owner_anew_while_its_link_broke_is_its_owners() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(0));
    let (owner, first) = locate(&mut core, question("1", "", 0), at(1)).unwrap();
    assert_eq!(owner, "live-1:0");
    let second = locate(&mut core, question("1", "", first), at(2)).unwrap().1;
    core.closed(1);
    let told = join(&mut core, 3, Joining { attempt: 2, ..joining("live-1", "", 1, &[("1", first)]) }, at(3));
    let anew = |action: &Action| matches!(action, Action::Send(3, Message::Assigned(assigned)) if assigned.epoch == second);
    assert!(told.iter().any(anew), "{told:?}");
    core.drain(3);
    assert_eq!(locate(&mut core, question("1", "", 0), at(4)), Ok((owner, second)));
}

/// By one certificate: a server for each pool, or some on one machine.
#[test]
fn members_of_a_users_own_may_be_of_one_name_and_several_processes() {
    let mut core = leader(100);
    let own = |id: &str, instance: &str| {
        let mut joining = joining("rooms-1", "", 1, &[]);
        (joining.member.id, joining.member.instance) = (id.to_owned(), instance.to_owned());
        joining
    };
    for (link, (id, instance)) in
        (1..).zip([("rooms-1", "a"), ("rooms-1/10.0.0.1:1", "b"), ("rooms-1/10.0.0.1:2", "c")])
    {
        assert_eq!(closed(&join(&mut core, link, own(id, instance), at(link))), None, "{id}");
    }
    let why = closed(&join(&mut core, 9, own("rooms-1/10.0.0.1:2", "d"), at(9)));
    assert!(why.is_some_and(|why| why.contains("is taken")));
}

/// Whatever a member says that it has had all the time.
#[test]
fn a_report_takes_no_key_from_its_owner_and_no_epoch_is_believed_that_was_never_given() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    let (owner, epoch) = locate(&mut core, question("1", "", 0), at(1)).unwrap();
    let revoked = |told: &[Action], link| {
        told.iter().any(|action| matches!(action, Action::Send(to, Message::Revoked(_)) if *to == link))
    };
    let mut attempt = 0;
    for reported in [epoch, epoch + 1_000, 4 << EPOCH_COUNTER_BITS, i64::MAX as u64, u64::MAX] {
        for key in ["1", "never"] {
            attempt += 1;
            let thief = joining("live-2", "", attempt, &[(key, reported)]);
            let told = join(&mut core, 10 + attempt, thief, at(1 + attempt));
            assert_eq!((revoked(&told, 1), revoked(&told, 10 + attempt)), (false, true), "{key} {reported}");
            assert_eq!(locate(&mut core, question("1", "", 0), at(1 + attempt)), Ok((owner.clone(), epoch)));
        }
    }
    let next = locate(&mut core, question("1", "", epoch), at(20)).unwrap().1;
    assert!(next > epoch && next < 4 << EPOCH_COUNTER_BITS, "{next}");
}

/// The earlier epoch's lease had ended when the later one was given; afterwards who has a key keeps it.
#[test]
fn of_two_reports_in_a_new_term_the_later_epoch_counts_and_after_its_wait_none_does() {
    let mut core = Ownership::new(Timing::default(), Limits::default());
    let expected = ["live-1", "live-2", "live-3"].map(|node| joining(node, "", 1, &[]).member);
    core.lead(4, hour(at(0)), expected.to_vec(), at(0));
    join(&mut core, 1, joining("live-1", "", 1, &[("1", 7)]), at(1));
    join(&mut core, 2, joining("live-2", "", 1, &[("1", 8)]), at(2));
    assert_eq!(locate(&mut core, question("1", "", 0), at(3)), Ok(("live-2:0".to_owned(), 8)));
    join(&mut core, 3, joining("live-3", "", 1, &[]), at(4));
    core.tick(at(5));
    actions(&mut core);
    join(&mut core, 4, Joining { attempt: 2, ..joining("live-1", "", 1, &[("1", 9)]) }, at(6));
    assert_eq!(locate(&mut core, question("1", "", 0), at(7)), Ok(("live-2:0".to_owned(), 8)));
}

/// One member's report must not take from all pools what keys there may be.
#[test]
fn reports_make_no_more_keys_than_there_may_be() {
    let mut core = Ownership::new(Timing::default(), Limits { max_keys: 3, ..Limits::default() });
    let expected = ["live-1", "live-2"].map(|node| joining(node, "", 1, &[]).member);
    core.lead(4, hour(at(0)), expected.to_vec(), at(0));
    let keys = ["1", "2", "3", "4", "5"].map(|key| (key, 7));
    let told = join(&mut core, 1, joining("live-1", "", 1, &keys), at(1));
    let revoked: Vec<_> = told
        .iter()
        .filter_map(|action| match action {
            Action::Send(1, Message::Revoked(revoked)) => Some(revoked.keys.len()),
            _ => None,
        })
        .collect();
    assert_eq!((core.keys(), revoked.iter().sum::<usize>()), (3, 2));
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

// ---- keys that are given up ----

/// All parts of the keys have been looked through at about this time.
fn look_through(core: &mut Ownership, ms: u64) -> Vec<Action> {
    let mut all = Vec::new();
    for _ in 0..PARTS {
        core.tick(at(ms));
        all.extend(actions(core));
    }
    all
}

fn owned(key: &str, epoch: u64) -> OwnedKey {
    OwnedKey { key: key.to_owned(), epoch }
}

/// What was asked of whom: link, keys, idle.
fn asked_for(actions: &[Action]) -> Vec<(LinkId, Vec<OwnedKey>, bool)> {
    let yields = actions.iter().filter_map(|action| match action {
        Action::Send(link, Message::Yield(asked)) => Some((*link, asked.keys.clone(), asked.idle)),
        _ => None,
    });
    yields.collect()
}

fn invalidated(actions: &[Action]) -> Vec<String> {
    let keys = actions.iter().filter_map(|action| match action {
        Action::Broadcast(_, Message::Invalidate(gone)) => {
            Some(Invalidate::decode(gone.clone()).unwrap().keys)
        }
        _ => None,
    });
    keys.flatten().collect()
}

/// Leads with answers that are fresh for 8 s, so that a key is idle after 9 s and a lease.
fn idling() -> Ownership {
    let mut core = leader(100).with_idle(Idle { default: Some(Duration::from_secs(8)), ..Idle::default() });
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    core
}

/// Keeps the lease of the member of this link.
fn renew(core: &mut Ownership, link: LinkId, from_ms: u64, to_ms: u64) {
    for ms in (from_ms..=to_ms).step_by(1000) {
        core.renew(link, 1, at(ms));
    }
    actions(core);
}

#[test]
fn a_key_that_nobody_asks_for_is_free_once_its_owner_has_given_it_up_and_no_cache_is_told() {
    let mut core = idling();
    let epoch = locate(&mut core, question("1", "", 0), at(0)).unwrap().1;
    renew(&mut core, 1, 1000, 14_000);
    assert_eq!(asked_for(&look_through(&mut core, 14_100)), []);
    let asked = look_through(&mut core, 14_300);
    assert_eq!(asked_for(&asked), [(1, vec![owned("1", epoch)], true)]);
    assert_eq!(asked_for(&look_through(&mut core, 14_400)), [], "it is asked once");
    assert_eq!(core.explain("rooms", "1", "").owner.unwrap().epoch, epoch, "until then it is the owner's");
    core.release(1, &[owned("1", epoch)], &[], at(14_500));
    assert_eq!(invalidated(&[asked, actions(&mut core)].concat()), [""; 0]);
    assert_eq!(core.keys(), 0);
}

#[test]
fn a_key_that_is_asked_for_again_stays_at_a_new_epoch_and_the_release_on_its_way_counts_no_more() {
    let mut core = idling();
    let epoch = locate(&mut core, question("1", "", 0), at(0)).unwrap().1;
    renew(&mut core, 1, 1000, 14_000);
    look_through(&mut core, 14_300);
    let (member, anew) = locate(&mut core, question("1", "", 0), at(14_400)).unwrap();
    assert!(member == "live-1:0" && anew > epoch, "{member} {anew}");
    core.release(1, &[owned("1", epoch)], &[], at(14_500));
    assert_eq!(locate(&mut core, question("1", "", 0), at(14_600)), Ok((member, anew)));
}

#[test]
fn an_owner_that_needs_an_idle_key_keeps_it_and_is_asked_again_as_late() {
    let mut core = idling();
    let epoch = locate(&mut core, question("1", "", 0), at(0)).unwrap().1;
    renew(&mut core, 1, 1000, 28_000);
    assert_eq!(asked_for(&look_through(&mut core, 28_000)).len(), 1);
    core.release(1, &[], &[owned("1", epoch)], at(28_100));
    assert_eq!(locate(&mut core, question("1", "", 0), at(28_200)).unwrap().1, epoch);
    renew(&mut core, 1, 29_000, 43_000);
    assert_eq!(asked_for(&look_through(&mut core, 42_000)), []);
    assert_eq!(asked_for(&look_through(&mut core, 42_800)).len(), 1);
}

#[test]
fn what_is_only_remembered_is_forgotten_when_it_is_idle() {
    let mut core = idling();
    let epoch = locate(&mut core, question("1", "", 0), at(0)).unwrap().1;
    core.leave(1, at(100));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(200));
    renew(&mut core, 2, 1000, 15_000);
    look_through(&mut core, 14_000);
    assert_eq!(core.keys(), 1);
    look_through(&mut core, 14_300);
    assert_eq!((core.keys(), epoch > 0), (0, true));
}

#[test]
fn a_draining_member_gets_no_new_keys_and_gives_up_its_own_many_at_a_time() {
    let mut core = leader(100);
    join(&mut core, 1, joining("live-1", "", 1, &[]), at(0));
    let keys: Vec<_> = (0..6)
        .map(|key| {
            owned(&key.to_string(), locate(&mut core, question(&key.to_string(), "", 0), at(1)).unwrap().1)
        })
        .collect();
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(2));
    core.drain(1);
    assert_eq!(locate(&mut core, question("new", "", 0), at(3)).unwrap().0, "live-2:0");
    assert_eq!(locate(&mut core, question("5", "", 0), at(3)).unwrap().0, "live-1:0", "it still has its own");
    core.release(1, &keys[..3], &[], at(4));
    assert_eq!(invalidated(&actions(&mut core)), ["0", "1", "2"], "all in one message");
    assert_eq!(locate(&mut core, question("0", "", 0), at(5)).unwrap().0, "live-2:0");
    assert_eq!(locate(&mut core, question("5", "", 0), at(5)).unwrap().0, "live-1:0");
    core.leave(1, at(6));
    join(&mut core, 3, joining("live-1", "", 2, &[]), at(7));
    for key in ["1", "2", "5"] {
        assert_eq!(
            locate(&mut core, question(key, "", 0), at(8)).unwrap().0,
            "live-1:0",
            "it has {key} again"
        );
    }
    assert_eq!(locate(&mut core, question("0", "", 0), at(8)).unwrap().0, "live-2:0");
}

/// `members` with `keys` keys among them, and one more that has none and has stayed for long enough.
fn grown(members: u64, keys: usize) -> Ownership {
    let mut core = leader(keys * 2);
    for link in 1..=members {
        join(&mut core, link, joining(&format!("live-{link}"), "", 1, &[]), at(0));
    }
    for key in 0..keys {
        locate(&mut core, question(&key.to_string(), "", 0), at(1)).unwrap();
    }
    join(&mut core, 50, joining("live-50", "", 1, &[]), at(2));
    core
}

fn renew_all(core: &mut Ownership, members: u64, ms: u64) {
    for link in (1..=members).chain([50]) {
        core.renew(link, 1, at(ms));
    }
    actions(core);
}

#[test]
fn a_pool_that_grows_moves_the_newcomers_share_bit_by_bit_and_no_more() {
    let (members, keys) = (3, 400);
    let mut core = grown(members, keys);
    let (mut moved, mut most) = (0, 0);
    for ms in (1000..120_000).step_by(50) {
        renew_all(&mut core, members, ms);
        core.tick(at(ms));
        let asked = asked_for(&actions(&mut core));
        assert!(asked.is_empty() || ms >= 10_000, "who has just come has to stay first");
        let batch: usize = asked.iter().map(|(_, keys, _)| keys.len()).sum();
        most = most.max(batch);
        moved += batch;
        for (link, keys, idle) in asked {
            assert!(!idle && link != 50);
            core.release(link, &keys, &[], at(ms));
            for OwnedKey { key, epoch } in keys {
                let (owner, anew) = locate(&mut core, question(&key, "", 0), at(ms)).unwrap();
                assert!(owner == "live-50:0" && anew > epoch);
            }
        }
    }
    assert!((80..=100).contains(&moved), "{moved} of {keys}");
    assert!(most <= 2, "{most} at once");
    let mut counts: Vec<_> = core.members(at(120_000)).map(|view| view.keys).collect();
    counts.sort_unstable();
    assert!(counts[0] >= 80 && counts[3] <= 110, "{counts:?}");
}

#[test]
fn whoever_asks_for_a_key_on_its_way_waits_for_its_release_and_not_for_ever() {
    let mut core = grown(1, 2);
    let (mut asked, mut now) = (Vec::new(), 1000);
    while asked_for(&asked).is_empty() {
        now += 50;
        renew_all(&mut core, 1, now);
        core.tick(at(now));
        asked = actions(&mut core);
        assert!(now < 60_000);
    }
    let (_, keys, _) = asked_for(&asked).remove(0);
    assert_eq!(invalidated(&asked), [keys[0].key.clone()], "caches are told at once");
    let now = at(now + 1);
    core.locate(question(&keys[0].key, "", 0), now);
    assert!(actions(&mut core).is_empty(), "it waits");
    let mut given_up = core;
    given_up.release(1, &keys, &[], now);
    let answer = actions(&mut given_up);
    let told = |action: &Action| matches!(action, Action::Send(50, Message::Assigned(_)));
    assert!(answer.iter().any(told), "{answer:?}");
}

#[test]
fn an_owner_that_does_not_answer_has_the_key_at_a_new_epoch() {
    let mut core = grown(1, 2);
    let mut asked = Vec::new();
    let mut now = 1000;
    while asked.is_empty() {
        now += 50;
        renew_all(&mut core, 1, now);
        core.tick(at(now));
        asked = asked_for(&actions(&mut core));
        assert!(now < 60_000);
    }
    let (_, keys, _) = asked.remove(0);
    core.locate(question(&keys[0].key, "", 0), at(now + 1));
    core.tick(at(now + 1000));
    let epochs: Vec<_> = actions(&mut core)
        .into_iter()
        .filter_map(|action| match action {
            Action::Send(1, Message::Assigned(assigned)) => Some(assigned.epoch),
            _ => None,
        })
        .collect();
    assert!(epochs.len() == 1 && epochs[0] > keys[0].epoch, "{epochs:?}");
    core.release(1, &keys, &[], at(now + 1001));
    assert_eq!(core.explain("rooms", &keys[0].key, "").owner.unwrap().epoch, epochs[0]);
}

#[test]
fn nobodys_coming_moves_a_key_of_a_member_that_cannot_tell_its_users() {
    let mut core = leader(100);
    let stubborn = Joining { yields: false, ..joining("live-1", "", 1, &[]) };
    join(&mut core, 1, stubborn, at(0));
    for key in 0..20 {
        locate(&mut core, question(&key.to_string(), "", 0), at(1)).unwrap();
    }
    join(&mut core, 50, joining("live-50", "", 1, &[]), at(2));
    for ms in (1000..60_000).step_by(50) {
        renew_all(&mut core, 1, ms);
        core.tick(at(ms));
        assert_eq!(asked_for(&actions(&mut core)), []);
    }
    for key in 20..40 {
        assert_eq!(locate(&mut core, question(&key.to_string(), "", 0), at(60_001)).unwrap().0, "live-50:0");
    }
}

#[test]
fn shares_go_by_capacity_and_an_overloaded_machine_gets_nothing_new() {
    let mut core = leader(1000);
    join(&mut core, 1, Joining { capacity: 3, ..joining("live-1", "", 1, &[]) }, at(0));
    join(&mut core, 2, joining("live-2", "", 1, &[]), at(0));
    let mut counts = [0, 0];
    for key in 0..40 {
        let owner = locate(&mut core, question(&key.to_string(), "", 0), at(1)).unwrap().0;
        counts[usize::from(owner == "live-2:0")] += 1;
    }
    assert_eq!(counts, [30, 10]);
    core.set_overloaded("live-2", true);
    for key in 40..60 {
        assert_eq!(locate(&mut core, question(&key.to_string(), "", 0), at(1)).unwrap().0, "live-1:0");
    }
    core.set_overloaded("live-2", false);
    assert_eq!(locate(&mut core, question("60", "", 0), at(1)).unwrap().0, "live-2:0");
}
