//! Rendezvous hashing moves what it must and no more; spread prefers the idle.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

fn pool(count: usize) -> Vec<Rc<Member>> {
    (0..count).map(|n| Rc::new(Member::new(&format!("live-{n}:0"), ([127, 0, 0, 1], 3000).into()))).collect()
}

fn owner(members: &[Rc<Member>], key: &str) -> Option<Box<str>> {
    hash(members, key, None, Instant::now()).map(|member| member.id.clone())
}

proptest! {
    #[test]
    fn only_the_keys_of_a_lost_member_move(count in 2usize..12, lost in 0usize..12, key in ".{1,40}") {
        let before = pool(count);
        let lost = lost % count;
        let mut after = before.clone();
        let gone = after.remove(lost);
        let was = owner(&before, &key);
        let is = owner(&after, &key);
        prop_assert!(was == is || was.as_ref() == Some(&gone.id));
        prop_assert_ne!(is, Some(gone.id.clone()));
    }

    #[test]
    fn the_order_of_members_is_of_no_account(count in 1usize..12, turn in 0usize..12, key in ".{1,40}") {
        let straight = pool(count);
        let mut turned = straight.clone();
        turned.rotate_left(turn % count);
        turned.reverse();
        prop_assert_eq!(owner(&straight, &key), owner(&turned, &key));
    }

    #[test]
    fn a_second_try_goes_where_the_key_would_move(count in 2usize..12, key in ".{1,40}") {
        let members = pool(count);
        let first = hash(&members, &key, None, Instant::now()).unwrap();
        let second = hash(&members, &key, Some(first), Instant::now()).unwrap();
        let without: Vec<_> = members.iter().filter(|member| member.id != first.id).cloned().collect();
        prop_assert_eq!(&second.id, &hash(&without, &key, None, Instant::now()).unwrap().id);
    }
}

#[test]
fn keys_spread_evenly() {
    let members = pool(4);
    let mut counts = [0u32; 4];
    for n in 0..8_000 {
        let chosen = hash(&members, &format!("/files/{n}"), None, Instant::now()).unwrap();
        counts[members.iter().position(|member| Rc::ptr_eq(member, chosen)).unwrap()] += 1;
    }
    assert!(counts.iter().all(|&count| (1_800..2_200).contains(&count)), "{counts:?}");
}

#[test]
fn the_hash_is_the_same_in_every_release() {
    assert_eq!(stable_hash(b""), 0xf52a_15e9_a9b5_e89b);
    assert_eq!(owner(&pool(5), "room:lobby").as_deref(), Some("live-2:0"));
}

#[test]
fn an_empty_pool_has_no_member() {
    assert!(hash(&[], "key", None, Instant::now()).is_none());
    assert!(spread(&[], &mut SmallRng::seed_from_u64(1), None, Instant::now()).is_none());
    let one = pool(1);
    assert!(hash(&one, "key", Some(&one[0]), Instant::now()).is_none());
    assert!(spread(&one, &mut SmallRng::seed_from_u64(1), Some(&one[0]), Instant::now()).is_none());
}

#[test]
fn spread_never_takes_the_busiest_of_all() {
    let members = pool(5);
    let _busy: Vec<_> = (0..3).map(|_| Outstanding::at(&members[2])).collect();
    let mut rng = SmallRng::seed_from_u64(7);
    for _ in 0..1_000 {
        assert_ne!(spread(&members, &mut rng, None, Instant::now()).unwrap().id, members[2].id);
    }
}

#[test]
fn spread_reaches_every_idle_member() {
    let members = pool(3);
    let mut rng = SmallRng::seed_from_u64(7);
    let mut seen = [0u32; 3];
    for _ in 0..600 {
        let chosen = spread(&members, &mut rng, None, Instant::now()).unwrap();
        seen[members.iter().position(|member| Rc::ptr_eq(member, chosen)).unwrap()] += 1;
    }
    assert!(seen.iter().all(|&count| count > 120), "{seen:?}");
    let other = spread(&members[..2], &mut rng, Some(&members[0]), Instant::now()).unwrap();
    assert_eq!(other.id, members[1].id);
}

#[test]
fn a_request_is_counted_until_it_is_dropped() {
    let member = pool(1).remove(0);
    let first = Outstanding::at(&member);
    let second = Outstanding::at(&member);
    assert_eq!(member.outstanding(), 2);
    drop(first);
    drop(second);
    assert_eq!(member.outstanding(), 0);
}

#[test]
fn who_is_left_out_gets_nothing_while_there_are_others_and_then_its_keys_come_back() {
    let (members, now) = (pool(4), Instant::now());
    let keys: Vec<_> = (0..200).map(|number| format!("/files/{number}")).collect();
    let owners =
        |now| keys.iter().map(|key| hash(&members, key, None, now).unwrap().id.clone()).collect::<Vec<_>>();
    let before = owners(now);
    let out = &members[1];
    for _ in 0..5 {
        crate::health::failed(&members, out, now);
    }
    for (was, is) in before.iter().zip(owners(now)) {
        assert!(is != out.id && (*was == is || *was == out.id), "{was} {is}");
    }
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..100 {
        assert_ne!(spread(&members, &mut rng, None, now).unwrap().id, out.id);
    }
    out.health.answered(now);
    assert_eq!(owners(now), before);
    let alone = &members[1..2];
    assert_eq!(hash(alone, "x", None, now).unwrap().id, out.id);
}
