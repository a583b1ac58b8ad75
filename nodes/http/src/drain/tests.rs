//! When each kind of work ends, and what is told of it.

use protoplex_runtime::drain::{Drain, Trigger};

use super::*;
use crate::access_log::AccessLog;
use crate::meter::Meter;

fn draining(whole: Duration, limits: &Limits) -> (Trigger, Draining) {
    let (trigger, drain) = Drain::new();
    (trigger, Draining::new(&Surroundings::from(drain).with_drain_timeout(whole), limits))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn partings_are_spread_and_never_beyond_the_whole_drain() {
    let limits = Limits {
        event_stream_drain_timeout: seconds(8),
        tunnel_drain_timeout: seconds(100),
        ..Limits::default()
    };
    let (trigger, drain) = draining(seconds(20), &limits);
    assert!(drain.parting(Kind::Tunnel).is_none());
    trigger.pull();
    let since = drain.since().unwrap();
    for (kind, time) in [(Kind::EventStream, 8), (Kind::Tunnel, 20)] {
        let mut quarters = [0; 4];
        for _ in 0..1000 {
            let parting = drain.parting(kind).unwrap();
            assert_eq!(parting.until - since, seconds(time));
            quarters[((parting.at - since).as_secs_f64() / time as f64 * 4.0) as usize] += 1;
        }
        assert!(quarters[..3].iter().all(|count| *count > 200) && quarters[3] == 0, "{quarters:?}");
    }
    // What begins later has what is left of the time.
    tokio::time::advance(seconds(7)).await;
    let late = drain.parting(Kind::EventStream).unwrap();
    assert_eq!((late.at - since, late.until - since), (seconds(7), seconds(8)));
    drain.change(&Limits { event_stream_drain_timeout: seconds(16), ..limits });
    assert_eq!(drain.parting(Kind::EventStream).unwrap().until - since, seconds(16));
}

#[tokio::test(start_paused = true)]
async fn what_is_told_adds_up() {
    let ledger = Rc::new(Ledger { log: AccessLog::off(), meter: Meter::new(), tally: Tally::new() });
    let tally = &ledger.tally;
    let counts = || What::ALL.map(|(what, _)| tally.count(what));
    let begin = |count| (0..count).for_each(|_| tally.exchange_begins());
    let end = |count| (0..count).for_each(|_| tally.exchange_ends());
    begin(10);
    end(4);
    let (stream, tunnel) =
        (Lasting::new(&ledger, Kind::EventStream, None), Lasting::new(&ledger, Kind::Tunnel, None));
    tally.settle(false);
    assert_eq!(counts(), [0; 7], "there is no drain yet");
    tally.start();
    end(1);
    tally.settle(false);
    assert_eq!(counts(), [1, 0, 0, 0, 0, 0, 0]);
    stream.became(What::EventStreamsEnded);
    drop(stream);
    end(2);
    tally.settle(false);
    assert_eq!(counts(), [2, 0, 1, 0, 0, 0, 0]);
    // Two requests and the tunnel are left.
    tally.settle(true);
    assert_eq!(counts(), [2, 2, 1, 0, 0, 1, 0]);
    drop(tunnel);
}

/// A stalled stream took its siblings of the same connection with it, and they were taken for finished.
#[tokio::test(start_paused = true)]
async fn what_lasts_does_not_shorten_the_time_of_requests_on_its_connection() {
    let limits = Limits {
        request_drain_timeout: Some(seconds(15)),
        event_stream_drain_timeout: seconds(5),
        ..Limits::default()
    };
    let ledger = Rc::new(Ledger { log: AccessLog::off(), meter: Meter::new(), tally: Tally::new() });
    let (trigger, drain) = draining(seconds(30), &limits);
    let tally = &ledger.tally;
    let [shared, alone] = [(); 2].map(|()| tokio::spawn(async {}).id());
    let open = Rc::new(Cell::new(2));
    let lasting = |task, open| Lasting::new(&ledger, Kind::EventStream, Some(Bearer { task, open }));
    let _kept = [lasting(shared, Some(Rc::clone(&open))), lasting(alone, Some(Rc::new(Cell::new(1))))];
    (0..3).for_each(|_| tally.exchange_begins());
    trigger.pull();
    tally.start();
    let since = drain.since().unwrap();
    let first = since + seconds(5) + CUT_MARGIN;
    let looks = std::iter::successors(Some(since), |last| tally.next_cut(&drain, *last));
    assert!(looks.take_while(|look| *look <= first).any(|look| look == first));
    assert!(tally.is_cut(&drain, alone, first) && !tally.is_cut(&drain, shared, first));
    assert_eq!(tally.next_cut(&drain, first).unwrap() - first, LOOK_INTERVAL);
    let second = since + seconds(15);
    assert!(tally.is_cut(&drain, shared, second));
    tally.exchange_ends();
    tally.settle(false);
    assert_eq!((tally.count(What::RequestsFinished), tally.count(What::RequestsCut)), (0, 1));
    assert_eq!(tally.count(What::EventStreamsCut), 2);
    // Once its sibling has ended nothing keeps it.
    open.set(1);
    assert!(tally.is_cut(&drain, shared, first));
}
