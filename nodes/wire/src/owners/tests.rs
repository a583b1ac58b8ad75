use super::*;

const POOL: &str = "live";
const NOW: BootTime = BootTime::ZERO;

fn owner(member: &str, epoch: u64) -> Owner {
    Owner { member: member.into(), address: "127.0.0.1:1".parse().unwrap(), epoch }
}

fn learn(owners: &mut Owners, pool: &str, key: &str, owner: &Owner) {
    owners.learn(pool, key, owner, NOW, Duration::ZERO);
}

fn known(owners: &mut Owners, pool: &str, key: &str) -> Option<Owner> {
    let (owner, age) = owners.known(pool, key, NOW + Duration::from_hours(1000))?;
    assert_eq!(age, Age::Fresh, "without a time an answer stands until it is taken back");
    Some(owner)
}

#[test]
fn refuting_an_old_epoch_keeps_a_newer_answer() {
    let mut owners = Owners::default();
    learn(&mut owners, POOL, "a", &owner("live-1:0", 7));
    owners.refute(POOL, "a", 6);
    assert_eq!(known(&mut owners, POOL, "a"), Some(owner("live-1:0", 7)));
    owners.refute(POOL, "a", 7);
    assert_eq!(known(&mut owners, POOL, "a"), None);
    assert_eq!(owners.refuted(POOL, "a"), 7);
    learn(&mut owners, POOL, "a", &owner("live-1:1", 8));
    assert_eq!(owners.refuted(POOL, "a"), 0);
}

#[test]
fn a_member_that_is_gone_takes_only_its_own_answers() {
    let mut owners = Owners::default();
    learn(&mut owners, POOL, "a", &owner("live-1:0", 1));
    learn(&mut owners, POOL, "b", &owner("live-1:1", 2));
    learn(&mut owners, "rooms", "a", &owner("live-1:0", 3));
    owners.forget_member(POOL, "live-1:0");
    assert_eq!(known(&mut owners, POOL, "a"), None);
    assert!(known(&mut owners, POOL, "b").is_some());
    assert!(known(&mut owners, "rooms", "a").is_some());
    owners.refute(POOL, "a", 1);
    assert_eq!(owners.refuted(POOL, "a"), 1);
    learn(&mut owners, POOL, "a", &owner("live-1:0", 4));
    assert_eq!(known(&mut owners, POOL, "a"), Some(owner("live-1:0", 4)), "it may come back");
}

#[test]
fn a_member_that_comes_back_elsewhere_has_none_of_its_old_answers() {
    let mut owners = Owners::default();
    learn(&mut owners, POOL, "a", &owner("live-1:0", 1));
    let moved = Owner { address: "127.0.0.1:2".parse().unwrap(), ..owner("live-1:0", 2) };
    learn(&mut owners, POOL, "b", &moved);
    assert_eq!(known(&mut owners, POOL, "a"), None);
    assert_eq!(known(&mut owners, POOL, "b"), Some(moved));
}

#[test]
fn an_answer_ages_and_says_so_to_one_until_that_ones_question_has_had_its_time() {
    let mut owners = Owners::default();
    let at = |seconds| NOW + Duration::from_secs(seconds);
    owners.learn(POOL, "a", &owner("live-1:0", 1), at(100), Duration::from_secs(60));
    let mut age = |seconds| owners.known(POOL, "a", at(seconds)).unwrap().1;
    assert_eq!(age(129), Age::Fresh);
    assert_eq!(age(130), Age::Ageing);
    assert_eq!(age(131), Age::Fresh, "whoever was told asks");
    assert_eq!(age(132), Age::Ageing, "it was refused, or its question was lost");
    assert_eq!(age(159), Age::Ageing);
    assert_eq!(age(160), Age::Stale);
    assert_eq!(age(161), Age::Stale);
    owners.learn(POOL, "a", &owner("live-1:0", 1), at(161), Duration::from_secs(60));
    assert_eq!(owners.known(POOL, "a", at(162)).unwrap().1, Age::Fresh);
}

#[test]
fn who_only_looks_takes_no_word_from_who_would_ask() {
    let mut owners = Owners::default();
    let at = |seconds| NOW + Duration::from_secs(seconds);
    owners.learn(POOL, "a", &owner("live-1:0", 1), NOW, Duration::from_secs(60));
    for (seconds, age) in [(29, Age::Fresh), (30, Age::Ageing), (31, Age::Ageing), (60, Age::Stale)] {
        assert_eq!(owners.look(POOL, "a", at(seconds)), Some((owner("live-1:0", 1), age)));
    }
    assert_eq!(owners.known(POOL, "a", at(31)).unwrap().1, Age::Ageing);
    owners.refute(POOL, "a", 1);
    assert_eq!(owners.look(POOL, "a", NOW), None);
}

#[test]
fn all_pools_have_one_limit_and_the_largest_one_makes_room() {
    let mut owners = Owners::default();
    let answer = owner("live-1:0", 1);
    let few = 8;
    for number in 0..MAX_OWNERS {
        learn(&mut owners, POOL, &number.to_string(), &answer);
    }
    assert!(known(&mut owners, POOL, "0").is_some(), "it is used, so it stays");
    for number in 0..few {
        learn(&mut owners, "rooms", &number.to_string(), &answer);
    }
    assert_eq!(owners.len(), MAX_OWNERS);
    let mut known = |pool, number: usize| known(&mut owners, pool, &number.to_string()).is_some();
    assert!((0..few).all(|number| known("rooms", number)));
    assert!(known(POOL, 0) && known(POOL, few + 1) && !(1..=few).any(|number| known(POOL, number)));
}

#[test]
fn what_is_doubted_says_so_until_it_is_learnt_anew() {
    let mut owners = Owners::default();
    for (key, fresh) in [("a", Duration::from_secs(60)), ("b", Duration::ZERO)] {
        owners.learn(POOL, key, &owner("live-1:0", 1), NOW, fresh);
    }
    owners.refute(POOL, "c", 5);
    owners.doubt_all();
    for key in ["a", "b"] {
        assert_eq!(owners.known(POOL, key, NOW), Some((owner("live-1:0", 1), Age::Doubted)));
    }
    assert_eq!(owners.refuted(POOL, "c"), 5);
    learn(&mut owners, POOL, "a", &owner("live-1:0", 1));
    assert_eq!(owners.known(POOL, "a", NOW).unwrap().1, Age::Fresh);
    owners.forget_member(POOL, "live-1:0");
    assert_eq!(owners.known(POOL, "b", NOW), None);
}
