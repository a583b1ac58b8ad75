//! Which members are left out for a while, since what was sent to them has failed: as this child sees it, by itself.
//!
//! ```text
//!  in ── so many failures in a row ──▶ out ── its time is over ──▶ one request tries ── answered ──▶ in
//!                                       ▲                                 │
//!                                       └───────── fails, twice as long ──┘
//! ```
//!
//! Members of placements `hash` and `spread` alone: a key that is owned has nobody else to go to. Never more than half of a
//! pool is out, as then something else is wrong.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::placement::Member;

/// Failures in a row.
const FAILURES: u32 = 3;
/// The first time out, and the longest.
const OUT: Duration = Duration::from_secs(1);
const OUT_MAX: Duration = Duration::from_secs(60);
/// Who is out again within this time after it came back is so for twice as long as before.
const PROBATION: Duration = Duration::from_secs(60);
/// For the answer of the request that tries.
const TRIAL: Duration = Duration::from_secs(5);

/// What a child has seen of a member of late.
#[derive(Debug, Default)]
pub struct Health {
    failures: Cell<u32>,
    out: Cell<Option<Out>>,
    /// For how long it was out last, and when it came back.
    last: Cell<Option<(Duration, Instant)>>,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    time: Duration,
    until: Instant,
    /// A request tries whether it is well again. What else fails was sent before it was out, and says nothing new.
    is_tried: bool,
}

impl Health {
    /// May it be sent requests? One that is out may get one once its time is over.
    pub fn admits(&self, now: Instant) -> bool {
        self.out.get().is_none_or(|out| now >= out.until)
    }

    /// It is sent a request: of one that is out this is the one that tries, and no other follows it at once.
    pub(crate) fn chosen(&self, now: Instant) {
        if let Some(out) = self.out.get() {
            self.out.set(Some(Out { until: now + TRIAL, is_tried: true, ..out }));
        }
    }

    /// It has answered. True if it was out, and is in again.
    pub(crate) fn answered(&self, now: Instant) -> bool {
        self.failures.set(0);
        let was_out = self.out.take();
        if let Some(out) = was_out {
            self.last.set(Some((out.time, now)));
        }
        was_out.is_some()
    }

    fn is_out(&self) -> bool {
        self.out.get().is_some()
    }

    fn is_tried(&self) -> bool {
        self.out.get().is_some_and(|out| out.is_tried)
    }

    /// For how long it would be out now.
    fn sentence(&self, now: Instant) -> Duration {
        let before = match (self.out.get(), self.last.get()) {
            (Some(out), _) => Some(out.time),
            (None, Some((time, back))) if now < back + PROBATION => Some(time),
            _ => None,
        };
        before.map_or(OUT, |time| (time * 2).min(OUT_MAX))
    }
}

/// A request to this member of a pool has failed, and not by its client's fault. Answers for how long the member is out
/// now, where it was not before.
pub(crate) fn failed(members: &[Rc<Member>], member: &Member, now: Instant) -> Option<Duration> {
    let health = &member.health;
    health.failures.set(health.failures.get().saturating_add(1));
    let was_out = health.is_out();
    if was_out && !health.is_tried() {
        return None;
    }
    if !was_out {
        let out = members.iter().filter(|other| other.health.is_out()).count();
        if health.failures.get() < FAILURES || (out + 1) * 2 > members.len() {
            return None;
        }
    }
    let time = health.sentence(now);
    health.out.set(Some(Out { time, until: now + time, is_tried: false }));
    (!was_out).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: usize) -> Vec<Rc<Member>> {
        (0..count).map(|n| Rc::new(Member::new(&format!("m{n}"), ([127, 0, 0, 1], 3000).into()))).collect()
    }

    fn fail(members: &[Rc<Member>], number: usize, times: u32, now: Instant) -> Option<Duration> {
        (0..times).fold(None, |told, _| failed(members, &members[number], now).or(told))
    }

    #[test]
    fn failures_in_a_row_count_and_an_answer_ends_the_row() {
        let (members, now) = (pool(4), Instant::now());
        assert_eq!(fail(&members, 0, FAILURES - 1, now), None);
        assert!(!members[0].health.answered(now), "it was not out");
        assert_eq!(fail(&members, 0, FAILURES - 1, now), None);
        assert_eq!(fail(&members, 0, 1, now), Some(OUT));
        assert!(!members[0].health.admits(now + OUT - Duration::from_millis(1)));
    }

    #[test]
    fn one_request_tries_and_its_failure_doubles_the_time_until_it_has_done_well_for_long() {
        let (members, begun) = (pool(4), Instant::now());
        fail(&members, 0, FAILURES, begun);
        let health = &members[0].health;
        let mut now = begun + OUT;
        for time in [2, 4, 8, 16, 32, 60, 60] {
            assert!(health.admits(now));
            health.chosen(now);
            assert!(!health.admits(now), "only one tries");
            assert_eq!(fail(&members, 0, 1, now), None, "it was out already");
            now += Duration::from_secs(time) - Duration::from_millis(1);
            assert!(!health.admits(now), "{time} s");
            now += Duration::from_millis(1);
        }
        health.chosen(now);
        assert!(health.answered(now));
        assert!(health.admits(now));
        assert_eq!(fail(&members, 0, FAILURES, now + PROBATION / 2), Some(OUT_MAX), "it is on probation");
        let back = now + PROBATION * 3;
        health.answered(back);
        assert_eq!(fail(&members, 0, FAILURES, back + PROBATION), Some(OUT));
    }

    #[test]
    fn requests_that_were_under_way_when_it_went_out_make_that_no_longer() {
        let (members, now) = (pool(4), Instant::now());
        assert_eq!(fail(&members, 0, 40, now), Some(OUT));
        let health = &members[0].health;
        assert!(health.admits(now + OUT));
        health.chosen(now + OUT);
        fail(&members, 0, 40, now + OUT);
        assert!(!health.admits(now + OUT * 3 - Duration::from_millis(1)) && health.admits(now + OUT * 3));
    }

    #[test]
    fn a_request_that_never_comes_back_keeps_nobody_out() {
        let (members, now) = (pool(2), Instant::now());
        fail(&members, 0, FAILURES, now);
        members[0].health.chosen(now + OUT);
        assert!(members[0].health.admits(now + OUT + TRIAL));
    }

    #[test]
    fn never_more_than_half_of_a_pool_is_out() {
        for (count, most) in [(1, 0), (2, 1), (3, 1), (5, 2)] {
            let (members, now) = (pool(count), Instant::now());
            for number in 0..count {
                fail(&members, number, FAILURES * 2, now);
            }
            assert_eq!(
                members.iter().filter(|member| !member.health.admits(now)).count(),
                most,
                "of {count}"
            );
        }
    }
}
