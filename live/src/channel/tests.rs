use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn keep(count: usize) -> Retention {
    Retention { count, bytes: usize::MAX, age: HOUR }
}

fn update(data: &str) -> Update {
    Update { data: data.into(), ..Update::default() }
}

fn published(retention: Retention, count: u64) -> (Channel, Vec<String>) {
    let mut channel = Channel::new(0x1_0000_0002, retention);
    let ids =
        (1..=count).map(|number| channel.publish(update(&number.to_string()), Instant::now())).collect();
    (channel, ids)
}

/// The `data` of all that is readable from `position` on.
fn read_all(channel: &Channel, mut position: Position, private: bool) -> Vec<String> {
    let mut data = Vec::new();
    loop {
        match channel.read(&mut position, private) {
            Read::Frame(frame) => {
                let text = String::from_utf8(frame.to_vec()).unwrap();
                let line = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                data.push(line.to_owned());
            }
            Read::UpToDate => return data,
            Read::Lagged { missed } => return vec![format!("missed {missed}")],
        }
    }
}

#[test]
fn a_new_subscriber_sees_what_comes_and_not_what_was() {
    let (mut channel, _) = published(keep(10), 3);
    let start = channel.start(&Since::Now);
    assert!(start.complete);
    assert_eq!(read_all(&channel, start.position, false), Vec::<String>::new());
    channel.publish(update("next"), Instant::now());
    assert_eq!(read_all(&channel, start.position, false), ["next"]);
}

#[test]
fn recovery_goes_on_after_the_last_event_seen() {
    let (channel, ids) = published(keep(10), 5);
    assert_eq!(ids[2], "#100000002.3");
    let start = channel.start(&Since::Event(ids[2].clone()));
    assert!(start.complete);
    assert_eq!(read_all(&channel, start.position, false), ["4", "5"]);
}

#[test]
fn recovery_tells_a_gap_from_none() {
    let (channel, ids) = published(keep(3), 5);
    let last_to_go = channel.start(&Since::Event(ids[1].clone()));
    assert!(last_to_go.complete, "the event itself has gone, all after it are here");
    let gone = channel.start(&Since::Event(ids[0].clone()));
    assert!(!gone.complete);
    assert_eq!(read_all(&channel, gone.position, false), ["3", "4", "5"]);
}

#[test]
fn ids_of_elsewhere_are_not_found_and_get_the_whole_history() {
    let (channel, _) = published(keep(10), 2);
    for id in [
        "#100000001.1",
        "#100000002.3",
        "#100000002.18446744073709551615",
        "#",
        "#.",
        "#zz.1",
        "urn:uuid:1",
        "",
    ] {
        let start = channel.start(&Since::Event(id.into()));
        assert!(!start.complete, "{id}");
        assert_eq!(read_all(&channel, start.position, false), ["1", "2"], "{id}");
    }
}

#[test]
fn earliest_is_all_there_is() {
    let (channel, _) = published(keep(2), 5);
    assert_eq!(read_all(&channel, channel.start(&Since::Earliest).position, false), ["4", "5"]);
}

#[test]
fn a_publishers_own_id_recovers_and_where_used_twice_repeats_rather_than_loses() {
    let mut channel = Channel::new(1, keep(10));
    for (id, data) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
        let answered = channel.publish(Update { id: Some(id.into()), ..update(data) }, Instant::now());
        assert_eq!(answered, id);
    }
    let since = |id: &str| read_all(&channel, channel.start(&Since::Event(id.into())).position, false);
    assert_eq!(since("b"), ["3", "4"]);
    assert_eq!(since("a"), ["2", "3", "4"]);
}

#[test]
fn private_updates_are_passed_over_without_the_right_to_them() {
    let mut channel = Channel::new(1, keep(10));
    let start = channel.start(&Since::Now).position;
    channel.publish(update("open"), Instant::now());
    channel.publish(Update { private: true, ..update("secret") }, Instant::now());
    assert_eq!(read_all(&channel, start, false), ["open"]);
    assert_eq!(read_all(&channel, start, true), ["open", "secret"]);
}

#[test]
fn a_consumer_behind_the_history_is_told_how_much_it_missed() {
    let (mut channel, _) = published(keep(2), 0);
    let start = channel.start(&Since::Now).position;
    for number in 1..=5 {
        channel.publish(update(&number.to_string()), Instant::now());
    }
    assert_eq!(read_all(&channel, start, false), ["missed 3"]);
}

