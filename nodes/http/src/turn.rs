//! Turns of the event loop.

use std::future::poll_fn;
use std::task::{Context, Poll};

/// Has the task polled once more, after all others that can run now.
///
/// What is sent then is sent by all tasks of a turn together: its receivers find several messages when they wake rather
/// than one each time, and the kernel goes the same way again and again. Unlike `tokio::task::yield_now` it does not have
/// the event loop ask the kernel for news in between.
pub(crate) fn again_at_its_end(cx: &Context<'_>) {
    cx.waker().wake_by_ref();
}

/// Waits until all others that can run now have run.
pub(crate) async fn its_end() {
    let mut come = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut come, true) {
            return Poll::Ready(());
        }
        again_at_its_end(cx);
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    #[tokio::test]
    async fn others_go_first() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let task = |name: &'static str, waits: bool| {
            let order = Rc::clone(&order);
            async move {
                if waits {
                    super::its_end().await;
                }
                order.borrow_mut().push(name);
            }
        };
        LocalSet::new()
            .run_until(async {
                let tasks = [("a", true), ("b", false), ("c", true)]
                    .map(|(name, waits)| spawn_local(task(name, waits)));
                futures_util::future::join_all(tasks).await;
            })
            .await;
        assert_eq!(*order.borrow(), ["b", "a", "c"]);
    }
}
