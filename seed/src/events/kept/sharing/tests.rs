use proptest::prelude::*;

use super::*;

const ACK_TIMEOUT: Duration = Duration::from_secs(30);
const TERMS: Terms = Terms { ack_timeout: Some(ACK_TIMEOUT), max_attempts: 3 };

fn at(seconds: u64) -> BootTime {
    BootTime::ZERO + Duration::from_secs(seconds)
}

fn record(position: u64) -> Arc<Record> {
    Arc::new(Record { position, kept_at_ms: 0, topic: "t".to_owned(), event: vec![0; 10] })
}

/// With one member, and events 1 to `events`.
fn sharing(window: usize, events: u64) -> Sharing {
    let mut sharing = Sharing::new(0, TERMS);
    sharing.join(1, window);
    (1..=events).for_each(|position| sharing.take_in(record(position), at(0)));
    sharing
}

fn offers(sharing: &mut Sharing, now: BootTime) -> Vec<(MemberId, u64, u32)> {
    std::iter::from_fn(|| sharing.next_offer(now))
        .map(|it| (it.member, it.record.position, it.attempt))
        .collect()
}

#[test]
fn a_member_has_at_most_its_window() {
    let mut sharing = sharing(2, 4);
    assert_eq!(offers(&mut sharing, at(0)), [(1, 1, 1), (1, 2, 1)]);
    assert_eq!(
        sharing.next_time(),
        Some(at(30)),
        "until it answers, or its time is over, there is nothing to do"
    );
    sharing.ack(2);
    assert_eq!((sharing.position(), sharing.cursor()), (0, 4), "the first is not done");
    assert_eq!(offers(&mut sharing, at(0)), [(1, 3, 1)]);
    sharing.ack(1);
    assert_eq!(sharing.position(), 2);
}

#[test]
fn who_takes_one_after_the_other_is_not_hurried_and_who_stands_still_is_blamed_for_one() {
    let mut sharing = sharing(10, 4);
    assert_eq!(offers(&mut sharing, at(0)).len(), 4);
    // It answers one each 20 s: what is behind waits its turn.
    for (position, now) in [(1, 20), (2, 40), (3, 60)] {
        sharing.expire(at(now - 1));
        assert_eq!(offers(&mut sharing, at(now - 1)), [], "{now}");
        sharing.answered(1, position, at(now));
        sharing.ack(position);
    }
    sharing.expire(at(89));
    assert_eq!(offers(&mut sharing, at(89)), []);
    sharing.expire(at(90));
    assert_eq!(offers(&mut sharing, at(90)), [(1, 4, 2)], "it stands still");

    let mut sharing = self::sharing(10, 3);
    for round in 1..=2 {
        let given = offers(&mut sharing, at(30 * (round - 1)));
        assert_eq!(given, [(1, 1, round as u32), (1, 2, 1), (1, 3, 1)], "only the first is an attempt");
        sharing.expire(at(30 * round));
    }
    // Who answers out of order has its time for each.
    sharing.leave(1, at(60));
    sharing.join(2, 10);
    offers(&mut sharing, at(60));
    sharing.answered(2, 3, at(80));
    sharing.ack(3);
    sharing.expire(at(90));
    assert_eq!(offers(&mut sharing, at(90)), [(2, 2, 1)]);
    assert_eq!(sharing.next_dead().map(|(record, attempts)| (record.position, attempts)), Some((1, 3)));
}

#[test]
fn members_share_and_inherit() {
    let mut sharing = sharing(10, 0);
    sharing.join(2, 10);
    (1..=4).for_each(|position| sharing.take_in(record(position), at(0)));
    let mut by_member = [0; 3];
    offers(&mut sharing, at(0)).iter().for_each(|(member, ..)| by_member[*member as usize] += 1);
    assert_eq!(by_member, [0, 2, 2]);
    sharing.leave(1, at(1));
    let inherited = offers(&mut sharing, at(1));
    assert_eq!(inherited.len(), 2);
    assert_eq!(
        inherited.iter().map(|(member, _, attempt)| (*member, *attempt)).collect::<Vec<_>>(),
        [(2, 2), (2, 1)]
    );
}

