//! One subscriber's stream of frames: where it stands, what it may see, and when it is over.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, gauge};
use tokio::time::{Instant, timeout_at};

use crate::channel::{Position, Read};
use crate::frame;
use crate::tenure::Use;

/// Subscribers of an ended stream are told to come back after a time of their own between these, in milliseconds.
const RETRY_MS: std::ops::Range<u64> = 200..2_000;

/// How many streams there may be, and are.
pub(crate) struct Seats {
    taken: Rc<Cell<usize>>,
    max: usize,
}

/// The right to be one of them, given back when dropped.
pub(crate) struct Seat(Rc<Cell<usize>>);

impl Seats {
    /// At most `max` at once.
    pub(crate) fn new(max: usize) -> Self {
        Self { taken: Rc::default(), max }
    }

    /// One, if there is one left.
    pub(crate) fn take(&self) -> Option<Seat> {
        if self.taken.get() >= self.max {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        gauge!("protoplex_live_subscribers").set(self.taken.get() as f64);
        Some(Seat(Rc::clone(&self.taken)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        gauge!("protoplex_live_subscribers").set(self.0.get() as f64);
    }
}

/// A stream of frames that ends once.
pub(crate) struct Subscription {
    tenure: Use,
    _seat: Seat,
    position: Position,
    /// The first frame, not sent yet.
    opening: Option<Bytes>,
    /// Whether private updates are for it.
    private: bool,
    pace: Pace,
    over: bool,
}

/// When a stream that has nothing to say is heard of all the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// It says something this often.
    pub(crate) heartbeat: Duration,
    /// The end of its token, and of it.
    pub(crate) expires: Option<Instant>,
}

impl Subscription {
    /// Starts after `position`, of which `id` is the id.
    pub(crate) fn new(
        tenure: Use,
        seat: Seat,
        position: Position,
        id: &str,
        private: bool,
        pace: Pace,
    ) -> Self {
        Self { tenure, _seat: seat, position, opening: Some(frame::position(id)), private, pace, over: false }
    }

    /// The next frame, as soon as there is one; None at the end. Cancel-safe: a frame is taken without waiting.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        let Pace { heartbeat, expires } = self.pace;
        let heartbeat = Instant::now() + heartbeat;
        loop {
            if expires.is_some_and(|expires| expires <= Instant::now()) {
                self.over = true;
                return None;
            }
            if let Some(frame) = self.ready() {
                return Some(frame);
            }
            let deadline = expires.map_or(heartbeat, |expires| expires.min(heartbeat));
            if timeout_at(deadline, self.tenure.changed()).await.is_err() && deadline == heartbeat {
                return Some(frame::HEARTBEAT);
            }
        }
    }

    /// What can be sent at once. The last words of a stream come after all that was published in its tenure.
    fn ready(&mut self) -> Option<Bytes> {
        match self.tenure.read(&mut self.position, self.private) {
            Read::Frame(frame) => {
                counter!("protoplex_live_delivered_total").increment(1);
                Some(frame)
            }
            Read::Lagged { missed } => {
                self.over = true;
                counter!("protoplex_live_slow_consumers_dropped_total").increment(1);
                Some(frame::lagged(missed, retry_ms()))
            }
            Read::UpToDate => self.tenure.end().map(|_| {
                self.over = true;
                frame::retry(retry_ms())
            }),
        }
    }
}

fn retry_ms() -> u64 {
    rand::random_range(RETRY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Retention, Since, Update};
    use crate::tenure::{End, Tenure, Tenures};

    fn tenure() -> (Tenures, Rc<Tenure>) {
        let tenures = Tenures::new(1);
        let retention = Retention { count: 2, bytes: 1 << 20, age: Duration::from_secs(60) };
        let tenure = tenures.hold("t", 1, || retention).unwrap();
        (tenures, tenure)
    }

    const HEARTBEAT: Duration = Duration::from_millis(50);

    async fn subscribe(tenure: &Rc<Tenure>, expires: Option<Instant>) -> Subscription {
        let (start, id) = tenure.start(&Since::Now);
        let seat = Seats::new(1).take().unwrap();
        let mut stream = Subscription::new(
            tenure.employ(),
            seat,
            start.position,
            &id,
            false,
            Pace { heartbeat: HEARTBEAT, expires },
        );
        assert_eq!(stream.next().await.unwrap(), "id: #1.0\n\n");
        stream
    }

    #[tokio::test]
    async fn a_quiet_stream_has_heartbeats_until_its_token_ends() {
        let (_tenures, tenure) = tenure();
        let expires = Instant::now() + HEARTBEAT * 5 / 2;
        let mut stream = subscribe(&tenure, Some(expires)).await;
        assert_eq!(stream.next().await.unwrap(), ":\n\n");
        while let Some(beat) = stream.next().await {
            assert_eq!(beat, ":\n\n");
            assert!(Instant::now() < expires + HEARTBEAT);
        }
        assert!(Instant::now() >= expires);
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn what_was_published_comes_before_the_last_words() {
        let (tenures, tenure) = tenure();
        let mut stream = subscribe(&tenure, None).await;
        tenure.publish(Update::default());
        tenures.end(End::Draining, |_| true);
        assert_eq!(stream.next().await.unwrap(), "id: #1.1\ndata: \n\n");
        assert!(stream.next().await.unwrap().starts_with(b"retry: "));
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn a_consumer_that_the_history_left_behind_is_told_and_dropped() {
        let (_tenures, tenure) = tenure();
        let mut stream = subscribe(&tenure, None).await;
        for _ in 0..5 {
            tenure.publish(Update::default());
        }
        let told = String::from_utf8(stream.next().await.unwrap().to_vec()).unwrap();
        assert!(
            told.starts_with("event: protoplex.lagged\n") && told.ends_with("data: {\"missed\":3}\n\n"),
            "{told}"
        );
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn seats_are_given_back() {
        let seats = Seats::new(1);
        let seat = seats.take();
        assert!(seat.is_some() && seats.take().is_none());
        drop(seat);
        assert!(seats.take().is_some());
    }
}
