//! Deadlines that cost next to nothing to set and to move: one timer for all of a thread's.
//!
//! Every exchange waits for somebody several times, and nearly always in vain for its deadline. A timer of the runtime's
//! for each wait would be the dearest part of some of them. Here a wait writes down when it ends, and one task, the
//! sweeper, sleeps until the earliest of those times.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// A time that somebody waits for at most. Nothing is set at first.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    row: Option<usize>,
}

/// So many rows are kept in any case.
const FEW: usize = 256;

/// Who waits for what.
#[derive(Debug)]
struct Row {
    at: Instant,
    waker: Option<Waker>,
    over: bool,
}

/// Has everybody in this thread who waits look around: something may be over before its time.
pub(crate) fn wake_all() {
    ROWS.with_borrow(|rows| {
        rows.rows.iter().flatten().filter_map(|row| row.waker.as_ref()).for_each(Waker::wake_by_ref);
    });
}

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Option<Row>>,
    /// The first ones are taken first, so that the last ones become free for good.
    free: BinaryHeap<Reverse<usize>>,
    /// When the sweeper looks next.
    next: Option<Instant>,
    /// Tells it that this has become too late.
    earlier: Option<Rc<Notify>>,
}

thread_local! {
    static ROWS: RefCell<Rows> = RefCell::default();
}

impl Deadline {
    /// Ready once `at` has come. Sets the deadline, or moves it. Must be called within a `LocalSet`.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        ROWS.with_borrow_mut(|rows| {
            let index = *self.row.get_or_insert_with(|| rows.insert(at));
            rows.poll(index, cx, at)
        })
    }

    /// Takes the deadline back.
    pub(crate) fn clear(&mut self) {
        if let Some(index) = self.row.take() {
            // The rows are gone where their thread ends.
            let _ = ROWS.try_with(|rows| rows.borrow_mut().remove(index));
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Rows {
    fn insert(&mut self, at: Instant) -> usize {
        let row = Some(Row { at, waker: None, over: false });
        match self.free.pop() {
            Some(Reverse(index)) => {
                self.rows[index] = row;
                index
            }
            None => {
                self.rows.push(row);
                self.rows.len() - 1
            }
        }
    }

    fn remove(&mut self, index: usize) {
        self.rows[index] = None;
        self.free.push(Reverse(index));
        if self.free.len() == self.rows.len() {
            self.shrink();
        }
    }

    /// Gives back what a burst of connections had, as far as nobody waits behind it.
    fn shrink(&mut self) {
        if self.rows.len() <= FEW || self.free.len() < self.rows.len() / 4 * 3 {
            return;
        }
        let used = self.rows.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.rows.truncate(used);
        self.free.retain(|Reverse(index)| *index < used);
        self.rows.shrink_to(FEW);
        self.free.shrink_to(FEW);
    }

    fn poll(&mut self, index: usize, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let Some(row) = &mut self.rows[index] else { return Poll::Pending };
        if row.at != at {
            (row.at, row.over) = (at, false);
        }
        if row.over {
            return Poll::Ready(());
        }
        if !row.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            row.waker = Some(cx.waker().clone());
        }
        match &self.earlier {
            None => self.start_sweeping(at),
            Some(earlier) if self.next.is_none_or(|next| at < next) => {
                self.next = Some(at);
                earlier.notify_one();
            }
            Some(_) => {}
        }
        Poll::Pending
    }

    fn start_sweeping(&mut self, at: Instant) {
        let earlier = Rc::new(Notify::new());
        self.earlier = Some(Rc::clone(&earlier));
        self.next = Some(at);
        // Made here, since a task that is never polled is dropped, too.
        let stop = Stop;
        tokio::task::spawn_local(async move {
            let _stop = stop;
            sweep(&earlier).await;
        });
    }

    /// Wakes those whose time has come.
    fn wake(&mut self, now: Instant) {
        self.next = None;
        self.shrink();
        for row in self.rows.iter_mut().flatten().filter(|row| !row.over) {
            if row.at <= now {
                row.over = true;
                if let Some(waker) = row.waker.take() {
                    waker.wake();
                }
            } else {
                self.next = Some(self.next.map_or(row.at, |next| next.min(row.at)));
            }
        }
    }
}

async fn sweep(earlier: &Notify) {
    loop {
        let next = ROWS.with_borrow(|rows| rows.next);
        // Both can be dropped at any time: a notification that came is kept.
        match next {
            None => earlier.notified().await,
            Some(next) => tokio::select! {
                () = sleep_until(next) => ROWS.with_borrow_mut(|rows| rows.wake(Instant::now())),
                () = earlier.notified() => {}
            },
        }
    }
}

/// The sweeper has gone with its `LocalSet`: the next deadline, in another one, starts a new one.
struct Stop;

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = ROWS.try_with(|rows| {
            let mut rows = rows.borrow_mut();
            (rows.earlier, rows.next) = (None, None);
        });
    }
}

