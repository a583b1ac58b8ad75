//! A body sent twice is the same both times, or is refused; what was broken off learns of it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::*;

fn pieces(sizes: &[usize]) -> (Body, Vec<u8>) {
    let pieces: Vec<_> =
        sizes.iter().enumerate().map(|(n, &size)| Bytes::from(vec![n as u8; size])).collect();
    let whole = pieces.concat();
    (Body::stream(stream::iter(pieces.into_iter().map(Ok))), whole)
}

async fn read(body: &mut Body, chunks: usize) -> Vec<u8> {
    let mut read = Vec::new();
    for _ in 0..chunks {
        let Some(chunk) = body.chunk().await else { break };
        read.extend_from_slice(&chunk.unwrap());
    }
    read
}

/// No test takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, future).await.expect("the test hangs") })
}

proptest! {
    #[test]
    fn a_second_sending_is_the_whole_body(sizes in prop::collection::vec(1usize..9_000, 1..12), read_before in 0usize..12) {
        let (source, whole) = pieces(&sizes);
        let replay = Replay::new(source);
        block_on(async {
            let taken = read(&mut replay.send().unwrap(), read_before).await;
            match replay.send() {
                Some(mut again) => {
                    prop_assert!(taken.len() <= MAX_REPLAY_BYTES);
                    replay.settle();
                    prop_assert_eq!(read(&mut again, usize::MAX).await, whole);
                }
                None => {
                    let pieces = sizes.len().min(read_before);
                    prop_assert!(taken.len() + pieces * FRAME_BYTES > MAX_REPLAY_BYTES);
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn a_settled_body_goes_on_unkept() {
    let (source, whole) = pieces(&[40_000; 40]);
    let replay = Replay::new(source);
    block_on(async {
        let mut body = replay.send().unwrap();
        let mut sent = read(&mut body, 1).await;
        replay.settle();
        sent.extend(read(&mut body, usize::MAX).await);
        assert_eq!(sent, whole);
        assert!(replay.send().is_none());
        assert!(replay.tape.unwrap().borrow().kept.is_empty());
    });
}

/// Memory that says when it is given back.
struct Lent(Vec<u8>, Arc<AtomicBool>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_small_piece_does_not_keep_a_large_buffer_alive() {
    let given_back = Arc::new(AtomicBool::new(false));
    let buffer = Bytes::from_owner(Lent(vec![7; 1 << 20], Arc::clone(&given_back)));
    let replay = Replay::new(Body::stream(stream::iter([Ok(buffer.slice(..10))])));
    drop(buffer);
    block_on(async {
        let piece = replay.send().unwrap().chunk().await.unwrap().unwrap();
        assert!(!given_back.load(Ordering::Relaxed), "the first sending gives the piece as it is");
        drop(piece);
        assert!(given_back.load(Ordering::Relaxed));
        assert_eq!(read(&mut replay.send().unwrap(), usize::MAX).await, [7; 10]);
    });
}

fn kept(replay: &Replay) -> (usize, usize) {
    let tape = replay.tape.as_ref().unwrap().borrow();
    (tape.kept.iter().map(Kept::bytes).sum(), tape.kept.capacity() * size_of::<Kept>())
}

#[test]
fn what_is_kept_has_a_limit_however_small_the_pieces_are() {
    // More than four times as much as may be kept, or as many pieces.
    for (size, count) in [(0, 10_000), (1, 10_000), (100, 3_000), (16_384, 16), (300_000, 1)] {
        let (source, whole) = pieces(&vec![size; count]);
        let replay = Replay::new(source);
        block_on(async {
            let mut body = replay.send().unwrap();
            let mut sent = Vec::new();
            for _ in 0..count {
                sent.extend(read(&mut body, 1).await);
                let (bytes, frames) = kept(&replay);
                assert!(bytes <= MAX_REPLAY_BYTES, "{bytes} bytes of pieces of {size}");
                assert!(frames <= 4 * MAX_REPLAY_BYTES, "{frames} bytes around pieces of {size}");
            }
            assert_eq!(kept(&replay), (0, 0), "too much was read for it to be of use");
            assert!(sent == whole && replay.send().is_none());
        });
    }
}

#[test]
fn a_settled_body_is_given_back_as_soon_as_it_has_been_sent() {
    block_on(async {
        for ended in [false, true] {
            let (source, _) = pieces(&[9_000; 5]);
            let replay = Replay::new(source);
            let mut body = replay.send().unwrap();
            read(&mut body, if ended { usize::MAX } else { 5 }).await;
            assert_eq!(kept(&replay).0, 45_000);
            // The answer may go on for hours.
            replay.settle();
            assert_eq!(kept(&replay), (0, 0), "nobody asks for it any more");
        }
        // What is sent once more is kept until it has gone.
        let (source, whole) = pieces(&[9_000; 5]);
        let replay = Replay::new(source);
        read(&mut replay.send().unwrap(), 4).await;
        let mut again = replay.send().unwrap();
        let mut sent = read(&mut again, 2).await;
        replay.settle();
        assert_eq!((kept(&replay).0, again.exact_length()), (36_000, None));
        sent.extend(read(&mut again, 2).await);
        assert_eq!(kept(&replay), (0, 0));
        sent.extend(read(&mut again, usize::MAX).await);
        assert_eq!(sent, whole);
    });
}

#[test]
fn an_empty_body_can_be_sent_for_ever() {
    let replay = Replay::new(Body::empty());
    replay.settle();
    assert_eq!(replay.send().unwrap().exact_length(), Some(0));
    assert_eq!(replay.send().unwrap().exact_length(), Some(0));
}

#[test]
fn the_length_stays_known() {
    let replay = Replay::new(Body::full(vec![1; 500]));
    let mut body = replay.send().unwrap();
    assert_eq!(body.exact_length(), Some(500));
    block_on(read(&mut body, 1));
    assert_eq!(body.exact_length(), Some(0));
    assert_eq!(replay.send().unwrap().exact_length(), Some(500));
}

#[test]
fn a_sending_that_waits_is_woken_when_it_is_broken_off() {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, BodyError>>(1);
    let source =
        Body::stream(stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver))));
    let replay = Replay::new(source);
    block_on(LocalSet::new().run_until(async {
        let mut first = replay.send().unwrap();
        // A task of its own, so that nothing else wakes it.
        let waiting = spawn_local(async move { first.chunk().await });
        tokio::task::yield_now().await;
        let mut second = replay.send().unwrap();
        assert!(waiting.await.unwrap().unwrap().is_err());
        sender.send(Ok(Bytes::from_static(b"late"))).await.unwrap();
        drop(sender);
        assert_eq!(read(&mut second, usize::MAX).await, b"late");
    }));
}

#[test]
fn trailers_are_sent_again() {
    struct Trailed(Vec<Frame<Bytes>>);
    impl http_body::Body for Trailed {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop().map(Ok))
        }
    }
    let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
    let frames = vec![Frame::trailers(trailers.clone()), Frame::data(Bytes::from_static(b"data"))];
    let replay = Replay::new(Body::wrap(Trailed(frames)));
    block_on(async {
        for _ in 0..2 {
            let mut body = replay.send().unwrap();
            let mut next = async || poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            assert_eq!(next().await.unwrap().unwrap().into_data().unwrap(), "data");
            assert_eq!(next().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
            assert!(next().await.is_none());
        }
    });
}