#[test]
fn what_is_not_answered_goes_out_again_and_dies_at_last() {
    let mut sharing = sharing(10, 2);
    offers(&mut sharing, at(0));
    sharing.ack(2);
    assert_eq!(sharing.next_time(), Some(at(30)));
    sharing.expire(at(29));
    assert_eq!(offers(&mut sharing, at(29)), []);
    sharing.expire(at(30));
    assert_eq!(offers(&mut sharing, at(30)), [(1, 1, 2)]);
    sharing.nack(2, 1, at(31));
    assert_eq!(sharing.next_time(), Some(at(60)), "it is not that member's");
    sharing.nack(1, 1, at(40));
    assert_eq!(offers(&mut sharing, at(39)), []);
    assert_eq!(offers(&mut sharing, at(40)), [(1, 1, 3)]);
    sharing.expire(at(70));
    assert_eq!(offers(&mut sharing, at(70)), []);
    let (dead, attempts) = sharing.next_dead().unwrap();
    assert_eq!((dead.position, attempts, sharing.position()), (1, 3, 0), "done when it is buried");
    sharing.ack(1);
    assert_eq!(sharing.position(), 2);
    assert!(sharing.next_dead().is_none());
}

#[test]
fn a_late_answer_counts() {
    let mut sharing = sharing(10, 1);
    offers(&mut sharing, at(0));
    sharing.expire(at(30));
    sharing.ack(1);
    assert_eq!(offers(&mut sharing, at(30)), []);
    assert_eq!((sharing.position(), sharing.next_time()), (1, None));
}

#[test]
fn what_is_taken_in_is_bounded() {
    let mut sharing = sharing(1, MAX_PENDING as u64 - 1);
    assert!(sharing.has_room());
    sharing.take_in(record(MAX_PENDING as u64), at(0));
    assert!(!sharing.has_room());
    let mut sharing = Sharing::new(0, TERMS);
    assert!(!sharing.has_room(), "nobody is there");
    sharing.join(1, 1);
    sharing.take_in(record(1), at(0));
    sharing.pass(MAX_AHEAD);
    assert!(!sharing.has_room(), "the first one is not done");
    sharing.ack(1);
    assert!(sharing.has_room());
}

/// What may happen to a subscription.
#[derive(Debug, Clone)]
enum Step {
    TakeIn,
    Join(MemberId),
    Leave(MemberId),
    Ack(u64),
    Nack(MemberId, u64),
    Wait(u64),
    Bury,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::TakeIn),
        (0..4_u64).prop_map(Step::Join),
        (0..4_u64).prop_map(Step::Leave),
        (0..20_u64).prop_map(Step::Ack),
        (0..4_u64, 0..20_u64).prop_map(|(member, position)| Step::Nack(member, position)),
        (0..40_u64).prop_map(Step::Wait),
        Just(Step::Bury),
    ]
}

proptest! {
    /// Whatever happens: nobody has more than its window, nothing is at two members at once, nothing counts as done
    /// that was not answered, and in the end everything is.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec(steps(), 0..200)) {
        let mut sharing = Sharing::new(0, TERMS);
        let (mut now, mut last) = (0, 0);
        let mut done = BTreeSet::new();
        for step in steps {
            match step {
                Step::TakeIn => {
                    last += 1;
                    sharing.take_in(record(last), at(now));
                }
                Step::Join(member) => {
                    sharing.leave(member, at(now));
                    sharing.join(member, 3);
                }
                Step::Leave(member) => sharing.leave(member, at(now)),
                Step::Ack(position) if position <= last => {
                    done.insert(position);
                    sharing.ack(position);
                }
                Step::Ack(_) => {}
                Step::Nack(member, position) => sharing.nack(member, position, at(now + 5)),
                Step::Wait(seconds) => {
                    now += seconds;
                    sharing.expire(at(now));
                }
                Step::Bury => if let Some((dead, attempts)) = sharing.next_dead() {
                    prop_assert_eq!(attempts, TERMS.max_attempts);
                    done.insert(dead.position);
                    sharing.ack(dead.position);
                },
            }
            while let Some(offer) = sharing.next_offer(at(now)) {
                prop_assert!(!done.contains(&offer.record.position));
                prop_assert!(offer.attempt <= TERMS.max_attempts);
            }
            prop_assert!(sharing.members.values().all(|member| member.out.len() <= member.window));
            let out: usize = sharing.members.values().map(|member| member.out.len()).sum();
            prop_assert_eq!(sharing.pending.len(), out + sharing.waiting.len() + sharing.dead.len());
            prop_assert!((1..=sharing.position()).all(|position| done.contains(&position)));
        }
        sharing.join(9, 1000);
        for _ in 0..=TERMS.max_attempts {
            now += 100;
            sharing.expire(at(now));
            while let Some((dead, _)) = sharing.next_dead() {
                sharing.ack(dead.position);
            }
            for (_, position, _) in offers(&mut sharing, at(now)) {
                sharing.ack(position);
            }
        }
        prop_assert_eq!(sharing.position(), last);
    }
}