#[test]
fn history_is_bounded_in_bytes_but_keeps_the_newest() {
    let mut channel = Channel::new(1, Retention { bytes: 100, ..keep(100) });
    for data in ["a".repeat(40), "b".repeat(40), "c".repeat(500)] {
        channel.publish(update(&data), Instant::now());
    }
    assert_eq!(read_all(&channel, channel.start(&Since::Earliest).position, false), ["c".repeat(500)]);
}

#[test]
fn history_ends_with_its_age_and_sequence_numbers_go_on() {
    let mut channel = Channel::new(1, keep(10));
    let begin = Instant::now();
    let first = channel.publish(update("1"), begin);
    channel.publish(update("2"), begin + HOUR / 2);
    assert!(channel.expire(begin + HOUR));
    assert_eq!(read_all(&channel, channel.start(&Since::Earliest).position, false), ["2"]);
    assert!(channel.start(&Since::Event(first)).complete);
    assert!(!channel.expire(begin + 2 * HOUR));
    assert_eq!(channel.publish(update("3"), begin + 2 * HOUR), "#1.3");
}

/// A step of a life of a channel with one subscriber.
#[derive(Debug, Clone)]
enum Step {
    Publish {
        private: bool,
        own_id: bool,
        bytes: usize,
    },
    Pass {
        time: Duration,
    },
    /// The subscriber takes up to this many events.
    Take {
        events: usize,
    },
    /// It loses its connection and comes back with the id of the last event that it took.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>(), 0..200_usize)
            .prop_map(|(private, own_id, bytes)| Step::Publish { private, own_id, bytes }),
        1 => (0..1500_u64).prop_map(|ms| Step::Pass { time: Duration::from_millis(ms) }),
        3 => (0..8_usize).prop_map(|events| Step::Take { events }),
        2 => Just(Step::Reconnect),
    ]
}

proptest! {
    /// What a subscriber takes is what was published for it, in order, each once; where something is missing it was told
    /// so, and what was told complete is.
    #[test]
    fn recovery_never_loses_or_duplicates(
        steps in prop::collection::vec(step(), 1..120),
        count in 1..12_usize,
        bytes in 50..2000_usize,
        private in any::<bool>(),
    ) {
        let mut channel = Channel::new(7, Retention { count, bytes, age: Duration::from_secs(2) });
        let mut now = Instant::now();
        let start = channel.start(&Since::Now).position;
        // The client's view of its place: an SSE client keeps the id of the last event, at first of the opening block.
        let (mut position, mut last_id) = (start, channel.id(start));
        let mut due: VecDeque<(usize, String)> = VecDeque::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Publish { private: secret, own_id, bytes } => {
                    let id = own_id.then(|| format!("urn:{number}"));
                    let data = format!("{number} {}", "x".repeat(bytes));
                    let id = channel.publish(Update { data, id, private: secret, ..Update::default() }, now);
                    if private || !secret {
                        due.push_back((number, id));
                    }
                }
                Step::Pass { time } => {
                    now += time;
                    channel.expire(now);
                }
                Step::Take { events } => for _ in 0..events {
                    match channel.read(&mut position, private) {
                        Read::UpToDate => {
                            prop_assert!(due.is_empty(), "lost: {due:?}");
                            break;
                        }
                        Read::Frame(frame) => {
                            let (number, id) = due.pop_front().expect("nothing twice, nothing unpublished");
                            let text = String::from_utf8(frame.to_vec()).unwrap();
                            let data = format!("data: {number} ");
                            prop_assert!(text.contains(&data), "out of order: {text} instead of {number}");
                            last_id = id;
                        }
                        Read::Lagged { missed } => {
                            prop_assert!(missed > 0);
                            break;
                        }
                    }
                },
                Step::Reconnect => {
                    let start = channel.start(&Since::Event(last_id.clone()));
                    position = start.position;
                    if !start.complete {
                        // Told of a gap: what can still be read is the end of what was due.
                        let left = read_all(&channel, position, private).len();
                        prop_assert!(left <= due.len(), "duplicates after a gap");
                        due.drain(..due.len() - left);
                    }
                }
            }
        }
    }
}