/// A limit on waiting for somebody. Runs from the first fruitless poll after [`Patience::renew`] to the next: whoever
/// begins to wait again after a wait that was given up has to renew it.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    since: Cell<Option<Instant>>,
    deadline: Deadline,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, since: Cell::new(None), deadline: Deadline::default() }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// What was waited for has come.
    pub(crate) fn renew(&self) {
        self.since.set(None);
    }

    /// Ready once it has been waited for longer than the limit.
    pub(crate) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = self.since.get().unwrap_or_else(Instant::now);
        self.since.set(Some(since));
        self.deadline.poll(cx, since + self.limit)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::LocalSet;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    async fn wait(deadline: &mut Deadline, at: Instant) {
        poll_fn(|cx| deadline.poll(cx, at)).await;
    }

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn each_deadline_is_over_at_its_time_whatever_the_order_they_were_set_in() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            run(async {
                let start = Instant::now();
                let waits = order.map(|seconds| async move {
                    wait(&mut Deadline::default(), in_seconds(seconds)).await;
                    assert_eq!(start.elapsed().as_secs(), seconds);
                });
                futures_util::future::join_all(waits).await;
            });
        }
    }

    #[test]
    fn what_a_burst_of_them_took_is_given_back_and_who_still_waits_is_woken() {
        const BURST: usize = 10_000;
        run(async {
            let start = Instant::now();
            let mut waits: Vec<_> = (0..BURST).map(|_| Deadline::default()).collect();
            poll_fn(|cx| {
                assert!(waits.iter_mut().all(|wait| wait.poll(cx, in_seconds(60)).is_pending()));
                Poll::Ready(())
            })
            .await;
            let mut kept = waits.swap_remove(7);
            drop(waits);
            wait(&mut Deadline::default(), in_seconds(1)).await;
            let capacity = ROWS.with_borrow(|rows| rows.rows.capacity() + rows.free.capacity());
            assert!(capacity <= 2 * FEW, "{capacity} rows");
            wait(&mut kept, start + Duration::from_secs(60)).await;
            assert_eq!(start.elapsed().as_secs(), 60);
        });
    }

    #[test]
    fn a_deadline_can_be_moved_and_taken_back() {
        run(async {
            let (mut first, mut second) = (Deadline::default(), Deadline::default());
            let start = Instant::now();
            let (early, late, last) = (in_seconds(1), in_seconds(5), in_seconds(9));
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                assert!(second.poll(cx, early).is_pending() || start.elapsed().as_secs() >= 1);
                // Moved before it is over, it does not go off at its first time.
                assert!(polls > 1 || first.poll(cx, early).is_pending());
                first.poll(cx, late)
            })
            .await;
            assert_eq!(start.elapsed().as_secs(), 5);
            first.clear();
            wait(&mut first, last).await;
            assert_eq!(start.elapsed().as_secs(), 9);
        });
    }

    #[test]
    fn a_thread_may_have_one_runtime_after_another() {
        for _ in 0..2 {
            run(async { wait(&mut Deadline::default(), in_seconds(1)).await });
        }
        drop(Deadline::default());
        ROWS.with_borrow(|rows| assert!(rows.rows.iter().all(Option::is_none)));
    }

    #[test]
    fn patience_runs_only_while_it_is_waited() {
        run(async {
            let mut patience = Patience::new(Duration::from_secs(10));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(patience.poll_lost(&mut cx).is_pending());
            tokio::time::advance(Duration::from_secs(9)).await;
            patience.renew();
            tokio::time::advance(Duration::from_secs(60)).await;
            assert!(patience.poll_lost(&mut cx).is_pending());
            let start = Instant::now();
            poll_fn(|cx| patience.poll_lost(cx)).await;
            assert_eq!(start.elapsed().as_secs(), 10);
        });
    }
}
